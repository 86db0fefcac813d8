"""Frames: encode and parse are inverse, and nothing undeclared is ever raised.

Covered: round trips of every frame; limits of target, reason and message; cut and mutated
messages; optional frames; text that could hurt a log.
"""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Code, PeerProtocolError
from shared.wire import frames
from shared.wire.frames import FrameType
from tests.fakes.frame_factory import StreamFrames, frame

stream_ids = st.integers(0, 2**32 - 1)
offsets = st.integers(0, 2**64 - 1)
codes = st.sampled_from(list(Code))
reasons = st.text(max_size=400)


def only(message: bytes) -> tuple[int, int, bytes]:
    """The single frame of a message: type, stream, payload."""
    (found,) = frames.split(message)
    return found.type, found.stream_id, message[found.start : found.end]


@given(stream_ids, offsets, st.binary(max_size=2000))
def test_data_and_eof_come_back_as_they_were(
    stream_id: int, offset: int, data: bytes
) -> None:
    type_, found_id, payload = only(frames.encode_data(stream_id, offset, data))
    assert (type_, found_id) == (FrameType.DATA, stream_id)
    assert payload == struct.pack("!Q", offset) + data
    type_, found_id, payload = only(frames.encode_eof(stream_id, offset))
    assert (type_, found_id) == (FrameType.EOF, stream_id)
    assert frames.parse_offset(payload) == offset


@given(
    stream_ids, offsets, st.text(st.characters(categories=["L", "N", "P"]), min_size=1)
)
def test_open_comes_back_as_it_was(stream_id: int, limit: int, target: str) -> None:
    target = target[:100]
    type_, found_id, payload = only(frames.encode_open(stream_id, limit, target))
    assert (type_, found_id) == (FrameType.OPEN, stream_id)
    assert frames.parse_open(payload) == (limit, target)


@given(stream_ids, codes, reasons)
def test_reset_comes_back_with_its_reason_made_printable(
    stream_id: int, code: Code, reason: str
) -> None:
    type_, found_id, payload = only(frames.encode_reset(stream_id, code, reason))
    assert (type_, found_id) == (FrameType.RESET, stream_id)
    reset = frames.parse_reset(payload)
    assert reset.code is code
    assert reset.reason.isprintable()
    if reason.isprintable() and len(reason.encode()) <= frames.MAX_REASON_BYTES:
        assert reset.reason == reason


@given(stream_ids, offsets, offsets)
def test_window_comes_back_as_it_was(stream_id: int, received: int, limit: int) -> None:
    type_, found_id, payload = only(frames.encode_window(stream_id, received, limit))
    assert (type_, found_id) == (FrameType.WINDOW, stream_id)
    assert frames.parse_window(payload) == (received, limit)


@given(stream_ids, offsets, offsets)
def test_return_comes_back_as_it_was(stream_id: int, known: int, limit: int) -> None:
    type_, found_id, payload = only(frames.encode_return(stream_id, known, limit))
    assert (type_, found_id) == (FrameType.RETURN, stream_id)
    assert frames.parse_return(payload) == (known, limit)


@given(codes, st.integers(0, 10**6), st.text(st.characters(categories=["L"])))
def test_go_away_comes_back_as_it_was(code: Code, ms: int, reason: str) -> None:
    reason = reason[:200]
    type_, stream_id, payload = only(frames.encode_go_away(code, ms / 1000, reason))
    assert (type_, stream_id) == (FrameType.GOAWAY, 0)
    notice = frames.parse_go_away(payload)
    assert notice.code is code and notice.reason == reason
    assert notice.retry_after_seconds == pytest.approx(ms / 1000, abs=0.001)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1.0, 0.0), (1e12, 4294967.295), (float("inf"), 4294967.295)],
)
def test_a_retry_time_out_of_range_is_clamped(seconds: float, expected: float) -> None:
    _, _, payload = only(frames.encode_go_away(Code.OK, seconds, ""))
    assert frames.parse_go_away(payload).retry_after_seconds == expected


@given(offsets)
def test_ping_and_pong_carry_the_same_number(opaque: int) -> None:
    for message, kind in (
        (frames.encode_ping(opaque), FrameType.PING),
        (frames.encode_pong(opaque), FrameType.PONG),
    ):
        type_, stream_id, payload = only(message)
        assert (type_, stream_id) == (kind, 0)
        assert frames.parse_offset(payload) == opaque


