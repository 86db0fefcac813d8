"""Heads: what a well-formed one says about its framing. Malformed ones: tests/attacks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.http.heads import (
    BadResponse,
    list_entries,
    parse_request_head,
    parse_response_head,
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
