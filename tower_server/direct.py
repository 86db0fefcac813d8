"""All members with a direct connection: takes them in, keeps them served, lets them go.

Whoever keeps their records (the store, a controller of the resource `Cluster`) says `apply` for each
that is there or has changed, and `end` for each that is gone; both may be repeated. Before a kubeconfig
is recorded, `check` asks the member who it is, and whether we have the rights that we need there.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from certs.authority import Authority
from certs.names import ClusterName
from shared.errors import Code
from shared.http.apiserver import from_parsed
from shared.http.kubeconfig import BadKubeconfig, parse_kubeconfig
from shared.http.relay import AnswerCounts
from shared.http.status import Speaker
from shared.http.upstream import UpstreamPool
from shared.member.client import MemberClient
from shared.member.preflight import Asker, MemberFacts, check_member
from shared.mux.budget import WindowBudget
from shared.mux.stream import Stream
from shared.tunnel.drain import drain_tunnels
from shared.tunnel.tasks import TaskSet
from tower_server.direct_cluster import DirectCluster, Reached
from tower_server.membership import DirectMember
from tower_server.registry import Registry
from tower_server.serving import new_serving_certificate

__all__ = ["DirectConnections"]

_log = logging.getLogger(__name__)

# Members that are asked how they are at the same time. Each takes milliseconds, or two seconds
# where nobody answers; so many that do not answer would still leave room for others.
MAX_LOOKS_AT_ONCE = 256

# So much time for each member's first handshake and three of our signatures, where many begin
# together; and at most a little more than one round of looks.
SPREAD_SECONDS = 0.01
MAX_SPREAD_SECONDS = 4.0

# How often certificates are looked at that we serve with (they are due 10 days before their end),
# and members tried again whose kubeconfig could not be read.
MAINTENANCE_SECONDS = 30.0

ASKER = Asker(
    lacks_rights="The user in the kubeconfig lacks rights in the member",
    credential="the credential in the kubeconfig",
    kubeconfig="the kubeconfig",
    renewal="get a new one from whoever runs that cluster",
    rights="have the member's admin grant them to that user, or name others that it may act as "
    "with --allow-user and --allow-group",
)


def _speaker(cluster: ClusterName) -> Speaker:
    return Speaker(
        name="the server",
        credential="the credential in the kubeconfig that the server has",
        renewal=f"give it another one with `tower cluster set-kubeconfig {cluster}`",
        right_to_review="the kubeconfig's user needs create on subjectaccessreviews",
        allowing=f"an admin can allow it with `tower cluster set-kubeconfig {cluster}` and",
    )


class DirectConnections:
    """The members that are served in this process."""

    def __init__(
        self,
        registry: Registry,
        authority: Authority,
        stream_accepted: Callable[[Stream], None],
        *,
        clock: Callable[[], datetime],
        may_name_files: bool,
        budget: WindowBudget | None = None,
    ) -> None:
        """Prepare; the first `apply` begins.

        Args:
            stream_accepted: Is told when the caller of a stream is authenticated.
            clock: The time, with a time zone.
            may_name_files: Whether a kubeconfig may name files of this machine. Not where others
                than its admins can write kubeconfigs.
        """
        self._registry = registry
        self._authority = authority
        self._stream_accepted = stream_accepted
        self._clock = clock
        self._directory = Path("/") if may_name_files else None
        self._budget = budget
        self._clusters: dict[ClusterName, DirectCluster] = {}
        # Their `run`s, until they are ended.
        self._running: dict[ClusterName, asyncio.Task[None]] = {}
        # Those whose kubeconfig cannot be read, to be tried again.
        self._unread: dict[ClusterName, DirectMember] = {}
        self._places = asyncio.Semaphore(MAX_LOOKS_AT_ONCE)
        self._randomness = random.SystemRandom()
        self._tasks = TaskSet("direct connections")
        self._maintenance: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._clusters)

    def answers(self) -> dict[str, AnswerCounts]:
        """What requests to each member were answered with so far, as it is now."""
        return {
            name: cluster.answers.copy() for name, cluster in self._clusters.items()
        }

    # What others say

    def apply(self, member: DirectMember) -> None:
        """Serve a member from now on, or go on by what it is reached by now. Repeating is harmless.

        Raises:
            BadKubeconfig: If its kubeconfig cannot be used. One that was served before goes on
                by what it had; all are tried again from time to time.
        """
        name = member.cluster
        if self._maintenance is None:
            self._maintenance = self._tasks.start(self._maintain(), "maintenance")
        self._registry.know(name, member.member_uid)
        self._unread.pop(name, None)
        try:
            reached = self._read(member)
        except BadKubeconfig:
            self._unread[name] = member
            raise
        cluster = self._clusters.get(name)
        if cluster is None:
            self._begin(reached)
        elif cluster.member != member:
            cluster.update(reached)
            _log.info("%s: another kubeconfig or allow-list", name)

    def apply_all(self, members: Iterable[DirectMember]) -> None:
        """`apply` each; what cannot be read is logged, and tried again."""
        for member in members:
            try:
                self.apply(member)
            except BadKubeconfig as error:
                _log.error("%s: cannot be served: %s", member.cluster, error)

    def end(self, name: ClusterName, code: Code, reason: str) -> None:
        """Serve a member no longer: its streams end at once. Harmless for one that is not here."""
        self._unread.pop(name, None)
        cluster = self._clusters.pop(name, None)
        running = self._running.pop(name, None)
        if cluster is not None and running is not None:
            running.cancel()
            cluster.tunnel.close(code, reason)
            self._tasks.start(cluster.close(code, reason), f"end of {name}")

    async def check(self, member: DirectMember) -> MemberFacts:
        """Ask a member who it is, and whether its kubeconfig is good for what we do.

        Only its name, kubeconfig and what is allowed are looked at.

        Raises:
            BadKubeconfig: If its kubeconfig cannot be used.
            PreflightFailed: If the apiserver does not answer, or rights are missing.
        """
        reached = self._read(member)
        pool = UpstreamPool(reached.apiserver, loop=asyncio.get_running_loop())
        try:
            return await check_member(
                MemberClient(pool),
                apiserver=str(reached.apiserver),
                allow_users=member.allow_users,
                allow_groups=member.allow_groups,
                asker=ASKER,
            )
        finally:
            await pool.close()

    # The end

    async def drain(self, reason: str, seconds: float) -> None:
        """Take no new streams, and let those that run end within so many seconds."""
        tunnels = [cluster.tunnel for cluster in self._clusters.values()]
        cut_off = await drain_tunnels(lambda: tunnels, reason, seconds)
        if cut_off:
            _log.warning("%d direct streams were cut off", cut_off)

    async def close(self, reason: str) -> None:
        """End all members and wait for it."""
        clusters = list(self._clusters.values())
        self._clusters.clear()
        self._running.clear()
        await self._tasks.close()
        for cluster in clusters:
            await cluster.close(Code.GOING_AWAY, reason)

    # Inside

    def _begin(self, reached: Reached) -> None:
        name = reached.member.cluster
        cluster = DirectCluster(
            reached,
            new_serving_certificate(self._authority, name, self._clock()),
            self._registry,
            self._read,
            self._stream_accepted,
            budget=self._budget,
        )
        self._clusters[name] = cluster
        # Of a thousand that begin together, each with a handshake.
        spread = min(len(self._clusters) * SPREAD_SECONDS, MAX_SPREAD_SECONDS)
        after = self._randomness.uniform(0, spread) if len(self._clusters) > 1 else 0.0
        self._running[name] = self._tasks.start(
            cluster.run(self._places, self._randomness, after_seconds=after), str(name)
        )

    def _read(self, member: DirectMember) -> Reached:
        source = f"the kubeconfig of {member.cluster}"
        kubeconfig = parse_kubeconfig(
            bytes(member.kubeconfig), source=source, directory=self._directory
        )
        is_secure = kubeconfig.is_tls and kubeconfig.is_verified
        if not is_secure and not member.is_insecure_allowed:
            how = (
                "does not want the apiserver's certificate verified"
                if kubeconfig.is_tls
                else "speaks plain HTTP"
            )
            raise BadKubeconfig(
                f"{source} {how}, so that anybody on the way could take the credential in it; put "
                "the cluster's CA into it, or accept that with --insecure"
            )
        apiserver = from_parsed(
            kubeconfig,
            source=source,
            monotonic=asyncio.get_running_loop().time,
            speaker=_speaker(member.cluster),
        )
        return Reached(member=member, apiserver=apiserver, files=kubeconfig.files)

    async def _maintain(self) -> None:
        while True:
            await asyncio.sleep(MAINTENANCE_SECONDS)
            self.maintain(self._clock())

    def maintain(self, now: datetime) -> None:
        """Renew certificates that are due, and try again what could not be read."""
        for name, cluster in self._clusters.items():
            if now >= cluster.certificate.renewal_due_at:
                cluster.renew(new_serving_certificate(self._authority, name, now))
        for member in list(self._unread.values()):
            try:
                self.apply(member)
            except BadKubeconfig as error:
                _log.debug("%s: still cannot be served: %s", member.cluster, error)
