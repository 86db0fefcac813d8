"""HELLO: what the two sides tell each other before any stream. SPEC 3.

JSON, because it is sent once per connection and must grow without a new version:
unknown fields are skipped, missing optional ones have the defaults below.
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from shared.errors import PeerProtocolError
from shared.wire.frames import printable

__all__ = [
    "MAX_HELLO_BYTES",
    "SUBPROTOCOL",
    "VERSIONS",
    "Hello",
    "parse_hello",
    "subprotocol",
]

# What the number means, with the day it was made:
#   1  2026-11-24  first light: streams, half-close, windows by offset, pings, GOAWAY;
#                  session ids are exchanged, resumption is always declined
VERSIONS = (1,)

SUBPROTOCOL = "tower.v1"  # of the WebSocket; the newest in VERSIONS

MAX_HELLO_BYTES = 4096  # a dozen short fields; ours has about 200

MAX_SOFTWARE_LETTERS = 128  # "tower-agent 0.1.0 (linux amd64)" has 31

_SESSION_ID = re.compile(r"[0-9a-f]{32}")


def subprotocol(version: int) -> str:
    """The WebSocket subprotocol that stands for a protocol version."""
    return f"tower.v{version}"


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The first frame of each side."""

    session_id: str  # 128 random bits in hex, made by the agent, repeated by the server
    window_bytes: int  # how far a new stream may send to us before the first WINDOW
    software: str  # name and version, for people and `tower cluster list`
    resume: bool = False  # agent: "go on with that session"; server: "we do"

    def encode(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()


def parse_hello(payload: bytes) -> Hello:
    """Read a peer's HELLO; unknown fields are skipped (SPEC 3).

    Raises:
        PeerProtocolError: If it is no JSON object or a field has the wrong shape.
    """
    if len(payload) > MAX_HELLO_BYTES:
        raise PeerProtocolError(f"HELLO of {len(payload)} bytes")
    try:
        fields: Any = json.loads(payload)
    except (ValueError, RecursionError):
        raise PeerProtocolError("HELLO is not JSON") from None
    if not isinstance(fields, dict):
        raise PeerProtocolError("HELLO is not a JSON object")
    session_id, window = fields.get("session_id"), fields.get("window_bytes")
    software, resume = fields.get("software", ""), fields.get("resume", False)
    if not isinstance(session_id, str) or not _SESSION_ID.fullmatch(session_id):
        raise PeerProtocolError("HELLO: session_id must be 32 hex digits")
    if type(window) is not int or not 0 < window < 2**32:
        raise PeerProtocolError("HELLO: window_bytes must be a positive 32 bit integer")
    if not isinstance(software, str) or not isinstance(resume, bool):
        raise PeerProtocolError("HELLO: software must be text, resume a boolean")
    return Hello(
        session_id=session_id,
        window_bytes=window,
        software=printable(software[:MAX_SOFTWARE_LETTERS]),
        resume=resume,
    )
