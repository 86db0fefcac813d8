"""What a peer may not do: each is a PeerProtocolError, never another exception.

Covered: illegal frames before and after HELLO, wrong stream ids, wrong offsets, frames on
the wrong kind of stream, and arbitrary bytes into a session in the middle of its work.
"""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Code, FlowControlError, PeerProtocolError
from shared.wire import frames
from tests.fakes.frame_factory import StreamFrames, frame, hello_frame
from tests.fakes.session_pair import Recorder, SessionPair

LIMIT = 262144
S2, S4, S6, S1 = (StreamFrames(number) for number in (2, 4, 6, 1))

# The agent under test has open: 2 (opened by the server, nothing received), 4 (the same,
# EOF received), and its own 1. Stream 6 was opened and is closed.
ILLEGAL: dict[str, bytes] = {
    "second hello": hello_frame(),
    "hello on a stream": frame(0, 2, b"{}"),
    "open with our own parity": StreamFrames(3).open(),
    "open of stream 0": StreamFrames(0).open(),
    "open of a known id": S2.open(),
    "open of a closed id": S6.open(),
    "open with a falling id": StreamFrames(4).open(),
    "open without target": frame(1, 8, bytes(8)),
    "open with a long target": StreamFrames(8).open(b"x" * 513),
    "open with a broken target": StreamFrames(8).open(b"\xff"),
    "open with a control character": StreamFrames(8).open(b"tcp/x\n"),
    "open cut short": frame(1, 8, bytes(4)),
    "data on stream 0": StreamFrames(0).data(b"x"),
    "data before open": StreamFrames(8).data(b"x"),
    "data for an id of ours that we never opened": StreamFrames(3).data(b"x"),
    "data without data": S2.data(b""),
    "data cut short": frame(2, 2, bytes(7)),
    "data with a hole": S2.data(b"x", offset=1),
    "data repeated": S2.data(b"ab") + S2.data(b"b", offset=1),
    "data behind the end of counting": S2.data(b"x", offset=2**64 - 1),
    "data over the limit": S2.data(bytes(LIMIT)) + S2.data(b"x", offset=LIMIT),
    "data after eof": S4.data(b"x"),
    "eof twice": S4.eof(),
    "eof with a hole": S2.eof(1),
    "eof cut short": frame(3, 2, bytes(7)),
    "eof on an unopened stream": StreamFrames(8).eof(),
    "eof on stream 0": StreamFrames(0).eof(),
    "reset on an unopened stream": StreamFrames(8).reset(),
    "reset on stream 0": StreamFrames(0).reset(),
    "reset cut short": frame(4, 2, b"\0"),
    "reset with a long reason": S2.reset(reason=b"x" * 1025),
    "reset with a broken reason": S2.reset(reason=b"\xff"),
    "window on an unopened stream": StreamFrames(8).window(),
    "window on stream 0": StreamFrames(0).window(),
    "window cut short": frame(5, 2, bytes(15)),
    "window for unsent bytes": S1.window(received=1, limit=LIMIT),
    "ping on a stream": frame(6, 2, bytes(8)),
    "ping cut short": frame(6, 0, bytes(7)),
    "pong on a stream": frame(7, 2, bytes(8)),
    "pong too long": frame(7, 0, bytes(9)),
    "ping on a closed stream": frame(6, 6, bytes(8)),
    "goaway on a stream": frame(8, 2, bytes(6)),
    "goaway cut short": frame(8, 0, bytes(5)),
    "accept by the opener": S2.accept(),
    "accept on stream 0": frame(9, 0),
    "accept with a payload": frame(9, 1, b"x"),
    "accept on an unopened stream": frame(9, 3),
    "ack on a stream": frame(10, 2, bytes(8)),
    "ack cut short": frame(10, 0, bytes(7)),
    "ack of messages that were never sent": frame(10, 0, (1000).to_bytes(8)),
    "an unknown type": frame(11, 0),
    "a header cut short": b"\x06\0\0\0\0",
    "a payload cut short": frame(6, 0, bytes(8))[:-1],
    "a message over the limit": bytes(frames.MAX_MESSAGE_BYTES + 1),
}


def prepared() -> SessionPair:
    pair = SessionPair()
    pair.feed(
        pair.agent,
        S2.open()
        + S4.open()
        + S4.eof()
        + S6.open()
        + S6.reset()
        + frame(64, 9, b"hint"),
    )
    pair.agent.open()
    pair.pull(pair.agent)
    assert pair.agent.broke is None and set(pair.agent.session.streams) == {1, 2, 4}
    return pair


