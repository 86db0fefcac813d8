"""The join routes over real HTTPS: statuses, error bodies, limits.

Covered: the CA as PEM, every error is JSON with code and sentence, Retry-After, body size,
no details of our disk towards strangers.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from certs.contexts import outer_client
from certs.joining import JoinString, new_token, sign_request
from certs.keys import certificate_request, new_key
from tests.fakes.join_server import JoinServer, join_server
from tower_server.endpoints import MAX_BODY_BYTES
from tower_server.membership import TokenUse
from tower_server.stores import StoreUnavailable
from tower_server.stores.memory import MemoryStore


class FullStore(MemoryStore):
    """Has no room for a join."""

    async def use_token(self, use: TokenUse) -> bytes:
        raise StoreUnavailable(
            "the disk of the store /var/lib/tower is full", "make room."
        )


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[JoinServer]:
    async with join_server(tmp_path / "ca") as running:
        yield running


async def ask(
    server: JoinServer, method: str, path: str, **content: Any
) -> tuple[int, aiohttp.typedefs.LooseHeaders, Any]:
    context = outer_client("tower", server.authority.pem)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.request(
            method, f"https://127.0.0.1:{server.port}{path}", **content
        ) as response,
    ):
        is_json = response.content_type == "application/json"
        body = await (response.json() if is_json else response.text())
        return response.status, response.headers, body


async def join_body(server: JoinServer, join: JoinString) -> dict[str, Any]:
    _, _, nonce = await ask(server, "POST", "/join/nonce")
    return sign_request(
        join.secret,
        token_id=join.token_id,
        cluster=join.cluster,
        csr=certificate_request(new_key()),
        nonce=nonce["nonce"],
        member_uid="uid-a",
        agent_version="0.1.0",
    ).to_dict()


async def test_the_ca_is_given_to_everybody(server: JoinServer) -> None:
    status, headers, body = await ask(server, "GET", "/join/ca")
    assert (status, body.encode()) == (200, server.authority.pem)
    assert headers["Cache-Control"] == "no-store" and "Date" in headers


async def test_it_says_that_it_is_alive(server: JoinServer) -> None:
    assert (await ask(server, "GET", "/healthz"))[::2] == (200, "ok\n")


async def test_a_join_is_answered(server: JoinServer) -> None:
    body = await join_body(server, await server.invite())
    status, _, answer = await ask(server, "POST", "/join", json=body)
    assert status == 200 and answer.keys() == {"answer"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10_000, b"{}"])
async def test_what_is_no_request_is_refused(
    server: JoinServer, content: bytes
) -> None:
    status, _, body = await ask(server, "POST", "/join", data=content)
    assert status == 400 and body["error"] == "bad_request"
    assert body.keys() == {"error", "message"} and body["message"].endswith(".")


async def test_a_large_body_is_not_read_to_its_end(server: JoinServer) -> None:
    status, _, body = await ask(
        server, "POST", "/join", data=b"x" * (MAX_BODY_BYTES + 1)
    )
    assert (status, body["error"]) == (400, "bad_request")
    assert str(MAX_BODY_BYTES) in body["message"]


async def test_a_bad_token_is_forbidden(server: JoinServer) -> None:
    join = await server.invite()
    await server.store.revoke_token(join.token_id, datetime.now(UTC))
    status, _, body = await ask(
        server, "POST", "/join", json=await join_body(server, join)
    )
    assert (status, body["error"]) == (403, "token_revoked")


async def test_a_taken_name_is_a_conflict(server: JoinServer) -> None:
    body = await join_body(server, await server.invite("alpha"))
    await ask(server, "POST", "/join", json=body)
    body = await join_body(server, await server.invite("beta"))
    status, _, answer = await ask(server, "POST", "/join", json=body)
    assert (status, answer["error"]) == (409, "member_joined_elsewhere")


async def test_a_guesser_is_told_when_to_come_back(server: JoinServer) -> None:
    token_id = (await server.invite()).token_id
    wrong = JoinString(
        cluster="alpha",  # type: ignore[arg-type]
        host="127.0.0.1",
        port=server.port,
        token_id=token_id,
        secret=new_token()[1],
        pin=server.authority.pin,
    )
    for _ in range(10):
        status, _, _ = await ask(
            server, "POST", "/join", json=await join_body(server, wrong)
        )
        assert status == 403
    status, headers, body = await ask(
        server, "POST", "/join", json=await join_body(server, wrong)
    )
    assert (status, body["error"]) == (429, "slow_down")
    assert 1 <= int(headers["Retry-After"]) <= 6


async def test_a_store_that_fails_is_no_business_of_the_agent(tmp_path: Path) -> None:
    async with join_server(tmp_path / "ca", store=FullStore()) as server:
        body = await join_body(server, await server.invite())
        status, headers, answer = await ask(server, "POST", "/join", json=body)
    assert (status, answer["error"]) == (503, "store_unavailable")
    assert headers["Retry-After"] == "2"
    assert "/var/lib" not in answer["message"]


async def test_what_an_agent_may_know_of_a_store_it_is_told(tmp_path: Path) -> None:
    class AwayStore(FullStore):
        async def use_token(self, use: TokenUse) -> bytes:
            raise StoreUnavailable("secret place", "wait", public="the host is away")

    async with join_server(tmp_path / "ca", store=AwayStore()) as server:
        body = await join_body(server, await server.invite())
        _, _, answer = await ask(server, "POST", "/join", json=body)
    assert "(the host is away)" in answer["message"]
    assert "secret place" not in answer["message"]
