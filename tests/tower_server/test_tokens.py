"""The state of a token, and when it may be forgotten.

Covered: precedence of states, the instant of expiry, retention, the repetition window.
"""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from certs.names import parse_cluster_name
from tower_server.tokens import (
    FINISHED_TOKEN_RETENTION,
    RESEND_WINDOW,
    TokenId,
    TokenRecord,
    TokenState,
    disposable_tokens,
    state_of,
)

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
TOKEN = TokenRecord(
    id=TokenId("t1"),
    cluster=parse_cluster_name("alpha"),
    verifier=b"v" * 32,
    created_at=NOW,
    expires_at=NOW + timedelta(days=1),
)
USED = dataclasses.replace(TOKEN, used_at=NOW, issued_certificate=b"chain")


@pytest.mark.parametrize(
    ("token", "now", "state"),
    [
        (TOKEN, NOW, TokenState.READY),
        (TOKEN, TOKEN.expires_at - SECOND, TokenState.READY),
        (TOKEN, TOKEN.expires_at, TokenState.EXPIRED),
        (USED, TOKEN.expires_at, TokenState.USED),
        (dataclasses.replace(USED, revoked_at=NOW), NOW, TokenState.REVOKED),
    ],
)
def test_the_state_of_a_token(
    token: TokenRecord, now: datetime, state: TokenState
) -> None:
    assert state_of(token, now) is state


def test_a_token_is_forgotten_a_week_after_its_end() -> None:
    end = TOKEN.expires_at + FINISHED_TOKEN_RETENTION
    assert disposable_tokens([TOKEN], end) == []
    assert disposable_tokens([TOKEN], end + SECOND) == ["t1"]


def test_a_ready_token_is_never_forgotten() -> None:
    lasting = dataclasses.replace(TOKEN, expires_at=NOW + timedelta(days=400))
    assert disposable_tokens([lasting], NOW + timedelta(days=399)) == []


def test_a_used_token_is_kept_while_its_answer_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tower_server.tokens.MAX_FINISHED_TOKENS", 0)
    assert disposable_tokens([USED], NOW + RESEND_WINDOW) == []
    assert disposable_tokens([USED], NOW + RESEND_WINDOW + SECOND) == ["t1"]


def test_the_issued_certificate_is_not_in_the_repr() -> None:
    assert "chain" not in repr(USED)
