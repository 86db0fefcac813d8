"""Two session cores over connections that are lost, found again, and overtake each other.

`ResumingPair` is a `SessionPair` whose messages travel on `Link`s. A link may be cut: what
was under way is lost from any message on, each end notices when it is told to, and may get
late messages until then. The agent dials as often as it is told; the dials arrive in any
order. Ends do what the real shell does with HELLO, counts and epochs.
"""

from collections import deque
from enum import Enum, auto
from typing import Any

from shared.errors import PeerProtocolError
from shared.wire.frames import encode_hello
from shared.wire.hello import read_hello
from tests.fakes.session_pair import End, SessionPair

__all__ = ["Link", "ResumingPair"]


class Place(Enum):
    """What one end makes of a link."""

    NEW = auto()  # its first message has not arrived
    ATTACHED = auto()
    LOST = auto()


class Link:
    """One connection: what is under way on it, and what each end makes of it."""

    def __init__(self, epoch: int, place: Place) -> None:
        # The agent's epoch when it dialled.
        self.epoch = epoch
        self.to_server: deque[bytes] = deque()
        self.to_agent: deque[bytes] = deque()
        self.at_agent = self.at_server = place
        # Nothing gets in any more; what is in may still arrive.
        self.is_cut = False


class ResumingPair(SessionPair):
    """A pair of sessions that go on over other connections."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, shake_hands=False)
        self.links: list[Link] = [Link(0, Place.ATTACHED)]
        # The link that each end's session is attached to; None when it is detached.
        self.on: dict[int, Link | None] = {}
        for end in (self.agent, self.server):
            self._attach(end, self.links[0])
        self.resumes = 0
        self.refusals = 0
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
            link.is_cut = True
            for queue, keep in (
                (link.to_agent, keep_to_agent),
                (link.to_server, keep_to_server),
            ):
                while len(queue) > keep:
                    queue.pop()
        for end in (self.agent, self.server):
            end.outgoing = deque(maxlen=0)

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
        link = Link(session.epoch, Place.NEW)
        link.to_server.append(encode_hello(session.resume_hello().encode()))
        self.links.append(link)

    # What arrives

    def deliver(self, end: End, choice: int = 0) -> bool:
        """Bring the oldest message of `end` on one of its links to the peer."""
        from_agent = self._is_agent(end)
        queues = [
            (link, queue)
            for link in self.links
            if (queue := link.to_server if from_agent else link.to_agent)
        ]
        if not queues:
            return False
        link, queue = queues[choice % len(queues)]
        message = queue.popleft()
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
        super().settle()
