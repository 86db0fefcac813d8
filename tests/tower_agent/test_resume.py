"""Sessions that survive their connection: link, listener and parking together, over real sockets.

Covered: streams go on after cuts and freezes, byte for byte and both ways; what ends
instead of going on: an agent that was restarted, a server that was, a resume time that is over, a thief with the
right session id; and that nothing waits where resuming is switched off.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable
from contextlib import suppress

from shared.errors import Code, StreamReset
from shared.mux.session import Role, Session
from shared.mux.stream import Stream
from tests.fakes.host_side import ZONE, Owner, until
from tests.fakes.tunnel_pair import both_loops
from tests.tower_agent.test_link_loopback import Site, connected_site
from tests.tower_server.test_client_hello import openssl_hello
from tower_agent.dialer import Dialer
from tower_server.front_door import HOLD_SECONDS

CHUNK_BYTES = 50_000


class Echo:
    """The agent's end of a stream: gives back what comes, keeps what it was told."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.ends: list[StreamReset | None] = []
        self._paused = False
        self._has_eof = False
        self._held: list[bytes] = []

    def data_received(self, data: bytes | memoryview) -> None:
        self._held.append(bytes(data))
        self._pass_on()

    def _pass_on(self) -> None:
        while self._held and not self._paused:
            data = self._held.pop(0)
            self.stream.write(data)
            self.stream.taken(len(data))
        if self._has_eof and not self._held:
            self.stream.write_eof()

    def eof_received(self) -> None:
        self._has_eof = True
        self._pass_on()

    def stream_closed(self, error: StreamReset | None) -> None:
        self.ends.append(error)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pass_on()


def stolen(session: Session) -> Session:
    """A session of a thief's making that has the id of another."""
    copy = Session(Role.AGENT, session.hello, Silent(), 0.0, says_hello=False)
    copy.peer = session.peer
    copy.detach()
    return copy


