"""Several tunnels of one agent, over real sockets, each through a relay of its own.

Covered: streams are spread, a tunnel that is cut costs no new stream and goes on with those that
it has, a newer agent process gets all new streams, a restarted one ends all that it has forgotten.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from shared.mux.stream import Stream
from tests.fakes.faults import FaultyRelay
from tests.fakes.host_side import HostSide, Sink, until
from tests.fakes.tunnel_pair import both_loops
from tests.tower_agent.test_link_loopback import AgentEnd
from tower_agent.credentials import Credentials
from tower_agent.dialer import Dialer
from tower_agent.link import LinkEnded

TUNNELS = 3


class Agent:
    """The links of one agent process, and their relays."""

    def __init__(self) -> None:
        self.ends: list[AgentEnd] = []
        self.relays: list[FaultyRelay] = []

    def streams(self) -> list[int]:
        """How many streams have come, by tunnel."""
        return [len(end.sinks) for end in self.ends]

    @property
    def connects(self) -> list[int]:
        return [len(end.connected_at) for end in self.ends]


@asynccontextmanager
async def agent_process(
    host: HostSide, joined: Credentials, *, place: str, instance: str
) -> AsyncIterator[Agent]:
    """An agent with all its tunnels up."""
    agent = Agent()
    async with AsyncExitStack() as stack:
        for _ in range(TUNNELS):
            relay = stack.enter_context(FaultyRelay(("127.0.0.1", host.port)))
            end = AgentEnd()
            through = dataclasses.replace(joined, server_port=relay.port)
            end.dialer = Dialer(
                through, end.dispatcher, environ={}, place=place, instance=instance
            )
            agent.ends.append(end)
            agent.relays.append(relay)
            running = asyncio.ensure_future(end.link.run())
            stack.push_async_callback(_stop, end, running)
        await until(lambda: all(agent.connects))
        yield agent


async def _stop(end: AgentEnd, running: "asyncio.Task[None]") -> None:
    running.cancel()
    with suppress(asyncio.CancelledError, LinkEnded):
        await running
    await end.link.close("the test is over", 2.0)
    await end.tasks.close()


def open_stream(host: HostSide) -> Stream:
    session = host.registry.pick("alpha")  # type: ignore[arg-type]
    assert session is not None
    return session.connection.session.open_stream("sealed")


@both_loops
async def test_streams_are_spread_and_a_lost_tunnel_costs_nothing() -> None:
    async with HostSide(resume_seconds=60) as host:
        joined = await host.join()
        async with agent_process(host, joined, place="here", instance="one") as agent:
            await until(lambda: len(list(host.registry.sessions())) == TUNNELS)
            sinks = [Sink(open_stream(host)) for _ in range(2 * TUNNELS)]
            await until(lambda: agent.streams() == [2] * TUNNELS)
            agent.relays[0].refuse()
            await until(lambda: len(list(host.registry.sessions())) == TUNNELS - 1)
            assert len(host.parking) == 1
            # New ones at once, on the others.
            more = [Sink(open_stream(host)) for _ in range(TUNNELS - 1)]
            await until(lambda: agent.streams() == [2] + [3] * (TUNNELS - 1))
            # The lost tunnel's own streams go on when it is back.
            for sink in agent.ends[0].sinks:
                sink.stream.write(b"meanwhile")
            agent.relays[0].accept()
            await until(lambda: sum(s.received == b"meanwhile" for s in sinks) == 2)
            assert not any(sink.ends for sink in [*sinks, *more])
            assert agent.connects == [2] + [1] * (TUNNELS - 1)
            # And it has its share again.
            sinks.append(Sink(open_stream(host)))
            await until(lambda: agent.streams() == [3] * TUNNELS)


@both_loops
async def test_a_newer_process_gets_all_new_streams_until_it_is_gone() -> None:
    async with HostSide(resume_seconds=60) as host:
        joined = await host.join()
        async with agent_process(host, joined, place="old", instance="one") as old:
            running = Sink(open_stream(host))
            async with agent_process(host, joined, place="new", instance="two") as new:
                await until(lambda: len(list(host.registry.sessions())) == 2 * TUNNELS)
                for _ in range(TUNNELS):
                    Sink(open_stream(host))
                await until(lambda: new.streams() == [1] * TUNNELS)
                assert sum(old.streams()) == 1 and not running.ends
                status = host.registry.status(joined.cluster)
                assert status is not None
                assert [t.state for t in status.tunnels] == (
                    ["standby"] * TUNNELS + ["active"] * TUNNELS
                )
            await until(lambda: len(list(host.registry.sessions())) == TUNNELS)
            Sink(open_stream(host))
            await until(lambda: sum(old.streams()) == 2)
            assert not running.ends


@both_loops
async def test_a_process_that_comes_again_ends_what_the_one_before_it_had() -> None:
    async with HostSide(resume_seconds=60) as host:
        joined = await host.join()
        async with agent_process(host, joined, place="here", instance="one") as old:
            sinks = [Sink(open_stream(host)) for _ in range(TUNNELS)]
            await until(lambda: old.streams() == [1] * TUNNELS)
            for end in old.ends:  # killed: it knows nothing and does not come back
                end.link._kept.keep = lambda session: None  # type: ignore[method-assign]
                end.link._dial_next = asyncio.Event().wait  # type: ignore[method-assign,assignment]
            for relay in old.relays[:2]:
                relay.cut()
            await until(lambda: len(host.parking) == 2)
            async with agent_process(host, joined, place="here", instance="two"):
                await until(lambda: all(sink.ends for sink in sinks))
                reasons = {str(sink.ends[0]) for sink in sinks}
                assert reasons == {"the agent was restarted (session_lost)"}
                await until(lambda: len(list(host.registry.sessions())) == TUNNELS)
                assert not len(host.parking)


@both_loops
async def test_a_process_that_drains_in_the_same_place_keeps_its_streams() -> None:
    """A restart that overlaps: the old one is not dead, it said GOAWAY."""
    async with HostSide(resume_seconds=60) as host:
        joined = await host.join()
        async with agent_process(host, joined, place="here", instance="one") as old:
            running = Sink(open_stream(host))
            await until(lambda: sum(old.streams()) == 1)
            draining = [
                asyncio.ensure_future(end.link.drain("the agent stops", 10.0))
                for end in old.ends
            ]
            await until(lambda: host.registry.pick(joined.cluster) is None)
            async with agent_process(host, joined, place="here", instance="two") as new:
                Sink(open_stream(host))
                await until(lambda: sum(new.streams()) == 1)
                (far,) = (sink for end in old.ends for sink in end.sinks)
                far.stream.write(b"the last word")
                for sink in (far, running):
                    sink.stream.write_eof()
                await until(lambda: running.ends)
                assert (running.received, running.ends) == (b"the last word", [None])
                await asyncio.gather(*draining)
