"""Frames and HELLO from a stranger: decoding raises what it declares, and encodes back. SPEC 3 to 5."""

import re
from pathlib import Path

import shared.wire
from shared.errors import Code, PeerProtocolError
from shared.wire import frames
from shared.wire.frames import FRAME_HEADER, Frame, FrameType
from shared.wire.hello import Hello, parse_hello, read_hello
from tests.fuzz.target import Target

__all__ = ["TARGETS", "conversation", "spec_bytes"]

SPEC = Path(shared.wire.__file__).parent / "SPEC.md"


def spec_bytes(text: str) -> bytes:
    """The bytes of an example: hex digits and 'quoted text'; what follows a # is for people."""
    result = bytearray()
    for line in text.splitlines():
        for quoted, hexed in re.findall(r"'([^']*)'|([0-9a-f]+)", line.split(" #")[0]):
            result += quoted.encode() if quoted else bytes.fromhex(hexed)
    return bytes(result)


def conversation() -> list[tuple[str, bytes]]:
    """SPEC's whole conversation: who speaks, and the message."""
    (text,) = re.findall(r"```conversation\n(.*?)```", SPEC.read_text(), re.DOTALL)
    turns = re.split(r"^(agent|server)\b[^\n]*\n", text, flags=re.MULTILINE)[1:]
    return [
        (speaker, spec_bytes(said))
        for speaker, said in zip(turns[::2], turns[1::2], strict=True)
    ]


def _examples() -> list[bytes]:
    found = re.findall(r"```example\n(.*?)```", SPEC.read_text(), re.DOTALL)
    messages = [message for _, message in conversation()]
    return [*map(spec_bytes, found), *messages, b"".join(messages)]


def _run_frames(message: bytes) -> None:
    covered = 0
    try:
        for frame in frames.split(message):
            assert covered <= frame.start - FRAME_HEADER.size <= frame.end
            assert frame.end <= len(message)
            covered = frame.end
            _check_frame(frame, message[frame.start : frame.end])
    except PeerProtocolError as error:
        assert str(error)


def _check_frame(frame: Frame, payload: bytes) -> None:
    """What was parsed is encoded to the same bytes, where there is one spelling of it."""
    again = _encoded_again(frame, payload)
    header = FRAME_HEADER.pack(frame.type, frame.stream_id, len(payload))
    assert again is None or again == header + payload


def _encoded_again(frame: Frame, payload: bytes) -> bytes | None:
    stream_id = frame.stream_id
    match FrameType(frame.type):
        case FrameType.HELLO:
            parse_hello(payload)
        case FrameType.OPEN:
            opened = frames.parse_open(payload)
            return frames.encode_open(stream_id, opened.limit_offset, opened.target)
        case FrameType.EOF:
            return frames.encode_eof(stream_id, frames.parse_offset(payload))
        case FrameType.WINDOW:
            window = frames.parse_window(payload)
            return frames.encode_window(stream_id, *window)
        case FrameType.RETURN:
            return frames.encode_return(stream_id, *frames.parse_return(payload))
        case FrameType.RESET:
            reset = frames.parse_reset(payload)
            assert reset.reason.isprintable() and reset.code in Code
        case FrameType.GOAWAY:
            notice = frames.parse_go_away(payload)
            assert notice.reason.isprintable() and notice.retry_after_seconds >= 0
        case FrameType.PING | FrameType.PONG | FrameType.ACK:
            frames.parse_offset(payload)
    return None


def _run_hello(payload: bytes) -> None:
    try:
        hello = parse_hello(payload)
    except PeerProtocolError as error:
        assert str(error)
        return
    assert (hello.software + hello.place).isprintable()
    try:
        message = frames.encode_hello(hello.encode())
    except UnicodeEncodeError:
        raise AssertionError("a HELLO that cannot be said again") from None
    assert read_hello(message) == hello


def _hellos() -> list[bytes]:
    return [message[9:] for _, message in conversation()[:2]] + [
        Hello(
            session_id="f" * 32,
            window_bytes=2**32 - 1,
            software="x",
            resume=True,
            received=2**64 - 1,
            resume_seconds=60,
            place="node-7",
        ).encode(),
        b'{"session_id":"'
        + b"0" * 32
        + b'","window_bytes":1,"software":"\\ud800\\u0007"}',
    ]


# Headers of each type with a plausible length, and numbers at the edges.
_FRAME_WORDS = (
    *(FRAME_HEADER.pack(kind, kind > 0, length) for kind, length in ((0, 9), (1, 12))),
    *(FRAME_HEADER.pack(kind, 2, 8) for kind in (2, 3, 9)),
    *(FRAME_HEADER.pack(kind, 0, 8) for kind in (6, 7, 10)),
    FRAME_HEADER.pack(4, 2, 4),
    FRAME_HEADER.pack(5, 2, 16),
    FRAME_HEADER.pack(8, 0, 6),
    FRAME_HEADER.pack(64, 0, 0),
    b"\xff" * 4,
    b"\xff" * 8,
)

TARGETS = (
    Target(name="frames", run=_run_frames, seeds=_examples, words=_FRAME_WORDS),
    Target(
        name="hello",
        run=_run_hello,
        seeds=_hellos,
        words=tuple(
            f'"{name}":'.encode()
            for name in Hello.__dataclass_fields__  # each field of the JSON
        )
        + (b"true", b"-1", b"1e400", b"\\ud800", b"NaN", b"18446744073709551616"),
    ),
)
