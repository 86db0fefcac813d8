"""TLS inside a stream: two ends over a linked pair, one of each role, no sockets.

Covered: bytes both ways however they are cut, credit in both directions, half-close and
its order, truncation, failures and refusals of the handshake, its deadline and its gate.
"""

import random
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certs.contexts import sealed_client, sealed_server
from certs.names import host_name
from shared.errors import Code, InvalidState, StreamReset
from shared.streams import ByteStream, StreamHandler
from shared.tunnel.tls import (
    MAX_UNTAKEN_BYTES,
    SLICE_BYTES,
    HandshakeGate,
    TlsEnd,
)
from tests.certs.zone import ALPHA, ZONE, Zone
from tests.fakes.streams import LinkedStream, linked_pair
from tests.fakes.upstream import HOST_NAME, loopback_tls

SERVER, CLIENT = loopback_tls()


class Recorder:
    """A plaintext handler that takes everything, or nothing until told."""

    def __init__(self) -> None:
        self.stream: ByteStream | None = None
        self.received = bytearray()
        self.events: list[object] = []
        self.takes = True
        self.untaken = 0

    def data_received(self, data: bytes | memoryview) -> None:
        assert "eof" not in self.events
        self.received += data
        self.untaken += len(data)
        if self.takes:
            self.take()

    def take(self) -> None:
        count, self.untaken = self.untaken, 0
        if count and self.stream is not None:
            self.stream.taken(count)

    def eof_received(self) -> None:
        self.events.append("eof")

    def stream_closed(self, error: StreamReset | None) -> None:
        self.events.append(("closed", error and error.code))

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


class Timers:
    """call_later without a clock: the test fires."""

    def __init__(self) -> None:
        self.pending: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, delay: float, callback: Callable[[], None]) -> "Timers.Handle":
        entry = (delay, callback)
        self.pending.append(entry)
        return Timers.Handle(self, entry)

    class Handle:
        def __init__(
            self, timers: "Timers", entry: tuple[float, Callable[[], None]]
        ) -> None:
            self.timers, self.entry = timers, entry

        def cancel(self) -> None:
            if self.entry in self.timers.pending:
                self.timers.pending.remove(self.entry)

    def fire(self) -> float:
        delay, callback = self.pending.pop(0)
        callback()
        return delay


class Ends:
    """A server's and a client's TlsEnd, linked; `run` delivers until nothing moves."""

    def __init__(
        self,
        *,
        window: int = 256 * 1024,
        server_context: ssl.SSLContext = SERVER,
        client_context: ssl.SSLContext = CLIENT,
        host_name: str = HOST_NAME,
        on_handshake: Callable[[ByteStream, ssl.SSLObject], StreamHandler]
        | None = None,
        gate: HandshakeGate | None = None,
    ) -> None:
        self.timers = Timers()
        self.failures: list[str] = []
        self.client, self.server = Recorder(), Recorder()
        self.far, self.near = linked_pair(window)
        self.server_end = TlsEnd(
            server_context,
            server_side=True,
            on_handshake=on_handshake or self._accept(self.server),
            call_later=self.timers,
            on_failed=self.failures.append,
            gate=gate,
        )
        self.client_end = TlsEnd(
            client_context,
            server_side=False,
            server_hostname=host_name,
            on_handshake=self._accept(self.client),
            call_later=self.timers,
        )
        self.near.handler, self.far.handler = self.server_end, self.client_end
        self.server_end.start(self.near)
        self.client_end.start(self.far)

    @staticmethod
    def _accept(
        recorder: Recorder,
    ) -> Callable[[ByteStream, ssl.SSLObject], StreamHandler]:
        def accept(stream: ByteStream, ssl_object: ssl.SSLObject) -> StreamHandler:
            assert ssl_object.version() == "TLSv1.3"
            recorder.stream = stream
            return recorder

        return accept

    def run(self, step: Callable[[], int | None] = lambda: None) -> "Ends":
        while self.far.deliver(step()) | self.near.deliver(step()):
            pass
        return self


