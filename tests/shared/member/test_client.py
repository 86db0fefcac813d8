"""`MemberRequest` over the real pool, to an apiserver that does as it is told."""

import json

import pytest

from shared.http.apiserver import ApiServer, from_kubeconfig
from shared.http.upstream import UpstreamPool
from shared.member import client as module
from shared.member.client import MemberClient
from shared.member.questions import MERGE_PATCH, MemberAnswer
from tests.fakes.upstream import RawConnection, RawUpstream, Script


def apiserver(port: int, tmp_path) -> ApiServer:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "agents-own-token"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    return from_kubeconfig(path, monotonic=lambda: 0.0)


async def ask(script: Script, tmp_path, *request, **options) -> MemberAnswer:
    import asyncio

    async with RawUpstream(script) as server:
        pool = UpstreamPool(
            apiserver(server.port, tmp_path), loop=asyncio.get_running_loop()
        )
        try:
            return await MemberClient(pool)(*request, **options)
        finally:
            await pool.close()
            ask.heard = b"".join(bytes(c.received) for c in server.connections)  # type: ignore[attr-defined]


def saying(status: str, body: bytes) -> Script:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(
            b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b"
            % (status.encode(), len(body), body)
        )
        await connection.read_to_end()

    return script


async def test_an_answer_is_its_status_and_its_object(tmp_path) -> None:
    answer = await ask(
        saying("200 OK", b'{"gitVersion": "v1.34"}'), tmp_path, "GET", "/version"
    )
    assert (answer.status, answer.body) == (200, {"gitVersion": "v1.34"})
    assert b"GET /version HTTP/1.1" in ask.heard  # type: ignore[attr-defined]
    assert b"Authorization: Bearer agents-own-token" in ask.heard  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "500 Oh"])
async def test_no_status_raises(status: str, tmp_path) -> None:
    answer = await ask(saying(status, b'{"message": "no"}'), tmp_path, "GET", "/x")
    assert answer.status == int(status[:3]) and answer.message == "no"


@pytest.mark.parametrize("body", [b"", b"[1]", b'"text"', b"null"])
async def test_a_body_that_is_no_object_is_an_empty_one(body: bytes, tmp_path) -> None:
    answer = await ask(saying("200 OK", body), tmp_path, "GET", "/x")
    assert answer.body == {}
    assert answer.message == "HTTP 200"


async def test_body_and_content_type_are_sent(tmp_path) -> None:
    seen = {}

    async def script(connection: RawConnection) -> None:
        head = await connection.read_head()
        seen["head"] = head
        seen["body"] = await connection.read_exactly(len(b'{"data": {"a": null}}'))
        await connection.respond(b"{}")

    await ask(
        script,
        tmp_path,
        "PATCH",
        "/s",
        body={"data": {"a": None}},
        content_type=MERGE_PATCH,
    )
    assert seen["head"].startswith(b"PATCH /s HTTP/1.1\r\n")
    assert b"Content-Type: application/merge-patch+json\r\n" in seen["head"]
    assert json.loads(seen["body"]) == {"data": {"a": None}}


async def test_no_answer_is_an_os_error_that_says_why(tmp_path, monkeypatch) -> None:
    async def hang_up(connection: RawConnection) -> None:
        await connection.read_head()

    async def mute(connection: RawConnection) -> None:
        await connection.read_to_end()

    with pytest.raises(ConnectionError, match="closed the connection"):
        await ask(hang_up, tmp_path, "GET", "/x")
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_SECONDS", 0.1)
    with pytest.raises(OSError, match="did not answer within 0.1 s"):
        await ask(mute, tmp_path, "GET", "/x")


async def test_an_apiserver_that_is_down_is_named(tmp_path) -> None:
    import asyncio

    async with RawUpstream(saying("200 OK", b"{}")) as server:
        port = server.port
    pool = UpstreamPool(apiserver(port, tmp_path), loop=asyncio.get_running_loop())
    try:
        with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}.*refused"):
            await MemberClient(pool)("GET", "/x")
    finally:
        await pool.close()
