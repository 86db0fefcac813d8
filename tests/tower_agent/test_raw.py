"""Raw targets through a real tunnel to real sockets, on both event loops.

Covered: bytes both ways with half-close, targets that are not listed, that refuse, that never
answer; streams that end while the target is being connected; that no socket is left.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from shared.errors import Code
from shared.settings import HostPort
from tests.fakes.faults import LINGER_RESET
from tests.fakes.host_side import Sink, open_sockets, until
from tests.fakes.tunnel_pair import LOOPBACK, TunnelPair, both_loops
from tests.fakes.upstream import RawConnection, RawUpstream
from tests.shared.test_outbound import swallowing_port
from tower_agent import raw as raw_module
from tower_agent.raw import RawTargets


async def echo(connection: RawConnection) -> None:
    """Answers when all is said, so that a lost half-close would hang."""
    everything = await connection.read_to_end()
    await connection.send(b"you said " + everything)


@contextlib.asynccontextmanager
async def tunnel_to(**ports: int) -> AsyncIterator[TunnelPair]:
    """A tunnel whose agent has these targets; nothing may be left open by them."""
    async with TunnelPair() as pair:
        before = open_sockets()
        addresses = {n: HostPort(host=LOOPBACK, port=p) for n, p in ports.items()}
        tasks = pair.agent_owner.tasks
        targets = RawTargets(addresses, tasks)
        pair.agent_owner.on_stream = lambda stream: targets.open(
            stream, stream.target.removeprefix("tcp/")
        )
        yield pair
        await until(lambda: open_sockets() <= before and not len(tasks))


def open_to(pair: TunnelPair, name: str) -> Sink:
    return Sink(pair.server.session.open_stream(f"tcp/{name}"))


@both_loops
async def test_bytes_go_to_the_target_and_back_with_half_close() -> None:
    async with RawUpstream(echo) as target, tunnel_to(db=target.port) as pair:
        sink = open_to(pair, "db")
        # In the same flight as the OPEN, before anything is connected.
        sink.stream.write(b"hello")
        sink.stream.write_eof()
        await until(lambda: sink.ends)
        assert sink.received == b"you said hello" and sink.ends == [None]
        assert pair.server_owner.accepted == [sink.stream]


@both_loops
async def test_only_listed_targets_are_reached() -> None:
    async with tunnel_to(db=1) as pair:
        for name in ("web", "", "127.0.0.1:22", "db "):
            sink = open_to(pair, name)
            await until(lambda sink=sink: sink.ends)
            (end,) = sink.ends
            assert end is not None and end.code is Code.REFUSED
            assert repr(name) in end.reason and "--target" in end.reason


@both_loops
async def test_a_target_that_refuses_is_unreachable_with_the_reason() -> None:
    async with RawUpstream(echo) as gone:
        port = gone.port
    async with tunnel_to(db=port) as pair:
        sink = open_to(pair, "db")
        sink.stream.write(b"early")
        await until(lambda: sink.ends)
        (end,) = sink.ends
        assert end is not None and end.code is Code.UNREACHABLE
        assert f"target {LOOPBACK}:{port} cannot be reached" in end.reason
        assert "refused" in end.reason or "failed" in end.reason
        assert pair.server_owner.accepted == []


@both_loops
async def test_a_target_that_never_answers_is_unreachable_in_time() -> None:
    with pytest.MonkeyPatch.context() as patch, swallowing_port() as port:
        patch.setattr(raw_module, "CONNECT_TIMEOUT_SECONDS", 0.1)
        async with tunnel_to(db=port) as pair:
            sink = open_to(pair, "db")
            await until(lambda: sink.ends)
            (end,) = sink.ends
            assert end is not None and end.code is Code.UNREACHABLE
            assert "no answer in time" in end.reason


@both_loops
async def test_a_stream_that_is_reset_while_connecting_stops_the_connect() -> None:
    with swallowing_port() as port:
        async with tunnel_to(db=port) as pair:
            sink = open_to(pair, "db")
            await until(lambda: len(pair.agent_owner.tasks))
            sink.stream.reset(Code.CANCELLED, "the caller left")
            # Long before its five seconds are over.
            await until(lambda: not len(pair.agent_owner.tasks), seconds=1.0)


@both_loops
async def test_a_tunnel_that_is_lost_while_connecting_stops_the_connect() -> None:
    with swallowing_port() as port:
        before = open_sockets()
        pair = TunnelPair()
        async with pair:
            targets = RawTargets(
                {"db": HostPort(host=LOOPBACK, port=port)}, pair.agent_owner.tasks
            )
            pair.agent_owner.on_stream = lambda stream: targets.open(stream, "db")
            open_to(pair, "db")
            await until(lambda: len(pair.agent_owner.tasks))
            pair.agent.abort("the test cuts it")
            await until(lambda: not len(pair.agent_owner.tasks), seconds=1.0)
        await until(lambda: open_sockets() <= before)


@both_loops
async def test_a_target_that_resets_ends_its_stream_only() -> None:
    async def reset(connection: RawConnection) -> None:
        await connection.read(1)
        raw = connection.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        connection.writer.transport.abort()

    async with (
        RawUpstream(reset) as bad,
        RawUpstream(echo) as good,
        tunnel_to(bad=bad.port, good=good.port) as pair,
    ):
        broken, whole = open_to(pair, "bad"), open_to(pair, "good")
        broken.stream.write(b"x" * 10)
        await until(lambda: broken.ends)
        (end,) = broken.ends
        assert end is not None and end.code is Code.CANCELLED
        whole.stream.write_eof()
        await until(lambda: whole.ends)
        assert whole.ends == [None] and whole.received == b"you said "


@both_loops
async def test_closing_the_agents_tasks_ends_connects_under_way() -> None:
    with swallowing_port() as port:
        async with tunnel_to(db=port) as pair:
            sink = open_to(pair, "db")
            await until(lambda: len(pair.agent_owner.tasks))
            await pair.agent_owner.tasks.close()
            await asyncio.sleep(0)
            assert not len(pair.agent_owner.tasks)
            sink.stream.reset(Code.OK, "the test is over")
