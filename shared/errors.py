"""The errors that cross a border between parts of Tower, and how far each one reaches.

    TowerError
    ├── StreamReset            one stream ended early; carries the wire code and a sentence
    ├── PeerProtocolError      the peer broke SPEC.md; ends the session, carries the code sent back
    │   └── FlowControlError   the peer sent beyond its limit (SPEC 6)
    └── InvalidState           our own caller misused an object: a bug, never the peer's doing

A class exists because somebody catches it by name; everything else is a builtin.
"""

from enum import IntEnum

__all__ = [
    "Code",
    "FlowControlError",
    "InvalidState",
    "PeerProtocolError",
    "StreamReset",
    "TowerError",
]


class Code(IntEnum):
    """Why a stream or a session ended, as it stands on the wire (SPEC 9)."""

    OK = 0  # nothing was wrong: a clean end, a drain
    PROTOCOL = 1  # the peer broke SPEC.md
    INTERNAL = 2  # our fault; the log of the side that sent it has more
    REFUSED = 3  # the target is not in the agent's list, or not for this caller
    UNREACHABLE = 4  # the target does not answer
    LIMIT = 5  # a named limit is reached; try again later
    CANCELLED = 6  # the other end of the relayed connection went away
    TIMEOUT = 7  # nothing came within a named time
    GOING_AWAY = 8  # this side stops; open elsewhere
    SESSION_LOST = 9  # the tunnel is gone and was not resumed in time
    REVOKED = 10  # the credential behind the stream is no longer good
    VERSION = 11  # no protocol version in common
    REPLACED = 12  # a newer session of the same cluster took over


class TowerError(Exception):
    """Root of the tree; never raised itself."""


class StreamReset(TowerError):
    """A stream ended before both sides were done with it."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} ({self.code.name.lower()})"


class PeerProtocolError(TowerError):
    """The peer sent what SPEC.md forbids; the session cannot go on."""

    code = Code.PROTOCOL


class FlowControlError(PeerProtocolError):
    """The peer sent beyond the limit that we gave it."""


class InvalidState(TowerError, AssertionError):
    """A method was called that the object's state does not allow: our own bug."""
