"""Two session cores over connections that are lost, found again, and overtake each other.

`ResumingPair` is a `SessionPair` whose messages travel on `Link`s, each with a delay. A link
may be cut at any byte: what was under way behind it is lost, each end notices when it is
told to, and may get late messages until then. A link may freeze and thaw. The agent dials as
often as it is told; the dials arrive in any order. Either end may start anew, without memory.
Ends do what the real shell does with HELLO, counts and epochs.
"""

from collections import deque
from enum import Enum, auto
from typing import Any

from shared.errors import Code, PeerProtocolError
from shared.wire.frames import encode_hello
from shared.wire.hello import read_hello
from tests.fakes.session_pair import End, SessionPair

__all__ = ["Link", "ResumingPair", "Wire"]


class Place(Enum):
    """What one end makes of a link."""

    NEW = auto()  # its first message has not arrived
    ATTACHED = auto()
    LOST = auto()


class Wire(deque[bytes]):
    """One direction of a link: messages under way, and when each arrives."""

    def __init__(self, pair: SessionPair, delay_seconds: float) -> None:
        super().__init__()
        self._pair = pair
        self._delay_seconds = delay_seconds
        # For each message.
        self.due: deque[float] = deque()

    def append(self, message: bytes) -> None:
        super().append(message)
        self.due.append(self._pair.now + self._delay_seconds)

    def popleft(self) -> bytes:
        if self.due:
            self.due.popleft()
        return super().popleft()

    def has_arrived(self, now: float) -> bool:
        """Whether the oldest message is there; what somebody smuggled in is at once."""
        return not self.due or self.due[0] <= now

    def cut(self, keep_messages: int) -> None:
        """What is behind so many messages does not arrive."""
        while len(self) > keep_messages:
            self.pop()
            if self.due:
                self.due.pop()

    def messages_within(self, size_bytes: int) -> int:
        """How many messages arrive whole if so many bytes do."""
        count = 0
        for message in self:
            size_bytes -= len(message)
            if size_bytes < 0:
                break
            count += 1
        return count


class Link:
    """One connection: what is under way on it, and what each end makes of it."""

    def __init__(self, pair: "ResumingPair", epoch: int, place: Place) -> None:
        # The agent's epoch when it dialled.
        self.epoch = epoch
        self.to_server = Wire(pair, pair.delay_seconds)
        self.to_agent = Wire(pair, pair.delay_seconds)
        self.at_agent = self.at_server = place
        # Nothing arrives for now; nobody is told.
        self.is_frozen = False
        # Nothing gets in any more; what is in may still arrive.
        self.is_cut = False


