"""One dial over real sockets and TLS, on both event loops: to the real host's side, and to worse.

Covered: through to a session; straight, through a proxy, behind something that ends TLS; every
way to fail, with its sentence; which refusals are final and which ask for a pause; deadlines;
that nothing is left open, whatever happens when; that the assertion is in no log.
`test_upgrade.py` has the answers to the upgrade, `test_outbound.py` the way to the server.
"""

import asyncio
import contextlib
import dataclasses
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from shared.errors import Code
from shared.mux.budget import WindowBudget
from shared.outbound import open_socket
from tests.fakes.dialling import (
    answering,
    credentials,
    server_tls,
    switching,
    the_zone,
    websocket_frame,
)
from tests.fakes.host_side import HostSide, open_sockets, until
from tests.fakes.http_proxy import http_proxy
from tests.fakes.tls_proxy import StrangeAuthority, tls_terminator
from tests.fakes.tunnel_pair import Owner, both_loops
from tests.fakes.upstream import RawConnection, RawUpstream, Script
from tower_agent import dialer as dialer_module
from tower_agent.credentials import Credentials
from tower_agent.dialer import Dialer, DialFailed, _retry_after

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)


def refusal(status: str, code: str, *fields: str) -> bytes:
    body = f'{{"error": "{code}", "message": "Sentence of {code}."}}'
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    before = open_sockets()
    yield
    await until(lambda: open_sockets() <= before)


async def failure_of(script: Script, tls: ssl.SSLContext | None = None) -> DialFailed:
    """Dial a server that does this, once; nothing may be left open by it."""
    async with nothing_left(), RawUpstream(script, tls=tls or server_tls()) as server:
        with pytest.raises(DialFailed) as raised:
            await Dialer(credentials(server.port), Owner(), environ={}).dial()
        if server.connections:
            await until(
                lambda: server.connections[0].reader.at_eof() or not server._tasks
            )
        return raised.value


# Through


@both_loops
async def test_a_dial_ends_in_a_session_with_the_real_server() -> None:
    async with HostSide() as host:
        owner = Owner()
        tunnel = await Dialer(await host.join(), owner, environ={}).dial()
        host.tunnels.append(tunnel)
        hello = await tunnel.ready
        assert hello.software.startswith("tower-server/")
        assert owner.ready.is_set() and tunnel.usable
        (session,) = host.registry.sessions()
        assert session.software.startswith("tower-agent/")
        assert session.cluster == "alpha"


@both_loops
async def test_memory_for_windows_is_that_of_the_process_at_both_ends() -> None:
    async with HostSide() as host:
        budget, joined = WindowBudget(), await host.join()
        dialer = Dialer(joined, Owner(), environ={}, budget=budget)
        tunnel = await dialer.dial()
        host.tunnels.append(tunnel)
        await tunnel.ready
        (session,) = host.registry.sessions()
        tunnel.session.budget.change(5)
        session.connection.session.budget.change(7)
        assert (budget.used_bytes, host.budget.used_bytes) == (5, 7)


@both_loops
async def test_each_dial_has_an_assertion_and_a_session_id_of_its_own() -> None:
    async with HostSide() as host:
        dialer = Dialer(await host.join(), Owner(), environ={})
        tunnels = [await dialer.dial() for _ in range(2)]
        host.tunnels += tunnels
        first, second = [await tunnel.ready for tunnel in tunnels]
        assert first.session_id != second.session_id


@both_loops
async def test_a_dial_goes_through_a_proxy_with_its_login() -> None:
    async with HostSide() as host, http_proxy(login="agent:secret word") as proxy:
        # Loopback addresses never go through a proxy; a name does.
        host.own.context = server_tls("tower.test")
        through = _named(await host.join(), "tower.test")
        environ = {"HTTPS_PROXY": f"http://agent:secret%20word@127.0.0.1:{proxy.port}"}
        owner = Owner()
        tunnel = await Dialer(through, owner, environ).dial()
        host.tunnels.append(tunnel)
        await tunnel.ready
        assert proxy.connected_to == [f"tower.test:{host.port}"]
        # The proxy ends its side only when ours is over.
        tunnel.close(Code.OK, "the test is over")
        await owner.lost.wait()


