"""The join service without a network: order of checks, counting, throttling, failing whole.

Covered: nonces, guesses, what is logged and what is not, CSRs, a store that fails.
"""

import dataclasses
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certs.authority import Authority
from certs.chains import parse_certificate
from certs.joining import (
    JoinRequest,
    JoinSecret,
    new_token,
    open_answer,
    request_digest,
    sign_request,
    verifier_of,
)
from certs.keys import certificate_request, new_key
from certs.names import parse_cluster_name
from tower_server.answers import AnswerSigner
from tower_server.join import JoinService, SlowDown
from tower_server.membership import JoinRefused, Refusal, TokenUse
from tower_server.stores import StoreUnavailable, TokenId, TokenRecord
from tower_server.stores.memory import MemoryStore

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
SOURCE = "192.0.2.1"


class FailingStore(MemoryStore):
    """Works until the join is to be recorded."""

    async def use_token(self, use: TokenUse) -> bytes:
        raise StoreUnavailable(
            "the disk of the store /secret/path is full", "make room."
        )


@dataclasses.dataclass
class Host:
    """A service with clocks that the test moves."""

    authority: Authority
    store: MemoryStore
    now: datetime = NOW
    seconds: float = 0.0

    def __post_init__(self) -> None:
        key = new_key()
        certificate = self.authority.issue_server(key.public_key(), ["127.0.0.1"], NOW)
        self.signer = AnswerSigner(self.authority, key, certificate)
        self.service = JoinService(
            authority=self.authority,
            store=self.store,
            signer=self.signer,
            now=lambda: self.now,
            monotonic=lambda: self.seconds,
        )

    async def invite(self, cluster: str = "alpha") -> tuple[TokenId, JoinSecret]:
        token_id, secret = new_token()
        record = TokenRecord(
            id=TokenId(token_id),
            cluster=parse_cluster_name(cluster),
            verifier=verifier_of(secret),
            created_at=self.now,
            expires_at=self.now + timedelta(days=1),
        )
        await self.store.add_token(record, self.now)
        return record.id, secret

    def request(
        self, token_id: TokenId, secret: JoinSecret, **changes: Any
    ) -> JoinRequest:
        fields: dict[str, Any] = {
            "token_id": token_id,
            "cluster": parse_cluster_name("alpha"),
            "csr": certificate_request(new_key()),
            "nonce": self.service.issue_nonce(),
            "member_uid": "uid-a",
            "agent_version": "0.1.0",
        }
        return sign_request(secret, **fields | changes)

    async def refusal(
        self, request: JoinRequest | object, source: str = SOURCE
    ) -> Refusal:
        data = request.to_dict() if isinstance(request, JoinRequest) else request
        with pytest.raises(JoinRefused) as caught:
            await self.service.join(data, source)
        return caught.value.code


@pytest.fixture
def make_host(tmp_path: Path) -> Callable[[MemoryStore], Host]:
    authority = Authority.open_or_create(
        tmp_path / "ca", "clusters.tower.internal", NOW
    )
    return lambda store: Host(authority, store)


@pytest.fixture
def host(make_host: Callable[[MemoryStore], Host]) -> Host:
    return make_host(MemoryStore())


async def test_the_answer_is_signed_for_this_request(host: Host) -> None:
    request = host.request(*await host.invite())
    answer = await host.service.join(request.to_dict(), SOURCE)
    payload = open_answer(
        answer, request_digest=request_digest(request), now=NOW, pin=host.authority.pin
    )
    assert payload["zone"] == "clusters.tower.internal"
    assert payload["cluster"] == "alpha"
    assert payload["audience"] == "tower://clusters.tower.internal/server"
    assert payload["ca"].encode() == host.authority.pem
    serial = parse_certificate(payload["certificate"].encode()).serial_number
    (cluster,) = await host.store.list_clusters()
    assert cluster.agent_serial == serial


async def test_a_nonce_is_good_for_two_minutes(host: Host) -> None:
    request = host.request(*await host.invite())
    host.now = NOW + timedelta(seconds=121)
    assert await host.refusal(request) is Refusal.NONCE_EXPIRED
    assert await host.refusal(host.request(*await host.invite(), nonce="x" * 54)) is (
        Refusal.NONCE_EXPIRED
    )


async def test_the_state_of_a_token_is_told_only_to_who_has_its_secret(
    host: Host,
) -> None:
    token_id, secret = await host.invite()
    await host.store.revoke_token(token_id, NOW)
    assert (
        await host.refusal(host.request(token_id, new_token()[1]))
        is Refusal.TOKEN_WRONG
    )
    assert await host.refusal(host.request(token_id, secret)) is Refusal.TOKEN_REVOKED


