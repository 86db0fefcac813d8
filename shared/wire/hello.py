"""HELLO: what the two sides tell each other before any stream. SPEC 3.

JSON, because it is sent once per connection and must grow without a new version:
unknown fields are skipped, missing optional ones have the defaults below.
"""

import json
import re
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from shared.errors import PeerProtocolError
from shared.wire.frames import FrameType, printable, split

__all__ = [
    "MAX_HELLO_BYTES",
    "SUBPROTOCOL",
    "VERSIONS",
    "Hello",
    "parse_hello",
    "read_hello",
    "subprotocol",
]

# What the number means, with the day it was made:
#   1  2026-11-24  first light: streams, half-close, windows by offset, pings, GOAWAY;
#                  and sessions that are resumed from counted messages
VERSIONS = (1,)

SUBPROTOCOL = "tower.v1"  # of the WebSocket; the newest in VERSIONS

MAX_HELLO_BYTES = 4096  # a dozen short fields; ours has about 200

MAX_PLACE_LETTERS = 128  # a pod's or machine's name with a short digest

MAX_INSTANCE_LETTERS = 64  # 64 random bits in hex have 16

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
    received: int = 0  # messages that we have of the session; with resume
    resume_seconds: int = 0  # server: how long it keeps a session without a connection
    # Agent: where it runs. A new session from the same place has replaced the old process.
    place: str = ""
    # Agent: which process it is; random. Sessions of one process share new streams.
    instance: str = ""
    # Whether RETURN may be sent to us (SPEC 5.11); 0.1.0 does not know it.
    takes_returns: bool = True

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
    received, place = fields.get("received", 0), fields.get("place", "")
    instance = fields.get("instance", "")
    if type(received) is not int or not 0 <= received < 2**64:
        raise PeerProtocolError("HELLO: received must be a 64 bit integer")
    if not isinstance(place, str) or not isinstance(instance, str):
        raise PeerProtocolError("HELLO: place and instance must be text")
    takes_returns = fields.get("takes_returns", False)
    if not isinstance(takes_returns, bool):
        raise PeerProtocolError("HELLO: takes_returns must be a boolean")
    resume_seconds = fields.get("resume_seconds", 0)
    if type(resume_seconds) is not int or not 0 <= resume_seconds < 2**32:
        raise PeerProtocolError("HELLO: resume_seconds must be a 32 bit integer")
    return Hello(
        session_id=session_id,
        window_bytes=window,
        software=printable(software[:MAX_SOFTWARE_LETTERS]),
        resume=resume,
        received=received,
        resume_seconds=resume_seconds,
        place=printable(place[:MAX_PLACE_LETTERS]),
        instance=printable(instance[:MAX_INSTANCE_LETTERS]),
        takes_returns=takes_returns,
    )


def read_hello(message: bytes) -> Hello:
    """Read the first message of a connection: HELLO and nothing else (SPEC 3).

    Raises:
        PeerProtocolError: If it is anything else.
    """
    found = list(islice(split(message), 2))
    if len(found) != 1 or found[0].type != FrameType.HELLO or found[0].stream_id != 0:
        raise PeerProtocolError(
            "the first frame must be HELLO, in a message of its own"
        )
    return parse_hello(message[found[0].start : found[0].end])
