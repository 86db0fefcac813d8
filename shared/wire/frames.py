"""Frames: how one WebSocket message is cut into them, and what each carries. SPEC 4 and 5.

Encoding and decoding only: which frame may come when is `shared.mux`'s business. A
message holds whole frames, so decoding needs no memory between messages. Payloads are
not copied to look at a header: `split` yields where each payload lies.
"""

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from shared.errors import Code, PeerProtocolError

__all__ = [
    "DATA_HEADER",
    "FRAME_HEADER",
    "MAX_MESSAGE_BYTES",
    "MAX_REASON_BYTES",
    "MAX_TARGET_BYTES",
    "Frame",
    "FrameType",
    "GoAway",
    "Open",
    "Reset",
    "Return",
    "Window",
    "encode_accept",
    "encode_ack",
    "encode_data",
    "encode_eof",
    "encode_go_away",
    "encode_hello",
    "encode_open",
    "encode_ping",
    "encode_pong",
    "encode_reset",
    "encode_return",
    "encode_window",
    "parse_go_away",
    "parse_offset",
    "parse_open",
    "parse_reset",
    "parse_return",
    "parse_window",
    "printable",
    "split",
]


class FrameType(IntEnum):
    """The first byte of a frame, and the layout of its payload (all big-endian)."""

    HELLO = 0  # UTF-8 JSON object, SPEC 3; stream 0, first frame of each side
    OPEN = 1  # 8B limit offset for the other direction + UTF-8 target
    DATA = 2  # 8B offset of the first byte + bytes (at least one)
    EOF = 3  # 8B final offset
    RESET = 4  # 2B code + UTF-8 reason
    WINDOW = 5  # 8B received offset + 8B limit offset
    PING = 6  # 8B opaque; stream 0
    PONG = 7  # 8B, the PING's; stream 0
    GOAWAY = 8  # 2B code + 4B retry after, ms + UTF-8 reason; stream 0
    ACCEPT = 9  # nothing: the target is reached, the caller is known
    ACK = 10  # 8B messages received in the session; stream 0
    RETURN = 11  # 8B limit offset as known + 8B lower limit offset


# Receivers skip frames of unknown types from here on, so that later versions may add
# hints; an unknown type below it is a protocol error (SPEC 4).
FIRST_OPTIONAL_TYPE = 64

FRAME_HEADER = Struct("!BII")  # 1B type + 4B stream + 4B payload length
DATA_HEADER = Struct("!BIIQ")  # the same, with DATA's offset behind it

# Ours are 64 KiB and a little; ten times that leaves room for other senders, and bounds
# what a peer can make us hold before we see a single frame.
MAX_MESSAGE_BYTES = 1024 * 1024

# A target is a word and a name ("tcp/registry"); a reason is a sentence for a person.
MAX_TARGET_BYTES = 512
MAX_REASON_BYTES = 1024

_OFFSET = Struct("!Q")
_WINDOW = Struct("!BIIQQ")
_RESET = Struct("!H")
_GO_AWAY = Struct("!HI")
_KNOWN_TYPES = frozenset(map(int, FrameType))


class Frame(NamedTuple):
    """Where one frame lies in its message."""

    type: int
    stream_id: int
    start: int  # of the payload
    end: int


class Open(NamedTuple):
    """Payload of OPEN."""

    limit_offset: int
    target: str


class Reset(NamedTuple):
    """Payload of RESET."""

    code: Code
    reason: str


class Window(NamedTuple):
    """Payload of WINDOW."""

    received_offset: int
    limit_offset: int


class Return(NamedTuple):
    """Payload of RETURN."""

    known_limit_offset: int
    limit_offset: int


class GoAway(NamedTuple):
    """Payload of GOAWAY."""

    code: Code
    retry_after_seconds: float
    reason: str


def split(message: bytes) -> Iterator[Frame]:
    """Yield the frames of one message, in order, optional unknown ones left out.

    Raises:
        PeerProtocolError: Where the message stops being frames. What was yielded before
            has already been acted on; the session ends anyway.
    """
    offset, size = 0, len(message)
    if size > MAX_MESSAGE_BYTES:
        raise PeerProtocolError(
            f"message of {size} bytes, the limit is {MAX_MESSAGE_BYTES}"
        )
    unpack, header_size = FRAME_HEADER.unpack_from, FRAME_HEADER.size
    # What NamedTuple's own constructor does, without a Python call for each frame.
    new, known_types = tuple.__new__, _KNOWN_TYPES
    while offset < size:
        if size - offset < header_size:
            raise PeerProtocolError(
                f"frame header cut short: {size - offset} of {header_size} bytes"
            )
        type_, stream_id, length = unpack(message, offset)
        start = offset + header_size
        offset = start + length
        if offset > size:
            raise PeerProtocolError(
                f"frame of {length} bytes in a message with {size - start} left"
            )
        if type_ in known_types:
            yield new(Frame, (type_, stream_id, start, offset))
        elif type_ < FIRST_OPTIONAL_TYPE:
            raise PeerProtocolError(f"unknown frame type {type_}")


def encode_hello(payload: bytes) -> bytes:
    return FRAME_HEADER.pack(FrameType.HELLO, 0, len(payload)) + payload