def test_bytes_pass_both_ways_after_the_handshake() -> None:
    ends = Ends().run()
    ends.client_end.write(b"ping")
    ends.server_end.write(b"pong")
    ends.run()
    assert (ends.server.received, ends.client.received) == (b"ping", b"pong")
    assert not ends.timers.pending, "the handshake's deadline still runs"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 40_000) | st.integers(1, 300_000), max_size=8),
    top=st.sampled_from([1, 7, 1000, 70_000, 500_000]),
)
def test_no_byte_is_lost_however_the_ciphertext_is_cut(
    seed: int, sizes: list[int], top: int
) -> None:
    if top == 1:
        sizes = [size % 300 + 1 for size in sizes]
    chance = random.Random(seed)
    ends = Ends()
    ends.run(lambda: chance.randint(1, top))
    up, down = bytearray(), bytearray()
    for size in sizes:
        data = chance.randbytes(size)
        if chance.random() < 0.5:
            ends.client_end.write(data)
            up += data
        else:
            ends.server_end.write(data)
            down += data
    ends.client_end.write_eof()
    ends.run(lambda: chance.randint(1, top))
    ends.server_end.write_eof()
    ends.run(lambda: chance.randint(1, top))
    assert (ends.server.received, ends.client.received) == (up, down)
    assert ends.client.events == ["eof", ("closed", None)]
    assert ends.server.events == ["eof", ("closed", None)]


def test_a_handler_that_takes_nothing_stalls_the_far_writer_and_loses_nothing() -> None:
    window = 4 * MAX_UNTAKEN_BYTES
    ends = Ends(window=window).run()
    ends.server.takes = False
    data = random.Random(1).randbytes(8 * MAX_UNTAKEN_BYTES)
    ends.client_end.write(data)
    ends.run()
    assert MAX_UNTAKEN_BYTES <= len(ends.server.received) < 2 * MAX_UNTAKEN_BYTES
    assert ends.far.outgoing, "the writer was not stalled"
    while ends.server.untaken:
        ends.server.take()
        ends.run()
    assert ends.server.received == data