class Silent:
    """A session's handler that nobody tells anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Reader:
    """The server's end: digests what comes back."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.received_bytes = 0
        self.digest = hashlib.sha256()
        self.ends: list[StreamReset | None] = []
        self.may_write = asyncio.Event()
        self.may_write.set()

    def data_received(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.received_bytes += len(data)
        self.stream.taken(len(data))

    def eof_received(self) -> None:
        pass

    def stream_closed(self, error: StreamReset | None) -> None:
        self.ends.append(error)

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()


def echoing(site: Site) -> list[Echo]:
    """From now on streams to the agent are echoed."""
    echoes: list[Echo] = []

    def open_sealed(stream: Stream) -> None:
        echoes.append(Echo(stream))
        stream.handler = echoes[-1]

    site.agent.dispatcher._open_sealed = open_sealed
    return echoes


def open_reader(site: Site) -> Reader:
    session = site.host.registry.pick("alpha")  # type: ignore[arg-type]
    assert session is not None
    stream = session.connection.session.open_stream("sealed")
    reader = Reader(stream)
    stream.handler = reader
    return reader


async def send(reader: Reader, total_bytes: int, seed: int) -> str:
    """Write pseudo-random bytes and EOF; returns their digest."""
    digest, rng = hashlib.sha256(), random.Random(seed)
    for _ in range(total_bytes // CHUNK_BYTES):
        await reader.may_write.wait()
        data = rng.randbytes(CHUNK_BYTES)
        digest.update(data)
        reader.stream.write(data)
        await asyncio.sleep(0)
    reader.stream.write_eof()
    return digest.hexdigest()


@both_loops
async def test_streams_go_on_after_every_cut_byte_for_byte() -> None:
    total = 100 * CHUNK_BYTES
    async with connected_site(resume_seconds=60) as site:
        echoes = echoing(site)
        readers = [open_reader(site) for _ in range(3)]
        sending = [
            asyncio.ensure_future(send(reader, total, seed))
            for seed, reader in enumerate(readers)
        ]
        for cut in range(1, 5):
            await until(
                lambda cut=cut: readers[0].received_bytes > cut * total // 6, 20
            )
            site.relay.cut_after(10_000 * cut + 7)
            await until(lambda cut=cut: len(site.agent.connected_at) > cut, 20)
        digests = await asyncio.gather(*sending)
        await until(lambda: all(reader.ends for reader in readers), 20)
        assert [reader.ends for reader in readers] == [[None]] * 3
        assert [reader.digest.hexdigest() for reader in readers] == digests
        await until(lambda: all(echo.ends == [None] for echo in echoes))
        assert site.host.parking.resumed >= 4 and len(site.host.parking) == 0


@both_loops
async def test_a_frozen_link_is_replaced_and_its_streams_go_on() -> None:
    async with connected_site(resume_seconds=60) as site:
        echoing(site)
        reader = open_reader(site)
        reader.stream.write(b"before")
        await until(lambda: reader.received_bytes == 6)
        site.relay.freeze()
        reader.stream.write(b"during")
        await until(lambda: site.agent.link.current is None, 6)
        site.relay.thaw()
        await until(lambda: reader.received_bytes == 12, 6)
        assert not reader.ends


@both_loops
async def test_when_the_resume_time_is_over_both_ends_are_told() -> None:
    async with connected_site(resume_seconds=1) as site:
        echoes = echoing(site)
        reader = open_reader(site)
        reader.stream.write(b"x")
        await until(lambda: echoes)
        site.relay.refuse()
        await until(lambda: reader.ends and echoes[0].ends, 6)
        for error in (reader.ends[0], echoes[0].ends[0]):
            assert error is not None and error.code is Code.SESSION_LOST
            assert "over 1 s" in error.reason
        assert site.host.parking.expired == 1
        site.relay.accept()
        await until(lambda: site.sessions == 1)
        again = open_reader(site)
        again.stream.write(b"y")
        await until(lambda: again.received_bytes == 1)


@both_loops
async def test_an_agent_that_was_restarted_ends_what_it_has_forgotten() -> None:
    async with connected_site(resume_seconds=60) as site:
        echoing(site)
        site.agent.dialer._place, site.agent.dialer._instance = "here", "first"
        await site.host.registry.cut("alpha", Code.GOING_AWAY, "again")  # type: ignore[arg-type]
        await until(lambda: site.sessions == 1 and len(site.agent.connected_at) == 2)
        reader = open_reader(site)
        # The new process knows of no session, but comes from the same place.
        site.agent.dialer._instance = "second"
        site.agent.link._kept.keep = lambda session: session.close(Code.OK, "killed")  # type: ignore[method-assign]
        site.relay.cut()
        await until(lambda: reader.ends)
        assert reader.ends[0] is not None
        assert reader.ends[0].reason == "the agent was restarted"


@both_loops
async def test_a_server_that_has_forgotten_ends_the_agents_streams_at_once() -> None:
    async with connected_site(resume_seconds=60) as site:
        echoes = echoing(site)
        reader = open_reader(site)
        reader.stream.write(b"x")
        await until(lambda: echoes)
        site.relay.refuse()
        await until(lambda: len(site.host.parking) == 1)
        site.host.parking.end(lambda _: True, Code.SESSION_LOST, "restart")
        site.relay.accept()
        await until(lambda: echoes[0].ends, 5)
        assert echoes[0].ends[0] is not None
        assert "does not have the session" in echoes[0].ends[0].reason
        again = open_reader(site)
        again.stream.write(b"y")
        await until(lambda: again.received_bytes == 1)


@both_loops
async def test_a_session_id_is_worth_nothing_without_its_agents_key() -> None:
    async with connected_site(resume_seconds=60) as site:
        echoing(site)
        reader = open_reader(site)
        current = site.agent.link.current
        assert current is not None
        thief = Dialer(await site.host.join("beta"), Owner(), environ={})
        tunnel = await thief.dial(stolen(current.session))
        await until(lambda: tunnel.usable)
        assert not tunnel.session.streams and tunnel.session.peer is not None
        assert not tunnel.session.peer.resume
        reader.stream.write(b"still mine")
        await until(lambda: reader.received_bytes == 10)
        tunnel.abort("the test is over")


@both_loops
async def test_nothing_waits_where_resuming_is_off() -> None:
    async with connected_site(resume_seconds=0) as site:
        echoes = echoing(site)
        reader = open_reader(site)
        reader.stream.write(b"x")
        await until(lambda: echoes)
        site.relay.cut()
        await until(lambda: reader.ends and echoes[0].ends)
        assert reader.ends[0] is not None and len(site.host.parking) == 0


@both_loops
async def test_strangers_wait_no_longer_than_new_connections_do() -> None:
    """A caller that nobody has authenticated yet is held for two seconds, not for a minute."""
    async with connected_site(resume_seconds=60) as site:
        echoing(site)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.host.port)
        hello = openssl_hello(f"alpha.{ZONE}")
        writer.write(hello)
        await until(lambda: site.host.door._half_open)
        site.relay.refuse()
        async with asyncio.timeout(HOLD_SECONDS + 1):
            with suppress(ConnectionError):
                # What the agent has echoed comes, and then the end.
                assert await reader.read() in (b"", hello)
        assert len(site.host.parking) == 1 and not site.host.door._half_open
        writer.close()
