"""Answers of a member's apiserver, and bodies of both directions: heads and chunked framing."""

from shared.http.framing import BadBody, ChunkedBody, chunked_content, response_body
from shared.http.heads import BadResponse, parse_response_head
from tests.fuzz.target import Source, Target

__all__ = ["TARGETS"]

_OF_THE_HOP = (b"connection", b"keep-alive", b"proxy-connection", b"upgrade")


def _run_head(head: bytes) -> None:
    try:
        response = parse_response_head(head)
    except BadResponse as error:
        assert str(error)
        return
    assert 100 <= response.status < 600
    assert response.content_length is None or not response.is_chunked
    assert response.content_length is None or response.content_length >= 0
    lines = response.lines.split(b"\r\n")[:-1]
    assert all(b"\n" not in line and b"\r" not in line for line in lines)
    names = {line.partition(b":")[0].lower() for line in lines}
    assert response.is_plain == (not names & set(_OF_THE_HOP)) or not response.is_plain
    assert not names & set(_OF_THE_HOP)
    for method in (b"GET", b"HEAD"):
        body = response_body(response, method)
        assert body is None or not body.is_complete
    # Passed on, it is read in the same way again.
    again = parse_response_head(response.status_line + response.lines + b"\r\n")
    assert again.content_length == response.content_length
    assert again.is_chunked == response.is_chunked


def _run_body(data: bytes) -> None:
    """A body in one piece and in many: the same bytes come out, and it ends in the same place."""
    source = Source(data)
    sizes = [1 + size for size in source.take(source.number() % 16)]
    body = source.rest()
    _run_good_body(body, sizes)
    whole = _feed(body, [len(body)])
    pieces = _feed(body, sizes)
    if whole is None or pieces is None:
        # Broken; how much got out before that was seen may differ.
        assert whole is pieces
        return
    assert whole == pieces
    passed, end, is_complete = whole
    assert is_complete or end == len(body)
    assert body[:end].startswith(passed)
    if is_complete:
        assert passed == body[:end]
        chunked_content(passed)


def _run_good_body(content: bytes, sizes: list[int]) -> None:
    """What is framed as it should be passes whole, and says what it said."""
    body, offset = b"", 0
    for size in [*sizes, max(1, len(content))]:
        piece = content[offset : offset + size]
        offset += size
        if piece:
            body += b"%x\r\n%b\r\n" % (len(piece), piece)
    body += b"0\r\n\r\n"
    for step in ([len(body)], sizes):
        assert _feed(body, step) == (body, len(body), True)
    assert chunked_content(body) == content


def _feed(data: bytes, sizes: list[int]) -> tuple[bytes, int, bool] | None:
    """What got out, where the body ends, and whether it does; None for a broken one."""
    framing, passed, offset, number = ChunkedBody(), b"", 0, 0
    while offset < len(data) and not framing.is_complete:
        size = sizes[number % len(sizes)] if sizes else len(data)
        number += 1
        piece = data[offset : offset + size]
        try:
            out, end = framing.feed(b"@" + piece, 1)
        except BadBody as error:
            assert str(error)
            return None
        assert 0 <= end - 1 <= len(piece)
        assert framing.is_complete or end - 1 == len(piece)
        passed += out
        offset += end - 1
    return passed, offset, framing.is_complete


def _heads() -> list[bytes]:
    line = b"HTTP/1.1 200 OK\r\n"
    return [
        line + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n",
        line + b"Transfer-Encoding: chunked\r\nAudit-Id: a-b\r\n\r\n",
        line + b"Connection: close, X-A\r\nX-A: 1\r\nKeep-Alive: 5\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n",
        b"HTTP/1.0 304\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    ]


def _bodies() -> list[bytes]:
    bodies = (
        b"5\r\nhello\r\n0\r\n\r\n",
        b"1\r\na\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nGrpc-Status: 0\r\n\r\nnext",
        b"ffffffffffffffff\r\nx",
    )
    return [head + body for body in bodies for head in (b"\x00", b"\x03\x00\x01\x06")]


TARGETS = (
    Target(
        name="response-head",
        run=_run_head,
        seeds=_heads,
        words=(
            *(b"Connection: ", b"Content-Length: 3\r\n", b"content-length:3\r\n"),
            *(b"Transfer-Encoding: chunked\r\n", b"Upgrade: h2c\r\n", b"HTTP/1.1 "),
            *(b"\r\n ", b"\n", b"\x00", b"content-length", b"transfer-encoding"),
        ),
    ),
    Target(
        name="chunked-body",
        run=_run_body,
        seeds=_bodies,
        words=(
            b"0\r\n",
            b"\r\n\r\n",
            b"\r\n",
            b"\n",
            b";",
            b"X: y\r\n",
            b"Host: x\r\n",
        ),
        runs=6_000,
    ),
)
