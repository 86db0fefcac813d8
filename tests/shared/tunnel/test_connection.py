"""A TunnelConnection over real TLS and WebSockets, on both event loops.

Covered: losses (cut in the middle of a message, frozen link, a peer that goes away), a
stuck writer, no HELLO, broken protocol, fragmented messages, closing with a reason,
handlers that raise, and that nothing is left behind.
"""

import asyncio
import time

import pytest
from websockets.frames import CloseCode

from shared.errors import Code, StreamReset
from shared.mux.session import MESSAGE_BYTES
from shared.mux.stream import Stream
from shared.tunnel import connection as connection_module
from shared.tunnel import progress as progress_module
from shared.tunnel.connection import TunnelConnection
from shared.tunnel.sockets import acknowledged_bytes
from tests.fakes.faults import FaultyRelay
from tests.fakes.frame_factory import StreamFrames, frame
from tests.fakes.session_pair import Recorder
from tests.fakes.tunnel_pair import TunnelPair, both_loops


def record(pair: TunnelPair) -> list[Recorder]:
    """Make the agent keep what the server's streams bring, instead of dialling."""
    recorders: list[Recorder] = []

    def opened(stream: Stream) -> None:
        recorder = Recorder(stream)
        stream.handler = recorder
        recorders.append(recorder)

    pair.agent_owner.on_stream = opened
    return recorders


def open_recorded(connection: TunnelConnection) -> Recorder:
    recorder = Recorder(connection.session.open_stream("tcp/x"))
    recorder.stream.handler = recorder
    return recorder