def test_a_message_is_cut_into_its_frames_in_order() -> None:
    stream = StreamFrames(2)
    message = stream.open() + stream.data(b"abc") + stream.eof(3)
    assert [found.type for found in frames.split(message)] == [1, 2, 3]


def test_optional_unknown_frames_are_skipped_and_others_are_not() -> None:
    assert list(frames.split(frame(64, 7, b"later") + frame(255, 0))) == []
    for type_ in (12, 13, 63):
        with pytest.raises(PeerProtocolError, match="unknown frame type"):
            list(frames.split(frame(type_, 0)))


@pytest.mark.parametrize("size", range(1, 9))
def test_a_header_cut_short_is_refused(size: int) -> None:
    with pytest.raises(PeerProtocolError, match="cut short"):
        list(frames.split(frames.encode_ping(1)[:size]))


def test_a_payload_longer_than_its_message_is_refused() -> None:
    with pytest.raises(PeerProtocolError, match="with 7 left"):
        list(frames.split(frames.encode_ping(1)[:-1]))


def test_a_message_over_the_limit_is_refused() -> None:
    exact = frame(64, 0, b"x" * (frames.MAX_MESSAGE_BYTES - 9))
    assert list(frames.split(exact)) == []
    with pytest.raises(PeerProtocolError, match="limit"):
        list(frames.split(exact + b"x"))


@pytest.mark.parametrize(
    "target", ["", "x" * 513, "é" * 257, "a\nb", "a\x1b[0m", "\ud800"]
)
def test_a_target_that_the_spec_forbids_cannot_be_opened(target: str) -> None:
    with pytest.raises(ValueError):
        frames.encode_open(1, 0, target)


@pytest.mark.parametrize(
    ("parse", "payload"),
    [
        (frames.parse_open, b""),
        (frames.parse_open, bytes(8)),
        (frames.parse_open, bytes(8) + b"x" * 513),
        (frames.parse_open, bytes(8) + b"\xff"),
        (frames.parse_open, bytes(8) + b"a\nb"),
        (frames.parse_offset, bytes(7)),
        (frames.parse_offset, bytes(9)),
        (frames.parse_window, bytes(15)),
        (frames.parse_window, bytes(17)),
        (frames.parse_return, bytes(15)),
        (frames.parse_return, bytes(17)),
        (frames.parse_reset, b"\0"),
        (frames.parse_reset, bytes(2) + b"x" * 1025),
        (frames.parse_reset, bytes(2) + b"\xc3"),
        (frames.parse_go_away, bytes(5)),
        (frames.parse_go_away, bytes(6) + b"x" * 1025),
        (frames.parse_go_away, bytes(6) + b"\xff"),
    ],
)
def test_a_payload_of_the_wrong_shape_is_the_peers_fault(parse, payload: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        parse(payload)


def test_an_unknown_code_is_read_as_internal() -> None:
    assert frames.parse_reset(b"\x7f\xff" + b"why").code is Code.INTERNAL


def test_a_reason_is_clipped_between_letters_and_survives_stray_surrogates() -> None:
    _, _, payload = only(frames.encode_reset(1, Code.LIMIT, "é" * 1000))
    assert frames.parse_reset(payload).reason == "é" * 512
    _, _, payload = only(frames.encode_reset(1, Code.LIMIT, "no such file \udcff"))
    assert frames.parse_reset(payload).reason == "no such file ?"


def test_a_reason_from_the_peer_cannot_add_lines_or_escapes_to_a_log() -> None:
    reset = frames.parse_reset(b"\0\1" + b"gone\nroot logged in\x1b[2J")
    assert reset.reason == "gone\ufffdroot logged in\ufffd[2J"


PARSERS = (
    frames.parse_open,
    frames.parse_offset,
    frames.parse_window,
    frames.parse_return,
    frames.parse_reset,
    frames.parse_go_away,
)


@given(st.binary(max_size=1100), st.sampled_from(PARSERS))
def test_parsing_any_payload_raises_nothing_undeclared(payload: bytes, parse) -> None:
    try:
        parse(payload)
    except PeerProtocolError:
        pass


@given(st.data())
def test_splitting_any_message_raises_nothing_undeclared(data: st.DataObject) -> None:
    stream = StreamFrames(2)
    message = bytearray(
        stream.open() + stream.data(b"abc") + stream.window() + stream.reset()
    )
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(message) - 1))
        message[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(message)))
    noise = data.draw(st.binary(max_size=40))
    try:
        for found in frames.split(bytes(message[:cut]) + noise):
            assert found.start <= found.end <= cut + len(noise)
    except PeerProtocolError:
        pass
