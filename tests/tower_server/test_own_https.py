"""Our own HTTPS behind the front door, over real TLS, on both event loops.

Covered: who serves which path, heads in pieces, heads that are too long, late or never
end, broken TLS, one request per connection (a proxy must not reuse it for a tunnel),
limits in number and time of what aiohttp serves, clients that leave, the stop.
"""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from certs.chains import pem
from certs.contexts import own_https, unverified
from certs.keys import new_key, private_pem
from tests.fakes.host_side import HostSide, until
from tests.fakes.tunnel_pair import LOOPBACK, both_loops
from tests.tower_server.test_client_hello import openssl_hello
from tower_server import own_https as module

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]

GET = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def limit(**values: float) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(module, name, value)
        yield


async def connect(host: HostSide) -> Client:
    return await asyncio.open_connection(
        LOOPBACK, host.port, ssl=unverified(), server_hostname=LOOPBACK
    )


async def rest_of(client: Client, seconds: float = 5.0) -> bytes:
    reader, writer = client
    data = b""
    try:
        async with asyncio.timeout(seconds):
            while chunk := await reader.read(65536):
                data += chunk
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()
    return data


@both_loops
async def test_a_head_may_come_in_pieces_cut_anywhere() -> None:
    head = GET % b"/healthz"
    async with HostSide() as host:
        for at in (1, len(head) - 3, len(head) - 1):
            client = await connect(host)
            client[1].write(head[:at])
            await until(lambda: any(len(c._seen) for c in host.own.connections))
            client[1].write(head[at:])
            assert (await rest_of(client)).endswith(b"ok\n")


@both_loops
async def test_an_answer_ends_its_connection() -> None:
    async with HostSide() as host:
        client = await connect(host)
        client[1].write(GET % b"/healthz" + GET % b"/tunnel")
        answers = await rest_of(client)
        assert answers.count(b"HTTP/1.1") == 1
        assert b"connection: close" in answers.lower()
        client = await connect(host)
        client[1].write(GET % b"/nowhere")
        assert b"connection: close" in (await rest_of(client)).lower()


@both_loops
async def test_a_body_goes_on_to_aiohttp() -> None:
    async with HostSide() as host:
        host.may_answer.set()
        client = await connect(host)
        client[1].write(
            b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nfour"
        )
        await until(lambda: host.own.web_connections == 1)
        client[1].write(b"-five")
        assert (await rest_of(client)).endswith(b"at last\n")


@both_loops
async def test_a_head_that_does_not_end_is_cut_off_by_its_size() -> None:
    async with HostSide() as host:
        client = await connect(host)
        client[1].write(b"GET / HTTP/1.1\r\nX: " + b"y" * module.MAX_HEAD_BYTES)
        assert await rest_of(client) == b""
        await until(lambda: not len(host.door._tasks))


@both_loops
async def test_a_head_that_does_not_end_is_cut_off_by_its_time() -> None:
    with limit(HEAD_DEADLINE_SECONDS=0.1):
        async with HostSide() as host:
            client = await connect(host)
            client[1].write(b"GET / HTTP/1.1\r\n")
            assert await rest_of(client, 2.0) == b""
            await until(lambda: not len(host.door._tasks))


@both_loops
async def test_a_tls_handshake_that_stops_is_cut_off() -> None:
    with limit(TLS_HANDSHAKE_SECONDS=0.1):
        async with HostSide() as host:
            client = await asyncio.open_connection(LOOPBACK, host.port)
            client[1].write(openssl_hello(None))
            await rest_of(client, 2.0)
            assert host.door.counts["broken"] == 1


@both_loops
async def test_a_tls_handshake_that_goes_wrong_is_forgotten() -> None:
    async with HostSide() as host:
        client = await asyncio.open_connection(LOOPBACK, host.port)
        client[1].write(openssl_hello(None) + b"\x17\x03\x03\x00\x05noise")
        await rest_of(client, 2.0)
        await until(lambda: host.door.counts["broken"] == 1)
        await until(lambda: not len(host.door._tasks))


@both_loops
async def test_aiohttp_serves_only_so_many_connections() -> None:
    with limit(MAX_WEB_CONNECTIONS=1):
        async with HostSide() as host:
            first = await connect(host)
            first[1].write(GET % b"/slow")
            await until(lambda: host.own.web_connections == 1)
            second = await connect(host)
            second[1].write(GET % b"/healthz")
            assert await rest_of(second) == b""
            assert host.own.counts["too_many_web"] == 1
            # Tunnels are not among them.
            await host.connected_agent()
            host.may_answer.set()
            assert (await rest_of(first)).endswith(b"at last\n")
            await until(lambda: host.own.web_connections == 0)


@both_loops
async def test_a_request_that_takes_too_long_is_cut_off() -> None:
    with limit(WEB_SECONDS=0.1):
        async with HostSide() as host:
            client = await connect(host)
            client[1].write(
                b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nfour"
            )
            assert await rest_of(client, 2.0) == b""
            await until(lambda: host.own.web_connections == 0)


@both_loops
async def test_a_client_that_leaves_early_or_late_is_forgotten() -> None:
    async with HostSide() as host:
        for sent in (b"", b"GET /sl", GET % b"/slow"):
            client = await connect(host)
            client[1].write(sent)
            await until(lambda: host.own.connections)
            client[1].transport.abort()
            await until(lambda: not host.own.connections)
            await until(lambda: not len(host.door._tasks))
            assert host.own.web_connections == 0


@both_loops
async def test_closing_the_door_drops_who_has_not_asked_yet() -> None:
    async with HostSide() as host:
        in_handshake = await asyncio.open_connection(LOOPBACK, host.port)
        in_handshake[1].write(openssl_hello(None))
        without_request = await connect(host)
        await until(lambda: len(host.door._tasks) == 2)
        await host.door.close()
        # At once: no transport may outlive its socket for a TLS shutdown.
        await until(lambda: not host.own.connections, 1.0)
        for client in (in_handshake, without_request):
            await rest_of(client, 1.0)


@both_loops
async def test_closing_drops_waiting_and_served_connections_and_no_tunnel() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        waiting, served = await connect(host), await connect(host)
        served[1].write(GET % b"/slow")
        await until(lambda: host.own.web_connections == 1)
        await until(lambda: len(host.own.connections) == 2)
        host.own.close()
        assert await rest_of(waiting, 1.0) == await rest_of(served, 1.0) == b""
        assert not agent.tunnel.closed


@both_loops
async def test_new_connections_get_the_renewed_context() -> None:
    async with HostSide() as host:
        key = new_key()
        certificate = host.authority.issue_server(
            key.public_key(), [LOOPBACK], datetime.now(UTC)
        )
        host.own.context = own_https(pem(certificate), private_pem(key))
        client = await connect(host)
        shown = client[1].get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert shown == certificate.public_bytes(Encoding.DER)
        client[1].write(GET % b"/healthz")
        assert (await rest_of(client)).endswith(b"ok\n")
