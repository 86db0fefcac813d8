"""SPEC.md says what the code does: its bytes, its tables, its numbers, its length.

Covered: every example against the codec, the whole conversation against two sessions,
frame types, codes, limits and times.
"""

import re
from pathlib import Path

import pytest

import shared.wire
from shared.errors import Code
from shared.mux import (
    budget,
    idle,
    in_flight,
    liveness,
    outbox,
    replay,
    session,
    windows,
)
from shared.tunnel import connection, progress
from shared.wire import frames, hello
from shared.wire.frames import FrameType
from shared.wire.hello import Hello
from tests.fakes.session_pair import SESSION_ID, End, Recorder, SessionPair
from tower_agent import reconnect

SPEC = (Path(shared.wire.__file__).parent / "SPEC.md").read_text()
PLAIN = " ".join(SPEC.split())


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", SPEC, re.DOTALL)


def read_bytes(text: str) -> bytes:
    """Hex digits and 'quoted text'; what follows a # is for people."""
    result = bytearray()
    for line in text.splitlines():
        for quoted, hexed in re.findall(r"'([^']*)'|([0-9a-f]+)", line.split(" #")[0]):
            result += quoted.encode() if quoted else bytes.fromhex(hexed)
    return bytes(result)


EXAMPLES = [
    frames.encode_open(2, 32768, "tcp/echo"),
    frames.encode_data(2, 0, b"hi!"),
    frames.encode_eof(2, 3),
    frames.encode_reset(2, Code.REFUSED, "not in the list"),
    frames.encode_window(2, 3, 32771),
    frames.encode_ping(1) + frames.encode_pong(1),
    frames.encode_go_away(Code.GOING_AWAY, 2.0, "restart"),
    frames.encode_accept(2),
    frames.encode_ack(1234),
    frames.encode_return(2, 32771, 3),
]


def test_there_is_an_example_for_every_frame_and_a_test_for_every_example() -> None:
    assert len(blocks("example")) == len(EXAMPLES)
    shown = {found.type for text in EXAMPLES for found in frames.split(text)}
    assert shown == set(FrameType) - {FrameType.HELLO}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_each_example_is_what_the_codec_writes(number: int) -> None:
    written = read_bytes(blocks("example")[number])
    assert written == EXAMPLES[number]
    assert (
        b"".join(
            written[found.start - 9 : found.end] for found in frames.split(written)
        )
        == written
    )


def test_the_conversation_is_what_two_sessions_say() -> None:
    (text,) = blocks("conversation")
    turns = re.split(r"^(agent|server)\b[^\n]*\n", text, flags=re.MULTILINE)[1:]
    script = iter(
        (speaker, read_bytes(said))
        for speaker, said in zip(turns[::2], turns[1::2], strict=True)
    )
    pair = conversation_pair()

    def says(end: End) -> None:
        speaker, said = next(script)
        pair.sleep(1.0)
        message = end.session.data_to_send(pair.now)
        assert message == said
        assert end is getattr(pair, speaker)
        pair.feed(pair.peer_of(end), message)

    says(pair.agent)
    says(pair.server)
    near = pair.server.open("tcp/echo")
    near.stream.write(b"hello, tower")
    near.stream.write_eof()
    says(pair.server)
    says(pair.agent)
    says(pair.server)
    says(pair.agent)
    assert (near.received, near.ends) == (b"hello, tower", [None])
    pair.server.open("tcp/gone")
    says(pair.server)
    says(pair.agent)
    pair.server.session.handle_timer(pair.now)
    says(pair.server)
    pair.agent.session.go_away(Code.GOING_AWAY, "restart", 2.0)
    says(pair.agent)
    assert next(script, None) is None


def conversation_pair() -> SessionPair:
    pair = SessionPair(shake_hands=False)
    for end, role, software, window in (
        (pair.agent, session.Role.AGENT, "tower-agent/1", 8),
        (pair.server, session.Role.SERVER, "tower-server/1", 32768),
    ):
        ours = Hello(
            session_id=SESSION_ID if end is pair.agent else "",
            window_bytes=window,
            software=software,
            place="node-7" if end is pair.agent else "",
            instance="5e1f" if end is pair.agent else "",
            resume_seconds=60 if end is pair.server else 0,
        )
        end.session = session.Session(role, ours, end, pair.now)

    def echo(far: Recorder) -> None:
        if far.stream.target == "tcp/gone":
            far.stream.reset(Code.UNREACHABLE, "no answer")
            return
        far.stream.accept()
        sent = 0

        def answer(recorder: Recorder) -> None:
            nonlocal sent
            recorder.stream.write(bytes(recorder.received[sent:]))
            sent = len(recorder.received)

        far.on_data = answer
        far.on_eof = lambda recorder: recorder.stream.write_eof()

    pair.agent.on_open = echo
    return pair


