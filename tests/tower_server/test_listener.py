"""Agents' calls over real TLS and WebSockets, on both event loops: who gets in, who does not, and how it ends.

Covered: every refusal with its sentence, what the real dialer makes of it, heads that are
no upgrade, callers that leave while it is decided, peers without HELLO, removal and
re-join at every moment, streams that agents open, drain, a log that strangers cannot fill.
HostSide fails a test that leaves a connection, a session or a socket.
"""

import asyncio
import json
import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from unittest import mock

import pytest

from certs.assertion import make_assertion
from certs.chains import parse_certificates
from certs.contexts import unverified
from certs.keys import parse_private_key, spki_pin
from shared.errors import Code
from shared.tunnel.tasks import TaskSet
from shared.version import VERSION
from tests.fakes.host_side import AgentSide, HostSide, Sink, until
from tests.fakes.tunnel_pair import LOOPBACK, Owner, both_loops
from tower_agent.credentials import Credentials
from tower_agent.dialer import Dialer, DialFailed
from tower_server import listener
from tower_server.stores import StoreUnavailable


def pin_of(credentials: Credentials) -> str:
    return spki_pin(parse_private_key(credentials.key_pem).public_key())


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Answer:
    status: int
    head: str
    body: bytes
    client: Client

    @property
    def error(self) -> tuple[int, str]:
        return self.status, json.loads(self.body)["error"]

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["message"])


def assertion(credentials: Credentials) -> str:
    return make_assertion(
        parse_private_key(credentials.key_pem),
        parse_certificates(credentials.certificate_pem),
        credentials.audience,
        datetime.now(UTC),
        secrets.token_hex(16),
    )


