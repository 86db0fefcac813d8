"""What a stream from the server is opened to: the one switch over targets.

sealed     a control plane's TLS connection to this member's apiserver
gateway    requests of callers whom the server has authenticated, inside mutual TLS with it
tcp/NAME   a raw target of the agent's own list
"""

import logging
from collections.abc import Callable

from shared.errors import Code
from shared.member.gateway import GATEWAY_TARGET
from shared.mux.stream import Stream
from shared.tunnel.connection import TunnelConnection
from shared.wire.frames import GoAway
from shared.wire.hello import Hello
from tower_agent.raw import RawTargets

__all__ = ["Dispatcher"]

_log = logging.getLogger(__name__)


class Dispatcher:
    """Owner of the agent's tunnels: opens targets, and hands on what happens to tunnels."""

    def __init__(
        self,
        raw: RawTargets,
        open_sealed: Callable[[Stream], None],
        open_gateway: Callable[[Stream], None],
        tunnel_ready: Callable[[TunnelConnection, Hello], None],
        tunnel_lost: Callable[[TunnelConnection, str], None],
        going_away: Callable[[TunnelConnection, GoAway], None],
    ) -> None:
        self._raw = raw
        self._open_sealed = open_sealed
        self._open_gateway = open_gateway
        self._tunnel_ready = tunnel_ready
        self._tunnel_lost = tunnel_lost
        self._going_away = going_away

    def tunnel_ready(self, connection: TunnelConnection, hello: Hello) -> None:
        self._tunnel_ready(connection, hello)

    def stream_opened(self, connection: TunnelConnection, stream: Stream) -> None:
        kind, _, name = stream.target.partition("/")
        if stream.target == "sealed":
            self._open_sealed(stream)
        elif stream.target == GATEWAY_TARGET:
            self._open_gateway(stream)
        elif kind == "tcp":
            self._raw.open(stream, name)
        else:
            stream.reset(
                Code.REFUSED, "the agent does not know this kind of target; upgrade it"
            )

    def stream_accepted(self, connection: TunnelConnection, stream: Stream) -> None:
        pass  # we open control streams only, and wait for nothing on them

    def going_away(self, connection: TunnelConnection, notice: GoAway) -> None:
        _log.info("the server goes away: %s", notice.reason)
        self._going_away(connection, notice)

    def tunnel_lost(self, connection: TunnelConnection, reason: str) -> None:
        self._tunnel_lost(connection, reason)