def _named(joined: Credentials, host: str) -> Credentials:
    return dataclasses.replace(
        joined,
        server_host=host,
        outer_mode="custom",
        outer_ca_pem=the_zone().ca_pem,
    )


@both_loops
async def test_a_dial_goes_through_what_ends_tls_when_its_ca_is_trusted() -> None:
    company = StrangeAuthority()
    async with HostSide() as host:
        context = company.server_context("127.0.0.1")
        async with tls_terminator(context, host.port) as port:
            through = dataclasses.replace(
                await host.join(),
                server_port=port,
                outer_mode="custom",
                outer_ca_pem=company.pem,
            )
            owner = Owner()
            tunnel = await Dialer(through, owner, environ={}).dial()
            host.tunnels.append(tunnel)
            await tunnel.ready
            tunnel.close(Code.OK, "the test is over")
            await owner.lost.wait()
        await until(lambda: not list(host.registry.sessions()))


@both_loops
async def test_frames_in_the_segment_of_the_101_are_not_lost() -> None:
    """A WebSocket ping behind the answer gets its pong."""
    ping = websocket_frame(9, b"are you there")
    fields = "Sec-WebSocket-Protocol: tower.v1\r\n"
    async with RawUpstream(switching(fields, ping), tls=server_tls()) as server:
        owner = Owner()
        tunnel = await Dialer(credentials(server.port), owner, environ={}).dial()
        (connection,) = server.connections
        # Masked by the agent: 0x8a is a final pong, 13 bytes long.
        await until(lambda: bytes((0x8A, 0x80 | 13)) in connection.received)
        tunnel.abort("the test is over")
        await owner.lost.wait()


@both_loops
async def test_a_server_that_says_101_and_leaves_is_lost_and_not_ready() -> None:
    fields = "Sec-WebSocket-Protocol: tower.v1\r\n"

    async def leaves(connection: RawConnection) -> None:
        script = asyncio.ensure_future(switching(fields)(connection))
        await asyncio.sleep(0.02)
        script.cancel()

    async with nothing_left(), RawUpstream(leaves, tls=server_tls()) as server:
        owner = Owner()
        tunnel = await Dialer(credentials(server.port), owner, environ={}).dial()
        async with asyncio.timeout(5):
            await owner.lost.wait()
        assert not owner.ready.is_set() and tunnel.closed
        with pytest.raises(ConnectionError):
            await tunnel.ready


# Refused


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("403 Forbidden", "cluster_removed"),
        ("403 Forbidden", "certificate_replaced"),
        ("400 Bad Request", "version"),
    ],
)
async def test_some_refusals_are_final(status: str, code: str) -> None:
    failure = await failure_of(answering(refusal(status, code)))
    assert failure.final and str(failure) == f"Sentence of {code}."


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("401 Unauthorized", "bad_assertion"),
        ("401 Unauthorized", "cluster_removed"),
        ("503 Service Unavailable", "version"),
        ("400 Bad Request", "bad_request"),
        ("403 Forbidden", "blocked"),
        ("403 Forbidden", 'x", "y": "cluster_removed'),
    ],
)
async def test_other_refusals_are_not(status: str, code: str) -> None:
    failure = await failure_of(answering(refusal(status, code)))
    assert not failure.final and failure.retry_after_seconds is None


async def test_the_real_server_refuses_a_removed_cluster_for_good() -> None:
    async with HostSide() as host:
        joined = await host.join()
        await host.remove("alpha")
        with pytest.raises(DialFailed, match="tower token create alpha") as raised:
            await Dialer(joined, Owner(), environ={}).dial()
        assert raised.value.final


