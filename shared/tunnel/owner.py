"""A tunnel, as whoever opens streams sees it; and what its connection tells whoever uses its session."""

from typing import TYPE_CHECKING, Protocol

from shared.errors import Code
from shared.mux.session import Session
from shared.mux.stream import Stream
from shared.wire.frames import GoAway
from shared.wire.hello import Hello

if TYPE_CHECKING:
    from shared.tunnel.connection import TunnelConnection

__all__ = ["Tunnel", "TunnelOwner"]


class Tunnel(Protocol):
    """What carries a session: a WebSocket connection, or nothing at all (`LocalTunnel`)."""

    @property
    def session(self) -> Session:
        """Where streams are opened, counted and looked at."""

    @property
    def closed(self) -> bool:
        """Whether it is over."""

    @property
    def usable(self) -> bool:
        """Whether a new stream may be opened."""

    def close(self, code: Code, reason: str) -> None:
        """End it and its session, telling both ends why. Idempotent."""

    def abort(self, reason: str) -> None:
        """Drop it at once. Idempotent."""

    def release(self, reason: str) -> Session:
        """Give up the session, undamaged: another connection takes over."""


class TunnelOwner(Protocol):
    """Who uses a connection's session: the registry on the host, the dispatcher in the member."""

    def tunnel_ready(self, connection: "TunnelConnection", hello: Hello) -> None:
        """The peer's HELLO is here: streams may be opened."""

    def stream_opened(self, connection: "TunnelConnection", stream: Stream) -> None:
        """The peer opened a stream: set its handler or reset it before returning."""

    def stream_accepted(self, connection: "TunnelConnection", stream: Stream) -> None:
        """The peer reached the target of a stream that we opened."""

    def going_away(self, connection: "TunnelConnection", notice: GoAway) -> None:
        """The peer takes no new streams."""

    def tunnel_lost(self, connection: "TunnelConnection", reason: str) -> None:
        """The connection is over, with a sentence why. Called exactly once."""