def test_the_tables_name_every_frame_type_and_every_code() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", SPEC.split("## 6.")[0], re.M))
    assert rows == {str(int(kind)): kind.name for kind in FrameType}
    rows = dict(re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", SPEC.split("## 9.")[1], re.M))
    assert rows == {str(int(code)): code.name for code in Code}


@pytest.mark.parametrize(
    "sentence",
    [
        f"`{hello.SUBPROTOCOL}`",
        f"at most {frames.MAX_MESSAGE_BYTES // 2**20} MiB in all",
        f"about {session.MESSAGE_BYTES // 1024} KiB",
        f"at the latest after {replay.ACK_AFTER_BYTES // 1024} KiB",
        f"more than {replay.MAX_KEPT_BYTES // 2**20} MiB",
        f"or {replay.MAX_KEPT_MESSAGES:,} messages",
        f"unknown types from {frames.FIRST_OPTIONAL_TYPE} on",
        f"1 to {frames.MAX_TARGET_BYTES} bytes of printable UTF-8",
        f"at most {frames.MAX_REASON_BYTES:,} bytes",
        f"HELLO {hello.MAX_HELLO_BYTES:,} bytes",
        f"at the latest for {windows.MAX_STEP_BYTES // 2**20} MiB",
        f"{windows.INITIAL_WINDOW_BYTES // 1024} KiB at first",
        f"below {windows.SHORT_PATH_SECONDS * 1000:.0f} ms",
        f"Windows beyond {windows.INITIAL_WINDOW_BYTES // 1024} KiB",
        f"beyond {replay.FREE_KEPT_BYTES // 2**20} MiB",
        f"after {idle.IDLE_SECONDS:.0f} s without anything to send",
        f"returns what it has beyond {windows.INITIAL_WINDOW_BYTES // 1024} KiB",
        f"share {budget.DEFAULT_WINDOW_MEMORY_BYTES // 2**20} MiB in a process",
        f"{windows.MAX_WINDOW_BYTES // 2**20} MiB at most",
        f"turns of {outbox.TURN_BYTES // 1024} KiB",
        f"less than {outbox.INTERACTIVE_BYTES_PER_SECOND // 1024} KiB/s go first",
        f"about {in_flight.GAIN} times the path's volume",
        f"begins with {in_flight.START_BYTES // 1024} KiB",
        f"always have {in_flight.FLOOR_BYTES // 1024} KiB.",
        f"{session.MAX_STREAMS:,} streams open in each direction",
        f"{session.MAX_WAITING_ANSWERS:,} answers waiting",
        f"after {liveness.PING_AFTER_SECONDS:.0f} s without a sign "
        f"(the server: {liveness.SERVER_PING_AFTER_SECONDS} s)",
        f"every {liveness.ROUND_TRIP_EVERY_SECONDS:.0f} s on a busy link",
        f"After {liveness.DEAD_AFTER_SECONDS} s without a sign",
        f"unanswered for {liveness.ANSWER_SECONDS:.0f} s",
        f"none of what we write for {progress.WRITE_DEADLINE_SECONDS} s",
        f"for {reconnect.QUICK_FOR_SECONDS:.0f} s after the loss",
        f"random(0, {reconnect.QUICK_DELAY_SECONDS} s)",
        f"not connected after {reconnect.DIAL_OVERLAP_SECONDS:.0f} s",
        f"not through {reconnect.ANSWER_OVERLAP_SECONDS:.0f} s later",
        f"given up after {reconnect.DIAL_TIMEOUT_SECONDS:.0f} s",
        f"from {reconnect.FIRST_CEILING_SECONDS:.0f} s, doubled",
        f"each time, to {reconnect.LAST_CEILING_SECONDS:.0f} s",
        f"up to {reconnect.RETRY_AFTER_JITTER:.0%} of it".replace("%", " %"),
        f"at most {reconnect.MAX_RETRY_AFTER_SECONDS:.0f} s are honoured",
        f"no HELLO within {connection.HELLO_DEADLINE_SECONDS} s",
    ],
)
def test_a_number_in_the_code_stands_in_the_spec(sentence: str) -> None:
    assert sentence in PLAIN


def test_the_spec_can_be_read_over_a_coffee() -> None:
    prose = re.sub(r"```.*?```", "", SPEC, flags=re.DOTALL)
    words = [word for word in prose.split() if re.search(r"\w", word)]
    assert len(words) <= 1780
    titles = re.findall(r"^## (\d+)\.", SPEC, re.M)
    assert titles == [str(number) for number in range(1, 11)]
