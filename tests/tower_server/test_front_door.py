"""The front door over real sockets, with real tunnels behind it, on both event loops.

Covered: the choice of the face, hellos that come in pieces, stop or never come, what is
no TLS, unknown and absent clusters, half-open places and what frees them, limits on who
waits, a full file table, broken hand-overs, and that the sealed bytes are the client's
own from the first to the last. HostSide fails a test that leaves a socket or place open.
"""

import asyncio
import errno
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from certs.contexts import unverified
from certs.names import ClusterName
from tests.fakes.host_side import AgentSide, HostSide, until
from tests.fakes.tunnel_pair import LOOPBACK, both_loops
from tests.tower_server.test_client_hello import in_records, openssl_hello
from tower_server import front_door, half_open

ALPHA = "alpha.clusters.tower.internal"
HELLO = openssl_hello(ALPHA)

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextmanager
def limit(**values: float) -> Iterator[None]:
    """Other limits, for tests that cannot wait for the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            module = half_open if name.startswith("MAX_HALF_OPEN") else front_door
            patch.setattr(module, name, value)
        yield


async def connect(host: HostSide, data: bytes = b"") -> Client:
    reader, writer = await asyncio.open_connection(LOOPBACK, host.port)
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.write(data)
    return reader, writer


async def last_word(client: Client) -> bytes:
    """The same, and the end must be a FIN: a RST could overtake what is said."""
    async with asyncio.timeout(5):
        data = await client[0].read()
    client[1].close()
    return data


async def rest_of(client: Client, seconds: float = 5.0) -> bytes:
    """What still comes until the other end closes, by FIN or RST; then closes ours."""
    reader, writer = client
    data = b""
    try:
        async with asyncio.timeout(seconds):
            while chunk := await reader.read(65536):
                data += chunk
    except ConnectionError:
        pass
    finally:
        writer.close()
    return data


async def https_get(host: HostSide, server_name: str | None) -> bytes:
    context = unverified()
    client = await asyncio.open_connection(
        LOOPBACK, host.port, ssl=context, server_hostname=server_name or LOOPBACK
    )
    client[1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    return await rest_of(client)


# Which face


@both_loops
async def test_no_name_and_names_outside_the_zone_are_our_own_https() -> None:
    async with HostSide() as host:
        for name in (None, "localhost", "clusters.tower.internal", "xclusters.tower"):
            answer = await https_get(host, name)
            assert answer.startswith(b"HTTP/1.1 200"), name
        assert not host.door.counts["unknown_cluster"]


@both_loops
async def test_sealed_bytes_reach_the_agent_untouched_and_come_back() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        client = await connect(host, HELLO + b"what follows")
        await until(
            lambda: agent.sinks and agent.sinks[0].received.endswith(b"follows")
        )
        sink = agent.sinks[0]
        assert sink.received == HELLO + b"what follows"
        assert sink.stream.target == "sealed"
        sink.stream.write(b"an answer")
        assert await client[0].readexactly(9) == b"an answer"
        client[1].write_eof()
        await until(lambda: sink.has_eof)
        sink.stream.write(b", then the end")
        sink.stream.write_eof()
        assert await rest_of(client) == b", then the end"
        assert host.door.counts["sealed"] == 1


@both_loops
async def test_the_server_name_is_compared_without_case() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        hello = HELLO.replace(ALPHA.encode(), ALPHA.upper().encode())
        client = await connect(host, hello)
        await until(lambda: agent.sinks)
        client[1].close()


@both_loops
async def test_the_stream_goes_to_the_cluster_of_the_name_and_to_no_other() -> None:
    async with HostSide() as host:
        alpha = await host.connected_agent("alpha")
        beta = await host.connected_agent("beta")
        clients = [await connect(host, HELLO) for _ in range(3)]
        clients.append(
            await connect(host, openssl_hello("beta.clusters.tower.internal"))
        )
        await until(lambda: len(alpha.sinks) == 3 and len(beta.sinks) == 1)
        for _, writer in clients:
            writer.close()


# Hellos that come slowly, or not


@both_loops
async def test_a_hello_may_come_a_byte_at_a_time_and_wakes_us_seldom() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        reads = 0
        real = front_door.read_client_hello

        def counted(data: bytes) -> object:
            nonlocal reads
            reads += 1
            return real(data)

        with mock.patch.object(front_door, "read_client_hello", counted):
            reader, writer = await connect(host)
            for at in range(len(HELLO)):
                writer.write(HELLO[at : at + 1])
                await asyncio.sleep(0)
            await until(lambda: agent.sinks and agent.sinks[0].received == HELLO)
        assert reads <= 4, "the kernel wakes us for every segment"
        writer.close()


@both_loops
async def test_a_hello_may_be_cut_into_records() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        hello = in_records(HELLO, [1, 2, 3, 100, 7])
        client = await connect(host, hello[:20])
        await until(lambda: len(host.door._tasks) == 1)
        client[1].write(hello[20:])
        await until(lambda: agent.sinks and agent.sinks[0].received == hello)
        client[1].close()


@both_loops
async def test_who_leaves_inside_the_hello_is_dropped_at_once() -> None:
    async with HostSide() as host:
        for part in (b"", HELLO[:3], HELLO[:5], HELLO[:-1]):
            client = await connect(host, part)
            client[1].write_eof()
            assert await rest_of(client, 2.0) == b""
        assert host.door.counts["no_hello"] == 4
        await until(lambda: not len(host.door._tasks))


@both_loops
async def test_who_resets_inside_the_hello_is_dropped_at_once() -> None:
    async with HostSide() as host:
        client = await connect(host, HELLO[:50])
        await until(lambda: len(host.door._tasks) == 1)
        raw = client[1].get_extra_info("socket")
        linger = struct.pack("ii", 1, 0)  # close sends RST
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client[1].transport.abort()
        await until(lambda: host.door.counts["no_hello"] == 1)


@both_loops
async def test_a_hello_that_does_not_come_in_time_is_not_waited_for() -> None:
    with limit(HELLO_DEADLINE_SECONDS=0.1):
        async with HostSide() as host:
            clients = [await connect(host, part) for part in (b"", HELLO[:100])]
            for client in clients:
                assert await rest_of(client, 2.0) == b""
            assert host.door.counts["hello_timeout"] == 2


# What is no TLS


@both_loops
async def test_plain_http_is_told_to_use_https() -> None:
    async with HostSide() as host:
        answer = await rest_of(
            await connect(host, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        )
        assert answer.startswith(b"HTTP/1.1 400 ") and b"https://" in answer
        assert host.door.counts["not_tls"] == 1


@both_loops
async def test_a_malformed_hello_gets_an_alert() -> None:
    async with HostSide() as host:
        answer = await last_word(await connect(host, b"\x16\x03\x01\x00\x00"))
        assert answer == bytes((21, 3, 3, 0, 2, 2, 50))
        assert host.door.counts["malformed_hello"] == 1


# Clusters that are not there


@both_loops
async def test_an_unknown_cluster_is_the_tls_alert_that_says_so() -> None:
    async with HostSide() as host:
        for name in (ALPHA, "a.b.clusters.tower.internal", "x" * 63 + "." + ALPHA[6:]):
            with pytest.raises(ssl.SSLError) as caught:
                await https_get(host, name)
            assert "UNRECOGNIZED_NAME" in str(caught.value.reason)
        assert host.door.counts["unknown_cluster"] == 3


@both_loops
async def test_a_client_is_held_until_its_agent_is_back() -> None:
    async with HostSide() as host:
        credentials = await host.join()
        host.registry.know(credentials.cluster, None)
        client = await connect(host, HELLO)
        await until(lambda: host.door._places.by_cluster)  # it is being held
        agent = AgentSide(credentials)
        await host.dial(credentials, agent.owner)
        await until(lambda: agent.sinks and agent.sinks[0].received == HELLO)
        client[1].close()


@both_loops
async def test_a_client_whose_agent_stays_away_is_closed_and_counted() -> None:
    with limit(HOLD_SECONDS=0.2):
        async with HostSide() as host:
            host.registry.know((await host.join()).cluster, None)
            started = asyncio.get_running_loop().time()
            assert await rest_of(await connect(host, HELLO)) == b""
            assert asyncio.get_running_loop().time() - started >= 0.2
            assert host.door.counts["agent_away"] == 1


@both_loops
async def test_a_held_client_is_let_go_when_the_door_closes() -> None:
    async with HostSide() as host:
        host.registry.know((await host.join()).cluster, None)
        client = await connect(host, HELLO)
        await until(lambda: host.door._places.by_cluster)
        await host.door.close()
        assert await rest_of(client, 1.0) == b""


# Half-open places


@both_loops
async def test_a_door_that_finishes_waits_for_what_clients_have_not_read() -> None:
    """The stream is over, its last bytes lie in our socket: a server that ends would lose them."""
    piece, sent = bytes(range(256)) * 64, 0
    async with HostSide() as host:
        agent = await host.connected_agent()
        client = await connect(host, HELLO)
        client[1].transport.pause_reading()
        client[1].write_eof()
        await until(lambda: agent.sinks and agent.sinks[0].has_eof)
        (relayed,) = host.door._relayed
        transport = relayed._end.transport
        assert transport is not None
        while not transport.get_write_buffer_size():  # the kernel takes some
            agent.sinks[0].stream.write(piece)
            sent += len(piece)
            await until(lambda: not agent.sinks[0].stream.queued_bytes)
            await asyncio.sleep(0.001)
        agent.sinks[0].stream.write_eof()
        await until(lambda: agent.sinks[0].ends == [None])
        await host.door.close()
        finishing = asyncio.ensure_future(host.door.finish(60))
        await asyncio.sleep(0.2)
        assert not finishing.done()
        async with asyncio.timeout(0.5):
            await host.door.finish(0.1)  # nor for ever
        client[1].transport.resume_reading()
        assert await last_word(client) == piece * (sent // len(piece))
        async with asyncio.timeout(5):
            await finishing


@both_loops
async def test_strangers_hold_only_so_many_streams_of_a_cluster() -> None:
    with limit(MAX_HALF_OPEN_PER_CLUSTER=2):
        async with HostSide() as host:
            agent = await host.connected_agent()
            clients = [await connect(host, HELLO) for _ in range(2)]
            await until(lambda: len(agent.sinks) == 2)
            assert await rest_of(await connect(host, HELLO)) == b""
            assert host.door.counts["half_open_limit"] == 1
            # The agent has authenticated the first caller.
            agent.sinks[0].stream.accept()
            await until(lambda: host.door._places.by_cluster["alpha"] == 1)
            clients.append(await connect(host, HELLO))
            await until(lambda: len(agent.sinks) == 3)
            # The second one leaves, and its agent sees no reason to stay.
            clients[1][1].close()
            await until(lambda: agent.sinks[1].has_eof)
            agent.sinks[1].stream.write_eof()
            await until(lambda: host.door._places.by_cluster["alpha"] == 1)
            # The agent refuses the third.
            agent.sinks[2].stream.reset(3, "no")
            assert await rest_of(clients[2]) == b""
            assert not host.door._places.by_cluster
            # And the first one, who is no stranger, goes on.
            clients[0][1].write(b"more")
            await until(lambda: agent.sinks[0].received == HELLO + b"more")
            clients[0][1].close()


@both_loops
async def test_a_source_holds_only_so_many_streams_of_all_clusters() -> None:
    with limit(MAX_HALF_OPEN_PER_SOURCE=2):
        async with HostSide() as host:
            await host.connected_agent("alpha")
            await host.connected_agent("beta")
            beta = openssl_hello("beta.clusters.tower.internal")
            clients = [await connect(host, hello) for hello in (HELLO, beta)]
            await until(lambda: host.door.counts["sealed"] == 2)
            assert await rest_of(await connect(host, beta)) == b""
            assert host.door.counts["half_open_limit"] == 1
            for _, writer in clients:
                writer.close()


@both_loops
async def test_a_caller_that_nobody_authenticates_in_time_is_dropped() -> None:
    with limit(HALF_OPEN_SECONDS=0.1):
        async with HostSide() as host:
            agent = await host.connected_agent()
            known = await connect(host, HELLO)
            await until(lambda: agent.sinks)
            agent.sinks[0].stream.accept()
            stranger = await connect(host, HELLO)
            assert await rest_of(stranger) == b""
            await until(lambda: agent.sinks[1].ends)
            assert "not authenticated in time" in str(agent.sinks[1].ends[0])
            assert host.door.counts["half_open_timeout"] == 1
            assert not agent.sinks[0].ends
            known[1].close()


@both_loops
async def test_a_lost_tunnel_frees_its_places_and_resets_its_callers() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        client = await connect(host, HELLO)
        await until(lambda: agent.sinks)
        agent.tunnel.abort("cut")
        with pytest.raises(ConnectionResetError):
            await client[0].read()
        client[1].close()
        await until(lambda: not host.door._places.by_source)


@both_loops
async def test_a_failed_hand_over_leaves_no_stream_and_no_place() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        loop = asyncio.get_running_loop()
        failure: BaseException
        for failure in (OSError(errno.EINVAL, "no"), asyncio.CancelledError()):
            with mock.patch.object(front_door, "asyncio", wraps=asyncio) as patched:
                broken = mock.Mock(wraps=loop)
                broken.connect_accepted_socket = mock.AsyncMock(side_effect=failure)
                patched.get_running_loop = lambda b=broken: b
                assert await rest_of(await connect(host, HELLO)) == b""
            assert not host.door._half_open and not host.door._places.by_source
            session = host.registry.pick(agent.credentials.cluster)
            assert session is not None and session.user_streams == 0


@both_loops
async def test_a_tunnel_without_room_for_a_stream_closes_the_client() -> None:
    async with HostSide() as host:
        await host.connected_agent()
        with mock.patch("shared.mux.table.MAX_STREAMS", 0):
            assert await rest_of(await connect(host, HELLO)) == b""
        assert host.door.counts["no_stream"] == 1
        assert not host.door._places.by_source


# Limits on who waits, and on what we can accept


@both_loops
async def test_one_source_cannot_take_all_places_to_wait() -> None:
    with limit(MAX_WAITING_PER_SOURCE=2):
        async with HostSide() as host:
            idle = [await connect(host) for _ in range(2)]
            await until(lambda: len(host.door._tasks) == 2)
            assert await rest_of(await connect(host, HELLO)) == b""
            assert host.door.counts["too_many_waiting"] == 1
            idle[0][1].close()
            await until(lambda: len(host.door._tasks) == 1)
            assert (await https_get(host, None)).startswith(b"HTTP/1.1 200")
            idle[1][1].close()


@both_loops
async def test_a_connection_waits_until_its_request_is_here() -> None:
    async with HostSide() as host:
        client = await asyncio.open_connection(
            LOOPBACK, host.port, ssl=unverified(), server_hostname=LOOPBACK
        )
        assert len(host.door._tasks) == 1
        client[1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await rest_of(client)).startswith(b"HTTP/1.1 200")
        await until(lambda: not len(host.door._tasks))


@both_loops
async def test_who_comes_when_as_many_wait_as_may_is_served_after_them() -> None:
    with limit(MAX_WAITING=1):
        async with HostSide() as host:
            idle = await connect(host)
            await until(lambda: len(host.door._tasks) == 1)
            client = asyncio.create_task(https_get(host, None))
            await until(lambda: host.door.counts["full"] == 1)
            assert len(host.door._tasks) == 1 and not client.done()
            idle[1].close()
            assert (await client).startswith(b"HTTP/1.1 200")


@both_loops
async def test_who_has_left_before_its_turn_costs_no_handshake() -> None:
    async with HostSide() as host:
        client = await connect(host, openssl_hello(None))
        client[1].write_eof()
        assert await rest_of(client) == b""
        assert host.door.counts["left"] == 1 and not host.own.counts


@both_loops
async def test_nobody_waits_for_a_turn_for_ever() -> None:
    with limit(TURN_SECONDS=0.05), mock.patch("tower_server.turns.MAX_HANDSHAKES", 0):
        async with HostSide() as host:
            assert await rest_of(await connect(host, openssl_hello(None))) == b""
            assert host.door.counts["turn_timeout"] == 1


@both_loops
async def test_connections_held_for_an_agent_do_not_keep_others_out() -> None:
    with limit(MAX_WAITING=1, MAX_HELD=1, HOLD_SECONDS=60.0):
        async with HostSide() as host:
            host.registry.know(ClusterName("alpha"), None)
            held = await connect(host, HELLO)
            await until(lambda: host.door._held == 1)
            assert (await https_get(host, None)).startswith(b"HTTP/1.1 200")
            # One more than may be held is told at once.
            assert await rest_of(await connect(host, HELLO)) == b""
            assert host.door.counts["agent_away"] == 1
            held[1].close()
            await host.door.close()


@both_loops
async def test_a_full_file_table_pauses_accepting_and_loses_nobody() -> None:
    with limit(_ACCEPT_PAUSE_SECONDS=0.05):
        async with HostSide() as host:
            real = host.door._listening
            assert real is not None
            full = mock.Mock(wraps=real)
            full.accept.side_effect = OSError(errno.EMFILE, "Too many open files")
            full.fileno.side_effect = real.fileno
            host.door._listening = full
            loop = asyncio.get_running_loop()
            started = loop.time()
            client = loop.create_task(https_get(host, None))
            await until(lambda: host.door.counts["accept_failed"] == 3)
            assert loop.time() - started >= 2 * 0.05, "it spins"
            host.door._listening = real
            assert (await client).startswith(b"HTTP/1.1 200")


@both_loops
async def test_a_connection_that_broke_in_the_backlog_does_not_stop_the_next() -> None:
    async with HostSide() as host:
        real = host.door._listening
        assert real is not None
        broken = mock.Mock(wraps=real)
        errors = [OSError(errno.ECONNABORTED, "aborted"), OSError(errno.EPROTO, "?")]
        broken.accept.side_effect = lambda: (
            (_ for _ in ()).throw(errors.pop()) if errors else real.accept()
        )
        host.door._listening = broken
        assert (await https_get(host, None)).startswith(b"HTTP/1.1 200")
        assert not host.door.counts["accept_failed"]
        host.door._listening = real


@both_loops
async def test_connections_of_one_turn_that_closes_the_door_are_closed_too() -> None:
    async with HostSide() as host:
        # The tasks of these are cancelled before they have begun.
        clients = [socket.create_connection((LOOPBACK, host.port)) for _ in range(5)]
        host.door._accept()
        assert len(host.door._tasks) == 5
        await host.door.close()
        for client in clients:
            client.settimeout(1.0)
            assert client.recv(1) == b""
            client.close()


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
    ],
)
def test_an_ipv6_network_is_one_source(address: str, source: str) -> None:
    assert front_door._source(address) == source


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
async def test_all_ipv6_addresses_are_all_ipv4_addresses_too() -> None:
    async with HostSide() as host:
        await host.door.close()
        door = front_door.FrontDoor("zone", host.registry, host.own.serve)
        try:
            _, port = door.listen("::", 0)
        except OSError:
            pytest.skip("no IPv6 here")
        client = await asyncio.open_connection(LOOPBACK, port)
        client[1].write(b"GET / HTTP/1.1\r\n\r\n")
        assert b"400" in await rest_of(client)
        await door.close()
