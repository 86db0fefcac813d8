"""Which end a session is, and what it tells its owner."""

from enum import Enum
from typing import Protocol

from shared.mux.stream import Stream
from shared.wire.frames import GoAway
from shared.wire.hello import Hello

__all__ = ["Role", "SessionHandler"]


class Role(Enum):
    """Which end of the session this is."""

    AGENT = 1  # opens streams 1, 3, 5, …
    SERVER = 2  # opens streams 2, 4, 6, …


class SessionHandler(Protocol):
    """Who is told what happens to the session as a whole."""

    def session_ready(self, hello: Hello) -> None:
        """The peer's HELLO is here: streams may be opened."""

    def stream_opened(self, stream: Stream) -> None:
        """The peer opened a stream: set its `handler`, or `reset` it, before returning."""

    def stream_accepted(self, stream: Stream) -> None:
        """The peer reached the target of a stream that we opened."""

    def going_away(self, notice: GoAway) -> None:
        """The peer takes no new streams; those that run may finish."""

    def stream_failed(self, stream: Stream, error: Exception) -> None:
        """Code told of a stream raised: a bug. The stream is reset, the session goes on."""

    def output_ready(self) -> None:
        """There may be something to send: ask `data_to_send` soon. Called often."""
