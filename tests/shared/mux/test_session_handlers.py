"""Handlers that call back into the session from their callbacks, and handlers that raise.

Covered: answering, resetting and closing in every callback; a bug in every callback costs
its own stream and nothing else.
"""

import pytest

from shared.errors import Code
from shared.mux.stream import QUEUE_HIGH_BYTES
from tests.fakes.session_pair import Recorder, SessionPair


def opened(pair: SessionPair) -> tuple[Recorder, Recorder]:
    """A stream from the server to the agent: both ends of it."""
    near = pair.server.open()
    pair.settle()
    return near, pair.agent.handlers[near.stream.id]


def test_a_handler_may_answer_and_close_in_the_middle_of_data() -> None:
    pair = SessionPair()

    def echo(far: Recorder) -> None:
        def answer(recorder: Recorder) -> None:
            recorder.stream.write(bytes(recorder.received))
            recorder.stream.write_eof()

        far.on_data = answer

    pair.agent.on_open = echo
    near = pair.server.open()
    near.stream.write(b"ping")
    near.stream.write_eof()
    pair.settle()
    assert (near.received, near.ends) == (b"ping", [None])


@pytest.mark.parametrize("moment", ["on_data", "on_eof"])
def test_a_handler_that_resets_in_a_callback_is_not_told_of_it(moment: str) -> None:
    pair = SessionPair()
    near, far = opened(pair)
    setattr(far, moment, lambda r: r.stream.reset(Code.CANCELLED, "enough"))
    near.stream.write(b"a")
    near.stream.write_eof()
    pair.settle()
    assert far.ends == []
    assert [end and end.reason for end in near.ends] == ["enough"]


@pytest.mark.parametrize("moment", ["on_data", "on_eof", "on_closed"])
def test_a_handler_may_close_the_session_in_a_callback(moment: str) -> None:
    pair = SessionPair()
    near, far = opened(pair)
    _, other = opened(pair)
    session = pair.agent.session
    setattr(far, moment, lambda r: session.close(Code.INTERNAL, "no more"))
    near.stream.write(b"a")
    near.stream.write_eof()
    far.stream.write_eof()
    pair.settle()
    assert len(far.ends) == 1
    assert [end and end.reason for end in other.ends] == ["no more"]
    assert pair.agent.broke is None


def test_a_writer_may_write_and_reset_when_it_is_let_go_on() -> None:
    pair = SessionPair()
    (near, far), (other, other_far) = opened(pair), opened(pair)

    def go_on(recorder: Recorder) -> None:
        other.stream.write(b"from inside")
        pair.server.open().stream.write(b"opened inside")
        recorder.stream.reset(Code.CANCELLED, "done")

    near.on_resume = go_on
    near.stream.write(bytes(QUEUE_HIGH_BYTES + 1))
    pair.settle()
    assert other_far.received == b"from inside"
    assert pair.agent.handlers[6].received == b"opened inside"
    assert len(far.ends) == 1 and near.ends == []


@pytest.mark.parametrize("moment", ["on_data", "on_eof", "on_resume"])
def test_a_handler_that_raises_loses_its_stream_and_nothing_else(moment: str) -> None:
    pair = SessionPair()
    (near, far), (other, other_far) = opened(pair), opened(pair)
    victim, side = (near, pair.server) if moment == "on_resume" else (far, pair.agent)

    def bug(recorder: Recorder) -> None:
        raise RuntimeError("a bug")

    setattr(victim, moment, bug)
    other.stream.write(b"before")
    near.stream.write(bytes(QUEUE_HIGH_BYTES + 1))
    near.stream.write_eof()
    other.stream.write(b" and after")
    pair.settle()
    assert [str(error) for error in side.failures] == ["a bug"]
    assert other_far.received == b"before and after" and other_far.ends == []
    for recorder in (near, far):
        (end,) = recorder.ends
        assert end is not None and end.code is Code.INTERNAL
    assert pair.agent.broke is None and pair.server.broke is None


def test_a_handler_that_raises_when_told_of_the_end_hurts_nobody() -> None:
    pair = SessionPair()

    def bug(recorder: Recorder) -> None:
        raise RuntimeError("a bug at the end")

    for near, far in (opened(pair), opened(pair)):
        near.on_closed = far.on_closed = bug
    pair.server.handlers[2].stream.write_eof()
    pair.agent.handlers[2].stream.write_eof()
    pair.settle()
    pair.server.session.close(Code.OK, "bye")
    assert len(pair.server.failures) == 2 and len(pair.agent.failures) == 1
    assert all(len(r.ends) == 1 for r in pair.server.handlers.values())


@pytest.mark.parametrize("fault", ["raises", "sets no handler"])
def test_an_owner_that_fails_to_take_a_stream_resets_it(fault: str) -> None:
    pair = SessionPair()

    def bad(far: Recorder) -> None:
        far.stream.handler = None
        if fault == "raises":
            raise RuntimeError("a bug")

    pair.agent.on_open = bad
    near, _ = opened(pair)
    (end,) = near.ends
    assert end is not None and end.code is Code.INTERNAL
    assert len(pair.agent.failures) == 1 and pair.agent.broke is None