def upgrade_head(token: str | None, **changes: str | None) -> bytes:
    """A WebSocket upgrade; a header that is changed to None is left out."""
    fields: dict[str, str | None] = {
        "Host": "x",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "tower.v1",
        "Authorization": f"Bearer {token}" if token else None,
    }
    fields |= {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join(["GET /tunnel HTTP/1.1", *lines, "\r\n"]).encode("latin-1")


async def call(host: HostSide, head: bytes) -> Answer:
    client = await asyncio.open_connection(
        LOOPBACK, host.port, ssl=unverified(), server_hostname=LOOPBACK
    )
    client[1].write(head)
    async with asyncio.timeout(5):
        answer = (await client[0].readuntil(b"\r\n\r\n")).decode()
        status = int(answer.split()[1])
        body = b"" if status == 101 else await client[0].read()
    if status != 101:
        client[1].close()
    return Answer(status, answer, body, client)


async def closed(client: Client) -> bytes:
    """What still comes until the server closes; fails when it does not."""
    data = b""
    async with asyncio.timeout(5):
        with suppress(ConnectionError):
            data = await client[0].read()
    client[1].close()
    return data


class SlowStore:
    """A store that looks clusters up only when it is told to."""

    def __init__(self, host: HostSide) -> None:
        self._real = host.store
        self.asked = 0
        self.go_on = asyncio.Event()
        self.fails_with: Exception | None = None
        host.listener._store = self  # type: ignore[assignment]

    async def get_cluster(self, name: str) -> object:
        self.asked += 1
        await self.go_on.wait()
        if self.fails_with is not None:
            raise self.fails_with
        return await self._real.get_cluster(name)  # type: ignore[arg-type]


# Let in


@both_loops
async def test_an_agent_is_let_in_and_its_loss_is_noticed() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        (session,) = host.registry.sessions()
        assert (session.cluster, session.software) == (
            "alpha",
            f"tower-agent/{VERSION}",
        )
        assert (
            session.identity.serial
            == parse_certificates(agent.credentials.certificate_pem)[0].serial_number
        )
        agent.tunnel.abort("cut")
        await until(lambda: not list(host.registry.sessions()))
        status = host.registry.status(agent.credentials.cluster)
        assert status is not None and status.state == "away"


@both_loops
async def test_the_scheme_of_the_assertion_is_read_without_case() -> None:
    async with HostSide() as host:
        token = assertion(await host.join())
        answer = await call(host, upgrade_head(None, Authorization=f"bearer {token}"))
        assert answer.status == 101
        assert "Sec-WebSocket-Protocol: tower.v1" in answer.head
        answer.client[1].transport.abort()


# Refused


@both_loops
async def test_a_call_without_an_assertion_is_refused() -> None:
    async with HostSide() as host:
        for field in (None, "Basic dTpw", "Bearer", "Bearer "):
            answer = await call(host, upgrade_head(None, Authorization=field))
            assert answer.error == (401, "no_assertion"), field
            assert "Authorization header" in answer.message
        await host.connected_agent()
        assert host.listener.counts == {"no_assertion": 4, "admitted": 1}


@both_loops
async def test_an_assertion_is_good_once() -> None:
    async with HostSide() as host:
        head = upgrade_head(assertion(await host.join()))
        first = await call(host, head)
        assert first.status == 101
        assert (await call(host, head)).error == (401, "bad_assertion")
        first.client[1].transport.abort()


@both_loops
async def test_an_assertion_of_another_ca_or_of_nobody_is_refused() -> None:
    async with HostSide() as host, HostSide() as stranger:
        for token in (assertion(await stranger.join()), "a.b.c", "x" * 9000):
            answer = await call(host, upgrade_head(token))
            assert answer.status in (400, 401), token[:10]
        assert not host.registry.knows("alpha")


@both_loops
async def test_another_version_is_told_what_to_upgrade() -> None:
    async with HostSide() as host:
        token = assertion(await host.join())
        for offered in (None, "tower.v9", "chat, tower.v2"):
            head = upgrade_head(token, Sec_WebSocket_Protocol=offered)
            answer = await call(host, head)
            assert answer.error == (400, "version")
            assert "upgrade the older of the two" in answer.message
            assert (offered or "none of them").split(", ")[0] in answer.message
        # It was not used up by the refusals.
        answer = await call(host, upgrade_head(token))
        assert answer.status == 101
        answer.client[1].transport.abort()


@both_loops
async def test_a_strangers_header_is_quoted_short_and_harmless() -> None:
    async with HostSide() as host:
        head = upgrade_head(None, Sec_WebSocket_Protocol="\x9b31m" + "x" * 4000)
        answer = await call(host, head)
        assert "\x9b" not in answer.message and len(answer.message) < 300


@both_loops
async def test_an_unknown_or_removed_cluster_is_refused_for_good() -> None:
    async with HostSide() as host:
        credentials = await host.join()
        await host.remove("alpha")
        with pytest.raises(DialFailed) as caught:
            await host.dial(credentials, Owner())
        assert caught.value.final
        assert "tower token create alpha" in caught.value.sentence
        assert not host.registry.knows("alpha"), "a stranger's call makes no cluster"


@both_loops
async def test_a_certificate_that_a_later_join_replaced_is_refused_for_good() -> None:
    async with HostSide() as host:
        old = await host.join()
        await host.join()
        with pytest.raises(DialFailed) as caught:
            await host.dial(old, Owner())
        assert caught.value.final and "joined again" in caught.value.sentence


@both_loops
async def test_a_store_that_cannot_answer_asks_for_patience() -> None:
    async with HostSide() as host:
        credentials = await host.join()
        store = SlowStore(host)
        store.fails_with = StoreUnavailable("the disk of /secret/path is full", "no")
        store.go_on.set()
        answer = await call(host, upgrade_head(assertion(credentials)))
        assert answer.error == (503, "store_unavailable")
        assert "Retry-After: 2" in answer.head and "/secret" not in answer.message
        with pytest.raises(DialFailed) as caught:
            await host.dial(credentials, Owner())
        assert caught.value.retry_after_seconds == 2 and not caught.value.final


@both_loops
async def test_a_bug_is_logged_and_the_agent_is_answered() -> None:
    async with HostSide() as host:
        credentials = await host.join()
        store = SlowStore(host)
        store.fails_with = ZeroDivisionError("a bug")
        store.go_on.set()
        with mock.patch.object(logging.getLogger(TaskSet.__module__), "error") as log:
            answer = await call(host, upgrade_head(assertion(credentials)))
        assert answer.error == (500, "internal")
        assert log.call_args.kwargs["exc_info"] is store.fails_with


@both_loops
async def test_a_request_without_an_upgrade_is_told_so() -> None:
    async with HostSide() as host:
        credentials = await host.join()
        for name in ("Upgrade", "Connection", "Sec_WebSocket_Key"):
            head = upgrade_head(assertion(credentials), **{name: None})
            answer = await call(host, head)
            assert answer.error == (426, "upgrade_required"), name
            assert "proxy" in answer.message


@pytest.mark.parametrize("line", ["no colon", " : x", "Content-Length: 5", "A: \0"])
def test_a_head_that_is_no_http_is_answered_and_closed(line: str) -> None:
    # The WebSocket library raises no event for these: the connection must not wait for one.
    @both_loops
    async def scenario() -> None:
        async with HostSide() as host:
            head = upgrade_head("x").removesuffix(b"\r\n") + line.encode() + b"\r\n\r\n"
            answer = await call(host, head)
            assert answer.error == (400, "bad_request")

    for loop in ("asyncio", "uvloop"):
        scenario(loop)


@both_loops
async def test_too_many_headers_are_answered_and_closed() -> None:
    async with HostSide() as host:
        many = {f"X_{number}": "y" for number in range(200)}
        assert (await call(host, upgrade_head("x", **many))).status == 400


# Between upgrade and HELLO


@both_loops
async def test_a_caller_that_leaves_while_it_is_decided_leaves_nothing() -> None:
    async with HostSide() as host:
        credentials = await host.join()
        store = SlowStore(host)
        client = await asyncio.open_connection(
            LOOPBACK, host.port, ssl=unverified(), server_hostname=LOOPBACK
        )
        client[1].write(upgrade_head(assertion(credentials)))
        await until(lambda: store.asked)
        client[1].transport.abort()
        store.go_on.set()
        await until(lambda: not len(host.listener._tasks))
        await until(lambda: not host.listener._arriving)


@both_loops
async def test_a_peer_that_says_no_hello_is_closed_and_forgotten() -> None:
    with mock.patch("shared.tunnel.connection.HELLO_DEADLINE_SECONDS", 0.1):
        async with HostSide() as host:
            answer = await call(host, upgrade_head(assertion(await host.join())))
            assert answer.status == 101
            await until(lambda: host.listener._arriving)
            await closed(answer.client)
            await until(lambda: not host.listener._arriving)
            assert host.registry.pick("alpha") is None  # type: ignore[arg-type]


@both_loops
async def test_a_peer_that_talks_nonsense_is_closed_and_forgotten() -> None:
    async with HostSide() as host:
        for nonsense in (b"\xff" * 50, b"\x82\x81aaaa" + bytes((0x61 ^ 9,))):
            answer = await call(host, upgrade_head(assertion(await host.join())))
            answer.client[1].write(nonsense)
            await closed(answer.client)
            await until(lambda: not host.listener._arriving)


@both_loops
async def test_a_cluster_removed_before_its_agents_hello_does_not_come_back() -> None:
    async with HostSide() as host:
        credentials = await host.join()
        real = host.listener.tunnel_ready

        def removed_just_now(connection: object, hello: object) -> None:
            host.registry.forget(credentials.cluster)
            real(connection, hello)  # type: ignore[arg-type]

        owner = Owner()
        with mock.patch.object(host.listener, "tunnel_ready", removed_just_now):
            host.tunnels.append(await Dialer(credentials, owner, environ={}).dial())
            await until(lambda: owner.lost_reasons)
        assert owner.notices[0].code == Code.REVOKED
        await until(lambda: not host.listener._live)
        assert not host.registry.knows("alpha")


@both_loops
async def test_a_later_join_ends_tunnels_that_are_up_and_those_under_way() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        beta = await host.connected_agent("beta")
        arriving = await call(host, upgrade_head(assertion(agent.credentials)))
        await until(lambda: host.listener._arriving)
        again = await host.join()
        key_pin = pin_of(again)
        host.listener.end_replaced(again.cluster, key_pin)
        await until(lambda: agent.owner.lost_reasons)
        assert agent.owner.notices[0].code == Code.REVOKED
        assert "joined again" in agent.owner.notices[0].reason
        async with asyncio.timeout(2):  # and not because it says no HELLO
            await closed(arriving.client)
        # The new certificate's tunnels, and other clusters', stay.
        new = AgentSide(again)
        await host.dial(again, new.owner)
        host.listener.end_replaced(again.cluster, key_pin)
        await asyncio.sleep(0)
        assert not new.owner.notices and not beta.owner.notices


# What agents open


@both_loops
async def test_an_agent_may_open_control_streams_only_and_few_of_them() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        other = Sink(agent.tunnel.session.open_stream("sealed"))
        await until(lambda: other.ends)
        assert other.ends[0] is not None and other.ends[0].code == Code.REFUSED
        controls = [Sink(agent.tunnel.session.open_stream("control")) for _ in range(3)]
        await until(lambda: controls[2].ends)
        assert controls[2].ends[0] is not None
        assert controls[2].ends[0].code == Code.LIMIT
        assert len(host.controls) == 2 and not controls[1].ends
        session, _ = host.controls[0]
        assert session is host.registry.pick(agent.credentials.cluster)
        controls[0].stream.reset(Code.OK, "replaced")
        await until(lambda: host.controls[0][1].ends)
        Sink(agent.tunnel.session.open_stream("control"))
        await until(lambda: len(host.controls) == 3)


@both_loops
async def test_an_agent_that_goes_away_gets_no_new_streams() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        agent.tunnel.session.go_away(Code.GOING_AWAY, "an update")
        await until(lambda: host.registry.pick(agent.credentials.cluster) is None)
        heard = datetime.now(UTC)
        status = host.registry.status(agent.credentials.cluster)
        assert status is not None and status.state == "away"
        assert status.since is not None and status.since <= heard


# Drain


@both_loops
async def test_draining_lets_streams_end_and_tells_both_ends_of_those_that_do_not() -> (
    None
):
    async with HostSide() as host:
        agent = await host.connected_agent()
        live = host.registry.pick(agent.credentials.cluster)
        assert live is not None
        ends, stays = (Sink(live.connection.session.open_stream("x")) for _ in range(2))
        await until(lambda: len(agent.sinks) == 2)
        draining = asyncio.ensure_future(host.listener.drain("maintenance", 0.5))
        await until(lambda: agent.owner.notices)
        assert host.registry.pick(agent.credentials.cluster) is None
        agent.sinks[0].stream.write(b"the last word")
        for sink in (ends, agent.sinks[0]):
            sink.stream.write_eof()
        await until(lambda: ends.ends)
        assert (ends.received, ends.ends) == (b"the last word", [None])
        assert not stays.ends and not draining.done()
        await draining
        await until(lambda: agent.sinks[1].ends)
        for sink in (stays, agent.sinks[1]):
            assert [str(end) for end in sink.ends] == ["maintenance (going_away)"]
        await until(lambda: agent.owner.lost_reasons)


@both_loops
async def test_draining_without_streams_takes_no_time() -> None:
    async with HostSide() as host:
        agents = [await host.connected_agent(name) for name in ("alpha", "beta")]
        Sink(agents[0].tunnel.session.open_stream("control"))
        await until(lambda: host.controls)
        async with asyncio.timeout(5):
            await host.listener.drain("maintenance", 60.0)
        await until(lambda: all(agent.owner.lost_reasons for agent in agents))


@both_loops
async def test_closing_tells_every_agent_and_waits_for_their_end() -> None:
    async with HostSide() as host:
        agents = [await host.connected_agent(name) for name in ("alpha", "beta")]
        await host.listener.close("maintenance", 5.0)
        assert not host.listener._live
        for agent in agents:
            await until(lambda a=agent: a.owner.lost_reasons)
            (notice,) = agent.owner.notices
            assert (notice.code, notice.reason) == (Code.GOING_AWAY, "maintenance")


@both_loops
async def test_who_calls_while_we_drain_is_asked_to_come_back() -> None:
    async with HostSide() as host:
        credentials = await host.join()
        store = SlowStore(host)
        client = await asyncio.open_connection(
            LOOPBACK, host.port, ssl=unverified(), server_hostname=LOOPBACK
        )
        client[1].write(upgrade_head(assertion(credentials)))
        await until(lambda: store.asked)
        await host.listener.close("maintenance", 1.0)
        # One that was being decided, and one that comes now.
        assert b"503" in await closed(client)
        answer = await call(host, upgrade_head(assertion(credentials)))
        assert answer.error == (503, "going_away") and "Retry-After" in answer.head


@both_loops
async def test_a_peer_that_does_not_let_us_close_is_dropped_when_the_time_is_up() -> (
    None
):
    async with HostSide() as host:
        answer = await call(host, upgrade_head(assertion(await host.join())))
        # It reads nothing any more, so it never answers our close.
        answer.client[1].transport.pause_reading()
        await until(lambda: host.listener._arriving)
        started = asyncio.get_running_loop().time()
        await host.listener.close("maintenance", 0.1)
        await until(lambda: not host.listener._arriving, 1.0)
        assert asyncio.get_running_loop().time() - started < 1.0
        answer.client[1].transport.abort()


# The log


@both_loops
async def test_refusals_are_logged_with_their_source_and_not_endlessly() -> None:
    async with HostSide() as host:
        with mock.patch.object(listener._log, "log") as log:
            for _ in range(5):
                await call(host, upgrade_head(None))
            await call(host, upgrade_head(None, Sec_WebSocket_Protocol=None))
        levels = [entry.args[0] for entry in log.call_args_list]
        assert levels == [logging.WARNING, *[logging.DEBUG] * 4, logging.WARNING]
        message = log.call_args_list[0].args
        assert LOOPBACK in message[1] % message[2:]
