"""A state that does not flap.

Covered: the first look, single looks that differ, changes both ways, how soon the next look is,
that five seconds are enough.
"""

from hypothesis import given
from hypothesis import strategies as st

from tower_server.direct_cluster import JITTER
from tower_server.reachability import (
    LOOK_AGAIN_SECONDS,
    LOOK_EVERY_SECONDS,
    LOOKS_TO_CHANGE,
    Reachability,
)


def test_the_first_look_decides() -> None:
    for works in (True, False):
        state = Reachability()
        assert state.is_reached is None
        assert state.saw(works=works)
        assert state.is_reached is works
        assert state.pause_seconds == LOOK_EVERY_SECONDS


def test_one_look_that_differs_changes_nothing_and_is_soon_followed() -> None:
    state = Reachability()
    state.saw(works=True)
    for _ in range(10):
        assert not state.saw(works=False)
        assert state.pause_seconds == LOOK_AGAIN_SECONDS
        assert not state.saw(works=True)
        assert state.pause_seconds == LOOK_EVERY_SECONDS
    assert state.is_reached


def test_two_in_a_row_change_it_both_ways() -> None:
    state = Reachability()
    state.saw(works=True)
    for works in (False, True, False):
        assert not state.saw(works=works)
        assert state.saw(works=works)
        assert state.is_reached is works
        assert not state.saw(works=works)


def test_an_outage_is_known_within_five_seconds() -> None:
    assert (LOOK_EVERY_SECONDS + LOOK_AGAIN_SECONDS) * (1 + JITTER) < 4.5


@given(st.lists(st.booleans()))
def test_it_changes_only_to_what_was_just_seen_several_times(looks: list[bool]) -> None:
    state = Reachability()
    for number, works in enumerate(looks):
        before = state.is_reached
        changed = state.saw(works=works)
        assert changed == (state.is_reached != before)
        if changed and number:
            assert looks[number - LOOKS_TO_CHANGE + 1 : number + 1] == [works] * 2
