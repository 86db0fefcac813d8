"""Spans of time: what is read, what is refused, how they are shown."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.durations import (
    format_age,
    format_duration,
    parse_duration,
    rfc3339,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("8h", 28800),
        ("7d", 604800),
        ("1h30m", 5400),
        ("0s", 0),
    ],
)
def test_a_span_is_read_with_its_units(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "8", "8 h", "-1h", "1.5h", "30m1h", "8H", "h", "१h", "1h\n", "9" * 15 + "d"],
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 30m|longer than"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.9, "0s"),
        (-5, "0s"),
        (59, "59s"),
        (60, "1m"),
        (192, "3m12s"),
        (7205, "2h"),
        (90_000, "1d1h"),
    ],
)
def test_a_span_is_shown_with_two_units(seconds: float, text: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == text


def test_an_age_tells_past_from_future() -> None:
    assert format_age(NOON - timedelta(seconds=192), NOON) == "3m12s ago"
    assert format_age(NOON + timedelta(hours=1), NOON) == "in 1h"


def test_machines_get_rfc_3339_in_utc() -> None:
    assert rfc3339(NOON) == "2026-01-02T12:00:00Z"


@given(st.integers(min_value=0, max_value=10**9))
def test_what_is_shown_can_be_read_and_is_near(seconds: int) -> None:
    span = timedelta(seconds=seconds)
    shown = parse_duration(format_duration(span))
    assert shown <= span
    assert span - shown < max(timedelta(minutes=1), span / 24)
