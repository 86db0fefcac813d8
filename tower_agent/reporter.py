"""Tells the server how the member is: over a control stream, inside mutual TLS.

One control stream per tunnel, opened by the agent, and opened again when it breaks while
the tunnel stays. The apiserver is asked every few seconds, so that `tower cluster list` is
true within five; a line goes out when the answer changed, and at the start of every stream.

A stream on which nothing is said any more is closed, and the next news opens another: its TLS
would cost the server 30 KiB for each of its agents, nearly as much as all the rest of them.
"""

import asyncio
import json
import logging
import ssl

from certs.contexts import INNER_PROTOCOL, inner_client, peer_certificate
from certs.names import ServerRole, require_role
from shared.errors import StreamReset
from shared.member.report import MemberProbe, MemberReport
from shared.streams import ByteStream, StreamHandler
from shared.tunnel.connection import TunnelConnection
from shared.tunnel.tls import TlsEnd
from tower_agent.credentials import Credentials

__all__ = ["CONTROL_TARGET", "Reporter"]

_log = logging.getLogger(__name__)

# What an agent opens its reports to; see the server's registry.
CONTROL_TARGET = "control"

# With the deadline of one question still within the 5 s that status promises.
ASK_EVERY_SECONDS = 2.0

# A control stream that broke is opened again after this, doubled each time up to the last:
# its handshake costs the server a signature, and it may have ten thousand agents.
FIRST_REOPEN_SECONDS = 1.0
LAST_REOPEN_SECONDS = 60.0

# So long after the last line a stream is closed: what the next question brings goes the same
# way, and an apiserver that comes and goes does not cost a handshake each time.
LET_GO_SECONDS = 3.0


class Reporter:
    """Asks the apiserver, and reports over every tunnel."""

    def __init__(self, credentials: Credentials, probe: MemberProbe) -> None:
        self.use(credentials)
        self._probe = probe
        # By the number of the tunnel: an agent has several, each renewed by itself.
        self._channels: dict[int, _Channel] = {}
        # The last report, to be repeated on a new stream.
        self.report = MemberReport()

    def use(self, credentials: Credentials) -> None:
        """Open further control streams with these, which may be renewed; those that are open stay."""
        self.zone = credentials.zone
        self.context = inner_client(
            credentials.certificate_pem, credentials.key_pem, credentials.ca_pem
        )

    def connected(
        self, tunnel: TunnelConnection, *, resumed: bool, number: int = 0
    ) -> None:
        """Open a control stream on a new tunnel; what is open on an older one stays.

        When the tunnel goes on with an earlier session, so does the stream in it.
        """
        channel = self._channels.setdefault(number, _Channel(self))
        channel.connected(tunnel, resumed=resumed)

    async def run(self) -> None:
        """Ask and report until cancelled."""
        try:
            while True:
                report = await self._probe.ask()
                if report != self.report:
                    self.report = report
                    for channel in self._channels.values():
                        channel.send()
                await asyncio.sleep(ASK_EVERY_SECONDS)
        finally:
            for channel in self._channels.values():
                channel.close()


class _Channel:
    """The control stream of one tunnel, and of those that follow it."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        # The newest tunnel; None before the first, and at the end.
        self._tunnel: TunnelConnection | None = None
        # The newest control stream, from its opening to its end.
        self._end: TlsEnd | None = None
        # Its handshake is done: reports may be written.
        self._is_secured = False
        # When it was opened, and the pause before the next if it breaks.
        self._opened_at = 0.0
        self._reopen_seconds = FIRST_REOPEN_SECONDS
        # Set while that pause lasts, or until a stream without news is let go.
        self._timer: asyncio.TimerHandle | None = None
        # What the server knows of this session, as far as we know.
        self._told = MemberReport()

    def connected(self, tunnel: TunnelConnection, *, resumed: bool) -> None:
        self._tunnel = tunnel
        self._reopen_seconds = FIRST_REOPEN_SECONDS
        if not resumed:
            self._open()
        elif self._end is None:
            self._stop_timer()
            self.send()

    def close(self) -> None:
        """Open no more streams; what is open ends with its tunnel."""
        self._tunnel = None
        self._stop_timer()

    def send(self) -> None:
        """Say how the member is, unless that has been said."""
        report = self._reporter.report
        if report == self._told:
            return
        if self._end is None:
            if self._timer is None:
                self._open()
        elif self._is_secured:
            line = json.dumps({"kind": "report", **report.to_json()}) + "\n"
            self._end.write(line.encode())
            self._told = report
            self._stop_timer()
            self._timer = asyncio.get_running_loop().call_later(
                LET_GO_SECONDS, self._let_go
            )

    def _let_go(self) -> None:
        end, self._end = self._end, None
        self._is_secured, self._timer = False, None
        if end is not None:
            end.write_eof()

    def _open(self) -> None:
        self._stop_timer()
        self._end, self._is_secured = None, False
        self._told = MemberReport()
        loop = asyncio.get_running_loop()
        if self._tunnel is None or not self._tunnel.usable:
            return  # the next tunnel is on its way, and with it the next stream
        self._opened_at = loop.time()
        try:
            stream = self._tunnel.session.open_stream(CONTROL_TARGET)
        except StreamReset as error:
            self._reopen_later(str(error))
            return
        end = TlsEnd(
            self._reporter.context,
            server_side=False,
            on_handshake=self._secured,
            call_later=loop.call_later,
            on_failed=lambda sentence: self.stream_ended(end, sentence),
        )
        self._end = end
        stream.handler = end
        end.start(stream)

    def _secured(self, stream: ByteStream, connection: ssl.SSLObject) -> StreamHandler:
        certificate = peer_certificate(connection, protocol=INNER_PROTOCOL)
        require_role(certificate, ServerRole(zone=self._reporter.zone))
        if stream is self._end:
            self._is_secured = True
            self.send()
        return _ControlHandler(self, stream)

    def stream_ended(self, stream: ByteStream, reason: str) -> None:
        """A control stream is over, or as good as: nothing more is written to it."""
        if stream is self._end:
            self._stop_timer()
            self._end, self._is_secured = None, False
            self._told = MemberReport()
            self._reopen_later(reason)

    def _reopen_later(self, reason: str) -> None:
        if self._tunnel is None or not self._tunnel.usable:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._opened_at >= LAST_REOPEN_SECONDS:
            self._reopen_seconds = FIRST_REOPEN_SECONDS
        pause = self._reopen_seconds
        self._reopen_seconds = min(pause * 2, LAST_REOPEN_SECONDS)
        _log.warning("the control stream ended, next in %g s: %s", pause, reason)
        self._timer = loop.call_later(pause, self._open)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _ControlHandler:
    """The server says nothing on a control stream yet; what it says is skipped."""

    def __init__(self, channel: _Channel, stream: ByteStream) -> None:
        self._channel = channel
        self._stream = stream

    def data_received(self, data: bytes | memoryview) -> None:
        self._stream.taken(len(data))

    def eof_received(self) -> None:
        self._stream.write_eof()
        self._channel.stream_ended(self._stream, "the server closed it")

    def stream_closed(self, error: StreamReset | None) -> None:
        self._channel.stream_ended(self._stream, str(error or "the server closed it"))

    def pause_writing(self) -> None:
        pass  # a report is a few hundred bytes every few seconds at most

    def resume_writing(self) -> None:
        pass
