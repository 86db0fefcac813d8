"""Others' words in our sentences.

Covered: any text becomes one short printable line; exceptions in a few words.
"""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.words import MAX_QUOTED_CHARS, quoted, short


@given(st.text())
def test_a_strangers_text_becomes_one_short_printable_line(text: str) -> None:
    line = quoted(text)
    assert line.isprintable() and len(line) <= MAX_QUOTED_CHARS


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "no answer in time"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError("two\nlines"), "two lines"),
        (ConnectionError(), "ConnectionError"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong (_ssl.c:1006)"), "wrong"),
    ],
)
def test_an_exception_is_said_in_a_few_words(error: Exception, words: str) -> None:
    assert words in short(error)