@pytest.mark.parametrize(
    "change",
    [
        {"member_uid": "uid-b"},
        {"cluster": "beta"},
        {"agent_version": "0.2.0"},
    ],
)
async def test_a_request_that_was_altered_is_refused(
    host: Host, change: dict[str, str]
) -> None:
    request = host.request(*await host.invite())
    assert await host.refusal(request.to_dict() | change) is Refusal.TOKEN_WRONG


async def test_a_key_exchanged_on_the_way_is_refused(host: Host) -> None:
    request = host.request(*await host.invite())
    stolen = dataclasses.replace(request, csr=certificate_request(new_key()))
    assert await host.refusal(stolen) is Refusal.TOKEN_WRONG
    assert await host.store.list_clusters() == []


@pytest.mark.parametrize(
    "data", [None, [], "x", {}, {"version": 2}, {"version": 1, "token_id": 3}]
)
async def test_what_is_no_request_is_refused(host: Host, data: object) -> None:
    assert await host.refusal(data) is Refusal.BAD_REQUEST


async def test_a_damaged_csr_does_not_use_the_token(host: Host) -> None:
    token_id, secret = await host.invite()
    assert (
        await host.refusal(host.request(token_id, secret, csr=b"0000"))
        is Refusal.BAD_REQUEST
    )
    await host.service.join(host.request(token_id, secret).to_dict(), SOURCE)


async def test_guessing_is_slowed_down_for_its_source_only(host: Host) -> None:
    token_id, secret = await host.invite()
    for _ in range(10):
        assert (
            await host.refusal(host.request(token_id, new_token()[1]))
            is Refusal.TOKEN_WRONG
        )
    with pytest.raises(SlowDown) as caught:
        await host.service.join(host.request(token_id, secret).to_dict(), SOURCE)
    assert caught.value.wait_seconds == pytest.approx(6.0)
    await host.service.join(host.request(token_id, secret).to_dict(), "192.0.2.2")
    host.seconds += 6.1
    assert await host.refusal(host.request(token_id, secret)) is Refusal.TOKEN_USED


async def test_what_strangers_can_write_into_the_log_is_bounded(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(100):
        await host.refusal({})
    assert len(caplog.records) == 10
    assert host.service.outcomes == {"bad_request": 10, "slow_down": 90}


async def test_each_recorded_join_is_told_and_its_repetition_is_not(host: Host) -> None:
    told: list[tuple[str, str]] = []
    host.service._on_joined = lambda cluster, key_pin: told.append((cluster, key_pin))
    request = host.request(*await host.invite())
    for _ in range(2):
        await host.service.join(request.to_dict(), SOURCE)
    (cluster,) = await host.store.list_clusters()
    assert told == [("alpha", cluster.agent_key_pin)]


async def test_right_proofs_are_never_slowed_down(host: Host) -> None:
    for n in range(40):
        request = host.request(
            *await host.invite(f"c{n}"),
            cluster=parse_cluster_name(f"c{n}"),
            member_uid=f"uid-{n}",
        )
        await host.service.join(request.to_dict(), SOURCE)
    assert host.service.outcomes == {"joined": 40}


async def test_attempts_are_counted_and_logged_without_the_secret(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    token_id, secret = await host.invite()
    await host.refusal(host.request(token_id, new_token()[1]))
    await host.refusal({"version": 1, "token_id": "a\nforged line"})
    await host.service.join(host.request(token_id, secret).to_dict(), SOURCE)
    assert host.service.outcomes == {"token_wrong": 1, "bad_request": 1, "joined": 1}
    assert (
        f"join of alpha with token {token_id} from {SOURCE}: joined" in caplog.messages
    )
    assert f"from {SOURCE}: token_wrong" in caplog.text
    assert "\nforged" not in caplog.text
    assert secret.reveal() not in caplog.text


async def test_a_store_that_fails_leaves_the_token_usable(
    make_host: Callable[[MemoryStore], Host], caplog: pytest.LogCaptureFixture
) -> None:
    host = make_host(FailingStore())
    token_id, secret = await host.invite()
    with pytest.raises(StoreUnavailable):
        await host.service.join(host.request(token_id, secret).to_dict(), SOURCE)
    token = await host.store.get_token(token_id)
    assert token is not None and token.used_at is None
    assert await host.store.list_clusters() == []
    assert host.service.outcomes == {"store_unavailable": 1}
    assert "is full" in caplog.text


async def test_a_renewed_server_certificate_signs_further_answers(host: Host) -> None:
    key = new_key()
    host.signer.renew(
        key, host.authority.issue_server(key.public_key(), ["127.0.0.1"], NOW)
    )
    request = host.request(*await host.invite())
    answer = await host.service.join(request.to_dict(), SOURCE)
    open_answer(
        answer, request_digest=request_digest(request), now=NOW, pin=host.authority.pin
    )
