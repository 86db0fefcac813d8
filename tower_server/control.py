"""The control stream: what an agent reports about its member, inside mutual TLS.

The agent opens one per session and shows its certificate again, now end to end: an
ingress that ends the outer TLS can neither read nor forge what goes through here. One
JSON object per line; unknown fields and kinds are skipped, what is no JSON ends the stream.
"""

import json
import logging
import ssl
from typing import Any

from certs.contexts import INNER_PROTOCOL, peer_certificate
from certs.keys import require_p256, spki_pin
from certs.names import AgentRole, require_role
from shared.errors import Code, StreamReset
from shared.member.report import read_report
from shared.streams import ByteStream
from tower_server.registry import LiveSession

__all__ = ["ControlEnd", "identify_agent"]

_log = logging.getLogger(__name__)

# A report has about 200 bytes.
MAX_LINE_BYTES = 16 * 1024


def identify_agent(connection: ssl.SSLObject, session: LiveSession, zone: str) -> None:
    """Demand that the peer is the very agent whose assertion opened the session.

    Raises:
        ValueError: If it is not.
    """
    certificate = peer_certificate(connection, protocol=INNER_PROTOCOL)
    require_role(certificate, AgentRole(zone=zone, cluster=session.cluster))
    # An earlier key of this cluster, which a later join has ended, says nothing.
    if (
        spki_pin(require_p256(certificate.public_key()))
        != session.identity.public_key_pin
    ):
        raise ValueError("the key is another than that of the tunnel")


class ControlEnd:
    """Handler of a control stream's plain text."""

    def __init__(self, session: LiveSession, stream: ByteStream) -> None:
        self._session = session
        self._stream = stream
        # The beginning of a line whose end is not here yet.
        self._rest = b""

    def data_received(self, data: bytes | memoryview) -> None:
        self._stream.taken(len(data))
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                self._receive(line)
            _check_length(self._rest)
        except ValueError as error:
            _log.warning("%s: control stream: %s", self._session.cluster, error)
            self._stream.reset(Code.PROTOCOL, str(error))

    def eof_received(self) -> None:
        self._stream.write_eof()

    def stream_closed(self, error: StreamReset | None) -> None:
        pass

    def pause_writing(self) -> None:
        pass  # nothing is written

    def resume_writing(self) -> None:
        pass

    def _receive(self, line: bytes) -> None:
        _check_length(line)
        try:
            message: Any = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("a line is not JSON") from None
        if isinstance(message, dict) and message.get("kind") == "report":
            self._session.report = read_report(message)


def _check_length(line: bytes) -> None:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a line has over {MAX_LINE_BYTES} bytes")
