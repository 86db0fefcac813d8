"""One member with a direct connection: its faces in this process, and whether it is reached.

What an agent does in the member is done here, with the member's own kubeconfig: the same sealed end,
the same identity rules, the same pool. The session that leads to it has both ends in this process
(`shared.tunnel.local`), so that nobody who opens streams has to know.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from certs.assertion import AgentIdentity
from shared.errors import Code
from shared.http.apiserver import ApiServer
from shared.http.identity import Policy
from shared.http.kubeconfig import BadKubeconfig
from shared.http.relay import AnswerCounts
from shared.http.status import Refusal
from shared.http.upstream import UpstreamPool
from shared.member.client import MemberClient
from shared.member.expiry import credential_expires_at
from shared.member.gateway import GATEWAY_TARGET, GatewayFace
from shared.member.report import MemberProbe, MemberReport
from shared.member.sealed import SealedFace
from shared.mux.budget import WindowBudget
from shared.mux.stream import Stream
from shared.tunnel.local import LocalTunnel
from tower_server.membership import DirectMember
from tower_server.reachability import Reachability
from tower_server.registry import LiveSession, Registry
from tower_server.serving import ServingCertificate

__all__ = ["DirectCluster", "Reached"]

_log = logging.getLogger(__name__)

# A part of each pause, more or less, so that a thousand members are not asked in one breath.
JITTER = 0.1

# That the apiserver is still the same member's is looked at when it comes back, and this often:
# an address can be given to another cluster.
CHECK_UID_EVERY_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Reached:
    """By what a member is reached: its record, read."""

    member: DirectMember
    apiserver: ApiServer
    # What was read for it, and may be renewed by somebody.
    files: tuple[Path, ...]

    @property
    def policy(self) -> Policy:
        return Policy(
            users=self.member.allow_users,
            groups=self.member.allow_groups,
            speaker=self.apiserver.speaker,
        )


class DirectCluster:
    """Serves one member until it is closed; `run` looks after it meanwhile."""

    def __init__(
        self,
        reached: Reached,
        certificate: ServingCertificate,
        registry: Registry,
        read: Callable[[DirectMember], Reached],
        stream_accepted: Callable[[Stream], None],
        *,
        budget: WindowBudget | None = None,
    ) -> None:
        """Begin to serve.

        Args:
            certificate: Of the member's name in the zone.
            read: Reads its kubeconfig again, when the files that it names have changed.
            stream_accepted: Is told when the caller of a stream is authenticated.
        """
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._registry = registry
        self._read = read
        self._reached = reached
        # As they were when they were read.
        self._versions = _versions(reached.files)
        self.certificate = certificate
        self._pool = UpstreamPool(reached.apiserver, loop=loop)
        self._face = SealedFace(
            certificate.context,
            cluster=reached.member.cluster,
            zone=certificate.zone,
            policy=reached.policy,
            pool=self._pool,
        )
        self._gateway = GatewayFace(
            self._face,
            cluster=reached.member.cluster,
            zone=certificate.zone,
            context=None,  # the server is us
        )
        self._request = MemberClient(self._pool)
        self._probe = MemberProbe(
            self._request,
            speaker=reached.apiserver.speaker,
            expires_at=lambda: credential_expires_at(self._pool.apiserver),
            clock=time.monotonic,  # finer than the loop's, for the round trip
        )
        self._reachability = Reachability()
        self._check_uid_at = 0.0
        # Set when there is news: `run` looks at once.
        self._news = asyncio.Event()
        self.tunnel = LocalTunnel(self._open, stream_accepted, budget=budget)
        self._live = LiveSession(
            AgentIdentity(
                cluster=reached.member.cluster,
                serial=certificate.serial,
                public_key_pin=certificate.key_pin,
                not_after=certificate.not_after,
            ),
            self.tunnel,
            self.tunnel.session.hello,
        )
        # Not before it has answered.
        self._live.reaches_member = False
        registry.add(self._live)

    @property
    def member(self) -> DirectMember:
        return self._reached.member

    @property
    def answers(self) -> AnswerCounts:
        """What its requests were answered with so far."""
        return self._face.answers

    def update(self, reached: Reached) -> None:
        """Go on by another kubeconfig or with another allow-list; what runs is not cut off."""
        self._reached = reached
        self._versions = _versions(reached.files)
        self._face.renew(reached.apiserver)
        self._face.allow(reached.policy)
        self._check_uid_at = 0.0
        self._news.set()

    def renew(self, certificate: ServingCertificate) -> None:
        """Show new connections another certificate."""
        self.certificate = certificate
        self._face.context = certificate.context

    async def close(self, code: Code, reason: str) -> None:
        """End everything. `run` has to be over."""
        self._registry.remove(self._live)
        self._face.close(reason)
        self.tunnel.close(code, reason)
        await self._pool.close()

    # Looking after it

    async def run(
        self,
        places: asyncio.Semaphore,
        randomness: random.Random,
        *,
        after_seconds: float = 0.0,
    ) -> None:
        """Ask the member how it is, again and again, until cancelled; `places` bounds how many do."""
        await asyncio.sleep(after_seconds)
        while True:
            self._news.clear()
            self._reread()
            async with places:
                report = await self._look()
            self._take_in(report)
            pause = self._reachability.pause_seconds
            pause *= 1 + randomness.uniform(-JITTER, JITTER)
            try:
                async with asyncio.timeout(pause):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _look(self) -> MemberReport:
        is_warm = self._pool.idle_connections > 0
        report = await self._probe.ask()
        if is_warm and report.apiserver_error is None:
            # On a fresh connection the time would be that of a handshake.
            self._live.member_rtt_seconds = self._probe.answered_in_seconds
        if report.apiserver_error is None and self._loop.time() >= self._check_uid_at:
            other = await self._other_uid()
            self._face.refuse(None if other is None else _another(self.member, other))
            if other is None:
                self._check_uid_at = self._loop.time() + CHECK_UID_EVERY_SECONDS
            else:
                report = replace(
                    report, apiserver_error=_another(self.member, other).message
                )
        return report

    async def _other_uid(self) -> str | None:
        """The UID of the cluster that answers, if it is another than it should be."""
        try:
            answer = await self._request("GET", "/api/v1/namespaces/kube-system")
        except OSError:
            return None  # the next look will tell
        uid = (answer.body.get("metadata") or {}).get("uid")
        if not isinstance(uid, str) or uid == self.member.member_uid:
            return None
        return uid

    def _take_in(self, report: MemberReport) -> None:
        name = self.member.cluster
        works = report.apiserver_error is None
        changed = self._reachability.saw(works=works)
        is_reached = bool(self._reachability.is_reached)
        if works or not is_reached:
            self._live.report = report
        if changed:
            self._registry.reach(self._live, reaches=is_reached)
            if is_reached:
                _log.info("%s: reached directly, %s", name, report.apiserver_version)
            else:
                self._check_uid_at = 0.0
                _log.warning("%s: not reached: %s", name, report.apiserver_error)

    def _reread(self) -> None:
        """Somebody may have renewed the files that the kubeconfig names."""
        versions = _versions(self._reached.files)
        if versions == self._versions:
            return
        self._versions = versions
        try:
            self.update(self._read(self.member))
        except BadKubeconfig as error:
            # Perhaps caught in the middle of being written: the next look tells.
            _log.warning("%s: going on as before: %s", self.member.cluster, error)
            return
        _log.info("%s: read its renewed certificates", self.member.cluster)

    # The far end of the session

    def _open(self, stream: Stream) -> None:
        if stream.target == "sealed":
            self._face.open(stream)
        elif stream.target == GATEWAY_TARGET:
            self._gateway.open(stream)
        else:
            stream.reset(
                Code.REFUSED,
                "a direct connection leads to the apiserver and nowhere else",
            )


def _another(member: DirectMember, uid: str) -> Refusal:
    return Refusal(
        code=502,
        message=f"the apiserver is that of another cluster than {member.cluster!r} (UID {uid}, "
        f"not {member.member_uid}); give the server a kubeconfig of {member.cluster!r} with "
        f"`tower cluster set-kubeconfig {member.cluster}`",
    )


def _versions(files: tuple[Path, ...]) -> tuple[object, ...]:
    """What changes when somebody writes to a file, or puts another in its place."""
    versions: list[object] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            versions.append(None)
        else:
            versions.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(versions)
