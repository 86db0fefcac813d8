"""Binary messages of a WebSocket, without the library on the way of a byte. RFC 6455, 5.2.

What the tunnel sends and receives is nearly always one kind of frame: binary, whole, masked by
the client. That kind is read and written here, with one copy where the library makes three,
and no objects. Every other frame (control frames, what a proxy has fragmented, what
breaks the rules) goes to the library byte for byte, which then knows exactly what it would
have known anyway: it holds the state, answers pings and does the closing.
"""

import secrets
from collections.abc import Callable
from struct import Struct

from websockets.protocol import Protocol, Side, State

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without a compiled wheel
    from websockets.utils import apply_mask

from shared.wire.frames import MAX_MESSAGE_BYTES

__all__ = ["MessageReader", "MessageWriter", "WebSocket"]

# Of either side; its handshake is over.
WebSocket = Protocol

# FIN and the opcode of a binary frame; no extension is ever negotiated (SPEC 4).
_WHOLE_BINARY = 0x82
_MASKED = 0x80
_MASK_BYTES = 4

# Asking the kernel for random bytes takes longer than masking a small message.
_MASKS_AT_ONCE = 256

_LENGTH_16 = Struct("!BBH")
_LENGTH_64 = Struct("!BBQ")

# From here on header and payload are two writes: copying them together would cost more than the
# short TLS record that the header then is.
_JOIN_BELOW_BYTES = 32 * 1024


class MessageWriter:
    """Makes frames of messages."""

    def __init__(self, websocket: WebSocket) -> None:
        self._is_client = websocket.side is Side.CLIENT
        # Masks that are not used yet, each four bytes.
        self._masks = b""
        self._next_mask = 0

    def frame(self, message: bytes) -> list[bytes]:
        """The frame of a message, as one or two pieces to write in order."""
        size, masked = len(message), _MASKED if self._is_client else 0
        if size < 126:
            header = bytes((_WHOLE_BINARY, masked | size))
        elif size < 65536:
            header = _LENGTH_16.pack(_WHOLE_BINARY, masked | 126, size)
        else:
            header = _LENGTH_64.pack(_WHOLE_BINARY, masked | 127, size)
        if masked:
            mask = self._mask()
            header += mask
            message = apply_mask(message, mask)
        if size < _JOIN_BELOW_BYTES:
            return [header + message]
        return [header, message]

    def _mask(self) -> bytes:
        """RFC 6455, 5.3: from a strong source, a new one for each frame."""
        start = self._next_mask
        if start >= len(self._masks):
            self._masks, start = secrets.token_bytes(_MASKS_AT_ONCE * _MASK_BYTES), 0
        self._next_mask = start + _MASK_BYTES
        return self._masks[start : self._next_mask]


class MessageReader:
    """Cuts what arrives into messages; hands the library what it should see itself."""

    def __init__(self, websocket: WebSocket) -> None:
        """For a WebSocket whose handshake is done."""
        self._websocket = websocket
        self._is_server = websocket.side is Side.SERVER
        # The library has begun to read a frame before we could: then it reads all of them.
        self.is_bypassed = not _is_between_frames(websocket)
        # What has arrived of a frame that is not whole, and how much is wanted before we
        # look at it again.
        self._pieces: list[bytes] = []
        self._have_bytes = 0
        self._want_bytes = 0

    def receive(
        self,
        data: bytes,
        on_message: Callable[[bytes], None],
        on_events: Callable[[], None],
    ) -> None:
        """Take in what arrived.

        Args:
            on_message: Called for each message that was read here.
            on_events: Called when the library was fed: its events and its answers are the
                caller's to deal with.
        """
        while self._pieces and self._reads_itself():
            whole = self._complete(data)
            if whole is None:
                return
            first, data = whole
            self._read(first, on_message, on_events)
            if not data:
                return
        if self._reads_itself():
            self._read(data, on_message, on_events)
        else:
            self._pass_on(data, on_events)

    def _reads_itself(self) -> bool:
        return not self.is_bypassed and self._websocket.state is State.OPEN

    def _pass_on(self, data: bytes, on_events: Callable[[], None]) -> None:
        """Let the library read, until it stands between two frames."""
        self._websocket.receive_data(data)
        self.is_bypassed = not _is_between_frames(self._websocket)
        on_events()

    def _complete(self, data: bytes) -> tuple[bytes, bytes] | None:
        """The frame that was not whole, and what follows it; None if it still is not."""
        missing = self._want_bytes - self._have_bytes
        if len(data) < missing:
            self._pieces.append(data)
            self._have_bytes += len(data)
            return None
        self._pieces.append(data if len(data) == missing else data[:missing])
        whole = b"".join(self._pieces)
        self._pieces.clear()
        return whole, data[missing:]

    def _read(
        self,
        data: bytes,
        on_message: Callable[[bytes], None],
        on_events: Callable[[], None],
    ) -> None:
        """Read frames; keep one that is not whole; pass on what is not of our kind."""
        offset, end = 0, len(data)
        websocket, is_server = self._websocket, self._is_server
        while offset < end:
            if data[offset] != _WHOLE_BINARY or websocket.current_size is not None:
                break
            if end - offset < 2:
                self._keep(data, offset, 2)
                return
            size = data[offset + 1]
            if (size >= _MASKED) is not is_server:
                break
            size &= 0x7F
            start = offset + 2
            if size >= 126:
                width = 2 if size == 126 else 8
                start += width
                if end < start:
                    self._keep(data, offset, start - offset)
                    return
                size = int.from_bytes(data[start - width : start])
                if size > MAX_MESSAGE_BYTES:
                    break
            if is_server:
                start += _MASK_BYTES
            stop = start + size
            if end < stop:
                self._keep(data, offset, stop - offset)
                return
            if is_server:
                mask = data[start - _MASK_BYTES : start]
                on_message(apply_mask(memoryview(data)[start:stop], mask))
            else:
                on_message(data[start:stop])
            offset = stop
        else:
            return
        self._pass_on(data[offset:], on_events)

    def _keep(self, data: bytes, offset: int, want_bytes: int) -> None:
        self._pieces.append(data[offset:] if offset else data)
        self._have_bytes = len(data) - offset
        self._want_bytes = want_bytes


def _is_between_frames(websocket: WebSocket) -> bool:
    """Whether the library's parser waits for the first byte of a frame, and holds none."""
    generator = getattr(websocket, "parser", None)
    while (inner := getattr(generator, "gi_yieldfrom", None)) is not None:
        generator = inner
    return not websocket.reader.buffer and (
        getattr(generator, "__name__", "") == "at_eof"
    )