@pytest.mark.parametrize("record", [1000, 8 * 1024 - 22, 16 * 1024 - 22, 16 * 1024])
def test_an_end_that_came_while_nothing_was_taken_comes_after_the_data(
    record: int,
) -> None:
    """Some records fill slices to the byte: then OpenSSL holds nothing, and much waits."""
    ends = Ends(window=4 * MAX_UNTAKEN_BYTES).run()
    ends.server.takes = False
    data = random.Random(4).randbytes(3 * MAX_UNTAKEN_BYTES // record * record)
    flight = bytearray()
    ends.far.write = flight.extend  # type: ignore[method-assign]
    for start in range(0, len(data), record):
        ends.client_end.write(data[start : start + record])
    del ends.far.write  # type: ignore[method-assign]
    ends.far.write(flight)
    ends.client_end.write_eof()
    ends.run()
    assert len(ends.server.received) < len(data) and not ends.server.events
    while ends.server.untaken:
        ends.server.take()
        ends.run()
    assert ends.server.received == data and ends.server.events == ["eof"]


def test_openssls_buffers_hold_a_slice_at_most_however_much_comes_at_once() -> None:
    """They never shrink again, so an idle connection would keep its largest write."""
    ends = Ends(window=4 * MAX_UNTAKEN_BYTES).run()
    data = random.Random(2).randbytes(2 * MAX_UNTAKEN_BYTES)
    written: list[int] = []
    write, receive = ends.far.write, ends.server.data_received

    def watched_write(piece: bytes | memoryview) -> None:
        written.append(len(piece))
        write(piece)

    def watched_receive(piece: bytes | memoryview) -> None:
        assert ends.server_end._incoming.pending <= SLICE_BYTES
        receive(piece)

    ends.far.write = watched_write  # type: ignore[method-assign]
    ends.server.data_received = watched_receive  # type: ignore[method-assign]
    ends.client_end.write(data)
    ends.run()
    assert ends.server.received == data
    assert max(written) < SLICE_BYTES + 200 and len(written) == len(data) // SLICE_BYTES
    # What comes while nothing is taken waits outside, too.
    ends.server.takes = False
    for start in range(0, len(data), 1000):
        ends.client_end.write(data[start : start + 1000])
        ends.run()
        assert ends.server_end._incoming.pending <= SLICE_BYTES
    while ends.server.untaken:
        ends.server.take()
        ends.run()
    assert ends.server.received == data + data


def test_data_may_come_in_one_piece_with_the_end_of_the_handshake() -> None:
    ends = Ends()
    data = random.Random(3).randbytes(200_000)
    ends.far.deliver()
    ends.near.deliver()
    ends.client_end.write(data)
    ends.far.deliver()
    ends.run()
    assert ends.server.received == data


def test_a_handshake_may_be_larger_than_a_slice(tmp_path: Path) -> None:
    """Chains with everything that somebody ever collected do exist."""
    zone = Zone(tmp_path / "ca")
    agent, user = zone.agent(), zone.user()
    chain = user.chain_pem + b"".join(zone.user().chain_pem for _ in range(80))
    ends = Ends(
        server_context=sealed_server(agent.chain_pem, agent.key_pem, zone.ca_pem),
        client_context=sealed_client(chain, user.key_pem, zone.ca_pem),
        host_name=host_name(ALPHA, ZONE),
    )
    ends.far.deliver()
    ends.near.deliver()
    assert len(ends.far.outgoing) > SLICE_BYTES
    ends.run()
    ends.client_end.write(b"hello")
    ends.run()
    assert ends.server.received == b"hello"


def test_all_of_the_window_is_credited_when_all_is_taken() -> None:
    ends = Ends().run()
    for _ in range(50):
        ends.client_end.write(b"x" * 60_000)
        ends.run()
    assert ends.near.untaken == 0
    assert ends.near.max_untaken <= ends.near.window


def test_pausing_is_handed_up_also_when_it_began_before_the_handshake() -> None:
    ends = Ends()
    ends.server_end.pause_writing()
    ends.run()
    ends.server_end.resume_writing()
    ends.client_end.pause_writing()
    assert ends.server.events == ["pause", "resume"]
    assert ends.client.events == ["pause"]


def test_half_close_leaves_the_other_direction_open() -> None:
    ends = Ends().run()
    ends.client_end.write(b"question")
    ends.client_end.write_eof()
    ends.run()
    assert ends.server.events == ["eof"]
    ends.server_end.write(b"a long answer" * 1000)
    ends.run()
    assert ends.client.received == b"a long answer" * 1000
    ends.server_end.write_eof()
    ends.run()
    assert ends.client.events == ends.server.events == ["eof", ("closed", None)]


def test_bytes_that_wait_undecrypted_survive_our_own_half_close() -> None:
    ends = Ends(window=4 * MAX_UNTAKEN_BYTES).run()
    ends.server.takes = False
    data = random.Random(2).randbytes(2 * MAX_UNTAKEN_BYTES)
    ends.client_end.write(data)
    ends.client_end.write_eof()
    ends.run()
    ends.server_end.write_eof()
    ends.run()
    while ends.server.untaken:
        ends.server.take()
        ends.run()
    assert ends.server.received == data
    assert ends.server.events == ["eof", ("closed", None)]


def test_ciphertext_that_ends_without_close_notify_is_an_error() -> None:
    ends = Ends().run()
    ends.client_end.write(b"half a")
    ends.far.write_eof()
    ends.run()
    assert ends.server.received == b"half a"
    assert ends.server.events == [("closed", Code.CANCELLED)]
    assert ends.near.reset_with is not None


def test_after_our_own_end_the_peer_may_leave_without_close_notify() -> None:
    ends = Ends().run()
    ends.server_end.write_eof()
    ends.run()
    ends.far.write_eof()
    ends.run()
    assert ends.server.events == ["eof", ("closed", None)]


def test_garbage_instead_of_a_record_resets_the_stream() -> None:
    ends = Ends().run()
    ends.far.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    ends.run()
    assert ends.server.events == [("closed", Code.PROTOCOL)]


def test_a_reset_from_below_reaches_the_handler() -> None:
    ends = Ends().run()
    ends.far.reset(Code.SESSION_LOST, "the tunnel is gone")
    assert ends.server.events == [("closed", Code.SESSION_LOST)]


def test_our_own_reset_reaches_the_stream_and_not_our_handler() -> None:
    ends = Ends().run()
    ends.server_end.reset(Code.REVOKED, "revoked")
    ends.server_end.write(b"nothing")
    assert ends.near.reset_with == (Code.REVOKED, "revoked")
    assert ends.server.events == []
    assert ends.client.events == [("closed", Code.REVOKED)]


def test_an_untrusting_client_gets_to_say_so_before_the_stream_is_dropped() -> None:
    ends = Ends(client_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)).run()
    assert ends.failures and "TLS handshake failed" in ends.failures[0]
    assert "ALERT" in ends.failures[0].upper()
    assert ends.server.stream is None
    assert ends.near.is_closed and ends.far.is_closed
    assert not ends.timers.pending


