"""Two sessions over links that are cut and resumed, with messages changed on their way. SPEC 10.

The input is a list of decisions of four bytes: what happens (streams open, write, end; links
are cut, dialled, deliver), or how the oldest message under way is changed: a bit, its length,
its place in the order; HELLOs too. What a peer may say is anything, so all that is demanded is
what holds whatever it says (see session.py); without a changed message nobody may complain.
"""

from collections import deque
from dataclasses import replace

from shared.errors import Code, PeerProtocolError
from shared.wire.frames import encode_hello
from shared.wire.hello import read_hello
from tests.fakes.session_links import Link, Place, ResumingPair
from tests.fakes.session_pair import End, Recorder
from tests.fuzz.session import MAX_WRITTEN_BYTES, check_end, check_told
from tests.fuzz.target import Source, Target

__all__ = ["TARGETS"]

MAX_LINKS = 6
MAX_STREAMS = 12


class _Pair(ResumingPair):
    """A pair whose greetings may be nonsense."""

    def __init__(self, window: int) -> None:
        super().__init__(agent_window=window, server_window=window)
        for end in (self.agent, self.server):
            end.was_reset = set()  # type: ignore[attr-defined]
        # A message was changed: from here on ends may complain.
        self.is_tampered = False

    def _arrives_at_server(self, link: Link, message: bytes) -> None:
        if link.at_server is not Place.NEW:
            super()._arrives_at_server(link, message)
        # A session that is over is not there any more for the shell.
        elif self._is_greeting(message) and not self.server.session.closed:
            super()._arrives_at_server(link, message)
        else:
            link.at_server, link.is_cut = Place.LOST, True

    def _arrives_at_agent(self, link: Link, message: bytes) -> None:
        if link.at_agent is not Place.NEW:
            super()._arrives_at_agent(link, message)
            return
        if self.agent.session.closed or not self._is_greeting(message):
            link.at_agent, link.is_cut = Place.LOST, True
            return
        try:
            super()._arrives_at_agent(link, message)
        except PeerProtocolError:
            # A count that does not fit: an error of that connection only.
            assert self.is_tampered and self.agent.session.detached
            link.at_agent, link.is_cut = Place.LOST, True

    def _is_greeting(self, message: bytes) -> bool:
        try:
            return read_hello(message).resume
        except PeerProtocolError:
            assert self.is_tampered
            return False


def _run(data: bytes) -> None:
    source = Source(data)
    pair = _Pair((100, 5_000, 70_000, 262_144)[source.number() & 3])
    ends = pair.agent, pair.server
    while source and not pair.agent.session.closed:
        action, choice = source.number(), source.number()
        _act(pair, action, choice, source.number(2))
        for end in ends:
            check_end(end)
            assert end.broke is None or pair.is_tampered, end.broke
    for end in ends:
        end.session.close(Code.SESSION_LOST, "the end")
        check_end(end)
        check_told(end)


def _act(pair: _Pair, action: int, choice: int, amount: int) -> None:
    end = pair.agent if choice & 1 else pair.server
    match action % 16:
        case 0:
            if len(end.session.streams) < MAX_STREAMS and end.session.may_go_on:
                end.open(f"tcp/{amount}")
        case 1 | 2 | 3:
            _use(end, action % 16, choice >> 1, amount)
        case 4 | 5:
            pair.pull(end, 1 + amount % 4)
        case 6 | 7:
            for _ in range(1 + amount % 8):
                pair.deliver(end, amount)
        case 8:
            pair.cut(choice % 5, amount % 5)
        case 9:
            pair.lose(end)
        case 10:
            pair.notice(end)
        case 11:
            if len(pair.links) < MAX_LINKS:
                pair.dial()
        case 12:
            pair.sleep(amount % 1000 / 1000)
            if not end.session.detached and not end.session.handle_timer(pair.now):
                pair.lose(end)
        case 13:
            for recorder in end.handlers.values():
                recorder.stalled = not recorder.stalled
                recorder.take()
        case _:
            _tamper(pair, choice, amount)


def _use(end: End, how: int, choice: int, amount: int) -> None:
    """Write on a live stream, end it, or reset it."""
    live = list(end.session.streams.values())
    if not live:
        return
    stream = live[choice % len(live)]
    recorder = end.handlers[stream.id]
    if how == 3 and amount % 4 == 0:
        end.was_reset.add(stream.id)  # type: ignore[attr-defined]
        stream.reset(Code.CANCELLED, "fuzz")
    elif how == 2 and amount % 3 == 0:
        stream.write_eof()
    elif _may_write(recorder):
        stream.write(bytes(1 + amount % min(60_000, MAX_WRITTEN_BYTES)))


def _may_write(recorder: Recorder) -> bool:
    return not recorder.paused and not recorder.stream.eof_queued


def _tamper(pair: _Pair, choice: int, amount: int) -> None:
    """Change the oldest message of one queue, or the order of two."""
    queues: list[deque[bytes]] = [
        queue
        for link in pair.links
        for queue in (link.to_agent, link.to_server)
        if queue
    ]
    if not queues:
        return
    pair.is_tampered = True
    queue = queues[choice // 8 % len(queues)]
    message = queue.popleft()
    at = amount % max(1, len(message))
    match choice % 8:
        case 0:
            pass  # it is lost
        case 1:
            queue.extendleft((message, message))  # it comes twice
        case 2:
            queue.append(message)  # it comes late
        case 3:
            queue.appendleft(message[:at])
        case 4:
            queue.appendleft(message + message[at:])
        case 5:
            queue.appendleft(message[:at] + bytes((amount >> 8,)) + message[at:])
        case 6 if message[:1] == b"\0":
            queue.appendleft(_other_count(message, amount % 7 - 3))
        case _:
            changed = bytearray(message)
            if changed:
                changed[at] ^= 1 << (amount >> 5 & 7)
            queue.appendleft(bytes(changed))


def _other_count(message: bytes, difference: int) -> bytes:
    """A greeting that has received some messages more, or less."""
    try:
        hello = read_hello(message)
    except PeerProtocolError:
        return message
    count = max(0, hello.received + difference)
    return encode_hello(replace(hello, received=count).encode())


def _steps(*steps: tuple[int, int, int]) -> bytes:
    return b"".join(
        bytes((what, which)) + much.to_bytes(2) for what, which, much in steps
    )


def _seeds() -> list[bytes]:
    talk = _steps(
        *((0, 1, 7), (0, 0, 8), (1, 1, 900), (1, 0, 50_000), (4, 1, 3), (4, 0, 3)),
        *((6, 1, 7), (6, 0, 7), (4, 1, 3), (6, 1, 7), (2, 1, 3)),
    )
    resume = _steps(
        *((8, 0, 0), (10, 0, 0), (10, 1, 0), (11, 0, 0), (6, 1, 0), (4, 0, 3)),
        *((6, 0, 7), (4, 1, 3), (6, 1, 7)),
    )
    changed = [_steps((14, how, 300 + how)) for how in range(8)]
    changed += [_steps((14, 6, much)) for much in range(7)]
    whole = [b"\x03" + talk + resume + talk]
    for change in changed:
        whole.append(b"\x03" + talk[:20] + change + talk[20:] + resume)
        # Behind the agent's greeting, and behind the server's.
        for at in (16, 24):
            whole.append(b"\x01" + talk + resume[:at] + change + resume[at:])
    return whole


TARGETS = (
    Target(name="tampering", run=_run, seeds=_seeds, max_bytes=1024, runs=2_000),
)
