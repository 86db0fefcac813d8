"""The reading of ClientHellos: real ones of OpenSSL, cut anywhere, in any records, damaged.

Covered: the server name and its spelling, hellos without one, every prefix, fragmentation
over records, limits on bytes and records, what is no TLS, damage at any byte, that
`wanted_bytes` is never too much (which would stall a client) and always news.
"""

import functools
import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tower_server.client_hello import (
    MAX_CLIENT_HELLO_BYTES,
    MAX_HELLO_RECORDS,
    ClientHello,
    Incomplete,
    Malformed,
    NotTls,
    Verdict,
    read_client_hello,
)

NAMES = ["alpha.clusters.tower.internal", "a", "tower.example.com", None]


@functools.cache
def openssl_hello(name: str | None, maximum: ssl.TLSVersion | None = None) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    if maximum is not None:
        context.maximum_version = maximum
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def record(content: bytes, kind: int = 22) -> bytes:
    return bytes((kind, 3, 1)) + struct.pack(">H", len(content)) + content


def in_records(hello: bytes, sizes: list[int]) -> bytes:
    """The same handshake message in records of these sizes, the rest in a last one."""
    message, records = hello[5:], b""
    for size in sizes:
        if message[:size]:
            records += record(message[:size])
        message = message[size:]
    return records + (record(message) if message else b"")


def handshake(body: bytes) -> bytes:
    return record(b"\x01" + len(body).to_bytes(3, "big") + body)


def crafted(extensions: bytes | None, name_block: bytes = b"") -> bytes:
    """A minimal hello; `extensions=None` leaves them out, as TLS 1.0 clients did."""
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    if extensions is not None:
        body += struct.pack(">H", len(extensions)) + extensions
    return handshake(body)


def name_extension(name: bytes, kind: int = 0) -> bytes:
    entry = bytes((kind,)) + struct.pack(">H", len(name)) + name
    block = struct.pack(">H", len(entry)) + entry
    return struct.pack(">HH", 0, len(block)) + block


def read_as_it_comes(data: bytes, step: int | None = None) -> tuple[Verdict, int]:
    """Judge as the front door does: wait for what is wanted. Also how often it asked."""
    seen, asked = 0, 0
    verdict: Verdict = Incomplete(1)
    while isinstance(verdict, Incomplete) and seen < len(data):
        assert verdict.wanted_bytes > seen, (
            "it wants what it has: the kernel would spin"
        )
        seen = min(max(verdict.wanted_bytes, seen + (step or 0)), len(data))
        verdict, asked = read_client_hello(data[:seen]), asked + 1
    return verdict, asked


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("maximum", [None, ssl.TLSVersion.TLSv1_2])
def test_openssls_hello_is_read(
    name: str | None, maximum: ssl.TLSVersion | None
) -> None:
    assert read_client_hello(openssl_hello(name, maximum)) == ClientHello(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_prefix_is_incomplete(name: str | None) -> None:
    hello = openssl_hello(name)
    for length in range(len(hello)):
        verdict = read_client_hello(hello[:length])
        assert isinstance(verdict, Incomplete), f"{verdict} after {length} bytes"
        assert length < verdict.wanted_bytes <= len(hello)


def test_one_record_wakes_us_for_its_header_and_for_its_end() -> None:
    assert read_as_it_comes(openssl_hello("a")) == (ClientHello("a"), 3)


@given(st.sampled_from(NAMES), st.lists(st.integers(1, 120), max_size=14))
def test_records_may_cut_a_hello_anywhere(name: str | None, sizes: list[int]) -> None:
    hello = in_records(openssl_hello(name), sizes)
    assert read_client_hello(hello) == ClientHello(name)
    assert read_as_it_comes(hello)[0] == ClientHello(name)
    for length in range(len(hello)):
        assert isinstance(read_client_hello(hello[:length]), Incomplete)


@given(st.sampled_from(NAMES), st.integers(1, 400))
def test_more_bytes_than_wanted_at_a_time_change_nothing(
    name: str | None, step: int
) -> None:
    assert read_as_it_comes(openssl_hello(name), step)[0] == ClientHello(name)


def test_what_follows_the_hello_is_not_looked_at() -> None:
    hello = openssl_hello("alpha.example")
    for behind in (b"\x00" * 50, hello, b"GET / HTTP/1.1"):
        assert read_client_hello(hello + behind) == ClientHello("alpha.example")


@given(st.sampled_from(NAMES), st.data())
def test_damage_anywhere_raises_nothing(name: str | None, data: st.DataObject) -> None:
    hello = bytearray(openssl_hello(name))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(hello) - 1))
        hello[at] = data.draw(st.integers(0, 255))
    verdict = read_client_hello(bytes(hello))
    if isinstance(verdict, Incomplete):
        assert verdict.wanted_bytes > len(hello)
    else:
        assert isinstance(verdict, ClientHello | NotTls | Malformed)


