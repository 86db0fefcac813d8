"""Messages counted, kept and sent again: arithmetic alone.

Covered: acknowledging in steps, late and impossible numbers, resuming (again, in the middle
of sending again), when an ACK is due, and the bounds of what is kept.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import PeerProtocolError
from shared.mux import replay as module
from shared.mux.budget import WindowBudget
from shared.mux.replay import ACK_AFTER_BYTES, MAX_KEPT_BYTES, Replay

MESSAGES = [b"one", b"two", b"three", b"four"]


def sent_all() -> Replay:
    replay = Replay()
    for message in MESSAGES:
        replay.sent(message)
    return replay


def resent(replay: Replay, count: int = 100) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count and (message := replay.next_to_resend()) is not None:
        found.append(message)
    return found


def test_what_is_acknowledged_is_not_kept() -> None:
    replay = sent_all()
    assert (replay.sent_count, replay.kept_bytes) == (4, 15)
    replay.acknowledged(2)
    assert (replay.acked_count, replay.kept_bytes) == (2, 9)
    replay.acknowledged(4)
    assert replay.kept_bytes == 0


def test_an_older_number_changes_nothing_and_a_future_one_is_an_error() -> None:
    replay = sent_all()
    replay.acknowledged(3)
    replay.acknowledged(1)
    assert (replay.acked_count, replay.kept_bytes) == (3, 4)
    with pytest.raises(PeerProtocolError):
        replay.acknowledged(5)
    assert replay.acked_count == 3


@pytest.mark.parametrize("count", range(5))
def test_after_a_resume_all_that_the_peer_lacks_goes_out_in_order(count: int) -> None:
    replay = sent_all()
    assert not replay.has_more_to_resend
    replay.resume(count)
    assert replay.resend_count == 4 - count
    assert resent(replay) == MESSAGES[count:]
    assert replay.sent_count == 4, "sending again is not sending"
    assert replay.resent_bytes == replay.kept_bytes == len(b"".join(MESSAGES[count:]))


@pytest.mark.parametrize("count", [0, 1, 5, 2**64 - 1])
def test_a_number_that_does_not_fit_is_refused_and_changes_nothing(count: int) -> None:
    replay = sent_all()
    replay.acknowledged(2)
    for attempt in (replay.check_resume, replay.resume):
        with pytest.raises(PeerProtocolError):
            attempt(count)
    assert not replay.has_more_to_resend
    replay.resume(2)
    assert resent(replay) == MESSAGES[2:]


def test_a_resume_in_the_middle_of_another_begins_where_the_peer_is_now() -> None:
    replay = sent_all()
    replay.resume(0)
    assert resent(replay, 2) == MESSAGES[:2]
    replay.acknowledged(1)
    replay.resume(1)
    assert resent(replay) == MESSAGES[1:]


def test_what_has_not_gone_out_again_cannot_be_acknowledged() -> None:
    replay = sent_all()
    replay.resume(1)
    resent(replay, 1)
    replay.acknowledged(2)
    with pytest.raises(PeerProtocolError):
        replay.acknowledged(3)


def test_new_messages_count_behind_those_that_go_out_again() -> None:
    replay = sent_all()
    replay.resume(3)
    assert resent(replay) == [b"four"]
    replay.sent(b"five")
    replay.resume(3)
    assert resent(replay) == [b"four", b"five"]


def test_an_ack_is_reported_once_and_due_by_itself_after_so_many_bytes() -> None:
    replay = Replay()
    assert replay.report() is None
    replay.received(10)
    assert not replay.ack_is_due
    assert replay.report() == 1
    assert replay.report() is None
    replay.received(ACK_AFTER_BYTES - 1)
    assert not replay.ack_is_due
    replay.received(1)
    assert replay.ack_is_due
    assert replay.report() == 3
    assert not replay.ack_is_due


def test_hello_reports_as_an_ack_does() -> None:
    replay = Replay()
    replay.received(ACK_AFTER_BYTES)
    replay.resume(0)
    assert not replay.ack_is_due
    assert replay.report() is None
    replay.received(1)
    assert replay.report() == 2


def test_data_waits_when_too_much_is_kept_and_goes_on_after_an_ack() -> None:
    replay = Replay()
    piece = bytes(MAX_KEPT_BYTES // 4)
    for _ in range(4):
        assert not replay.is_full
        replay.sent(piece)
    assert replay.is_full and not replay.is_overfull
    replay.acknowledged(1)
    assert not replay.is_full


def test_many_small_messages_fill_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT_MESSAGES", 3)
    monkeypatch.setattr(module, "MAX_ANSWER_MESSAGES", 2)
    replay = Replay()
    for full in (False, False, True, True):
        replay.sent(b"x")
        assert replay.is_full == full
    replay.received(1)
    replay.sent(b"x")
    with pytest.raises(PeerProtocolError, match="no ACK"):
        replay.received(1)
    replay.acknowledged(1)
    replay.received(1)


@given(st.lists(st.sampled_from("send resend lose".split()), max_size=60), st.data())
def test_a_peer_gets_every_message_once_and_in_order(
    actions: list[str], data: st.DataObject
) -> None:
    replay, got, on_the_way = Replay(), [], []
    for number, action in enumerate(actions):
        again = replay.next_to_resend() if action != "lose" else None
        if again is not None:
            on_the_way.append(again)
        elif action == "send":
            on_the_way.append(b"%d" % number)
            replay.sent(on_the_way[-1])
        elif action == "lose":
            got += on_the_way[: data.draw(st.integers(0, len(on_the_way)))]
            on_the_way = []
            replay.resume(len(got))
    got += on_the_way + resent(replay)
    assert len(got) == replay.sent_count
    assert [int(message) for message in got] == sorted({int(m) for m in got})


def test_what_is_kept_beyond_the_free_part_is_booked_and_given_back() -> None:
    budget = WindowBudget(1000)
    replay = Replay(budget, free_kept_bytes=100)
    replay.sent(bytes(90))
    assert budget.used_bytes == 0
    replay.sent(bytes(90))
    assert budget.used_bytes == 80
    replay.acknowledged(1)
    assert budget.used_bytes == 0
    replay.sent(bytes(50))
    replay.close()
    assert (budget.used_bytes, replay.kept_bytes, replay.has_more_to_resend) == (
        0,
        0,
        False,
    )


def test_data_waits_when_its_share_is_used_up_and_never_for_the_free_part() -> None:
    budget = WindowBudget(900)
    replay = Replay(budget, free_kept_bytes=100)
    while not replay.is_full:
        replay.sent(bytes(10))
    assert replay.kept_bytes == 100 + 600, "two thirds"
    budget.change(300)
    replay.acknowledged(replay.sent_count)
    budget.change(600)  # others have it all
    assert not replay.is_full
    replay.sent(bytes(99))
    assert not replay.is_full
    replay.sent(bytes(1))
    assert replay.is_full
    replay.acknowledged(replay.sent_count)
    assert not replay.is_full