async def until(condition, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def both_lost(pair: TunnelPair, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        await pair.agent_owner.lost.wait()
        await pair.server_owner.lost.wait()


# Losses


@both_loops
async def test_a_connection_cut_in_the_middle_of_a_message_ends_all_streams() -> None:
    async with TunnelPair(via=FaultyRelay) as pair:
        far = record(pair)
        near = [open_recorded(pair.server) for _ in range(3)]
        await until(lambda: len(far) == 3)
        pair.relay.cut_after(100_000)
        for recorder in near:
            recorder.stream.write(bytes(200_000))
        await both_lost(pair)
        for recorder in (*near, *far):
            (end,) = recorder.ends
            assert end is not None and end.code is Code.SESSION_LOST
            assert end.reason.startswith("the tunnel was lost: ")
        assert sum(len(recorder.received) for recorder in far) < 100_000
        with pytest.raises(StreamReset):
            pair.server.session.open_stream("tcp/x")
        assert not pair.server.usable and not pair.agent.usable


@both_loops
async def test_a_frozen_link_is_noticed_by_both_within_five_seconds() -> None:
    async with TunnelPair(via=FaultyRelay) as pair:
        far = record(pair)
        near = open_recorded(pair.server)
        await until(lambda: far)
        await until(lambda: pair.server.session.liveness.round_trip_seconds is not None)
        pair.relay.freeze()
        frozen_at = time.monotonic()
        near.stream.write(b"into the void")
        await both_lost(pair, seconds=6)
        # The last sign of life may be a little older than the freeze, never younger.
        assert 3.0 < time.monotonic() - frozen_at < 5.0
        assert "silent" in pair.server_owner.lost_reasons[0]
        assert "silent" in pair.agent_owner.lost_reasons[0]
        assert len(near.ends) == len(far[0].ends) == 1
        pair.relay.thaw()


@both_loops
async def test_an_idle_tunnel_stays_up_and_knows_its_round_trip() -> None:
    async with TunnelPair() as pair:
        await until(
            lambda: pair.server.session.liveness.min_round_trip_seconds is not None
        )
        await until(
            lambda: pair.agent.session.liveness.min_round_trip_seconds is not None
        )
        assert pair.server.session.liveness.min_round_trip_seconds < 1
        assert pair.server.usable and pair.agent.usable


@both_loops
async def test_an_aborted_connection_is_lost_on_both_sides() -> None:
    async with TunnelPair() as pair:
        far = record(pair)
        open_recorded(pair.server)
        await until(lambda: far)
        pair.server.abort("the administrator cut it")
        pair.server.abort("twice")
        await both_lost(pair)
        assert pair.server_owner.lost_reasons == ["the administrator cut it"]
        assert len(far[0].ends) == 1


# Closing


@both_loops
async def test_closing_tells_the_peer_why() -> None:
    async with TunnelPair() as pair:
        far = record(pair)
        near = open_recorded(pair.server)
        await until(lambda: far)
        reason = "Wartung: zurück in fünf Minuten — " + "ü" * 200
        pair.server.close(Code.GOING_AWAY, reason)
        pair.server.close(Code.GOING_AWAY, "twice")
        assert near.ends and near.ends[0] is not None
        assert near.ends[0].code is Code.GOING_AWAY
        await both_lost(pair)
        assert [notice.reason for notice in pair.agent_owner.notices] == [reason]
        assert pair.server_owner.lost_reasons == [reason]
        assert pair.agent_owner.lost_reasons[0].startswith("Wartung: zurück in fünf")


@both_loops
async def test_a_stream_may_be_used_in_any_way_while_the_tunnel_closes() -> None:
    """Whatever a handler still does after the close frame must not raise in the loop."""
    async with TunnelPair() as pair:
        far = record(pair)
        near = open_recorded(pair.server)
        await until(lambda: far)
        far[0].on_closed = lambda r: r.stream.write(b"late")
        pair.agent.close(Code.OK, "bye")
        near.stream.write(b"crossing")
        near.stream.accept()
        await both_lost(pair)
        near.stream.write(b"too late")
        near.stream.reset(Code.OK, "too late")
        pair.server.session.go_away(Code.OK, "too late")


@both_loops
async def test_a_peer_that_never_reads_cannot_keep_us_from_closing() -> None:
    deadline, connection_module.WRITE_DEADLINE_SECONDS = (
        connection_module.WRITE_DEADLINE_SECONDS,
        0.3,
    )
    try:
        async with TunnelPair(via=FaultyRelay) as pair:
            record(pair)
            pair.relay.freeze()
            pair.server.session.in_flight.limit_bytes = 2**30  # TCP alone holds it up
            for _ in range(640):  # 20 MB: each fills its first window
                open_recorded(pair.server).stream.write(bytes(32_000))
            await until(lambda: pair.server._blocked)
            held = pair.server._transport.get_write_buffer_size()
            pair.server.close(Code.OK, "bye")
            grown = pair.server._transport.get_write_buffer_size() - held
            assert grown <= MESSAGE_BYTES + 20_000, (
                "closing must not empty every queue into memory"
            )
            async with asyncio.timeout(3):
                await pair.server_owner.lost.wait()
            pair.relay.thaw()
    finally:
        connection_module.WRITE_DEADLINE_SECONDS = deadline


# A peer that misbehaves


@both_loops
async def test_a_peer_that_stops_reading_is_cut_off_although_it_speaks() -> None:
    """Its pings arrive all the time; only what we write does not leave."""
    deadline, progress_module.WRITE_DEADLINE_SECONDS = (
        progress_module.WRITE_DEADLINE_SECONDS,
        0.8,
    )
    try:
        async with TunnelPair() as pair:
            record(pair)
            pair.agent._transport.pause_reading()
            for _ in range(640):  # 20 MB: each fills its first window
                open_recorded(pair.server).stream.write(bytes(32_000))
            await until(lambda: pair.server._progress.is_watching)
            started = time.monotonic()
            while not pair.server_owner.lost.is_set():
                pair.agent._websocket.send_ping(b"alive")
                pair.agent._write_websocket()
                await asyncio.sleep(0.02)
                assert time.monotonic() - started < 4
            assert "stopped reading" in pair.server_owner.lost_reasons[0]
            if pair.agent._transport is not None:
                pair.agent._transport.resume_reading()
    finally:
        progress_module.WRITE_DEADLINE_SECONDS = deadline


@both_loops
async def test_a_peer_that_reads_slowly_is_not_cut_off() -> None:
    deadline, progress_module.WRITE_DEADLINE_SECONDS = (
        progress_module.WRITE_DEADLINE_SECONDS,
        0.8,
    )
    try:
        async with TunnelPair() as pair:
            record(pair)
            for _ in range(640):  # 20 MB: each fills its first window
                open_recorded(pair.server).stream.write(bytes(32_000))
            ends = time.monotonic() + 2.5
            while time.monotonic() < ends:
                pair.agent._transport.resume_reading()
                await asyncio.sleep(0.001)
                pair.agent._transport.pause_reading()
                await asyncio.sleep(0.1)
            assert not pair.server_owner.lost.is_set()
            pair.agent._transport.resume_reading()
    finally:
        progress_module.WRITE_DEADLINE_SECONDS = deadline


@both_loops
async def test_a_peer_that_never_says_hello_is_cut_off() -> None:
    async with TunnelPair() as pair:
        # No ping of the agent is due for a second now.
        await until(lambda: pair.agent.session.liveness.round_trip_seconds is not None)
        deadline, connection_module.HELLO_DEADLINE_SECONDS = (
            connection_module.HELLO_DEADLINE_SECONDS,
            0.1,
        )
        try:
            pair.server._greeted = False  # as if none had come
            pair.server._arm_timer()
            async with asyncio.timeout(2):
                await pair.server_owner.lost.wait()
        finally:
            connection_module.HELLO_DEADLINE_SECONDS = deadline
        assert pair.server_owner.lost_reasons == ["the peer sent no HELLO"]


@both_loops
async def test_broken_frames_end_the_connection_with_the_reason() -> None:
    async with TunnelPair() as pair:
        far = record(pair)
        near = open_recorded(pair.server)
        await until(lambda: far)
        pair.agent._websocket.send_binary(frame(50, 0, b"?"))
        pair.agent._write_websocket()
        await both_lost(pair)
        assert pair.server_owner.lost_reasons == [
            "protocol error: unknown frame type 50"
        ]
        assert pair.agent_owner.lost_reasons == ["unknown frame type 50"]
        assert [end and end.code for end in near.ends] == [Code.PROTOCOL]
        assert pair.agent._websocket.close_rcvd.code == CloseCode.PROTOCOL_ERROR


@both_loops
async def test_text_and_broken_websocket_frames_end_the_connection() -> None:
    async with TunnelPair() as pair:
        pair.agent._websocket.send_text(b"hello")
        pair.agent._write_websocket()
        await both_lost(pair)
        assert "binary ones only" in pair.server_owner.lost_reasons[0]
    async with TunnelPair() as pair:
        pair.agent._transport.write(b"\xff\xff\xff\xff")
        await both_lost(pair)
        assert pair.server_owner.lost_reasons[0].startswith("protocol error")


@both_loops
async def test_a_message_that_a_proxy_cut_into_pieces_is_put_together() -> None:
    async with TunnelPair() as pair:
        recorders = record(pair)
        stream = StreamFrames(2)
        message = stream.open() + stream.data(b"abc" * 1000) + stream.eof(3000)
        websocket = pair.server._websocket
        websocket.send_binary(message[:7], fin=False)
        websocket.send_continuation(b"", fin=False)
        websocket.send_continuation(message[7:1500], fin=False)
        websocket.send_ping(b"in between")
        websocket.send_continuation(message[1500:], fin=True)
        pair.server._write_websocket()
        await until(lambda: recorders and recorders[0].eofs)
        assert recorders[0].received == b"abc" * 1000


@both_loops
async def test_fragments_without_end_are_refused() -> None:
    async with TunnelPair() as pair:
        websocket = pair.agent._websocket
        websocket.send_binary(b"x", fin=False)
        for _ in range(17):
            websocket.send_continuation(bytes(64 * 1024), fin=False)
        pair.agent._write_websocket()
        async with asyncio.timeout(5):
            await pair.server_owner.lost.wait()


# Our own bugs


@both_loops
async def test_a_handler_that_raises_ends_its_stream_and_not_the_session() -> None:
    async with TunnelPair() as pair:
        recorders = record(pair)
        near, other = open_recorded(pair.server), open_recorded(pair.server)
        await until(lambda: len(recorders) == 2)

        def bug(recorder: Recorder) -> None:
            raise RuntimeError("a bug")

        recorders[0].on_data = bug
        near.stream.write(b"x")
        await until(lambda: near.ends)
        assert near.ends[0] is not None and near.ends[0].code is Code.INTERNAL
        other.stream.write(b"still here")
        await until(lambda: recorders[1].received == b"still here")
        assert pair.server.usable


@both_loops
async def test_opening_and_resetting_at_once_does_not_silence_the_tunnel() -> None:
    async with TunnelPair() as pair:
        recorders = record(pair)
        open_recorded(pair.server).stream.reset(Code.CANCELLED, "never mind")
        await asyncio.sleep(0.01)
        open_recorded(pair.server).stream.write(b"hello")
        await until(lambda: recorders and recorders[0].received == b"hello")


@both_loops
async def test_a_process_that_stood_still_does_not_take_its_peer_for_dead() -> None:
    """A stopped container wakes up: its timer is late, and the peer's bytes unread."""
    async with TunnelPair() as pair:
        await until(lambda: pair.server.session.liveness.round_trip_seconds is not None)
        liveness = pair.server.session.liveness
        now = asyncio.get_running_loop().time()
        liveness.ping(now - 30)
        liveness.received(now - 31)
        pair.server._handle_timer(now - 20)
        assert not pair.server_owner.lost.is_set()
        await asyncio.sleep(0.05)
        assert pair.server.usable
        liveness.ping(now - 30)
        liveness.received(now - 31)
        pair.server._handle_timer(now)
        await both_lost(pair)


@both_loops
async def test_a_transport_that_broke_before_the_start_is_a_lost_tunnel() -> None:
    async with TunnelPair() as pair:
        transport = pair.agent._transport
        transport.abort()
        await both_lost(pair)
        pair.agent_owner.lost.clear()
        again = TunnelConnection(
            pair.agent.session.role,
            pair.agent._websocket,
            pair.agent.session.hello,
            pair.agent_owner,
        )
        again.start(transport)
        async with asyncio.timeout(1):
            await pair.agent_owner.lost.wait()
        with pytest.raises(ConnectionError):
            await again.ready
        pair.agent_owner.lost_reasons.pop()


@both_loops
async def test_the_kernel_tells_how_much_has_arrived() -> None:
    async with TunnelPair() as pair:
        record(pair)
        before = acknowledged_bytes(pair.server._transport)
        open_recorded(pair.server).stream.write(bytes(100_000))
        await until(
            lambda: acknowledged_bytes(pair.server._transport) > before + 99_999
        )
