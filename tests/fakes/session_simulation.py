"""A simulated life of two sessions: every step is checked, every byte is accounted for.

`Simulation` has one method for each thing that may happen (open, write, stall, deliver,
time passing …); who calls them, in which order, is the driver's business: Hypothesis, or
a seeded generator that is a hundred times faster. `finish` lets everybody read and then
demands that all has arrived.
"""

import random

from shared.errors import Code, StreamReset
from shared.mux.outbox import MESSAGE_BYTES
from shared.mux.replay import ACK_AFTER_BYTES, MAX_KEPT_BYTES, Replay
from shared.mux.stream import QUEUE_HIGH_BYTES, Stream
from tests.fakes.session_links import ResumingPair
from tests.fakes.session_pair import End

__all__ = ["ACTIONS", "MAX_WRITE_BYTES", "Simulation", "drive"]

MAX_WRITE_BYTES = 90_000
MAX_LIVE_STREAMS = 24
MAX_LINKS = 6

# Any byte of any stream is known from where it stands, so nothing need be remembered. The
# table's length is prime: no two streams look alike at the same offset.
_TABLE_BYTES = 65_521
_TABLE = random.Random(1).randbytes(_TABLE_BYTES)
_LONG_TABLE = _TABLE * 3


def expected(stream_id: int, from_agent: bool, offset: int, count: int) -> bytes:
    start = (stream_id * 2 + from_agent) * 7919 + offset
    start %= _TABLE_BYTES
    return _LONG_TABLE[start : start + count]


