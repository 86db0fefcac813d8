"""Which of several servers writes: whoever holds a Lease of the host. The others only read.

The holder renews it every two seconds; another takes it when it saw no renewal for eight, by its
own monotonic clock: wall clocks are never compared. A server that stops gives it back, and one that
comes back under the same name takes it over at once. Two writers for a moment do no harm, as all
they write is either a compare-and-swap or the same status; the lease is what keeps them from
writing turn by turn.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tower_server.kube.client import KubeClient
from tower_server.kube.errors import Conflict, KubeError, NotFound, Rejected
from tower_server.kube.resources import LEASES, Object

__all__ = ["Lease", "Observation"]

_log = logging.getLogger(__name__)

RENEW_SECONDS = 2.0
# Four missed renewals. Short, because status is late by this when a server dies without a word.
EXPIRE_SECONDS = 8.0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What we saw of the lease, and since when it is as it is (monotonic seconds). Pure."""

    holder: str
    renewed: str
    since: float

    def updated(self, item: Object, now: float) -> "Observation":
        """Take another look: anything that changed is a sign of life of its holder."""
        spec = item.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        renewed = spec.get("renewTime") or ""
        if (holder, renewed) == (self.holder, self.renewed):
            return self
        return Observation(holder=holder, renewed=renewed, since=now)

    def may_take(self, identity: str, now: float) -> bool:
        """Whether it is ours, nobody's, or of somebody who does not renew it any more."""
        return self.holder in ("", identity) or now - self.since >= EXPIRE_SECONDS


class Lease:
    """Tries to get and keep a lease. Run `run` in a task."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        on_change: Callable[[bool], None],
    ) -> None:
        """Make one that tells `on_change` whether we hold it, whenever that changes."""
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._on_change = on_change
        self._seen = Observation(holder="?", renewed="", since=float("inf"))
        self.held = False
        # When it was last written by us (monotonic).
        self._renewed_at = 0.0
        # Somebody has been told that we may not.
        self._is_refused = False

    async def run(self) -> None:
        """Get it and keep it until cancelled; then give it back."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    self._set(await self._try(loop.time()))
                    self._is_refused = False
                except KubeError as error:
                    self._note(error)
                    # Others may take it from now on.
                    if loop.time() - self._renewed_at >= EXPIRE_SECONDS:
                        self._set(False)
                await asyncio.sleep(RENEW_SECONDS)
        finally:
            await self._release()

    async def _try(self, now: float) -> bool:
        try:
            item = await self._client.get(LEASES, self._namespace, self._name)
        except NotFound:
            item = LEASES.object(self._namespace, self._name)
        self._seen = self._seen.updated(item, now)
        if not self._seen.may_take(self._identity, now):
            return False
        item["spec"] = self._spec(self._identity, item.get("spec") or {})
        try:
            item = await self._write(item)
        except Conflict:
            return False  # somebody was faster
        self._seen = self._seen.updated(item, now)
        self._renewed_at = now
        return True

    async def _write(self, item: Object) -> Object:
        if "resourceVersion" in item["metadata"]:
            return await self._client.replace(LEASES, item)
        return await self._client.create(LEASES, item)

    def _spec(self, holder: str, before: Object) -> Object:
        # For people only; see Observation.
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_new = before.get("holderIdentity") != holder
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": int(EXPIRE_SECONDS),
            "acquireTime": moment if is_new else before.get("acquireTime", moment),
            "renewTime": moment,
            "leaseTransitions": int(before.get("leaseTransitions", 0)) + is_new,
        }

    def _set(self, held: bool) -> None:
        if held != self.held:
            self.held = held
            what = "holds" if held else "does not hold"
            _log.info("this server %s the lease %s now", what, self._name)
            self._on_change(held)

    def _note(self, error: KubeError) -> None:
        # That the apiserver is away is said by who watches; this would never end by itself.
        is_news = isinstance(error, Rejected) and not self._is_refused
        self._is_refused = self._is_refused or is_news
        level = logging.WARNING if is_news else logging.DEBUG
        _log.log(level, "the lease %s cannot be held: %s", self._name, error)

    async def _release(self) -> None:
        if not self.held:
            return
        self.held = False
        try:
            async with asyncio.timeout(RENEW_SECONDS):
                item = await self._client.get(LEASES, self._namespace, self._name)
                if item["spec"].get("holderIdentity") == self._identity:
                    item["spec"]["holderIdentity"] = ""
                    await self._client.replace(LEASES, item)
        except (KubeError, TimeoutError) as error:
            _log.debug("the lease was not given back: %s", error)
