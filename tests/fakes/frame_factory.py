"""Makes frames by hand, legal ones and illegal ones, without the code under test."""

import json
import struct
from typing import Any

__all__ = ["StreamFrames", "frame", "hello_frame"]


def frame(type_: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame, whatever sense it makes."""
    return struct.pack("!BII", type_, stream_id, len(payload)) + payload


def hello_frame(**changes: Any) -> bytes:
    """A legal HELLO with some fields changed; a field that is None is left out."""
    fields: dict[str, Any] = {
        "session_id": "0123456789abcdef0123456789abcdef",
        "window_bytes": 262144,
        "software": "test 1",
        "resume": False,
        **changes,
    }
    kept = {name: value for name, value in fields.items() if value is not None}
    return frame(0, 0, json.dumps(kept).encode())


class StreamFrames:
    """Frames of one stream, offsets given by hand."""

    def __init__(self, stream_id: int) -> None:
        self.id = stream_id

    def open(self, target: bytes = b"tcp/echo", limit: int = 262144) -> bytes:
        return frame(1, self.id, struct.pack("!Q", limit) + target)

    def data(self, data: bytes, offset: int = 0) -> bytes:
        return frame(2, self.id, struct.pack("!Q", offset) + data)

    def eof(self, offset: int = 0) -> bytes:
        return frame(3, self.id, struct.pack("!Q", offset))

    def reset(self, code: int = 6, reason: bytes = b"") -> bytes:
        return frame(4, self.id, struct.pack("!H", code) + reason)

    def window(self, received: int = 0, limit: int = 262144) -> bytes:
        return frame(5, self.id, struct.pack("!QQ", received, limit))

    def accept(self) -> bytes:
        return frame(9, self.id)
