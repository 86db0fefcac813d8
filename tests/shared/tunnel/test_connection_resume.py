"""Sessions that go on over another real connection, on both event loops.

Covered: a link that is cut in the middle of a transfer, again and again; an old connection
that is still held for good; a server that has forgotten the session; a peer that ended it;
dials that are too late; wrong counts.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from shared.errors import Code
from shared.tunnel.connection import TunnelConnection
from tests.fakes.faults import FaultyRelay
from tests.fakes.frame_factory import frame
from tests.fakes.resuming_tunnel import ResumingTunnel
from tests.fakes.session_pair import Recorder
from tests.fakes.tunnel_pair import both_loops

TRANSFER_BYTES = 20 * 1024 * 1024


async def until(condition, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def record(tunnel: ResumingTunnel) -> list[Recorder]:
    recorders: list[Recorder] = []

    def opened(stream) -> None:
        recorders.append(Recorder(stream))
        stream.handler = recorders[-1]

    tunnel.agent_owner.on_stream = opened
    return recorders


def open_recorded(connection: TunnelConnection) -> Recorder:
    recorder = Recorder(connection.session.open_stream("tcp/x"))
    recorder.stream.handler = recorder
    return recorder


@asynccontextmanager
async def echo_server() -> AsyncIterator[tuple[str, int]]:
    """Sends back what it gets, and half-closes when it gets EOF."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(256 * 1024):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()