class CheckedHandler:
    """Checks each byte as it arrives, and the rules of `StreamHandler`."""

    def __init__(self, stream: Stream, peer_is_agent: bool) -> None:
        self.stream = stream
        self.peer_is_agent = peer_is_agent
        self.received = 0
        self.untaken = 0
        self.written = 0
        self.eof_written = False
        self.eof_received_at: int | None = None
        self.was_reset = False
        self.end: StreamReset | None | str = "open"
        self.paused = False
        self.stalled = False

    def take(self, count: int) -> None:
        count = min(count, self.untaken)
        if count:
            self.untaken -= count
            self.stream.taken(count)

    def data_received(self, data: bytes | memoryview) -> None:
        assert self.end == "open" and self.eof_received_at is None
        wanted = expected(self.stream.id, self.peer_is_agent, self.received, len(data))
        assert data == wanted, f"stream {self.stream.id}: wrong bytes"
        self.received += len(data)
        self.untaken += len(data)
        assert self.untaken <= self.stream.receive_window.size_bytes
        if not self.stalled:
            self.take(self.untaken)

    def eof_received(self) -> None:
        assert self.end == "open" and self.eof_received_at is None
        self.eof_received_at = self.received

    def stream_closed(self, error: StreamReset | None) -> None:
        assert self.end == "open" and not self.was_reset
        self.end = error

    def pause_writing(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_writing(self) -> None:
        assert self.paused
        self.paused = False


class Simulation:
    """Two sessions, the link between them, and everything they ever carried."""

    def __init__(
        self,
        agent_window: int,
        server_window: int,
        max_kept_bytes: int = MAX_KEPT_BYTES,
    ) -> None:
        self.pair = ResumingPair(agent_window=agent_window, server_window=server_window)
        for end in self._ends:
            end.session.replay.max_kept_bytes = max_kept_bytes
        self.steps = 0
        # A tiny window makes a message of every few bytes: then write little.
        self.max_write = min(MAX_WRITE_BYTES, 20 * min(agent_window, server_window))
        self.handlers: dict[tuple[int, bool], CheckedHandler] = {}
        for end in self._ends:
            end.stream_opened = self._opened(end)  # type: ignore[method-assign]

    @property
    def _ends(self) -> tuple[End, End]:
        return self.pair.agent, self.pair.server

    def _end(self, choice: int) -> End:
        return self._ends[choice % 2]

    def _opened(self, end: End):
        def stream_opened(stream: Stream) -> None:
            self._adopt(end, stream)

        return stream_opened

    def _adopt(self, end: End, stream: Stream) -> None:
        is_agent = end is self.pair.agent
        handler = CheckedHandler(stream, peer_is_agent=not is_agent)
        stream.handler = handler
        assert (stream.id, is_agent) not in self.handlers
        self.handlers[stream.id, is_agent] = handler

    def _pick(self, choice: int) -> CheckedHandler | None:
        """A live stream of either end."""
        agent, server = (end.session.streams for end in self._ends)
        index = choice % max(1, len(agent) + len(server))
        for is_agent, streams in ((True, agent), (False, server)):
            if index < len(streams):
                stream_id = list(streams)[index]
                return self.handlers[stream_id, is_agent]
            index -= len(streams)
        return None

    # What may happen; `choice` and `amount` are any numbers

    def open(self, choice: int, amount: int) -> None:
        end = self._end(choice)
        if len(end.session.streams) < MAX_LIVE_STREAMS:
            self._adopt(end, end.session.open_stream(f"tcp/{amount}"))

    def write(self, choice: int, amount: int) -> None:
        handler = self._pick(choice)
        if handler is None or handler.paused or handler.eof_written:
            return
        count = 1 + amount % self.max_write
        # Small writes are as frequent as large ones.
        count = (count - 1) % 100 + 1 if amount % 3 == 0 else count
        is_agent = not handler.peer_is_agent
        at = handler.written
        data = expected(handler.stream.id, is_agent, at, count)
        handler.written += count
        handler.stream.write(memoryview(data) if amount % 2 else data)

    def write_eof(self, choice: int, amount: int) -> None:
        handler = self._pick(choice)
        if handler is not None and amount % 3 == 0:
            handler.eof_written = True
            handler.stream.write_eof()

    def reset(self, choice: int, amount: int) -> None:
        handler = self._pick(choice)
        if handler is not None and amount % 4 == 0:
            handler.was_reset = True
            handler.stream.reset(Code.CANCELLED, "simulated")

    def accept(self, choice: int, amount: int) -> None:
        handler = self._pick(choice)
        if (
            handler is not None
            and (handler.stream.id % 2 == 1) == handler.peer_is_agent
        ):
            handler.stream.accept()

    def stall(self, choice: int, amount: int) -> None:
        handler = self._pick(choice)
        if handler is not None:
            handler.stalled = not handler.stalled

    def take(self, choice: int, amount: int) -> None:
        handler = self._pick(choice)
        if handler is not None:
            handler.take(amount)

    def pull(self, choice: int, amount: int) -> None:
        self.pair.pull(self._end(choice), 1 + amount % 3)

    def deliver(self, choice: int, amount: int) -> None:
        for _ in range(1 + amount % 4):
            self.pair.deliver(self._end(choice), amount)

    def cut(self, choice: int, amount: int) -> None:
        self.pair.cut(choice % 7, amount % 7)

    def lose(self, choice: int, amount: int) -> None:
        self.pair.lose(self._end(choice))

    def notice(self, choice: int, amount: int) -> None:
        self.pair.notice(self._end(choice))

    def dial(self, choice: int, amount: int) -> None:
        if len(self.pair.links) < MAX_LINKS:
            self.pair.dial()

    def pass_time(self, choice: int, amount: int) -> None:
        self.pair.sleep(amount % 1000 / 2000)
        for end in self._ends:
            if end.session.detached or self.pair.now < end.session.next_timer():
                continue
            if not end.session.handle_timer(self.pair.now):
                self.pair.lose(end)

    # What must hold

    def check(self) -> None:
        """After every step: nobody broke, no window overrun, no queue without bound."""
        self.steps += 1
        for is_agent, end in ((True, self.pair.agent), (False, self.pair.server)):
            assert end.broke is None and not end.failures, (end.broke, end.failures)
            self._check_replay(end.session.replay)
            peers = self.pair.peer_of(end).session.streams
            for stream in end.session.streams.values():
                handler = self.handlers[stream.id, is_agent]
                window = stream.send_window
                assert window.received_offset <= window.sent_offset
                assert window.sent_offset <= window.limit_offset
                assert window.sent_offset + stream.queued_bytes == handler.written
                assert stream.queued_bytes <= QUEUE_HIGH_BYTES + MAX_WRITE_BYTES
                far = peers.get(stream.id)
                if far is not None:
                    assert window.limit_offset <= far.receive_window.limit_offset

    def _check_replay(self, replay: Replay) -> None:
        assert replay.acked_count <= replay.sent_count
        assert replay.kept_count == replay.sent_count - replay.acked_count
        assert replay.resend_count <= replay.kept_count
        # Control frames go out above the mark; there are few in here.
        assert replay.kept_bytes < replay.max_kept_bytes + 3 * MESSAGE_BYTES
        assert not replay.is_overfull

    def finish(self) -> None:
        """Everybody reads: then all that was written must arrive, and the streams end."""
        self._everybody_reads()
        for handler in self.handlers.values():
            if handler.end == "open" and not handler.was_reset:
                assert not handler.paused, "a writer was forgotten"
                assert not handler.stream.queued_bytes, "data was forgotten"
                handler.eof_written = True
                handler.stream.write_eof()
        self._everybody_reads()
        for end in self._ends:
            assert not end.session.streams and not end.session.wants_to_send
            peer = self.pair.peer_of(end).session
            assert end.session.replay.sent_count == peer.replay.received_count
        for (stream_id, is_agent), near in self.handlers.items():
            far = self.handlers.get((stream_id, not is_agent))
            if far is None:
                assert near.was_reset, "never announced, but not reset either"
            else:
                self._check_outcome(near, far)

    def _everybody_reads(self) -> None:
        while True:
            self.pair.settle()
            waiting = [h for h in self.handlers.values() if h.untaken]
            for handler in self.handlers.values():
                handler.stalled = False
            if not waiting:
                break
            for handler in waiting:
                handler.take(handler.untaken)
        self.check()

    def _check_outcome(self, near: CheckedHandler, far: CheckedHandler) -> None:
        assert near.received <= far.written
        if near.was_reset:
            assert near.end == "open"
        else:
            assert near.end != "open", "never told of the end"
        if near.end is None:
            assert near.received == near.eof_received_at == far.written
        elif isinstance(near.end, StreamReset):
            assert far.was_reset
        if not near.was_reset and not far.was_reset:
            assert near.end is far.end is None


# With how often each happens.
ACTIONS = {
    "open": 3,
    "write": 30,
    "write_eof": 4,
    "reset": 2,
    "accept": 1,
    "stall": 4,
    "take": 12,
    "pull": 22,
    "deliver": 22,
    "pass_time": 3,
    "cut": 1.5,
    "lose": 0.5,
    "notice": 8,
    "dial": 8,
}


def drive(seed: int, steps: int) -> Simulation:
    """Run a simulation from a seed; the same seed does the same."""
    rng = random.Random(seed)
    windows = (1, 100, 5_000, 70_000, 262_144)
    simulation = Simulation(
        rng.choice(windows[1:]),
        rng.choice(windows),
        rng.choice((ACK_AFTER_BYTES, 2 * ACK_AFTER_BYTES, MAX_KEPT_BYTES)),
    )
    names = list(ACTIONS)
    # Some lives have few deliveries, some many resets: averages would never meet.
    weights = [weight * rng.choice((0.2, 1, 1, 4)) for weight in ACTIONS.values()]
    if rng.random() < 0.2:
        weights[names.index("cut")] = weights[names.index("lose")] = 0
    for name in rng.choices(names, weights, k=steps):
        getattr(simulation, name)(rng.getrandbits(20), rng.getrandbits(20))
        simulation.check()
    simulation.finish()
    return simulation