async def test_the_real_server_refuses_an_agent_that_another_replaced() -> None:
    async with HostSide() as host:
        old = await host.join()
        await host.join()
        with pytest.raises(DialFailed, match="joined again") as raised:
            await Dialer(old, Owner(), environ={}).dial()
        assert raised.value.final


async def test_the_real_server_asks_for_patience_when_it_stops() -> None:
    async with HostSide() as host:
        joined = await host.join()
        await host.listener.close("the server stops", 1.0)
        with pytest.raises(DialFailed, match="is stopping") as raised:
            await Dialer(joined, Owner(), environ={}).dial()
        assert not raised.value.final and raised.value.retry_after_seconds == 1.0


@both_loops
async def test_a_pause_that_is_asked_for_is_handed_on() -> None:
    answer = refusal("503 Service Unavailable", "busy", "Retry-After: 17")
    failure = await failure_of(answering(answer))
    assert failure.retry_after_seconds == 17.0
    assert str(failure) == "Sentence of busy."


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("120", 120.0),
        (" 0 ", 0.0),
        ("soon", None),
        ("-3", None),
        ("²", None),
        ("1.5", None),
        ("9" * 400, float("inf")),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0),
        ("Tue, 24 Nov 2026 08:00:30 -0000", 30.0),
        ("Tue, 24 Nov 99999 08:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(
    header: str | None, seconds: float | None
) -> None:
    assert _retry_after(header, NOW) == seconds


async def test_a_clock_that_is_wrong_is_named_as_the_cause() -> None:
    yesterday = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    answer = refusal("401 Unauthorized", "bad_assertion", f"Date: {yesterday}")
    failure = await failure_of(answering(answer))
    assert "clock" in str(failure) and not failure.final


@pytest.mark.parametrize(
    "script",
    [
        switching(),
        switching("Sec-WebSocket-Protocol: mqtt\r\n"),
        switching("Sec-WebSocket-Protocol: tower.v1\r\n", good=False),
        switching(
            "Sec-WebSocket-Protocol: tower.v1\r\nSec-WebSocket-Extensions: x\r\n"
        ),
    ],
    ids=["no subprotocol", "another one", "wrong proof", "an extension"],
)
async def test_a_101_that_is_not_for_us_is_no_tunnel(script: Script) -> None:
    failure = await failure_of(script)
    assert "its answer 101 is not one to a Tower agent" in str(failure)
    assert not failure.final


async def test_a_missing_upgrade_is_explained_by_who_took_it_away() -> None:
    answer = refusal("426 Upgrade Required", "upgrade_required")
    failure = await failure_of(answering(answer))
    assert "let the proxy, load balancer or firewall" in str(failure)


# No answer


@both_loops
async def test_a_server_that_hangs_up_on_the_upgrade_is_a_blocked_websocket() -> None:
    failure = await failure_of(answering(b""))
    assert "The WebSocket" in str(failure) and "was cut" in str(failure)


@both_loops
async def test_a_port_without_tls_says_so() -> None:
    async def ssh(connection: RawConnection) -> None:
        await connection.send(b"SSH-2.0-OpenSSH_9.6\r\n")
        await connection.read_to_end()

    async with nothing_left(), RawUpstream(ssh) as server:
        with pytest.raises(DialFailed, match="does not speak TLS"):
            await Dialer(credentials(server.port), Owner(), environ={}).dial()


@both_loops
async def test_a_certificate_of_somebody_else_says_so() -> None:
    tls = StrangeAuthority().server_context("127.0.0.1")
    failure = await failure_of(answering(b""), tls)
    assert "of no authority that the agent trusts" in str(failure)
    assert "--ca-file" in str(failure)


@both_loops
async def test_a_certificate_for_another_name_says_so() -> None:
    failure = await failure_of(answering(b""), server_tls("tower.example"))
    assert "is for another name" in str(failure)


