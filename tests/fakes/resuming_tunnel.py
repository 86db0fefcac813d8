"""A `TunnelPair` whose sessions outlive their connections: the agent dials until it is back.

The server side finds the one session it has, also on a connection that it holds for good.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from shared.errors import Code
from shared.mux.session import Role, Session
from shared.tunnel.connection import TunnelConnection
from shared.wire.hello import Hello
from tests.fakes.session_pair import hello
from tests.fakes.tunnel_pair import Owner, TunnelPair, Upgrade

__all__ = ["ResumingTunnel"]


class _Owner(Owner):
    """Tells the tunnel, too."""

    def __init__(
        self,
        ready: Callable[[TunnelConnection, Hello], None],
        lost: Callable[[TunnelConnection], None],
        upstream: Callable[[], tuple[str, int]] | None = None,
    ) -> None:
        super().__init__(upstream)
        self._ready, self._lost = ready, lost

    def tunnel_ready(self, connection: TunnelConnection, hello: Hello) -> None:
        self._ready(connection, hello)
        super().tunnel_ready(connection, hello)

    def tunnel_lost(self, connection: TunnelConnection, reason: str) -> None:
        super().tunnel_lost(connection, reason)
        self._lost(connection)


class ResumingTunnel(TunnelPair):
    """What `TunnelPair` is; `agent` and `server` are the connections that are ready."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.agent_owner = _Owner(
            self._agent_ready, self._agent_lost, lambda: self.upstream
        )
        self.server_owner = _Owner(self._server_ready, lambda _: None)
        # Every connection there was, to see that none is left.
        self.connections: list[TunnelConnection] = []
        # Whether the server still has its sessions; a restarted one has not.
        self.server_remembers = True
        self.resumes = 0
        self.releases = 0
        self.is_ending = False
        # Called when the agent has asked on another connection to go on.
        self.on_dial: Callable[[TunnelConnection], None] | None = None

    def upgraded(self, upgrade: Upgrade) -> None:
        is_agent = upgrade.role is Role.AGENT
        kept = self.agent.session if is_agent and self.connections else None
        if kept is not None and (kept.closed or not kept.detached):
            kept = None
        connection = TunnelConnection(
            upgrade.role,
            upgrade.websocket,
            hello() if is_agent else hello(session_id=""),
            self.agent_owner if is_agent else self.server_owner,
            resume=kept,
            find_session=self._find_session,
            keeps_sessions=True,
        )
        if not self.connections:
            self.agent = self.server = connection  # until they are ready
        self.connections.append(connection)
        connection.start(upgrade.transport)
        if kept is not None and self.on_dial is not None:
            self.on_dial(connection)

    def _find_session(self, asked: Hello) -> Session | None:
        session = self.server.session
        if not self.server_remembers or not session.may_go_on:
            return None
        assert session.hello.session_id == asked.session_id
        session.replay.check_resume(asked.received)
        if self.server.closed:
            return session
        self.releases += 1
        return self.server.release("its agent came back")

    def _server_ready(self, connection: TunnelConnection, hello: Hello) -> None:
        self.server = connection

    def _agent_ready(self, connection: TunnelConnection, hello: Hello) -> None:
        self.agent = connection
        self.resumes += hello.resume

    def _agent_lost(self, connection: TunnelConnection) -> None:
        if connection is self.agent or self.agent.closed:
            if not self.is_ending:
                self.agent_owner.tasks.start(self._dial_again(), "dial again")

    async def _dial_again(self) -> None:
        while True:
            try:
                await self.dial()
                return
            except OSError:  # cut in the middle of the handshake
                await asyncio.sleep(0.01)

    async def _close(self) -> None:
        self.is_ending = True
        await self.agent_owner.tasks.close()  # no more dials
        async with asyncio.timeout(10):
            while open_ := [c for c in self.connections if not c.closed]:
                for connection in open_:  # also one that was still being made
                    connection.close(Code.OK, "the test is over")
                await asyncio.sleep(0.01)
        await self.server_owner.tasks.close()
        for connection in self.connections:
            if connection.session.detached:  # as an owner does when it stops
                connection.session.close(Code.GOING_AWAY, "the test is over")
            assert not connection.session.streams
            timer = connection._end_timer
            assert timer is None or timer.cancelled(), "a timer outlives its connection"
            assert not connection._alarm.is_set, "an alarm outlives its connection"
