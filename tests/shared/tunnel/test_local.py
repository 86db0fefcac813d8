"""A tunnel within this process, on both loops: what a stream in it can do, and how it ends.

Covered: data and EOF both ways, resets, refusals, acceptance, a reader that stalls, bulk, closing,
draining with streams that can be asked to end, a mistake at the far end.
"""

import asyncio
import gc
import weakref

import pytest

from shared.errors import Code, InvalidState, StreamReset
from shared.mux import idle as idle_module
from shared.mux.stream import Stream
from shared.tunnel import local as local_module
from shared.tunnel.drain import drain_tunnels
from shared.tunnel.local import LocalTunnel
from tests.fakes.host_side import until
from tests.fakes.session_pair import Recorder
from tests.fakes.tunnel_pair import both_loops

MIB = 1024 * 1024


class Pair:
    """A tunnel, and who is at each end of its streams."""

    def __init__(self) -> None:
        self.far: list[Recorder] = []
        self.accepted: list[Stream] = []
        self.tunnel = LocalTunnel(self._open, self.accepted.append)

    def _open(self, stream: Stream) -> None:
        if stream.target == "bug":
            raise RuntimeError("a mistake")
        if stream.target != "sealed":
            stream.reset(Code.REFUSED, "no such target")
            return
        stream.handler = Recorder(stream)
        self.far.append(stream.handler)

    async def open(self, target: str = "sealed") -> Recorder:
        stream = self.tunnel.session.open_stream(target)
        stream.handler = near = Recorder(stream)
        await asyncio.sleep(0.01)
        return near


@both_loops
async def test_data_and_ends_pass_both_ways() -> None:
    pair = Pair()
    assert pair.tunnel.usable  # at once: nobody has to be waited for
    near = await pair.open()
    (far,) = pair.far
    near.stream.write(b"question")
    near.stream.write_eof()
    await until(lambda: far.eofs == 1)
    assert far.received == b"question"
    far.stream.accept()
    far.stream.write(b"answer")
    far.stream.write_eof()
    await until(lambda: near.ends == [None])
    assert (near.received, pair.accepted) == (b"answer", [near.stream])
    assert not pair.tunnel.session.streams
    pair.tunnel.close(Code.OK, "the test is over")


@both_loops
async def test_a_reset_tells_the_other_end_why() -> None:
    pair = Pair()
    near = await pair.open()
    pair.far[0].stream.reset(Code.UNREACHABLE, "nobody there")
    await until(lambda: bool(near.ends))
    assert str(near.ends[0]) == "nobody there (unreachable)"
    refused = await pair.open("tcp/web")
    assert str(refused.ends[0]) == "no such target (refused)"
    pair.tunnel.close(Code.OK, "the test is over")


@both_loops
async def test_a_reader_that_stalls_stops_its_writer_and_nobody_else() -> None:
    pair = Pair()
    stuck, other = await pair.open(), await pair.open()
    pair.far[0].stalled = True
    stuck.stream.write(bytes(MIB))
    other.stream.write(bytes(8 * MIB))
    await until(lambda: len(pair.far[1].received) == 8 * MIB)
    assert len(pair.far[0].received) < MIB // 2 and stuck.paused
    pair.far[0].stalled = False
    pair.far[0].take()
    await until(lambda: len(pair.far[0].received) == MIB)
    pair.tunnel.close(Code.OK, "the test is over")


@both_loops
async def test_closing_tells_both_ends_of_every_stream() -> None:
    pair = Pair()
    near = await pair.open()
    pair.tunnel.close(Code.REVOKED, "removed")
    pair.tunnel.close(Code.REVOKED, "again")
    for recorder in (near, pair.far[0]):
        assert [str(end) for end in recorder.ends] == ["removed (revoked)"]
    assert pair.tunnel.closed and not pair.tunnel.usable
    with pytest.raises(StreamReset):
        pair.tunnel.session.open_stream("sealed")


@both_loops
async def test_a_drain_waits_for_streams_and_asks_those_that_can_end() -> None:
    class Leaving(Recorder):
        asked = 0

        def wind_down(self) -> None:
            self.asked += 1
            if self.asked == 2:
                self.stream.write_eof()

    pair = Pair()
    near = await pair.open()
    far = pair.far[0]
    far.stream.handler = leaving = Leaving(far.stream)
    near.on_eof = lambda recorder: recorder.stream.write_eof()
    async with asyncio.timeout(5):
        assert await drain_tunnels(lambda: [pair.tunnel], "stop", 10) == 0
    assert near.ends == leaving.ends == [None]
    assert pair.tunnel.closed


@both_loops
async def test_what_does_not_end_in_time_is_reset() -> None:
    pair = Pair()
    near = await pair.open()
    assert await drain_tunnels(lambda: [pair.tunnel], "stop", 0) == 1
    assert str(near.ends[0]) == "stop (going_away)"
    assert pair.tunnel.closed


@both_loops
async def test_a_mistake_at_the_far_end_costs_one_stream() -> None:
    pair = Pair()
    other = await pair.open()
    broken = await pair.open("bug")
    assert [error.code for error in broken.ends if error] == [Code.INTERNAL]
    other.stream.write(b"x")
    await until(lambda: pair.far[0].received == b"x")
    pair.tunnel.close(Code.OK, "the test is over")


async def test_nobody_resumes_it() -> None:
    pair = Pair()
    with pytest.raises(InvalidState):
        pair.tunnel.release("an agent came back")
    pair.tunnel.abort("the test is over")
    assert pair.tunnel.closed


async def test_a_closed_one_leaves_nothing_behind() -> None:
    pair = Pair()
    await pair.open()
    gone = weakref.ref(pair.tunnel)
    pair.tunnel.session.go_away(Code.GOING_AWAY, "stop")
    await asyncio.sleep(0.01)  # the far end winds down, by a timer
    pair.tunnel.close(Code.OK, "the test is over")
    pair = None  # type: ignore[assignment]
    await asyncio.sleep(0.01)
    gc.collect()
    assert gone() is None


@both_loops
async def test_memory_that_a_burst_left_booked_is_free_after_a_rest() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(local_module, "LOOK_FOR_REST_EVERY_SECONDS", 0.02)
        monkeypatch.setattr(idle_module, "IDLE_SECONDS", 0.05)
        pair = Pair()
        near = await pair.open()
        (far,) = pair.far
        for _ in range(40):
            near.stream.write(bytes(100_000))
            await until(lambda: not near.stream.queue)
        window = far.stream.receive_window
        assert window.booked_bytes > 0
        await until(lambda: window.booked_bytes == 0)
        near.stream.write(bytes(MIB))
        await until(lambda: len(far.received) == 4_000_000 + MIB)
        pair.tunnel.close(Code.OK, "done")
