"""Reports of the member's state, through a real tunnel to the server's real control end.

Covered: the first report and changes, an apiserver that goes and comes (within the 5 s that
status promises), control streams that are refused, lost, or closed while the tunnel stays, a
second tunnel, a peer that is no server, ends.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from certs.contexts import inner_server
from certs.keys import spki_pin
from shared.errors import Code, StreamReset
from shared.http.status import AGENT
from shared.member import report as report_module
from shared.member.questions import MemberAnswer, MemberRequest
from shared.member.report import ASK_TIMEOUT_SECONDS, MemberProbe, MemberReport
from shared.mux.stream import Stream
from shared.streams import ByteStream
from shared.tunnel.tls import TlsEnd
from tests.certs.zone import ALPHA, ZONE, Holder
from tests.fakes.dialling import agent, credentials, the_zone
from tests.fakes.host_side import until
from tests.fakes.tunnel_pair import TunnelPair, both_loops
from tower_agent import reporter as module
from tower_agent.reporter import ASK_EVERY_SECONDS, Reporter
from tower_server.control import MAX_LINE_BYTES, ControlEnd, identify_agent


class Server:
    """The server's end of control streams, as `tower_server.app` makes it."""

    def __init__(self, holder: Holder | None = None) -> None:
        holder = holder or the_zone().server()
        self.context = inner_server(holder.chain_pem, holder.key_pem, the_zone().ca_pem)
        # What the registry would have; only the newest report counts.
        self.session: Any = SimpleNamespace(
            cluster=ALPHA,
            identity=SimpleNamespace(
                public_key_pin=spki_pin(agent().certificate.public_key())
            ),
            report=MemberReport(),
        )
        self.streams: list[Stream] = []
        # Plain text ends of the streams whose handshake is done.
        self.plain: list[ByteStream] = []
        # Set to refuse streams when they are opened, or after the handshake.
        self.refuses_at_once = False
        self.refuses_agent = False

    @property
    def report(self) -> MemberReport:
        return self.session.report

    def open(self, stream: Stream) -> None:
        assert stream.target == "control"
        self.streams.append(stream)
        if self.refuses_at_once:
            stream.reset(Code.LIMIT, "this tunnel has enough control streams")
            return
        end = TlsEnd(
            self.context,
            server_side=True,
            on_handshake=self._secured,
            call_later=asyncio.get_running_loop().call_later,
        )
        stream.handler = end
        end.start(stream)

    def _secured(self, plain: ByteStream, connection: ssl.SSLObject) -> ControlEnd:
        try:
            identify_agent(connection, self.session, ZONE)
        except ValueError as error:
            raise StreamReset(Code.REFUSED, str(error)) from None
        if self.refuses_agent:
            raise StreamReset(Code.REFUSED, "not now")
        self.plain.append(plain)
        return ControlEnd(self.session, plain)


def probe(request: MemberRequest) -> MemberProbe:
    loop = asyncio.get_running_loop()
    return MemberProbe(request, speaker=AGENT, expires_at=lambda: None, clock=loop.time)


class Member:
    """An apiserver's answer to /version, changed by the test."""

    def __init__(self) -> None:
        self.answer: MemberAnswer | Exception | None = version("v1.34.1")
        self.asked = 0

    async def request(self, method: str, path: str, **_: object) -> MemberAnswer:
        if path.startswith("/api/v1/nodes"):
            return MemberAnswer(status=403, body={})
        assert (method, path) == ("GET", "/version")
        self.asked += 1
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer


