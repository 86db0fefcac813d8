"""Strangers who hold connections instead of using them, at every step that the one port has.

Covered: silence and single bytes before, in and behind the ClientHello, in the TLS handshake, in
a request head and body, behind an upgrade that was refused and one that was not, in the sealed
handshake. All at once: each is dropped in its time, an agent gets in meanwhile, nothing is left.
And garbage that would take the places of agents.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from certs.contexts import unverified
from shared.tunnel import connection
from tests.fakes.host_side import HostSide, until
from tests.fakes.tunnel_pair import LOOPBACK, Owner, both_loops
from tests.tower_server.test_client_hello import openssl_hello
from tests.tower_server.test_listener import assertion, call, upgrade_head
from tower_server import front_door, own_https
from tower_server.admission import Admission

# Every deadline of the port, for a test that cannot wait for the real ones.
SHORT_SECONDS = 0.5
# The end of the last step may begin when that of the first is over.
DROPPED_WITHIN_SECONDS = 8 * SHORT_SECONDS

EACH = 4

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Step = Callable[[HostSide], Awaitable[Client]]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (front_door, "HELLO_DEADLINE_SECONDS"),
        (front_door, "HALF_OPEN_SECONDS"),
        (own_https, "TLS_HANDSHAKE_SECONDS"),
        (own_https, "HEAD_DEADLINE_SECONDS"),
        (own_https, "TLS_SHUTDOWN_SECONDS"),
        (own_https, "WEB_SECONDS"),
        (connection, "HELLO_DEADLINE_SECONDS"),
        (connection, "WRITE_DEADLINE_SECONDS"),
    ):
        monkeypatch.setattr(module, name, SHORT_SECONDS)


async def plain(host: HostSide, data: bytes = b"") -> Client:
    client = await asyncio.open_connection(LOOPBACK, host.port)
    client[1].write(data)
    return client


async def tls(host: HostSide, data: bytes = b"") -> Client:
    client = await asyncio.open_connection(
        LOOPBACK, host.port, ssl=unverified(), server_hostname=LOOPBACK
    )
    client[1].write(data)
    return client


async def upgraded(host: HostSide) -> Client:
    answer = await call(host, upgrade_head(assertion(await host.join())))
    assert answer.status == 101
    return answer.client


async def half_a_frame(host: HostSide) -> Client:
    client = await upgraded(host)
    # A masked binary message of 100,000 bytes that does not come.
    client[1].write(b"\x82\xff" + (100_000).to_bytes(8) + b"mask" + b"x")
    return client


async def unread_refusal(host: HostSide) -> Client:
    client = await tls(host, upgrade_head("garbage"))
    client[1].transport.pause_reading()
    return client


STEPS: dict[str, Step] = {
    "nothing": plain,
    "half a hello": lambda host: plain(host, openssl_hello("x.example")[:40]),
    "a hello and no more": lambda host: plain(host, openssl_hello("x.example")),
    "TLS and no more": tls,
    "half a head": lambda host: tls(host, b"GET /tunnel HTTP/1.1\r\nHost: x\r\nX-"),
    "half a body": lambda host: tls(
        host, b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx"
    ),
    "a refusal that is not read": unread_refusal,
    "an upgrade and no hello": upgraded,
    "an upgrade and half a frame": half_a_frame,
    "the sealed face's hello and no more": lambda host: plain(
        host, openssl_hello("alpha.clusters.tower.internal")
    ),
}


@asynccontextmanager
async def trickling(clients: list[Client]) -> AsyncIterator[None]:
    """A byte to every connection now and then: whoever counts silence is fooled by it."""

    async def trickle() -> None:
        while True:
            await asyncio.sleep(SHORT_SECONDS / 5)
            for _, writer in clients:
                with suppress(OSError, RuntimeError):
                    writer.write(b"x")

    task = asyncio.ensure_future(trickle())
    try:
        yield
    finally:
        task.cancel()
        for _, writer in clients:
            writer.transport.abort()


async def ended(client: Client) -> None:
    """Wait for the end of a connection, whichever it is."""
    client[1].transport.resume_reading()
    with suppress(OSError):
        while await client[0].read(65536):
            pass


@pytest.mark.parametrize("trickle", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_who_stops_at_a_step_is_dropped(step: str, trickle: bool) -> None:
    @both_loops
    async def scenario() -> None:
        async with HostSide() as host:
            agent = await host.connected_agent()
            clients = [await STEPS[step](host) for _ in range(EACH)]
            async with trickling(clients if trickle else []):
                async with asyncio.timeout(DROPPED_WITHIN_SECONDS):
                    await until(
                        lambda: (
                            not host.door._waiting
                            and not host.own.connections
                            and not host.listener._arriving
                            and not host.door._half_open
                        ),
                        DROPPED_WITHIN_SECONDS,
                    )
                    await asyncio.gather(*map(ended, clients))
            for _, writer in clients:
                writer.transport.abort()
            del agent

    for loop in ("asyncio", "uvloop"):
        scenario(loop)


@both_loops
async def test_an_agent_gets_in_between_all_of_them_at_once() -> None:
    async with HostSide() as host:
        await host.connected_agent()
        joined = await host.join("beta")
        clients = [await step(host) for step in STEPS.values() for _ in range(EACH)]
        async with trickling(clients), asyncio.timeout(DROPPED_WITHIN_SECONDS):
            began = asyncio.get_running_loop().time()
            await host.dial(joined, Owner())
            assert asyncio.get_running_loop().time() - began < SHORT_SECONDS
            await asyncio.gather(*map(ended, clients))


@both_loops
async def test_garbage_takes_no_agents_place() -> None:
    """Only who has proven to be an agent counts against those that may come at a time."""
    async with HostSide() as host:
        now = asyncio.get_running_loop().time()
        host.listener._admission = Admission(now, rate=0.001, burst=2)
        joined = await host.join()
        stolen = upgrade_head(assertion(joined))
        agent = Owner()
        await host.dial(joined, agent)  # one place
        for token in (None, "a.b.c", assertion(joined)[:-8] + "AAAAAAAA"):
            for _ in range(5):
                answer = await call(host, upgrade_head(token))
                assert answer.status == 401, answer.error
        first = await call(host, stolen)  # the second place
        assert first.status == 101
        first.client[1].transport.abort()
        assert (await call(host, stolen)).error == (401, "bad_assertion")
        late = await call(host, upgrade_head(assertion(joined)))
        assert late.error == (503, "busy") and "Retry-After" in late.head