def encode_open(stream_id: int, limit_offset: int, target: str) -> bytes:
    """Raises ValueError for a target that SPEC 5.2 does not allow."""
    name = target.encode()
    if not 0 < len(name) <= MAX_TARGET_BYTES or not target.isprintable():
        raise ValueError(f"target must have 1 to {MAX_TARGET_BYTES} printable bytes")
    return (
        FRAME_HEADER.pack(FrameType.OPEN, stream_id, 8 + len(name))
        + _OFFSET.pack(limit_offset)
        + name
    )


def encode_data(stream_id: int, offset: int, data: bytes) -> bytes:
    """For tests and small frames; the session joins header and data itself."""
    return DATA_HEADER.pack(FrameType.DATA, stream_id, 8 + len(data), offset) + data


def encode_eof(stream_id: int, offset: int) -> bytes:
    return DATA_HEADER.pack(FrameType.EOF, stream_id, 8, offset)


def encode_reset(stream_id: int, code: Code, reason: str) -> bytes:
    text = _clip(reason)
    return (
        FRAME_HEADER.pack(FrameType.RESET, stream_id, 2 + len(text))
        + _RESET.pack(code)
        + text
    )


def encode_window(stream_id: int, received_offset: int, limit_offset: int) -> bytes:
    return _WINDOW.pack(FrameType.WINDOW, stream_id, 16, received_offset, limit_offset)


def encode_return(stream_id: int, known_offset: int, limit_offset: int) -> bytes:
    return _WINDOW.pack(FrameType.RETURN, stream_id, 16, known_offset, limit_offset)


def encode_ping(opaque: int) -> bytes:
    return DATA_HEADER.pack(FrameType.PING, 0, 8, opaque)


def encode_pong(opaque: int) -> bytes:
    return DATA_HEADER.pack(FrameType.PONG, 0, 8, opaque)


def encode_go_away(code: Code, retry_after_seconds: float, reason: str) -> bytes:
    text = _clip(reason)
    milliseconds = round(min(max(retry_after_seconds * 1000, 0), 0xFFFFFFFF))
    return (
        FRAME_HEADER.pack(FrameType.GOAWAY, 0, 6 + len(text))
        + _GO_AWAY.pack(code, milliseconds)
        + text
    )


def encode_ack(count: int) -> bytes:
    return DATA_HEADER.pack(FrameType.ACK, 0, 8, count)


def encode_accept(stream_id: int) -> bytes:
    return FRAME_HEADER.pack(FrameType.ACCEPT, stream_id, 0)


def parse_offset(payload: bytes) -> int:
    """The payload of EOF, PING, PONG and ACK."""
    if len(payload) != 8:
        raise PeerProtocolError(f"payload of {len(payload)} bytes, expected 8")
    return int.from_bytes(payload)


def parse_open(payload: bytes) -> Open:
    if not 8 < len(payload) <= 8 + MAX_TARGET_BYTES:
        raise PeerProtocolError(f"OPEN payload of {len(payload)} bytes")
    target = _text(payload[8:])
    if not target.isprintable():
        raise PeerProtocolError("OPEN: target holds control characters")
    return Open(int.from_bytes(payload[:8]), target)


def parse_reset(payload: bytes) -> Reset:
    if not 2 <= len(payload) <= 2 + MAX_REASON_BYTES:
        raise PeerProtocolError(f"RESET payload of {len(payload)} bytes")
    return Reset(_code(int.from_bytes(payload[:2])), _reason(payload[2:]))


def parse_window(payload: bytes) -> Window:
    if len(payload) != 16:
        raise PeerProtocolError(f"WINDOW payload of {len(payload)} bytes, expected 16")
    return Window(int.from_bytes(payload[:8]), int.from_bytes(payload[8:]))


def parse_return(payload: bytes) -> Return:
    if len(payload) != 16:
        raise PeerProtocolError(f"RETURN payload of {len(payload)} bytes, expected 16")
    return Return(int.from_bytes(payload[:8]), int.from_bytes(payload[8:]))


def parse_go_away(payload: bytes) -> GoAway:
    if not 6 <= len(payload) <= 6 + MAX_REASON_BYTES:
        raise PeerProtocolError(f"GOAWAY payload of {len(payload)} bytes")
    code, milliseconds = _GO_AWAY.unpack_from(payload)
    return GoAway(_code(code), milliseconds / 1000, _reason(payload[6:]))


def _code(number: int) -> Code:
    # SPEC 9: a code that we do not know yet is read as INTERNAL; the reason tells.
    try:
        return Code(number)
    except ValueError:
        return Code.INTERNAL


def _clip(reason: str) -> bytes:
    # "replace": a reason may quote an operating system's error, with stray surrogates.
    text = reason.encode(errors="replace")[:MAX_REASON_BYTES]
    return text.decode(errors="ignore").encode()


def _reason(payload: bytes) -> str:
    # It ends up in logs and terminals of the other side (SPEC 9).
    return printable(_text(payload))


def printable(text: str) -> str:
    """Text from the peer, control characters replaced: one line, and no escapes."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise PeerProtocolError("text that is not UTF-8") from None