def version(text: str) -> MemberAnswer:
    return MemberAnswer(status=200, body={"gitVersion": text})


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with shorter times; their sum is checked below."""
    monkeypatch.setattr(module, "ASK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(report_module, "ASK_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(module, "FIRST_REOPEN_SECONDS", 0.01)


@asynccontextmanager
async def reporting(
    server: Server, member: Member, *, connected: bool = True
) -> AsyncIterator[tuple[TunnelPair, Reporter]]:
    async with TunnelPair() as pair:
        pair.server_owner.on_stream = server.open
        reporter = Reporter(credentials(1), probe(member.request))
        running = asyncio.ensure_future(reporter.run())
        try:
            if connected:
                reporter.connected(pair.agent, resumed=False)
            yield pair, reporter
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            assert reporter._channels[0]._timer is None, "a timer outlives the reporter"


@asynccontextmanager
async def let_go_after(seconds: float) -> AsyncIterator[None]:
    with mock.patch.object(module, "LET_GO_SECONDS", seconds):
        yield


def test_what_the_apiserver_says_is_known_within_five_seconds() -> None:
    """The last look was just good, the next one gets no answer."""
    assert ASK_EVERY_SECONDS + ASK_TIMEOUT_SECONDS < 4.5


@both_loops
async def test_the_server_learns_the_version_and_every_change() -> None:
    server, member = Server(), Member()
    async with reporting(server, member):
        await until(lambda: server.report.apiserver_version == "v1.34.1")
        assert server.report.apiserver_error is None
        member.answer = version("v1.35.0")
        await until(lambda: server.report.apiserver_version == "v1.35.0")
        assert len(server.streams) == 1


@both_loops
async def test_an_apiserver_that_goes_and_comes_is_reported() -> None:
    """The version stays known meanwhile."""
    server, member = Server(), Member()
    troubles: list[tuple[MemberAnswer | Exception | None, str]] = [
        (ConnectionError("the agent cannot reach its apiserver"), "cannot reach"),
        (None, "does not answer in time"),
        (MemberAnswer(status=401, body={"message": "Unauthorized"}), "own credential"),
        (MemberAnswer(status=500, body={"message": "etcd is\ngone"}), "etcd is gone"),
        (MemberAnswer(status=503, body={}), "HTTP 503"),
    ]
    async with reporting(server, member):
        for answer, words in troubles:
            await until(
                lambda: server.report == MemberReport(apiserver_version="v1.34.1")
            )
            member.answer = answer
            await until(lambda: server.report.apiserver_error)
            assert words in (server.report.apiserver_error or "")
            assert server.report.apiserver_version == "v1.34.1"
            member.answer = version("v1.34.1")


@both_loops
async def test_nothing_is_sent_while_nothing_changes() -> None:
    server, member = Server(), Member()
    async with reporting(server, member) as (pair, _):
        await until(lambda: server.report.apiserver_version)
        (stream,) = server.streams
        received, asked = stream.receive_window.received_offset, member.asked
        await until(lambda: member.asked > asked + 5)
        assert stream.receive_window.received_offset == received


@both_loops
async def test_a_long_error_does_not_break_the_control_stream() -> None:
    server, member = Server(), Member()
    async with reporting(server, member):
        member.answer = ConnectionError("x" * (2 * MAX_LINE_BYTES))
        await until(lambda: server.report.apiserver_error)
        member.answer = version("v" * (2 * MAX_LINE_BYTES))
        await until(lambda: server.report.apiserver_version)
        assert len(server.streams) == 1


# Control streams


@both_loops
async def test_a_stream_without_news_is_let_go_and_the_next_news_opens_another() -> (
    None
):
    server, member = Server(), Member()
    async with let_go_after(0.05), reporting(server, member) as (pair, _):
        await until(lambda: server.report.apiserver_version == "v1.34.1")
        await until(lambda: server.streams[0].closed)
        # Each end has heard of the other's end of it a moment later.
        await until(lambda: not pair.server.session.streams)
        await until(lambda: not pair.agent.session.streams)
        asked = member.asked
        await until(lambda: member.asked > asked + 5)
        assert len(server.streams) == 1, "there was nothing to say"
        member.answer = version("v1.35.0")
        await until(lambda: server.report.apiserver_version == "v1.35.0")
        assert len(server.streams) == 2


@both_loops
async def test_news_keep_a_stream_open() -> None:
    server, member = Server(), Member()
    async with let_go_after(0.5), reporting(server, member):
        for number in range(40):  # for longer than that
            member.answer = version(f"v1.{number}.0")
            await until(
                lambda number=number: (
                    server.report.apiserver_version == f"v1.{number}.0"
                )
            )
        assert len(server.streams) == 1


@both_loops
async def test_a_session_that_goes_on_is_told_only_what_it_has_not_heard() -> None:
    server, member = Server(), Member()
    async with let_go_after(0.02), reporting(server, member) as (pair, reporter):
        await until(lambda: server.streams and server.streams[0].closed)
        reporter.connected(pair.agent, resumed=True)
        asked = member.asked
        await until(lambda: member.asked > asked + 3)
        assert len(server.streams) == 1
        member.answer = version("v1.35.0")
        await until(lambda: server.report.apiserver_version == "v1.35.0")
        # A new session knows nothing.
        server.session.report = MemberReport()
        reporter.connected(pair.agent, resumed=False)
        await until(lambda: server.report.apiserver_version == "v1.35.0")


@both_loops
async def test_a_report_from_before_the_tunnel_is_sent_when_it_is_there() -> None:
    server, member = Server(), Member()
    async with reporting(server, member, connected=False) as (pair, reporter):
        await until(lambda: member.asked > 2)
        assert not server.streams
        reporter.connected(pair.agent, resumed=False)
        await until(lambda: server.report.apiserver_version == "v1.34.1")


@both_loops
async def test_a_control_stream_that_breaks_is_opened_again_on_the_same_tunnel() -> (
    None
):
    server, member = Server(), Member()
    async with reporting(server, member) as (pair, _):
        await until(lambda: server.plain)
        breaks = [
            lambda: server.plain[-1].reset(Code.PROTOCOL, "a line is not JSON"),
            lambda: server.streams[-1].reset(Code.INTERNAL, "a bug"),
            lambda: server.plain[-1].write_eof(),
        ]
        for number, break_ in enumerate(breaks, start=2):
            server.session.report = MemberReport()
            break_()
            await until(lambda number=number: len(server.plain) == number)
            await until(lambda: server.report.apiserver_version == "v1.34.1")
        assert pair.agent.usable
        await until(lambda: len(pair.server.session.streams) == 1)


@both_loops
async def test_a_refused_control_stream_is_tried_again_and_ever_more_slowly() -> None:
    for refusal in ("refuses_at_once", "refuses_agent"):
        server, member = Server(), Member()
        setattr(server, refusal, True)
        async with reporting(server, member) as (_, reporter):
            await until(lambda server=server: len(server.streams) >= 4)
            assert reporter._channels[0]._reopen_seconds >= 0.08
            setattr(server, refusal, False)
            await until(lambda server=server: server.report.apiserver_version)


@both_loops
async def test_nothing_is_said_to_a_peer_that_is_no_server() -> None:
    """Another agent of the zone, in the middle: its certificate is ours, its role is not."""
    server, member = Server(agent()), Member()
    async with reporting(server, member):
        await until(lambda: len(server.streams) >= 2)
        assert server.report == MemberReport()


@both_loops
async def test_a_second_tunnel_gets_a_stream_and_reports_of_its_own() -> None:
    first, second, member = Server(), Server(), Member()
    async with reporting(first, member) as (_, reporter):
        await until(lambda: first.report.apiserver_version)
        async with TunnelPair() as pair:
            pair.server_owner.on_stream = second.open
            reporter.connected(pair.agent, resumed=False)
            await until(lambda: second.report.apiserver_version)
            # The older stream breaks: it is not opened again, there or here.
            first.streams[-1].reset(Code.INTERNAL, "a bug")
            member.answer = version("v1.35.0")
            await until(lambda: second.report.apiserver_version == "v1.35.0")
            assert len(first.streams) == 1 and len(second.streams) == 1


@both_loops
async def test_a_tunnel_that_is_lost_is_not_asked_for_streams() -> None:
    server, member = Server(), Member()
    async with reporting(server, member) as (pair, reporter):
        await until(lambda: server.plain)
        pair.agent.abort("the test cuts it")
        await pair.agent_owner.lost.wait()
        asked = member.asked
        member.answer = version("v1.35.0")
        await until(lambda: member.asked > asked + 3)
        assert (
            reporter._channels[0]._end is None and reporter._channels[0]._timer is None
        )
        reporter.connected(pair.agent, resumed=False)  # as late as that
        assert reporter._channels[0]._end is None
        await pair.server_owner.lost.wait()


@both_loops
async def test_losing_the_tunnel_in_the_handshake_is_no_trouble() -> None:
    server, member = Server(), Member()
    async with reporting(server, member, connected=False) as (pair, reporter):
        reporter.connected(pair.agent, resumed=False)
        pair.agent.abort("the test cuts it")
        await pair.agent_owner.lost.wait()
        await pair.server_owner.lost.wait()
        assert (
            reporter._channels[0]._end is None and reporter._channels[0]._timer is None
        )


def test_the_log_says_why_a_control_stream_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="tower_agent.reporter")

    async def scenario() -> None:
        server, member = Server(), Member()
        async with reporting(server, member):
            await until(lambda: server.plain)
            server.plain[-1].reset(Code.LIMIT, "too many of them")
            await until(lambda: len(server.plain) == 2)

    asyncio.run(scenario())
    (line,) = caplog.messages
    assert "too many of them" in line
