"""Where a body ends: counted, not parsed, and passed on exactly as it came.

Each framing is an object with one method, `feed`, which takes a piece of the connection's
bytes and says how much of it belongs to the body, and an attribute `is_complete`. The
same objects serve requests and responses; which one applies to a message is decided by
`request_body` and `response_body`, after RFC 9112, 6.3.
"""

import re
from typing import Protocol

from shared.http.heads import RequestHead, ResponseHead

__all__ = [
    "MAX_TRAILER_BYTES",
    "BadBody",
    "Body",
    "ChunkedBody",
    "CountedBody",
    "EndlessBody",
    "chunked_content",
    "request_body",
    "response_body",
]

# All trailer fields of one message together: as much as a head.
MAX_TRAILER_BYTES = 64 * 1024

# Sixteen hexadecimal digits are 64 bits: no reader of any language overflows.
MAX_SIZE_DIGITS = 16

_SIZE = re.compile(rb"[0-9A-Fa-f]{1,%d}" % MAX_SIZE_DIGITS)
_TRAILER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[\t \x21-\x7e\x80-\xff]*+\r\n")
# Names that would change a request after it was judged: identity, framing, routing.
_FORBIDDEN_TRAILER = re.compile(
    rb"(?:impersonate|x-remote)-.*|(?:proxy-)?authorization|cookie|host|connection"
    rb"|content-.*|transfer-encoding|te|trailer|upgrade|expect|keep-alive"
    rb"|proxy-connection|sec-websocket-.*",
    re.IGNORECASE | re.DOTALL,
)


def _is_forbidden_trailer(name: bytes) -> bool:
    """Whether a trailer of this name could change who asks or how much is asked."""
    return _FORBIDDEN_TRAILER.fullmatch(name.replace(b"_", b"-")) is not None


class BadBody(Exception):
    """The body's own framing is broken; the message can neither go on nor be repaired."""


class Body(Protocol):
    """What all framings offer."""

    # The last byte has been passed by `feed`.
    is_complete: bool

    def feed(self, data: bytes, start: int) -> tuple[bytes, int]:
        """Take the body's share of data[start:].

        Returns what to pass on now (maybe less than was taken: a broken line must not
        get out; maybe held back from before) and the offset behind the share.

        Raises:
            BadBody: If the framing is broken.
        """


class CountedBody:
    """So many bytes, as Content-Length says."""

    __slots__ = ("is_complete", "remaining_bytes")

    def __init__(self, length: int) -> None:
        self.remaining_bytes = length
        self.is_complete = length == 0

    def feed(self, data: bytes, start: int) -> tuple[bytes, int]:
        available = len(data) - start
        if available < self.remaining_bytes:
            self.remaining_bytes -= available
            return (data[start:] if start else data), len(data)
        end = start + self.remaining_bytes
        self.remaining_bytes = 0
        self.is_complete = True
        return (data if end - start == len(data) else data[start:end]), end


class EndlessBody:
    """All that comes until the connection ends: only in responses."""

    __slots__ = ("is_complete",)

    def __init__(self) -> None:
        self.is_complete = False

    def feed(self, data: bytes, start: int) -> tuple[bytes, int]:
        return (data[start:] if start else data), len(data)


class ChunkedBody:
    """Chunks, their last of size zero, and trailers (RFC 9112, 7.1), strictly.

    Refused are chunk extensions (nobody uses them, and readers disagree on them), blanks
    around the size, bare LF. A line that has not come whole is held back until it has,
    and so is everything from the last size line on: what gets out was checked.
    """

    __slots__ = ("_at_chunk_end", "_held", "_remaining_bytes", "is_complete")

    def __init__(self) -> None:
        self.is_complete = False
        # Of the current chunk's data.
        self._remaining_bytes = 0
        # The chunk's data is through; its CRLF comes next, then a size line.
        self._at_chunk_end = False
        # What came of a line, or of the last size line and the trailers behind it.
        self._held = b""

    def feed(self, data: bytes, start: int) -> tuple[bytes, int]:
        offset = 0  # of the caller's data in ours
        if self._held:
            offset = len(self._held) - start
            data = self._held + (data[start:] if start else data)
            self._held = b""
            start = 0
        position, end = start, len(data)
        while position < end and not self.is_complete:
            if self._remaining_bytes:
                step = min(end - position, self._remaining_bytes)
                self._remaining_bytes -= step
                self._at_chunk_end = not self._remaining_bytes
                position += step
                continue
            read = self._chunk_end if self._at_chunk_end else self._size_line
            behind = read(data, position)
            if not behind:
                self._held = data[position:]
                break
            position = behind
        passed = data if position - start == end else data[start:position]
        return passed, (position if self.is_complete else end) - offset

    # Each of these returns the offset behind what it read, or 0 if that is not all there.

    def _chunk_end(self, data: bytes, position: int) -> int:
        closing = data[position : position + 2]
        if closing == b"\r\n":
            self._at_chunk_end = False
            return position + 2
        if closing == b"\r":
            return 0
        raise BadBody("a chunk does not end where its size says")

    def _size_line(self, data: bytes, position: int) -> int:
        line_end = data.find(b"\r\n", position, position + MAX_SIZE_DIGITS + 2)
        if line_end < 0:
            digits = data[position : position + MAX_SIZE_DIGITS + 2].removesuffix(b"\r")
        else:
            digits = data[position:line_end]
        if not _SIZE.fullmatch(digits):
            raise BadBody("a chunk size is not 1 to 16 hexadecimal digits")
        if line_end < 0:
            return 0
        self._remaining_bytes = int(digits, 16)
        if self._remaining_bytes:
            return line_end + 2
        return self._trailers(data, position, line_end + 2)

    def _trailers(self, data: bytes, size_line: int, position: int) -> int:
        if data.startswith(b"\r\n", position):
            self.is_complete = True
            return position + 2
        end = data.find(b"\r\n\r\n", position)
        if (len(data) if end < 0 else end) - size_line > MAX_TRAILER_BYTES:
            raise BadBody(f"the trailers are longer than {MAX_TRAILER_BYTES} bytes")
        if end < 0:
            return 0
        while position < end + 2:
            match = _TRAILER.match(data, position, end + 2)
            if match is None:
                raise BadBody("a trailer field is malformed")
            if _is_forbidden_trailer(match[1]):
                name = match[1].decode("ascii")
                raise BadBody(f"{name} is not allowed as a trailer")
            position = match.end()
        self.is_complete = True
        return end + 4


def chunked_content(body: bytes) -> bytes:
    """What a whole chunked body says, for the few that we read ourselves.

    `body` is what a `ChunkedBody` passed on until it was complete.
    """
    content: list[bytes] = []
    position = 0
    while True:
        line_end = body.index(b"\r\n", position)
        size = int(body[position:line_end], 16)
        if not size:
            return b"".join(content)
        content.append(body[line_end + 2 : line_end + 2 + size])
        position = line_end + 2 + size + 2


def request_body(head: RequestHead) -> Body | None:
    """The framing of a request's body; None when there is none."""
    if head.is_chunked:
        return ChunkedBody()
    return CountedBody(head.content_length) if head.content_length else None


def response_body(head: ResponseHead, method: bytes) -> Body | None:
    """The framing of a final response's body to this method; None when there is none."""
    if method == b"HEAD" or head.status in (204, 304):
        return None
    if head.is_chunked:
        return ChunkedBody()
    if head.content_length is None:
        return EndlessBody()
    return CountedBody(head.content_length) if head.content_length else None