@pytest.mark.parametrize("name", ILLEGAL)
def test_what_the_spec_forbids_is_the_peers_fault(name: str) -> None:
    pair = prepared()
    session = pair.agent.session
    with pytest.raises(PeerProtocolError):
        session.receive_message(ILLEGAL[name], pair.now)
    pair.feed(pair.agent, ILLEGAL["an unknown type"])
    for recorder in pair.agent.handlers.values():
        assert len(recorder.ends) == 1


def test_sending_beyond_the_limit_has_its_own_error() -> None:
    pair = prepared()
    with pytest.raises(FlowControlError):
        pair.agent.session.receive_message(S2.data(bytes(LIMIT + 1)), pair.now)


LEGAL: dict[str, bytes] = {
    "an id that skips some": StreamFrames(100).open(),
    "a limit of nothing": StreamFrames(8).open(limit=0),
    "a limit of everything": StreamFrames(8).open(limit=2**64 - 1),
    "late data for a closed stream": S6.data(b"x", offset=77),
    "late frames for a closed stream": S6.window() + S6.eof() + S6.reset(),
    "an older window": S1.window(0, LIMIT) + S1.window(0, 5),
    "the same window twice": S1.window(0, LIMIT) * 2,
    "a second accept": S1.accept() * 2,
    "an answer that nobody asked for": frame(7, 0, bytes(8)),
    "goaway twice": frame(8, 0, bytes(6)) * 2,
    "an unknown code": S2.reset(code=999, reason=b"later"),
    "optional frames anywhere": frame(200, 2**32 - 1, b"x") + frame(64, 0),
    "an empty message": b"",
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_the_spec_allows_goes_through(name: str) -> None:
    pair = prepared()
    pair.agent.session.receive_message(LEGAL[name], pair.now)
    pair.pull(pair.agent)


@pytest.mark.parametrize(
    "first",
    [
        frame(6, 0, bytes(8)),
        S2.open(),
        S2.data(b"x"),
        frame(0, 2, b"{}"),
        frame(0, 0, b"not json"),
        hello_frame(session_id="x"),
        hello_frame(window_bytes=0),
        hello_frame(session_id=None),
    ],
)
@pytest.mark.parametrize("side", ["agent", "server"])
def test_the_first_frame_must_be_a_good_hello(side: str, first: bytes) -> None:
    pair = SessionPair(shake_hands=False)
    with pytest.raises(PeerProtocolError):
        getattr(pair, side).session.receive_message(first, pair.now)


def test_optional_frames_may_come_before_hello() -> None:
    pair = SessionPair(shake_hands=False)
    pair.feed(pair.server, frame(64, 0, b"hint") + hello_frame())
    assert pair.server.ready_calls == 1


@pytest.mark.parametrize(
    "answer", [hello_frame(session_id="f" * 32), hello_frame(resume=True)]
)
def test_the_server_may_answer_neither_another_session_nor_a_resume(
    answer: bytes,
) -> None:
    pair = SessionPair(shake_hands=False)
    with pytest.raises(PeerProtocolError):
        pair.agent.session.receive_message(answer, pair.now)


def test_a_server_answers_a_resume_with_a_new_session() -> None:
    pair = SessionPair(shake_hands=False)
    pair.feed(pair.server, hello_frame(resume=True))
    assert pair.server.broke is None
    assert pair.server.session.hello.resume is False


def test_nothing_is_taken_in_once_the_session_is_closed() -> None:
    pair = prepared()
    far: Recorder = pair.agent.handlers[2]
    far.on_data = lambda r: pair.agent.session.close(Code.OK, "stop")
    pair.feed(pair.agent, S2.data(b"x") + S2.data(b"y", 1) + StreamFrames(8).open())
    assert far.received == b"x" and 8 not in pair.agent.handlers


kinds = st.sampled_from([*range(11), 64])
ids = st.sampled_from([0, 1, 2, 3, 4, 6, 8, 10, 2**32 - 1])
payloads = st.one_of(
    st.binary(max_size=20),
    st.tuples(
        st.sampled_from([0, 1, 3, LIMIT, 2**63, 2**64 - 1]), st.binary(max_size=12)
    ).map(lambda pair: struct.pack("!Q", pair[0]) + pair[1]),
)
anything = st.one_of(
    st.builds(frame, kinds, ids, payloads),
    st.sampled_from([*LEGAL.values()]),
    st.binary(max_size=30),
)


@given(st.lists(anything, max_size=8), st.booleans())
def test_no_bytes_raise_anything_undeclared(pieces: list[bytes], apart: bool) -> None:
    pair = prepared()
    for message in pieces if apart else [b"".join(pieces)]:
        try:
            pair.agent.session.receive_message(message, pair.now)
        except PeerProtocolError:
            pair.agent.session.close(Code.PROTOCOL, "broke")
            break
        pair.pull(pair.agent)
    assert not pair.agent.failures
