"""Mistakes that somebody could make in the core: the simulation must see each of them, and soon.

Each is one small change, as a patch; it is undone after the test. The lives are those of
test_session_simulation, so a mistake that is seen here cannot pass there.
"""

from collections.abc import Callable
from typing import Any

import pytest

from shared.mux.budget import WindowBudget
from shared.mux.outbox import Outbox
from shared.mux.replay import Replay
from shared.mux.stream import Stream
from shared.mux.table import StreamTable
from shared.mux.windows import ReceiveWindow, SendWindow
from shared.wire import frames
from shared.wire.frames import FrameType
from tests.fakes.session_seeds import STEPS_A_SEED, drive

# A mistake that hides for longer is not really seen: a fiftieth of what CI runs.
SEEDS = 200

Patch = Callable[[pytest.MonkeyPatch], None]


def around(
    cls: type, name: str, change: Callable[..., Any]
) -> Callable[[pytest.MonkeyPatch], None]:
    """A patch that calls `change(original, self, *arguments)` in place of a method."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(cls, name)
        monkeypatch.setattr(
            cls,
            name,
            lambda self, *arguments, **named: change(
                original, self, *arguments, **named
            ),
        )

    return patch


def loses_the_oldest(original: Any, replay: Replay, count: int) -> None:
    original(replay, count)
    if len(replay._resend) > 1:
        replay._resend.pop()  # the next one is at the end


def doubles_a_message(original: Any, replay: Replay) -> bytes | None:
    message = original(replay)
    if message is not None and replay.sent_count % 7 == 0:
        replay._resend.append(message)
        replay.sent_count += 1
    return message


def forgets_eofs(original: Any, replay: Replay, count: int) -> None:
    original(replay, count)
    kept = list(replay._resend)
    replay._resend.clear()
    for message in kept:
        split = list(frames.split(message))
        if any(found.type == FrameType.EOF for found in split):
            message = b"".join(
                message[found.start - 9 : found.end]
                for found in split
                if found.type != FrameType.EOF
            ) or frames.encode_pong(0)
        replay._resend.append(message)


def counts_too_much(original: Any, replay: Replay) -> int | None:
    count = original(replay)
    return count + 1 if count is not None and count % 50 == 49 else count


def keeps_too_little(original: Any, replay: Replay, count: int) -> None:
    original(replay, min(count + 1, replay.sent_count - len(replay._resend)))


def permits_too_much(
    original: Any, window: ReceiveWindow, *when: float, **path: bool
) -> int:
    return original(window, *when, **path) + 1  # type: ignore[no-any-return]


def takes_a_limit_back(
    original: Any, window: ReceiveWindow, *when: float, **path: bool
) -> int:
    original(window, *when, **path)
    window.limit_offset = min(
        window.limit_offset, window.taken_offset + window.size_bytes // 2
    )
    return window.limit_offset


def waits_too_long(
    original: Any, window: ReceiveWindow, *when: float, **path: bool
) -> int:
    limit: int = original(window, *when, **path)
    window._due_offset = limit + 1
    return limit


def takes_what_is_under_way(
    original: Any, window: ReceiveWindow, known: int, limit: int, now: float
) -> None:
    original(window, window.limit_offset, limit, now)


def returns_and_keeps(original: Any, window: SendWindow, keep: int) -> tuple[int, int]:
    before = window.limit_offset
    limits: tuple[int, int] = original(window, keep)
    window.limit_offset = before
    return limits


def books_nothing(original: Any, window: ReceiveWindow, count: int) -> None:
    window.booked_bytes = count


def gives_back_nothing(original: Any, window: ReceiveWindow) -> None:
    """A budget leak: the stream is over, what it booked is not."""


def gives_everybody_all(original: Any, budget: WindowBudget, own: int) -> int:
    return budget.ceiling_bytes


def forgets_a_waiting_writer(
    original: Any, window: SendWindow, received: int, limit: int
) -> bool:
    blocked = window.limit_offset <= window.sent_offset
    moved = original(window, received, limit)
    if blocked and limit % 3 == 0:
        window.limit_offset = window.sent_offset  # as if it had not been read
    return moved  # type: ignore[no-any-return]


def skips_a_byte(
    original: Any, stream: Stream, max_bytes: int, parts: list[bytes | memoryview]
) -> int:
    before = len(parts)
    taken: int = original(stream, max_bytes, parts)
    if taken > 1000 and len(parts) > before:
        parts[-1] = bytes(parts[-1][1:]) + b"\0"
    return taken


def forgets_to_drop(original: Any, table: StreamTable, stream: Stream) -> bool:
    known: bool = original(table, stream)
    return known and stream.id % 3 != 0  # some RESETs are never sent


def mixes_up_streams(
    original: Any, outbox: Outbox, *arguments: Any, **named: Any
) -> Any:
    message: bytes = original(outbox, *arguments, **named)
    for found in frames.split(message):
        if found.type == FrameType.DATA and found.stream_id > 2:
            start = found.start - 9
            wrong = (found.stream_id - 2).to_bytes(4)
            return message[: start + 1] + wrong + message[start + 5 :]
    return message


MISTAKES: dict[str, Patch] = {
    "a resume loses a message": around(Replay, "resume", loses_the_oldest),
    "a resume doubles a message": around(Replay, "next_to_resend", doubles_a_message),
    "a resume loses EOF": around(Replay, "resume", forgets_eofs),
    "an ACK counts too much": around(Replay, "report", counts_too_much),
    "an ACK frees too much": around(Replay, "acknowledged", keeps_too_little),
    "a WINDOW permits too much": around(ReceiveWindow, "advance", permits_too_much),
    "a limit is taken back": around(ReceiveWindow, "advance", takes_a_limit_back),
    "a WINDOW never becomes due": around(ReceiveWindow, "advance", waits_too_long),
    "a RETURN takes what a WINDOW gave": around(
        ReceiveWindow, "returned", takes_what_is_under_way
    ),
    "a RETURN is not kept to": around(SendWindow, "give_back", returns_and_keeps),
    "a window is not booked": around(ReceiveWindow, "_book", books_nothing),
    "a window stays booked": around(ReceiveWindow, "close", gives_back_nothing),
    "a share is more than is left": around(WindowBudget, "share", gives_everybody_all),
    "a WINDOW is overlooked": around(SendWindow, "update", forgets_a_waiting_writer),
    "a byte is skipped": around(Stream, "take_queued", skips_a_byte),
    "a RESET is not sent": around(StreamTable, "forget", forgets_to_drop),
    "data goes to another stream": around(Outbox, "next_message", mixes_up_streams),
}


def first_that_fails(seeds: int = SEEDS) -> int | None:
    for seed in range(seeds):
        try:
            drive(seed, STEPS_A_SEED)
        except Exception:  # a mistake may show as anything
            return seed
    return None


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_simulation_sees_a_mistake(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    MISTAKES[mistake](monkeypatch)
    assert first_that_fails() is not None


def test_without_a_mistake_there_is_nothing_to_see() -> None:
    assert first_that_fails(20) is None
