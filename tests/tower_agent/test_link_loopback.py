"""The link with the real dialer and the real host's side, over a relay that breaks; both event loops.

Covered: back within two seconds of a cut and of a port that was closed, a link that freezes
while several dials are under way, removal and re-join, that one tunnel is left and nothing else.
"""

import asyncio
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from shared.errors import Code
from shared.mux.session import Session
from shared.mux.stream import Stream
from shared.tunnel.connection import TunnelConnection
from shared.tunnel.tasks import TaskSet
from shared.wire.hello import Hello
from tests.fakes.faults import FaultyRelay
from tests.fakes.host_side import HostSide, Sink, until
from tests.fakes.tunnel_pair import both_loops
from tower_agent.dialer import Dialer
from tower_agent.dispatch import Dispatcher
from tower_agent.link import Link, LinkEnded
from tower_agent.raw import RawTargets

# The number.
BACK_SECONDS = 2.0


class AgentEnd:
    """A link with everything that it hangs on; its sealed streams end in Sinks."""

    def __init__(self) -> None:
        self.connected_at: list[float] = []
        self.sinks: list[Sink] = []
        self.link = Link(self._dial, self._connected, random.Random(1))
        self.tasks = TaskSet("test agent")
        self.dispatcher = Dispatcher(
            RawTargets({}, self.tasks),
            self._open_sealed,
            self._open_sealed,  # nothing here opens the gateway's
            self.link.tunnel_ready,
            self.link.tunnel_lost,
            self.link.going_away,
        )
        self.dialer: Dialer

    async def _dial(
        self, resume: Session | None, reached: Callable[[], None]
    ) -> TunnelConnection:
        return await self.dialer.dial(resume, reached)

    def _connected(self, connection: TunnelConnection, hello: Hello) -> None:
        self.connected_at.append(time.monotonic())

    def _open_sealed(self, stream: Stream) -> None:
        self.sinks.append(Sink(stream))


@dataclasses.dataclass
class Site:
    host: HostSide
    relay: FaultyRelay
    agent: AgentEnd
    running: asyncio.Task[None]

    @property
    def sessions(self) -> int:
        return len(list(self.host.registry.sessions()))

    async def works(self) -> None:
        """The server reaches the agent: a stream that it opens arrives there."""
        session = self.host.registry.pick("alpha")  # type: ignore[arg-type]
        assert session is not None
        before = len(self.agent.sinks)
        stream = session.connection.session.open_stream("sealed")
        sink = Sink(stream)
        await until(lambda: len(self.agent.sinks) > before)
        self.agent.sinks[-1].stream.reset(Code.OK, "the test saw it")
        await until(lambda: sink.ends)


@asynccontextmanager
async def connected_site(resume_seconds: float = 0.0) -> AsyncIterator[Site]:
    with FaultyRelay(("127.0.0.1", 1)) as relay:
        async with HostSide(resume_seconds=resume_seconds) as host:
            relay.target = ("127.0.0.1", host.port)
            agent = AgentEnd()
            joined = dataclasses.replace(await host.join(), server_port=relay.port)
            agent.dialer = Dialer(joined, agent.dispatcher, environ={})
            running = asyncio.ensure_future(agent.link.run())
            site = Site(host, relay, agent, running)
            try:
                await until(lambda: agent.connected_at)
                yield site
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError, LinkEnded):
                    await running
                relay.thaw()
                await agent.link.close("the test is over", 2.0)
                await agent.tasks.close()
                assert not agent.link._tunnels and not agent.link._arriving


async def back(site: Site, since: float, connects: int) -> None:
    await until(lambda: len(site.agent.connected_at) >= connects)
    assert site.agent.connected_at[connects - 1] - since < BACK_SECONDS
    await site.works()


@both_loops
async def test_the_agent_is_back_soon_after_every_cut() -> None:
    async with connected_site() as site:
        await site.works()
        for connects in (2, 3, 4):
            cut_at = time.monotonic()
            site.relay.cut()
            await back(site, cut_at, connects)
        await until(lambda: site.sessions == 1)


@both_loops
async def test_the_agent_is_back_soon_after_the_port_opens_again() -> None:
    async with connected_site() as site:
        site.relay.refuse()
        await until(lambda: site.sessions == 0)
        await until(lambda: site.agent.link._failures._logged_at)
        open_at = time.monotonic()
        site.relay.accept()
        await back(site, open_at, 2)


@both_loops
async def test_a_link_that_freezes_while_dialling_leaves_one_tunnel_in_the_end() -> (
    None
):
    """Several dials hang in TLS; when packets flow again, all may get through."""
    async with connected_site() as site:
        accepted = site.relay.connections_accepted
        site.relay.freeze()
        assert site.agent.link.current is not None
        site.agent.link.current.abort("the test cuts it")
        await until(lambda: site.relay.connections_accepted >= accepted + 2)
        site.relay.thaw()
        thawed_at = time.monotonic()
        await until(lambda: len(site.agent.connected_at) >= 2)
        assert site.agent.connected_at[1] - thawed_at < BACK_SECONDS
        await until(lambda: not site.agent.link._under_way and site.sessions == 1)
        await site.works()


@both_loops
async def test_a_server_that_sends_its_agents_away_sees_them_again() -> None:
    async with connected_site() as site:
        sent_at = time.monotonic()
        await site.host.registry.cut("alpha", Code.GOING_AWAY, "restart")  # type: ignore[arg-type]
        await back(site, sent_at, 2)


@both_loops
async def test_a_removed_cluster_ends_the_link_with_the_remedy() -> None:
    async with connected_site() as site:
        await site.host.remove("alpha")
        with pytest.raises(LinkEnded, match="`tower token create alpha`"):
            async with asyncio.timeout(5):
                await site.running


@both_loops
async def test_an_agent_that_another_has_replaced_ends_with_the_reason() -> None:
    async with connected_site() as site:
        newer = await site.host.join()
        cluster = await site.host.store.get_cluster(newer.cluster)
        assert cluster is not None
        site.host.listener.end_replaced(newer.cluster, cluster.agent_key_pin or "")
        with pytest.raises(LinkEnded, match="joined again"):
            async with asyncio.timeout(5):
                await site.running
