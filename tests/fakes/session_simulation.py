"""A simulated life of two sessions: every byte is accounted for, and memory, and progress.

`Simulation` has one method for each thing that may happen (open, write, stall, deliver,
time passing, connections cut or frozen, processes that begin anew …); who calls them, in
which order, is the driver's business: Hypothesis, or `session_seeds`, which is a hundred
times faster. `finish` lets everybody read and then demands that all has arrived.

Longer than our files are: what may happen is one list.
"""

import random
from dataclasses import dataclass

from shared.errors import Code, StreamReset
from shared.mux.budget import WindowBudget
from shared.mux.idle import IDLE_SECONDS
from shared.mux.outbox import MESSAGE_BYTES
from shared.mux.replay import FREE_KEPT_BYTES, MAX_KEPT_BYTES
from shared.mux.stream import QUEUE_HIGH_BYTES, Stream
from tests.fakes.session_links import ResumingPair
from tests.fakes.session_pair import End

__all__ = ["MAX_WRITE_BYTES", "Circumstances", "Simulation"]

MAX_WRITE_BYTES = 90_000
MAX_LIVE_STREAMS = 24
MAX_LINKS = 6

# A timer that comes so late means that the process stood still (see shared.tunnel.connection).
LATE_SECONDS = 1.0

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
        window = self.stream.receive_window
        assert self.untaken <= window.floor_bytes + window.booked_bytes
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


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What is the same all through a simulated life."""

    # First windows of the two ends.
    agent_window: int = 262_144
    server_window: int = 262_144
    # What may be kept for a resume.
    max_kept_bytes: int = MAX_KEPT_BYTES
    # Of each process.
    ceiling_bytes: int = 2**28
    # Of the path, one way.
    delay_seconds: float = 0.0
    # Every so many steps all streams are looked at; the bytes always.
    check_every: int = 1


class Simulation:
    """Two sessions, the links between them, and everything they ever carried."""

    def __init__(self, circumstances: Circumstances) -> None:
        self.circumstances = where = circumstances
        self.pair = ResumingPair(
            agent_window=where.agent_window,
            server_window=where.server_window,
            budgets=(
                WindowBudget(where.ceiling_bytes),
                WindowBudget(where.ceiling_bytes),
            ),
            delay_seconds=where.delay_seconds,
        )
        self.steps = 0
        self.restarts = 0
        # A tiny window makes a message of every few bytes: then write little.
        self.max_write = min(
            MAX_WRITE_BYTES, 20 * min(where.agent_window, where.server_window)
        )
        # What other sessions of the same process have booked, by end.
        self.booked_by_others = {True: 0, False: 0}
        # Of the two sessions that are alive, by number and end.
        self.handlers: dict[tuple[int, bool], CheckedHandler] = {}
        for end in self._ends:
            end.stream_opened = self._opened(end)  # type: ignore[method-assign]
        self._limit_kept()

    def _limit_kept(self) -> None:
        most = self.circumstances.max_kept_bytes
        for end in self._ends:
            end.session.replay.max_kept_bytes = most
            end.session.replay.free_kept_bytes = min(most, FREE_KEPT_BYTES)

    @property
    def _ends(self) -> tuple[End, End]:
        return self.pair.agent, self.pair.server

    def _end(self, choice: int) -> End:
        return self.pair.server if choice % 2 else self.pair.agent

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
        agent, server = (
            self.pair.agent.session.streams,
            self.pair.server.session.streams,
        )
        if not (count := len(agent) + len(server)):
            return None
        index, is_agent, streams = choice % count, True, agent
        if index >= len(agent):
            index, is_agent, streams = index - len(agent), False, server
        return self.handlers[list(streams)[index], is_agent]

    # What streams' users do; `choice` and `amount` are any numbers

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
        if handler is not None and amount % 2 == 0:
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

    def use_memory(self, choice: int, amount: int) -> None:
        """Other sessions of one process take up to their share of its memory, or give back."""
        end = self._end(choice)
        is_agent, budget = end is self.pair.agent, end.budget
        assert budget is not None
        booked = self.booked_by_others[is_agent]
        wanted = budget.share(booked) * (amount % 5) // 4
        self.booked_by_others[is_agent] = wanted
        budget.change(wanted - booked)

    # What the network does

    def pull(self, choice: int, amount: int) -> None:
        self.pair.pull(self._end(choice), 1 + amount % 3)

    def deliver(self, choice: int, amount: int) -> None:
        end = self._end(choice)
        for _ in range(1 + amount % 4):
            if not self.pair.deliver(end, amount):
                break

    def cut(self, choice: int, amount: int) -> None:
        # As often behind a few bytes as behind many.
        self.pair.cut_at_byte(
            choice % 4 * (choice >> 2) % 300_000, amount % 4 * (amount >> 2) % 300_000
        )

    def freeze(self, choice: int, amount: int) -> None:
        """The newest connection freezes, or thaws."""
        for link in self.pair.links[-1:]:
            link.is_frozen = not link.is_frozen

    # What the two processes do

    def lose(self, choice: int, amount: int) -> None:
        self.pair.lose(self._end(choice))

    def notice(self, choice: int, amount: int) -> None:
        self.pair.notice(self._end(choice))

    def dial(self, choice: int, amount: int) -> None:
        if len(self.pair.links) < MAX_LINKS:
            self.pair.dial()

    def restart(self, choice: int, amount: int) -> None:
        """One end begins anew, with nothing; the other one's streams end."""
        self.restarts += 1
        end = self._end(choice)
        is_agent = end is self.pair.agent
        for handler in self.handlers.values():
            assert handler.received <= self._written_to(handler)
        end.budget = WindowBudget(self.circumstances.ceiling_bytes)
        self.booked_by_others[is_agent] = 0
        before, self.handlers = self.handlers, {}
        self.pair.restart(end)
        self._limit_kept()
        for (_, at_agent), handler in before.items():
            if at_agent != is_agent:
                assert handler.was_reset or handler.end != "open", "never told"
        survivor = self.pair.peer_of(end)
        assert survivor.budget is not None
        assert survivor.budget.used_bytes == self.booked_by_others[not is_agent]

    def _written_to(self, handler: CheckedHandler) -> int:
        far = self.handlers.get((handler.stream.id, handler.peer_is_agent))
        return far.written if far is not None else 0

    # Time

    def pass_time(self, choice: int, amount: int) -> None:
        delay = self.circumstances.delay_seconds
        if delay and choice % 8:
            self._sleep(amount % 1000 / 1000 * delay)
        else:
            self._sleep(amount % 1000 / 2000)

    def rest(self, choice: int, amount: int) -> None:
        """All has arrived and nobody sends anything: what streams do not use goes back."""
        self.pair.settle()
        if amount % 2:
            self._let_windows_leave(choice)
        for _ in range(3):
            self._sleep(IDLE_SECONDS * 0.6)

    def _let_windows_leave(self, choice: int) -> None:
        """Have some of much credit used, and WINDOWs under way for it: they will cross RETURNs."""
        near = self._pick(choice)
        if near is not None and not (near.paused or near.eof_written):
            far = self.handlers.get((near.stream.id, near.peer_is_agent))
            count = near.stream.send_window.credit_bytes * 5 // 8
            if far is not None and 0 < count <= MAX_WRITE_BYTES * 2:
                far.stalled = True
                data = bytearray()
                while len(data) < count:
                    at = near.written + len(data)
                    more = min(count - len(data), _TABLE_BYTES)
                    data += expected(near.stream.id, far.peer_is_agent, at, more)
                near.written += count
                near.stream.write(bytes(data))
                self.pair.settle()
        for handler in self.handlers.values():
            handler.take(handler.untaken)
        for end in self._ends:
            self.pair.pull(end, 1)

    def jump(self, choice: int, amount: int) -> None:
        """Both machines sleep for minutes or days, or nobody had time for seconds."""
        self._sleep(2.0 ** (choice % 18))

    def _sleep(self, seconds: float) -> None:
        self.pair.sleep(seconds)
        now = self.pair.now
        for end in self._ends:
            session = end.session
            due = session.next_timer()
            if session.detached or now < due:
                continue
            if now - due > LATE_SECONDS:
                session.liveness.forgive(now)
            if not session.handle_timer(now):
                self.pair.lose(end)

    # What must hold

    def check(self) -> None:
        """After every step: nobody broke. Now and then: all that must hold."""
        self.steps += 1
        for end in self._ends:
            assert end.broke is None and not end.failures, (end.broke, end.failures)
        if self.steps % self.circumstances.check_every == 0:
            self.check_all()

    def check_all(self) -> None:
        """No window overrun, no queue without bound, all memory booked and under its ceiling."""
        for is_agent, end in ((True, self.pair.agent), (False, self.pair.server)):
            booked = self._check_replay(end)
            peers = self.pair.peer_of(end).session.streams
            for stream_id, stream in end.session.streams.items():
                handler = self.handlers[stream_id, is_agent]
                window, queued = stream.send_window, stream.queued_bytes
                sent, limit = window.sent_offset, window.limit_offset
                assert window.received_offset <= sent <= limit
                assert sent + queued == handler.written
                assert queued <= QUEUE_HIGH_BYTES + MAX_WRITE_BYTES
                booked += stream.receive_window.booked_bytes
                far = peers.get(stream_id)
                if far is not None:
                    into = far.receive_window
                    assert limit <= into.limit_offset
                    assert (
                        into._is_finished
                        or into.limit_offset - into.taken_offset
                        <= into.floor_bytes + into.booked_bytes
                    ), "promised more than is booked"
            self._check_budget(end, booked, self.booked_by_others[is_agent])

    def _check_replay(self, end: End) -> int:
        replay = end.session.replay
        kept_count = replay.kept_count
        assert kept_count == replay.sent_count - replay.acked_count >= 0
        assert replay.resend_count <= kept_count
        # Control frames go out above the mark; there are few in here.
        assert replay.kept_bytes < replay.max_kept_bytes + 3 * MESSAGE_BYTES
        assert not replay.is_overfull
        assert replay.booked_bytes == max(0, replay.kept_bytes - replay.free_kept_bytes)
        return replay.booked_bytes

    def _check_budget(self, end: End, booked: int, by_others: int) -> None:
        session, process = end.session.budget, end.budget
        assert process is not None
        assert session.used_bytes == booked, "what is booked belongs to nobody"
        assert process.used_bytes == booked + by_others
        # Only a message that has been made cannot be unmade.
        most = 3 * MESSAGE_BYTES if end.session.replay.booked_bytes else 0
        assert process.used_bytes <= process.ceiling_bytes + most
        assert session.used_bytes <= session.ceiling_bytes + most

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
        self.check_all()

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
