"""Heads: what a well-formed one says about its framing. Malformed ones: tests/attacks."""

from collections.abc import Callable, Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.http.heads import (
    BadResponse,
    list_entries,
    parse_request_head,
    parse_response_head,
    plain_answer_end,
)
from shared.http.status import Refusal

LINE = b"GET /a%2Fb?c=d HTTP/1.1\r\nHost: h:8443\r\n"


def test_target_and_fields_are_kept_to_the_byte() -> None:
    head = parse_request_head(LINE + b"X-a:  \tb c\t \r\nX-A:\r\nN: \xc3\xa9\r\n\r\n")
    assert head.method == b"GET"
    assert head.target == b"/a%2Fb?c=d"
    assert head.fields == (
        (b"Host", b"h:8443"),
        (b"X-a", b"b c"),
        (b"X-A", b""),
        (b"N", b"\xc3\xa9"),
    )
    assert not head.has_body and head.keeps_alive and head.upgrade is None


@pytest.mark.parametrize(
    "method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"]
)
def test_all_methods_of_kubernetes_are_known(method: bytes) -> None:
    assert parse_request_head(LINE.replace(b"GET", method) + b"\r\n").method == method


@pytest.mark.parametrize("host", [b"h", b"1.2.3.4:5", b"[::1]:8443", b"a-b.c_d:1"])
def test_hosts_may_be_names_and_addresses(host: bytes) -> None:
    parse_request_head(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")


def test_a_length_and_the_coding_are_understood() -> None:
    assert parse_request_head(LINE + b"content-LENGTH: 007\r\n\r\n").content_length == 7
    assert parse_request_head(LINE + b"Transfer-Encoding:Chunked \r\n\r\n").is_chunked
    assert not parse_request_head(LINE + b"Content-Length: 0\r\n\r\n").has_body


@pytest.mark.parametrize(
    "protocol", [b"websocket", b"WebSocket", b"SPDY/3.1", b"spdy/3.1"]
)
@pytest.mark.parametrize("connection", [b"Upgrade", b"keep-alive, upgrade"])
def test_the_two_upgrades_are_understood(protocol: bytes, connection: bytes) -> None:
    head = parse_request_head(
        LINE + b"Connection: %b\r\nUpgrade: %b\r\n\r\n" % (connection, protocol)
    )
    assert head.upgrade == protocol.lower()


def test_keep_alive_is_the_versions_default_or_connections_word() -> None:
    assert not parse_request_head(LINE + b"Connection: Close\r\n\r\n").keeps_alive
    old = LINE.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n"
    assert not parse_request_head(old).keeps_alive


def test_a_refusal_says_what_is_wrong_with_the_head() -> None:
    for field, words in (
        (b"X: y\nZ: 1", "ends without CR"),
        (b"X: y\r\n z", "folded"),
        (b"X : y", "followed by a blank"),
        (b"X: \x00", "NUL"),
        (b"Host: again", "exactly one Host"),
    ):
        with pytest.raises(Refusal, match=words) as caught:
            parse_request_head(LINE + field + b"\r\n\r\n")
        assert caught.value.code == 400


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_undeclared(junk: bytes) -> None:
    for raw in (junk, LINE + junk, LINE + junk + b"\r\n\r\n"):
        try:
            head = parse_request_head(raw)
        except Refusal as refusal:
            assert 400 <= refusal.code < 600
        else:
            assert head.target == b"/a%2Fb?c=d"
        try:
            parse_response_head(raw)
        except BadResponse:
            pass


def test_list_entries_drop_blanks_and_empty_ones() -> None:
    assert list_entries(b" a,,b c ,\t, d") == [b"a", b"b c", b"d"]


def test_a_plain_answer_is_passed_on_as_it_came() -> None:
    head = parse_response_head(b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 3\r\n\r\n")
    assert (head.status, head.content_length, head.is_chunked) == (200, 3, False)
    assert head.is_plain and not head.closes
    assert head.lines == b"A: b\r\nContent-Length: 3\r\n"
    assert head.status_line == b"HTTP/1.1 200 OK\r\n"


def test_an_answers_hop_fields_are_taken_out_and_its_framing_stays() -> None:
    head = parse_response_head(
        b"HTTP/1.1 200 \r\nConnection: close, X-Y\r\nKeep-Alive: 5\r\nx-y: 1\r\n"
        b"transfer-encoding: chunked\r\nA: b\r\n\r\n"
    )
    assert head.closes and head.is_chunked and not head.is_plain
    assert head.lines == b"transfer-encoding: chunked\r\nA: b\r\n"


def test_an_answer_may_lack_the_reason_and_repeat_its_length() -> None:
    head = parse_response_head(
        b"HTTP/1.1 204\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"
    )
    assert (head.status, head.content_length) == (204, 0)
    assert parse_response_head(b"HTTP/1.0 200 OK\r\n\r\n").closes


PLAIN = b"HTTP/1.1 200 OK\r\nAudit-Id: 1\r\nContent-Type: a/b\r\nContent-Length: 3\r\nDate: x\r\n\r\n"


def test_the_end_of_a_plain_answer_is_known_before_it_has_come() -> None:
    assert plain_answer_end(PLAIN) == len(PLAIN) + 3
    assert plain_answer_end(PLAIN + b"abcd") == len(PLAIN) + 3
    assert plain_answer_end(PLAIN[:-1]) == -1


STATUS_LINES = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.1 401 Unauthorized\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.1 200 OK\n",
]
NAMES = (
    b"Connection Keep-Alive Proxy-Connection Transfer-Encoding Upgrade Content-Length "
    b"X-Content-Length Content-Lengthy Content-Type Kind Con Trailer Cache-Control Date"
).split()
CASES: list[Callable[[bytes], bytes]] = [bytes, bytes.lower, bytes.upper]
VALUES = [b" 3", b"\t12 ", b"close", b" chunked", b" x\x00", b" 1, 1", b""]
BROKEN_LINES = [b" folded\r\n", b"a : b\r\n", b"a: b\n", b": c\r\n", b"a\r\n"]


def answer_heads() -> Iterator[bytes]:
    """Each line alone, and before and behind one that would make the answer plain."""
    lines = [
        b"%b:%b\r\n" % (case(name), value)
        for name, case, value in product(NAMES, CASES, VALUES)
    ] + BROKEN_LINES
    length = b"Content-Length: 3\r\n"
    for status_line, line in product(STATUS_LINES, lines):
        for fields in (line, line + length, length + line, length + b"A: b\r\n" + line):
            yield status_line + fields + b"\r\n"


def test_what_is_plain_at_a_glance_is_what_is_plain_when_read() -> None:
    for raw in answer_heads():
        end = plain_answer_end(raw + b"body")
        try:
            head = parse_response_head(raw)
        except BadResponse:
            assert end == -1, raw
            continue
        is_plain = (
            head.is_plain
            and head.content_length is not None
            and (head.status, head.minor, head.closes) == (200, 1, False)
            # Twice the same is allowed, and not plain.
            and raw.lower().count(b"\r\ncontent-length:") == 1
        )
        expected = len(raw) + (head.content_length or 0) if is_plain else -1
        assert end == expected, raw
