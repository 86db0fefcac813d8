"""The small JSON client: any framing of the answer, errors in words, nothing left behind."""

import asyncio
import json

import pytest

from shared.http.apiserver import ApiServer, Credential
from shared.http.client import MAX_ANSWER_BYTES, request_json
from shared.http.status import Refusal
from shared.http.upstream import UpstreamPool
from tests.fakes.upstream import RawConnection, RawUpstream


def make_pool(port: int) -> UpstreamPool:
    loop = asyncio.get_running_loop()
    apiserver = ApiServer(
        host="127.0.0.1",
        port=port,
        tls=None,
        server_hostname=None,
        base_path=b"/base",
        credential=Credential(token="secret", monotonic=loop.time),
    )
    return UpstreamPool(apiserver, loop=loop)


async def answered(raw: bytes, *, step: int = 10**6) -> tuple[int, dict[str, object]]:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        for start in range(0, len(raw), step):
            await connection.send(raw[start : start + step])
            await asyncio.sleep(0)

    async with RawUpstream(script) as upstream:
        pool = make_pool(upstream.port)
        try:
            return await request_json(pool, "GET", "/version")
        finally:
            await pool.close()


@pytest.mark.parametrize("step", [1, 10**6])
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}', (200, {"a": 1})),
        (
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n',
            (201, {"a": 1}),
        ),
        (b'HTTP/1.0 200 OK\r\n\r\n{"a":1}', (200, {"a": 1})),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", (404, {})),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, {})),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno",
            (403, {"message": "no"}),
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", (200, {})),
    ],
)
async def test_every_framing_of_an_answer_is_read(
    raw: bytes, expected: tuple[int, dict[str, object]], step: int
) -> None:
    assert await answered(raw, step=step) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
        % (MAX_ANSWER_BYTES + 1, b" " * (MAX_ANSWER_BYTES + 1)),
    ],
)
async def test_a_broken_answer_is_a_refusal(raw: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        await answered(raw)
    assert caught.value.code == 502


async def test_a_request_carries_our_credential_and_its_body() -> None:
    async def script(connection: RawConnection) -> None:
        for _ in range(2):
            head = await connection.read_head()
            assert head.startswith(b"POST /base/apis/x HTTP/1.1\r\n")
            assert b"Authorization: Bearer secret\r\n" in head
            assert b"Content-Type: application/json\r\n" in head
            assert json.loads(await connection.read_exactly(10)) == {"a": "b"}
            await connection.respond(b"{}")

    async with RawUpstream(script) as upstream:
        pool = make_pool(upstream.port)
        for _ in range(2):
            answer = await request_json(pool, "POST", "/apis/x", {"a": "b"})
            assert answer == (200, {})
        assert len(upstream.connections) == 1
        assert upstream.connections[0].received.endswith(b'\r\n\r\n{"a": "b"}')
        await pool.close()


async def test_no_answer_in_time_is_a_refusal_and_ends_the_connection() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_to_end()

    async with RawUpstream(script) as upstream:
        pool = make_pool(upstream.port)
        with pytest.raises(Refusal, match="within 0.05 s"):
            await request_json(pool, "GET", "/", timeout_seconds=0.05)
        await asyncio.wait_for(upstream.connections[0].ended.wait(), 10)
        await pool.close()


async def test_cancelling_ends_the_request() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_to_end()

    async with RawUpstream(script) as upstream:
        pool = make_pool(upstream.port)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await request_json(pool, "GET", "/")
        await asyncio.wait_for(upstream.connections[0].ended.wait(), 10)
        await pool.close()


async def test_a_stale_connection_is_replaced_for_a_get_only() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.respond(b"{}")
        await connection.read_head()

    async with RawUpstream(script) as upstream:
        pool = make_pool(upstream.port)
        for _ in range(2):
            assert await request_json(pool, "GET", "/") == (200, {})
        with pytest.raises(Refusal):
            await request_json(pool, "DELETE", "/")
        await pool.close()