async def transfer(port: int, seed: int) -> None:
    """Send 20 MB through the entry and get them back, byte for byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent, got = hashlib.sha256(), hashlib.sha256()

    async def send() -> None:
        data = random.Random(seed)
        for _ in range(TRANSFER_BYTES // 2**17):
            piece = data.randbytes(2**17)
            sent.update(piece)
            writer.write(piece)
            await writer.drain()
        writer.write_eof()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        count = 0
        while data := await reader.read(256 * 1024):
            got.update(data)
            count += len(data)
    writer.close()
    assert count == TRANSFER_BYTES
    assert got.digest() == sent.digest()


@both_loops
async def test_a_transfer_both_ways_survives_a_link_that_is_cut_again_and_again() -> (
    None
):
    rng = random.Random(4)
    async with (
        echo_server() as upstream,
        ResumingTunnel(upstream, via=FaultyRelay) as tunnel,
    ):
        moving = [asyncio.create_task(transfer(tunnel.entry_port, n)) for n in (1, 2)]
        for number in range(8):
            tunnel.relay.cut_after(rng.randrange(1_000_000, 6_000_000))
            await until(lambda n=number: tunnel.resumes > n)
            assert not any(task.done() for task in moving)
        async with asyncio.timeout(30):
            await asyncio.gather(*moving)
        assert tunnel.server.session.replay.resent_bytes > 0


@both_loops
async def test_the_agent_comes_back_while_the_server_holds_the_old_connection_good() -> (
    None
):
    async with (
        echo_server() as upstream,
        ResumingTunnel(upstream, via=FaultyRelay) as tunnel,
    ):
        moving = asyncio.create_task(transfer(tunnel.entry_port, 1))
        await until(lambda: tunnel.relay.bytes_relayed > 5_000_000)
        old = tunnel.server
        tunnel.relay.freeze()
        await asyncio.sleep(0.05)  # so that the relay holds something of each direction
        tunnel.dial_address = tunnel.server_address
        tunnel.agent.abort("the test says so")
        await until(lambda: tunnel.resumes)
        assert tunnel.releases == 1 and tunnel.server is not old
        async with asyncio.timeout(20):
            await moving
        assert old.closed and not old.session.streams
        tunnel.relay.thaw()


@both_loops
async def test_a_server_that_has_forgotten_the_session_begins_a_new_one() -> None:
    async with ResumingTunnel(via=FaultyRelay) as tunnel:
        far = record(tunnel)
        open_recorded(tunnel.server)
        await until(lambda: far)
        first = tunnel.agent
        forgotten, tunnel.server_remembers = tunnel.server.session, False
        tunnel.relay.cut()
        await until(lambda: tunnel.agent is not first)
        assert tunnel.agent.usable and not tunnel.resumes
        assert [end and end.code for end in far[0].ends] == [Code.SESSION_LOST]
        again = open_recorded(tunnel.server)
        again.stream.write(b"hello")
        await until(lambda: len(far) == 2 and far[1].received == b"hello")
        forgotten.close(Code.SESSION_LOST, "the test is over")


@both_loops
async def test_a_session_that_the_peer_has_ended_is_not_kept() -> None:
    async with ResumingTunnel() as tunnel:
        far = record(tunnel)
        open_recorded(tunnel.server)
        await until(lambda: far)
        tunnel.is_ending = True
        tunnel.agent._websocket.send_binary(frame(11, 0))  # which the server refuses
        tunnel.agent._write_websocket()
        await until(lambda: tunnel.agent.closed)
        assert not tunnel.agent.session.detached
        assert [end and end.code for end in far[0].ends] == [Code.SESSION_LOST]


@both_loops
async def test_a_dial_that_another_one_has_overtaken_is_dropped() -> None:
    async with ResumingTunnel(via=FaultyRelay) as tunnel:
        far = record(tunnel)
        near = open_recorded(tunnel.server)
        await until(lambda: far)
        tunnel.is_ending = True  # we dial ourselves
        tunnel.relay.cut()
        await until(lambda: tunnel.agent.closed and tunnel.server.closed)
        tunnel.is_ending = False
        await asyncio.gather(tunnel.dial(), tunnel.dial())
        await until(lambda: tunnel.resumes and tunnel.agent.usable)
        near.stream.write(b"still here")
        await until(lambda: far[0].received == b"still here")
        assert not near.ends and not far[0].ends


@both_loops
async def test_a_resume_with_a_wrong_count_costs_its_connection_and_no_stream() -> None:
    async with ResumingTunnel(via=FaultyRelay) as tunnel:
        far = record(tunnel)
        near = open_recorded(tunnel.server)
        await until(lambda: far)
        session = tunnel.agent.session
        right = session.resume_hello
        wrongs = [0, 2**40]

        def wrong():
            hello = right()
            return replace(hello, received=wrongs.pop()) if wrongs else hello

        # Something that the agent has acknowledged, so that 0 is wrong.
        near.stream.write(bytes(100_000))
        await until(lambda: tunnel.server.session.replay.acked_count)
        session.resume_hello = wrong  # type: ignore[method-assign]
        tunnel.relay.cut()
        await until(lambda: tunnel.resumes)
        assert not wrongs
        near.stream.write(b"x")
        await until(lambda: len(far[0].received) == 100_001)


@both_loops
async def test_an_answer_after_another_resume_is_dropped_and_harms_nobody() -> None:
    async with ResumingTunnel(via=FaultyRelay) as tunnel:
        far = record(tunnel)
        near = open_recorded(tunnel.server)
        await until(lambda: far)
        late: list[TunnelConnection] = []

        def dialled(connection: TunnelConnection) -> None:
            if not late:
                late.append(connection)
                tunnel.agent.session.epoch += 1  # as another dial would have done

        tunnel.on_dial = dialled
        tunnel.relay.cut()
        await until(lambda: tunnel.resumes)
        assert late[0].closed and tunnel.agent is not late[0]
        near.stream.write(b"x")
        await until(lambda: far[0].received == b"x")
        assert not far[0].ends


@both_loops
async def test_an_answer_after_the_session_has_ended_revives_nothing() -> None:
    async with ResumingTunnel(via=FaultyRelay) as tunnel:
        far = record(tunnel)
        open_recorded(tunnel.server)
        await until(lambda: far)
        session, late = tunnel.agent.session, []

        def dialled(connection: TunnelConnection) -> None:
            late.append(connection)
            session.close(Code.SESSION_LOST, "time is up")

        tunnel.on_dial = dialled
        parked = tunnel.server.session
        tunnel.relay.cut()
        await until(lambda: tunnel.agent.usable and tunnel.agent.session is not session)
        assert late[0].closed and not tunnel.resumes
        assert [end and end.reason for end in far[0].ends] == ["time is up"]
        parked.close(Code.SESSION_LOST, "time is up")
