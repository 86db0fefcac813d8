"""Bodies: where they end, and that they pass verbatim however they are cut."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.http.framing import (
    MAX_TRAILER_BYTES,
    BadBody,
    Body,
    ChunkedBody,
    CountedBody,
    EndlessBody,
    chunked_content,
    request_body,
    response_body,
)
from shared.http.heads import parse_request_head, parse_response_head


def feed_all(body: Body, data: bytes, cuts: list[int]) -> tuple[bytes, int]:
    """Feed in pieces; what was passed on, and how much was taken."""
    passed, taken = b"", 0
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in zip(edges, edges[1:], strict=False):
        if body.is_complete:
            break
        # With a stranger in front, as when the head is still in the same piece.
        out, behind = body.feed(b"HEAD" + data[start:end], 4)
        passed += out
        taken += behind - 4
    return passed, taken


def chunked(content: bytes, chance: random.Random, trailers: bytes = b"") -> bytes:
    out, position = b"", 0
    while position < len(content):
        size = chance.randint(1, len(content) - position)
        digits = b"%x" % size if chance.random() < 0.5 else b"%05X" % size
        out += digits + b"\r\n" + content[position : position + size] + b"\r\n"
        position += size
    return out + b"0\r\n" + trailers + b"\r\n"


@given(st.binary(min_size=1, max_size=60), st.lists(st.integers(0)), st.binary())
def test_a_counted_body_ends_at_its_count(
    content: bytes, cuts: list[int], behind: bytes
) -> None:
    body = CountedBody(len(content))
    assert feed_all(body, content + behind, cuts) == (content, len(content))
    assert body.is_complete


@given(
    st.binary(max_size=80),
    st.integers(0),
    st.lists(st.integers(0)),
    st.binary(),
    st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: \r\nB:b\r\n"]),
)
def test_a_chunked_body_ends_behind_its_trailers(
    content: bytes, seed: int, cuts: list[int], behind: bytes, trailers: bytes
) -> None:
    message = chunked(content, random.Random(seed), trailers)
    body = ChunkedBody()
    assert feed_all(body, message + behind, cuts) == (message, len(message))
    assert body.is_complete
    assert chunked_content(message) == content


@given(st.binary(max_size=60), st.lists(st.integers(0)))
def test_what_is_refused_does_not_depend_on_the_cuts(
    junk: bytes, cuts: list[int]
) -> None:
    def outcome(cuts: list[int]) -> tuple[str, int]:
        body = ChunkedBody()
        try:
            _, taken = feed_all(body, b"3\r\nabc\r\n" + junk, cuts)
        except BadBody:
            return "bad", 0
        return ("complete", taken) if body.is_complete else ("open", 0)

    assert outcome(cuts) == outcome([])


def test_nothing_of_a_line_gets_out_before_it_is_whole() -> None:
    body = ChunkedBody()
    assert body.feed(b"1", 0) == (b"", 1)
    assert body.feed(b"0\r", 0) == (b"", 2)
    assert body.feed(b"\nab", 0) == (b"10\r\nab", 3)


def test_large_pieces_are_handed_on_without_a_copy() -> None:
    data = b"x" * 1000
    assert CountedBody(2000).feed(data, 0)[0] is data
    assert EndlessBody().feed(data, 0)[0] is data
    body = ChunkedBody()
    body.feed(b"fffff\r\n", 0)
    assert body.feed(data, 0)[0] is data


def test_trailers_have_a_limit() -> None:
    body = ChunkedBody()
    with pytest.raises(BadBody, match="longer"):
        body.feed(b"0\r\nX: " + b"y" * MAX_TRAILER_BYTES, 0)


def request(fields: bytes) -> Body | None:
    return request_body(
        parse_request_head(b"PUT / HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n")
    )


def test_a_request_has_a_body_only_if_it_says_so() -> None:
    assert request(b"") is None
    assert request(b"Content-Length: 0\r\n") is None
    assert isinstance(request(b"Content-Length: 1\r\n"), CountedBody)
    assert isinstance(request(b"Transfer-Encoding: chunked\r\n"), ChunkedBody)


@pytest.mark.parametrize(
    ("status", "fields", "method", "kind"),
    [
        (200, b"", b"GET", EndlessBody),
        (200, b"Content-Length: 0\r\n", b"GET", None),
        (200, b"Content-Length: 9\r\n", b"GET", CountedBody),
        (200, b"Content-Length: 9\r\n", b"HEAD", None),
        (200, b"", b"HEAD", None),
        (200, b"Transfer-Encoding: chunked\r\n", b"GET", ChunkedBody),
        (200, b"Transfer-Encoding: chunked\r\n", b"HEAD", None),
        (204, b"", b"GET", None),
        (204, b"Transfer-Encoding: chunked\r\n", b"DELETE", None),
        (304, b"Content-Length: 9\r\n", b"GET", None),
        (404, b"Content-Length: 9\r\n", b"GET", CountedBody),
    ],
)
def test_an_answers_body_follows_rfc_9112(
    status: int, fields: bytes, method: bytes, kind: type | None
) -> None:
    head = parse_response_head(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, fields))
    body = response_body(head, method)
    assert body is None if kind is None else isinstance(body, kind)