def test_a_stream_whose_handshake_failed_is_dropped_if_the_peer_stays() -> None:
    ends = Ends()
    ends.far.outgoing[:] = b"not TLS at all"
    ends.far.deliver()
    assert ends.near.eof_written and ends.near.reset_with is None
    ends.far.write(b"x" * 1000)
    ends.far.deliver()
    ends.timers.pending.pop(0)[1]  # the client's own deadline
    assert ends.timers.fire() == 2.0
    assert ends.near.reset_with is not None


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (StreamReset(Code.REVOKED, "this certificate is revoked"), Code.REVOKED),
        (ValueError("the certificate has no role"), Code.REFUSED),
    ],
)
def test_whoever_checks_the_certificate_can_refuse(
    refusal: Exception, code: Code
) -> None:
    def refuse(stream: ByteStream, ssl_object: ssl.SSLObject) -> StreamHandler:
        raise refusal

    ends = Ends(on_handshake=refuse).run()
    assert ends.near.reset_with is not None and ends.near.reset_with[0] is code
    assert ends.failures == [ends.near.reset_with[1]]


def test_a_handshake_has_ten_seconds() -> None:
    gate = HandshakeGate()
    ends = Ends(gate=gate)
    assert gate.half_open == 1
    assert ends.timers.fire() == 10.0
    assert ends.near.reset_with is not None
    assert ends.near.reset_with[0] is Code.TIMEOUT
    assert ends.failures == ["no TLS handshake within 10 s"]
    assert gate.half_open == 0


def test_only_so_many_handshakes_at_a_time() -> None:
    gate = HandshakeGate(2)
    first, second, third = Ends(gate=gate), Ends(gate=gate), Ends(gate=gate)
    assert third.near.reset_with is not None
    assert third.near.reset_with[0] is Code.LIMIT
    assert gate.half_open == 2
    first.run()
    second.near.reset(Code.CANCELLED, "gone")
    second.server_end.stream_closed(StreamReset(Code.CANCELLED, "gone"))
    assert gate.half_open == 0
    assert not Ends(gate=gate).run().failures


def test_taking_more_than_came_is_our_own_bug() -> None:
    ends = Ends().run()
    with pytest.raises(InvalidState):
        ends.server_end.taken(1)


def test_one_delivery_and_the_answers_to_it_are_one_write() -> None:
    ends = Ends().run()
    writes: list[int] = []

    class Near(LinkedStream):
        def write(self, data: bytes | memoryview) -> None:
            writes.append(len(data))
            super().write(data)

    ends.near.__class__ = Near

    def answer(data: bytes | memoryview) -> None:
        for _ in range(5):
            ends.server_end.write(b"part")
        ends.server_end.taken(len(data))

    ends.server.data_received = answer  # type: ignore[method-assign]
    ends.client_end.write(b"question")
    ends.run()
    assert ends.client.received == b"part" * 5
    assert len(writes) == 1
