"""Words for what keeps a connection from coming about; each cause is in test_wrong_joins.py.

Covered: clocks, no answer without words.
"""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tower_agent.causes import (
    UpgradeAnswer,
    clock_difference,
    explain_clock,
    explain_dial_failure,
    parse_error,
)

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "ahead"),
    [
        (format_datetime(NOW, usegmt=True), timedelta(0)),
        (format_datetime(NOW - timedelta(hours=2)), timedelta(hours=2)),
        (None, None),
        ("", None),
        ("yesterday", None),
    ],
)
def test_the_difference_of_two_clocks(
    header: str | None, ahead: timedelta | None
) -> None:
    assert clock_difference(header, NOW) == ahead


def test_a_minute_of_difference_is_no_fault() -> None:
    assert explain_clock(timedelta(seconds=60), NOW) is None
    assert explain_clock(timedelta(seconds=-60), NOW) is None
    assert "1 min 1 s behind" in (explain_clock(timedelta(seconds=-61), NOW) or "")


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(), st.lists).map(json.dumps)
)
def test_no_error_body_raises(body: bytes | str) -> None:
    parse_error(body if isinstance(body, bytes) else body.encode())


@given(st.integers(100, 599), st.binary(max_size=100), st.text(max_size=40))
def test_every_answer_to_an_upgrade_has_one_line_of_words(
    status: int, body: bytes, date: str
) -> None:
    answer = UpgradeAnswer(status=status, headers={"Date": date}, body=body)
    sentence = explain_dial_failure(answer, address="t:1", now=NOW)
    assert sentence and sentence.isprintable()
