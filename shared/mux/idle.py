"""Credit that nobody uses goes back to whom it came from. SPEC 5.11 and 6.

A receiver that permits megabytes counts them against its memory, and cannot take them back:
they may be under way. Only the sender knows that they are not. So one that has had nothing to
send for a while gives up what it may send beyond a first window; its next burst begins small.
"""

from collections.abc import Iterator

from shared.mux.stream import SENDING_STATES, Stream
from shared.mux.windows import INITIAL_WINDOW_BYTES

__all__ = ["IDLE_SECONDS", "IdleCredit"]

# Longer than the pauses within a piece of work, and short beside the minutes between them: what
# a burst leaves behind is free for others soon after it.
IDLE_SECONDS = 10.0


class IdleCredit:
    """Streams with more credit than they need at rest, and what they have sent when."""

    def __init__(self) -> None:
        # For each stream its offset when we last looked, and when that began to stand still.
        self._watched: dict[Stream, tuple[int, float]] = {}

    def watch(self, stream: Stream, now: float) -> None:
        """The stream got credit: look after it if that is much."""
        window = stream.send_window
        if window.credit_bytes > INITIAL_WINDOW_BYTES and stream not in self._watched:
            self._watched[stream] = window.sent_offset, now

    def forget(self, stream: Stream) -> None:
        """The stream is over."""
        self._watched.pop(stream, None)

    def clear(self) -> None:
        self._watched.clear()

    def due(self, now: float) -> Iterator[Stream]:
        """Streams that should give back credit now; each once, until it is watched again."""
        for stream, (offset, since) in list(self._watched.items()):
            window = stream.send_window
            if (
                stream.state not in SENDING_STATES
                or window.credit_bytes <= INITIAL_WINDOW_BYTES
            ):
                del self._watched[stream]
            elif stream.queue or window.sent_offset != offset:
                self._watched[stream] = window.sent_offset, now
            elif now - since >= IDLE_SECONDS:
                del self._watched[stream]
                yield stream
