"""Nonces without memory: ours, young, and showing the server's clock.

Covers lifetimes at their edges, every altered byte, other servers' nonces, and the clock check
that an agent makes before its token is spent.
"""

import base64
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.nonces import NONCE_LIFETIME, JoinNonces, check_server_clock
from certs.signatures import BadProof
from tests.certs.zone import NOW

NONCES = JoinNonces(b"k" * 32)


def test_a_nonce_is_good_for_two_minutes_and_no_longer() -> None:
    nonce = NONCES.issue(NOW)
    NONCES.check(nonce, NOW)
    NONCES.check(nonce, NOW + NONCE_LIFETIME)
    assert timedelta(seconds=120) == NONCE_LIFETIME
    with pytest.raises(BadProof, match="last 120 s; ask for a new one") as caught:
        NONCES.check(nonce, NOW + NONCE_LIFETIME + timedelta(seconds=1))
    assert caught.value.reason == "expired"


def test_a_nonce_of_the_future_is_refused_beyond_what_clocks_differ() -> None:
    nonce = NONCES.issue(NOW + timedelta(minutes=1))
    NONCES.check(nonce, NOW)
    with pytest.raises(BadProof):
        NONCES.check(nonce, NOW - timedelta(seconds=1))


def test_nonces_never_repeat() -> None:
    assert len({NONCES.issue(NOW) for _ in range(100)}) == 100


def test_replicas_with_the_same_key_take_each_others_nonces() -> None:
    JoinNonces(b"k" * 32).check(NONCES.issue(NOW), NOW)


def test_a_nonce_of_another_server_is_refused() -> None:
    with pytest.raises(BadProof, match="not this server's") as caught:
        NONCES.check(JoinNonces(b"x" * 32).issue(NOW), NOW)
    assert caught.value.reason == "signature"


def test_a_nonce_altered_in_any_byte_is_refused() -> None:
    data = base64.urlsafe_b64decode(NONCES.issue(NOW) + "==")
    for at in range(len(data)):
        altered = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        text = base64.urlsafe_b64encode(altered).decode().rstrip("=")
        with pytest.raises(BadProof):
            NONCES.check(text, NOW)


@given(
    st.text(max_size=80)
    | st.binary(min_size=40, max_size=40).map(
        lambda data: base64.urlsafe_b64encode(data).decode().rstrip("=")
    )
)
def test_what_is_no_nonce_raises_nothing_else(text: str) -> None:
    with pytest.raises(BadProof):
        NONCES.check(text, NOW)
    try:
        check_server_clock(text, NOW)
    except BadProof:
        pass


def test_an_agent_whose_clock_is_off_learns_by_how_much() -> None:
    nonce = NONCES.issue(NOW)
    check_server_clock(nonce, NOW + timedelta(seconds=59))
    with pytest.raises(BadProof, match="clock of the server is 1 d behind") as caught:
        check_server_clock(nonce, NOW + timedelta(days=1))
    assert caught.value.reason == "clock"
    with pytest.raises(BadProof, match="clock of the server is 2 h 5 min ahead"):
        check_server_clock(nonce, NOW - timedelta(hours=2, minutes=5))


def test_a_short_key_is_refused_and_none_is_shown() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        JoinNonces(b"short")
    assert "kkk" not in repr(NONCES)