@given(st.binary(max_size=300))
def test_noise_behind_a_handshakes_first_bytes_raises_nothing(noise: bytes) -> None:
    for data in (
        noise,
        b"\x16\x03\x01" + noise,
        record(b"\x01" + noise),
        crafted(noise),
    ):
        verdict = read_client_hello(data)
        if isinstance(verdict, Incomplete):
            assert len(data) < verdict.wanted_bytes <= MAX_CLIENT_HELLO_BYTES


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"SSH-2.0-OpenSSH", b"\x80\x2e\x01", b"\x16\x02\x01", b"P"],
)
def test_other_protocols_are_told_from_their_first_bytes(data: bytes) -> None:
    assert read_client_hello(data) == NotTls()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (b"Alpha.Clusters.TOWER.internal", "alpha.clusters.tower.internal"),
        (b"alpha.example.", "alpha.example"),
        (b"", ""),
    ],
)
def test_a_name_has_one_spelling(name: bytes, read: str) -> None:
    assert read_client_hello(crafted(name_extension(name))) == ClientHello(read)


def test_a_hello_may_have_no_extensions_or_another_kind_of_name() -> None:
    assert read_client_hello(crafted(None)) == ClientHello(None)
    assert read_client_hello(crafted(b"")) == ClientHello(None)
    unknown = crafted(name_extension(b"alpha", kind=7))
    assert read_client_hello(unknown) == ClientHello(None)


@pytest.mark.parametrize(
    "data",
    [
        crafted(name_extension("älpha".encode())),
        crafted(b"\x00\x00\x00\x02\x00\x00"),  # an empty list of names
        crafted(b"\x00\x00\x00\x09\x00\x07\x00\x00\x10abcd"),  # a name behind the end
        crafted(b"\x00\x0a\xff\xff"),  # an extension behind the end
        record(b"\x02" + bytes(50)),  # a ServerHello
        record(b"\x01\x00\x00\x05\x03\x03"[:4] + bytes(5)),  # five bytes of a hello
        record(b"\x01\x00")[:7] + record(b"\x01", kind=21),  # an alert in between
        record(b""),
        b"\x16\x03\x01\x40\x01",  # a record of 2^14 + 1 bytes
        record(b"\x01\x00\x40\x00"),  # a hello longer than we take
        record(b"\x01\xff\xff\xff"),
    ],
)
def test_what_breaks_the_rules_is_malformed(data: bytes) -> None:
    assert isinstance(read_client_hello(data), Malformed)


def test_the_longest_hello_that_we_take_is_taken_and_one_byte_more_is_not() -> None:
    empty = len(crafted(b"\x00\x15\x00\x00"))

    def padded(length: int) -> bytes:
        padding = length - empty
        return crafted(struct.pack(">HH", 21, padding) + bytes(padding))

    longest = padded(MAX_CLIENT_HELLO_BYTES)
    assert len(longest) == MAX_CLIENT_HELLO_BYTES
    assert read_as_it_comes(longest)[0] == ClientHello(None)
    # The front door never sees more than so many bytes.
    seen = padded(MAX_CLIENT_HELLO_BYTES + 1)[:MAX_CLIENT_HELLO_BYTES]
    assert isinstance(read_client_hello(seen), Malformed)


def test_many_tiny_records_are_refused_early() -> None:
    hello = in_records(openssl_hello("alpha"), [1] * 1000)
    verdict, asked = read_as_it_comes(hello)
    assert isinstance(verdict, Malformed)
    assert asked <= 2 * MAX_HELLO_RECORDS + 1
