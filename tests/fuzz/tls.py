"""A connection's first bytes at the front door, from anybody: read_client_hello."""

import ssl
import struct

from tests.fuzz.target import Target
from tower_server.client_hello import (
    MAX_CLIENT_HELLO_BYTES,
    ClientHello,
    Incomplete,
    Verdict,
    read_client_hello,
)

__all__ = ["TARGETS"]


def _run(data: bytes) -> None:
    verdict = read_client_hello(data)
    assert verdict == read_client_hello(data)
    if isinstance(verdict, Incomplete):
        # Always news, and never more than can come: or a connection waits for nothing.
        assert len(data) < verdict.wanted_bytes <= MAX_CLIENT_HELLO_BYTES
        return
    # What has been said cannot be unsaid by more bytes: they may have come in any pieces.
    assert read_client_hello(data + b"\x16\x03\x01\x00\x01\x00") == verdict
    if isinstance(verdict, ClientHello):
        assert _read_as_it_comes(data) == verdict
        name = verdict.server_name or ""
        assert name.isascii() and name == name.lower()


def _read_as_it_comes(data: bytes) -> Verdict:
    """Judge as the front door does, which waits for what is wanted."""
    seen = 0
    while isinstance(verdict := read_client_hello(data[:seen]), Incomplete):
        # It wants whole records: the last one may hold more than the hello, and be cut short.
        seen = min(verdict.wanted_bytes, len(data))
    return verdict


def _seeds() -> list[bytes]:
    hellos = [
        _openssl(name, maximum)
        for name in ("alpha.clusters.tower.internal", "a", None)
        for maximum in (None, ssl.TLSVersion.TLSv1_2)
    ]
    message = hellos[0][5:]
    return [*hellos, hellos[0][:100], _record(message[:50]) + _record(message[50:])]


def _openssl(name: str | None, maximum: ssl.TLSVersion | None) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if maximum is not None:
        context.maximum_version = maximum
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def _record(content: bytes) -> bytes:
    return b"\x16\x03\x01" + struct.pack(">H", len(content)) + content


TARGETS = (
    Target(
        name="client-hello",
        run=_run,
        seeds=_seeds,
        words=(
            b"\x16\x03\x01",
            b"\x16\x03\x03\x00\x01",
            b"\x01\x00\x00",
            b"\x00\x00\x00\x05\x00\x03\x00\x00\x00",
            b"\x40\x00",
            b"\x40\x01",
        ),
    ),
)