class ResumingPair(SessionPair):
    """A pair of sessions that go on over other connections."""

    def __init__(self, *, delay_seconds: float = 0.0, **arguments: Any) -> None:
        super().__init__(**arguments, shake_hands=False)
        # One way, on every link.
        self.delay_seconds = delay_seconds
        self.links: list[Link] = []
        # The link that each end's session is attached to; None when it is detached.
        self.on: dict[int, Link | None] = {}
        # Whether messages arrive at once, also on frozen links.
        self._in_a_hurry = False
        self.resumes = 0
        self.refusals = 0
        self._meet()

    def _meet(self) -> None:
        """Both sessions begin, over a connection of their own."""
        self.links = [Link(self, 0, Place.ATTACHED)]
        for end in (self.agent, self.server):
            self._attach(end, self.links[0])
        self._exchange()

    def _is_agent(self, end: End) -> bool:
        return end is self.agent

    def _attach(self, end: End, link: Link) -> None:
        self.on[id(end)] = link
        if self._is_agent(end):
            end.outgoing, link.at_agent = link.to_server, Place.ATTACHED
        else:
            end.outgoing, link.at_server = link.to_agent, Place.ATTACHED
        if link.is_cut:
            end.outgoing = deque(maxlen=0)

    def link_of(self, end: End) -> Link | None:
        return self.on[id(end)]

    # Faults

    def cut(self, keep_to_agent: int = 0, keep_to_server: int = 0) -> None:
        """Lose every connection; so many messages on each may still arrive, late."""
        for link in self.links:
            link.to_agent.cut(keep_to_agent)
            link.to_server.cut(keep_to_server)
        self._end_links()

    def cut_at_byte(self, to_agent_bytes: int, to_server_bytes: int) -> None:
        """Lose every connection; of what is under way so many bytes still arrive, late.

        Half a message is none: the WebSocket hands out whole ones.
        """
        for link in self.links:
            for wire, size in (
                (link.to_agent, to_agent_bytes),
                (link.to_server, to_server_bytes),
            ):
                wire.cut(wire.messages_within(size))
        self._end_links()

    def _end_links(self) -> None:
        for link in self.links:
            link.is_cut = True
        for end in (self.agent, self.server):
            end.outgoing = deque(maxlen=0)

    def restart(self, end: End) -> None:
        """The process of one end is gone and another begins; the other end sees that."""
        self.peer_of(end).session.close(Code.SESSION_LOST, "the peer started anew")
        self._begin_sessions()
        self._meet()

    def lose(self, end: End) -> None:
        """An end takes its connection for dead, rightly or not."""
        link = self.on[id(end)]
        if link is None:
            return
        end.session.detach()
        self.on[id(end)] = None
        end.outgoing = deque(maxlen=0)
        link.is_cut = True
        if self._is_agent(end):
            link.at_agent = Place.LOST
        else:
            link.at_server = Place.LOST

    def notice(self, end: End) -> None:
        """An end looks whether its connection is still good."""
        link = self.on[id(end)]
        if link is not None and (
            link.is_cut or Place.LOST in (link.at_agent, link.at_server)
        ):
            self.lose(end)

    def dial(self) -> None:
        """The agent asks on another connection to go on."""
        session = self.agent.session
        if not session.detached:
            return
        link = Link(self, session.epoch, Place.NEW)
        link.to_server.append(encode_hello(session.resume_hello().encode()))
        self.links.append(link)

    # What arrives

    def deliver(self, end: End, choice: int = 0) -> bool:
        """Bring the oldest message of `end` on one of its links to the peer."""
        from_agent, hurry, now = self._is_agent(end), self._in_a_hurry, self.now
        wires = [
            (link, wire)
            for link in self.links
            if (wire := link.to_server if from_agent else link.to_agent)
            and (hurry or (wire.has_arrived(now) and not link.is_frozen))
        ]
        if not wires:
            return False
        link, wire = wires[choice % len(wires)]
        message = wire.popleft()
        if from_agent:
            self._arrives_at_server(link, message)
        else:
            self._arrives_at_agent(link, message)
        if len(self.links) > 4:
            self._forget_links()
        return True

    def _forget_links(self) -> None:
        self.links = [
            link
            for link in self.links
            if link.to_agent
            or link.to_server
            or link in self.on.values()
            or not link.is_cut
        ]

    def _arrives_at_server(self, link: Link, message: bytes) -> None:
        if link.at_server is Place.ATTACHED:
            self.feed(self.server, message)
        elif link.at_server is Place.NEW:
            hello, session = read_hello(message), self.server.session
            assert hello.resume
            try:
                session.replay.check_resume(hello.received)
            except PeerProtocolError:
                self.refusals += 1
                link.at_server, link.is_cut = Place.LOST, True
                return
            self.lose(self.server)
            session.attach(hello, self.server, self.now)
            self._attach(self.server, link)

    def _arrives_at_agent(self, link: Link, message: bytes) -> None:
        if link.at_agent is Place.ATTACHED:
            self.feed(self.agent, message)
        elif link.at_agent is Place.NEW:
            hello, session = read_hello(message), self.agent.session
            assert hello.resume
            if session.epoch != link.epoch:
                link.at_agent, link.is_cut = Place.LOST, True
                return
            session.attach(hello, self.agent, self.now)
            self._attach(self.agent, link)
            self.resumes += 1

    def settle(self) -> None:
        """Exchange messages until nobody has any, over a connection that both hold good.

        Raises:
            AssertionError: If that takes more than some attempts.
        """
        self._exchange()
        for _ in range(20):
            agent, server = self.on[id(self.agent)], self.on[id(self.server)]
            if agent is server and agent is not None and not agent.is_cut:
                return
            self.notice(self.agent)
            if agent is not server:
                self.notice(self.server)
            if self.on[id(self.agent)] is None and not any(
                link.epoch == self.agent.session.epoch and not link.is_cut
                for link in self.links
            ):
                self.dial()
            elif agent is not None and agent is not server:
                self.lose(self.agent)  # its silence will tell it
            self._exchange()
        raise AssertionError("no progress after the last cut")

    def _exchange(self) -> None:
        self._in_a_hurry = True
        super().settle()
        self._in_a_hurry = False