@both_loops
async def test_a_port_where_nobody_listens_says_so() -> None:
    async with RawUpstream(answering(b"")) as server:
        port = server.port
    async with nothing_left():
        with pytest.raises(DialFailed, match="connection refused"):
            await Dialer(credentials(port), Owner(), environ={}).dial()


@both_loops
async def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    async def mute(connection: RawConnection) -> None:
        await connection.read_to_end()

    async def half_a_head(connection: RawConnection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nX: ")
        await connection.read_to_end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialer_module, "DIAL_TIMEOUT_SECONDS", 0.3)
        for script, tls in (
            (mute, None),
            (mute, server_tls()),
            (half_a_head, server_tls()),
        ):
            async with nothing_left(), RawUpstream(script, tls=tls) as server:
                with pytest.raises(DialFailed, match="does not answer in time"):
                    await Dialer(credentials(server.port), Owner(), environ={}).dial()
                # The server sees the end: nothing of it is left behind.
                await until(lambda server=server: not server._tasks)


@both_loops
async def test_a_dial_that_is_cancelled_leaves_nothing_open() -> None:
    """Anywhere: before TCP, in every turn of the TLS handshake, waiting for the answer."""
    is_connected = asyncio.Event()

    async def open_and_tell(*arguments: object) -> socket.socket:
        connected = await open_socket(*arguments)  # type: ignore[arg-type]
        is_connected.set()
        return connected

    async def mute(connection: RawConnection) -> None:
        await connection.read_to_end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialer_module, "open_socket", open_and_tell)
        for tls in (None, server_tls()):
            async with nothing_left(), RawUpstream(mute, tls=tls) as server:
                for turns in (-1, *range(12), 50):
                    is_connected.clear()
                    dial = asyncio.ensure_future(
                        Dialer(credentials(server.port), Owner(), environ={}).dial()
                    )
                    if turns >= 0:
                        await is_connected.wait()
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    dial.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await dial
                await until(lambda server=server: not server._tasks)


# Proxies


@both_loops
async def test_a_proxy_that_refuses_is_named() -> None:
    for status, words in (
        (407, "demands a login"),
        (403, "refuses to connect"),
        (503, "refuses"),
    ):
        async with nothing_left(), http_proxy(refuse_with=status) as proxy:
            environ = {"HTTPS_PROXY": f"http://user:hunter2@127.0.0.1:{proxy.port}"}
            through = credentials(443, server_host="tower.test")
            with pytest.raises(DialFailed, match=words) as raised:
                await Dialer(through, Owner(), environ).dial()
            assert f"127.0.0.1:{proxy.port}" in str(raised.value)
            assert "hunter2" not in str(raised.value)


@both_loops
async def test_tls_that_fails_behind_a_proxy_leaves_nothing_open() -> None:
    tls = server_tls("tower.example")
    async with nothing_left(), RawUpstream(answering(b""), tls=tls) as server:
        async with http_proxy() as proxy:
            environ = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}
            through = credentials(server.port, server_host="tower.test")
            with pytest.raises(
                DialFailed, match="Through the HTTP proxy .* another name"
            ):
                await Dialer(through, Owner(), environ).dial()


def test_a_proxy_that_cannot_be_used_is_said_before_any_dial() -> None:
    through = credentials(443, server_host="tower.test")
    with pytest.raises(ValueError, match="HTTPS_PROXY is not the URL"):
        Dialer(through, Owner(), {"HTTPS_PROXY": "socks5://u:hunter2@h:1"})  # type: ignore[arg-type]


# Secrets


async def test_the_assertion_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with HostSide() as host:
        dialer = Dialer(await host.join(), Owner(), environ={})
        host.tunnels.append(await dialer.dial())
        await host.tunnels[0].ready
    # The server's own library log is the listener's business.
    ours = [r for r in caplog.records if r.name != "websockets.server"]
    assert not [
        r for r in ours if "Bearer" in r.getMessage() or "eyJ" in r.getMessage()
    ]
