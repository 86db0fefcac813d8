"""A copy of some objects of the host that stays current: list, then watch, for ever.

While the apiserver is away the copy stays as it was and everybody goes on with it. What we write
ourselves goes into the copy at once (`remember`, `forget`), so that nobody waits for the watch to
say it; an older event that comes later does not undo it.

Level-triggered: a listener is told the name of what changed, never what happened to it.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Generic, TypeVar

from tower_server.kube.client import KubeClient
from tower_server.kube.errors import Expired, KubeError, NotFound
from tower_server.kube.resources import Object, Resource, name_of, revision_of

__all__ = ["Informer"]

_log = logging.getLogger(__name__)

_Kept = TypeVar("_Kept")

# Between two attempts at an apiserver that is away; jittered by half. Short at its end, so that
# all is current within seconds of its return.
FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 3.0


class Informer(Generic[_Kept]):
    """Keeps of each object what `keep` makes of it, by name. Run `run` in a task."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        namespace: str | None,
        keep: Callable[[Object], _Kept | None],
        *,
        randomness: random.Random | None = None,
        **selectors: str,
    ) -> None:
        """Make one for a kind of object in a namespace (None for cluster-scoped ones).

        Args:
            keep: Gets each object and returns what is kept of it, None for nothing. Pure.
            selectors: `labelSelector` and `fieldSelector`.
        """
        self._client = client
        self._resource = resource
        self._namespace = namespace
        self._keep = keep
        self._selectors = selectors
        self._random = randomness or random.Random()
        self._kept: dict[str, tuple[int, _Kept]] = {}
        # What we deleted ourselves, at which revision: events up to it are of the past.
        self._forgotten: dict[str, int] = {}
        self._listeners: list[Callable[[str], None]] = []
        # Set once the first list is here.
        self.synced = asyncio.Event()
        # Why it is not current; None while it is.
        self.trouble: KubeError | None = None

    # The copy

    def get(self, name: str) -> _Kept | None:
        """What is kept of an object; None for none."""
        kept = self._kept.get(name)
        return kept[1] if kept is not None else None

    def all(self) -> list[_Kept]:
        """What is kept of all objects, in no order."""
        return [kept for _, kept in self._kept.values()]

    def names(self) -> list[str]:
        return list(self._kept)

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call this with the name of each object that changes from now on."""
        self._listeners.append(listener)

    def remember(self, item: Object) -> None:
        """Take in an object as the apiserver has just answered it."""
        name, revision = name_of(item), revision_of(item)
        known = self._kept.get(name)
        if known is not None and known[0] >= revision:
            return
        if self._forgotten.get(name, -1) >= revision:
            return
        self._forgotten.pop(name, None)
        kept = self._keep(item)
        if kept is None:
            self._kept.pop(name, None)
        else:
            self._kept[name] = (revision, kept)
        if kept is not None or known is not None:
            self._tell(name)

    def forget(self, name: str, revision: int) -> None:
        """Take note of a deletion, of the object as it was at this revision."""
        known = self._kept.get(name)
        if known is not None and known[0] <= revision:
            del self._kept[name]
            self._forgotten[name] = revision
            self._tell(name)

    # The loop

    async def run(self) -> None:
        """Stay current until cancelled. Trouble is logged once, and so is its end."""
        pause = FIRST_PAUSE_SECONDS
        since: str | None = None
        while True:
            try:
                if since is None:
                    since = await self._list()
                pause = FIRST_PAUSE_SECONDS
                since = await self._watch(since)
                # It ended in order, as every few minutes. Were that at once, each time, this
                # must not become a busy loop; nothing is missed meanwhile.
                await asyncio.sleep(pause)
            except Expired:
                since = None
                await asyncio.sleep(pause)
            except KubeError as error:
                self._note(error)
                await asyncio.sleep(pause * self._random.uniform(0.5, 1.5))
                pause = min(pause * 2, LAST_PAUSE_SECONDS)

    async def _list(self) -> str:
        items, since = await self._client.list(
            self._resource, self._namespace, **self._selectors
        )
        self._note(None)
        gone = self._kept.keys() - {name_of(item) for item in items}
        for item in items:
            self.remember(item)
        for name in gone:
            self._drop(name, int(since))
        self._forgotten.clear()
        self.synced.set()
        return since

    async def _watch(self, since: str) -> str:
        """Follow one watch to its end; returns from where to go on."""
        events = self._client.watch(
            self._resource, self._namespace, since, **self._selectors
        )
        try:
            async for kind, item in events:
                self._note(None)
                since = str(item["metadata"]["resourceVersion"])
                if kind == "DELETED":
                    self._drop(name_of(item), int(since))
                elif kind != "BOOKMARK":
                    self.remember(item)
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        return since

    def _drop(self, name: str, revision: int) -> None:
        known = self._kept.get(name)
        self._forgotten.pop(name, None)
        if known is not None and known[0] <= revision:
            del self._kept[name]
            self._tell(name)

    def _tell(self, name: str) -> None:
        for listener in self._listeners:
            listener(name)

    def _note(self, error: KubeError | None) -> None:
        if error is not None and self.trouble is None:
            hint = (
                f" (are the CRDs of the chart installed? `kubectl get {self._resource}`)"
                if isinstance(error, NotFound)
                else ""
            )
            _log.warning(
                "the host's %s cannot be watched now%s: %s",
                *(self._resource, hint, error),
            )
        elif error is None and self.trouble is not None:
            _log.info("the host's %s are watched again", self._resource)
        self.trouble = error
