"""Reads the server name out of the first bytes of a TLS connection. RFC 8446, 4.1.2.

Pure: bytes in, a verdict out. The front door asks again with more bytes while the answer
is `Incomplete`. Only what routing needs is read; whoever ends the TLS checks the rest.
"""

from dataclasses import dataclass
from typing import Final

__all__ = [
    "DECODE_ERROR_ALERT",
    "MAX_CLIENT_HELLO_BYTES",
    "MAX_HELLO_RECORDS",
    "UNRECOGNIZED_NAME_ALERT",
    "ClientHello",
    "Incomplete",
    "Malformed",
    "NotTls",
    "Verdict",
    "read_client_hello",
]

# Record headers included. kubectl's has 1.5 KiB (a post-quantum key share); with two such
# shares and long tickets 4 KiB are seen. RFC 8446 allows 16 MiB; nobody needs it.
MAX_CLIENT_HELLO_BYTES = 16 * 1024

# Clients send one record; those that dodge filters cut it into a few. Each record can
# wake us twice, so records of one byte each would be a cheap way to keep us busy.
MAX_HELLO_RECORDS = 16

# Fatal alert records: unrecognized_name(112), RFC 6066, 3; decode_error(50).
UNRECOGNIZED_NAME_ALERT: Final = bytes((21, 3, 3, 0, 2, 2, 112))
DECODE_ERROR_ALERT: Final = bytes((21, 3, 3, 0, 2, 2, 50))

_RECORD_HEADER_BYTES = 5
_MAX_RECORD_BYTES = 2**14  # RFC 8446, 5.1
_HANDSHAKE_HEADER_BYTES = 4

_HANDSHAKE_RECORD = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0


@dataclass(frozen=True)
class ClientHello:
    """A whole ClientHello."""

    server_name: str | None  # lower case, without a final dot; None when not sent


@dataclass(frozen=True)
class Incomplete:
    """More bytes are needed: asking again is no use with fewer than these in all."""

    wanted_bytes: int


@dataclass(frozen=True)
class NotTls:
    """No TLS client begins like this."""


@dataclass(frozen=True)
class Malformed:
    """It begins like TLS, and then breaks its rules or our limits."""

    reason: str


Verdict = ClientHello | Incomplete | NotTls | Malformed


class _CutShort(Exception):
    """A length inside the hello points behind its end."""


class _Reader:
    """Walks over length-prefixed fields."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def take(self, count: int) -> bytes:
        end = self.offset + count
        if end > len(self.data):
            raise _CutShort
        taken = self.data[self.offset : end]
        self.offset = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, length_size: int) -> bytes:
        return self.take(self.number(length_size))


def read_client_hello(data: bytes) -> Verdict:
    """Judge the first bytes of a connection."""
    if data and (data[0] != _HANDSHAKE_RECORD or (len(data) > 1 and data[1] != 3)):
        return NotTls()
    verdict = _read_records(data)
    if isinstance(verdict, Incomplete):
        if len(data) >= MAX_CLIENT_HELLO_BYTES:
            return Malformed(f"ClientHello of over {MAX_CLIENT_HELLO_BYTES} bytes")
        return Incomplete(min(verdict.wanted_bytes, MAX_CLIENT_HELLO_BYTES))
    return verdict


def _read_records(data: bytes) -> Verdict:
    """Join the records' contents until they hold the whole handshake message."""
    handshake = bytearray()
    offset = 0
    for _ in range(MAX_HELLO_RECORDS):
        if len(data) < offset + _RECORD_HEADER_BYTES:
            return Incomplete(offset + _RECORD_HEADER_BYTES)
        if data[offset] != _HANDSHAKE_RECORD:
            return Malformed("another record came before the end of the ClientHello")
        length = int.from_bytes(data[offset + 3 : offset + 5])
        if not 0 < length <= _MAX_RECORD_BYTES:
            return Malformed(f"TLS record of {length} bytes")
        offset += _RECORD_HEADER_BYTES
        handshake += data[offset : offset + length]
        offset += length
        verdict = _read_handshake(handshake)
        if verdict is not None:
            return verdict
        if len(data) < offset:
            # Of a wrong message the first byte tells; of a right one we want all.
            return Incomplete(offset)
    return Malformed(f"ClientHello in over {MAX_HELLO_RECORDS} records")


def _read_handshake(handshake: bytearray) -> ClientHello | Malformed | None:
    """Judge the handshake message; None while it is not whole."""
    if handshake and handshake[0] != _CLIENT_HELLO:
        return Malformed("the handshake does not begin with a ClientHello")
    if len(handshake) < _HANDSHAKE_HEADER_BYTES:
        return None
    end = _HANDSHAKE_HEADER_BYTES + int.from_bytes(handshake[1:4])
    if end > MAX_CLIENT_HELLO_BYTES:
        return Malformed(f"ClientHello of {end} bytes")
    if len(handshake) < end:
        return None
    try:
        return ClientHello(_server_name(bytes(handshake[_HANDSHAKE_HEADER_BYTES:end])))
    except _CutShort:
        return Malformed("the ClientHello's lengths do not fit")
    except UnicodeDecodeError:
        return Malformed("the server name is not ASCII")


def _server_name(body: bytes) -> str | None:
    reader = _Reader(body)
    reader.take(2 + 32)  # legacy_version, random
    reader.vector(1)  # legacy_session_id
    reader.vector(2)  # cipher_suites
    reader.vector(1)  # legacy_compression_methods
    if reader.offset == len(body):
        return None
    extensions = _Reader(reader.vector(2))
    while extensions.offset < len(extensions.data):
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            names = _Reader(_Reader(content).vector(2))
            if names.number(1) != _HOST_NAME:
                return None
            # Compared without case (RFC 6066, 3); the final dot is not sent by rights.
            return names.vector(2).decode("ascii").lower().removesuffix(".")
    return None
