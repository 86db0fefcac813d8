"""The faulty relay itself: it relays, freezes, cuts with a RST, tears, refuses and comes back.

A fault that does not happen would make every test that relies on it pass for nothing.
"""

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.fakes.faults import FaultyRelay


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A TCP server that sends back what it gets, and EOF for EOF."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def relay(echo: tuple[str, int]) -> Iterator[FaultyRelay]:
    with FaultyRelay(echo) as relay:
        yield relay


def dial(relay: FaultyRelay) -> socket.socket:
    connection = socket.create_connection((relay.host, relay.port), timeout=5)
    connection.settimeout(5)
    return connection


def test_bytes_and_half_close_pass(relay: FaultyRelay) -> None:
    with dial(relay) as connection:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").read() == b"hello"
    assert relay.connections_accepted == 1
    assert relay.bytes_relayed == 10


def test_a_large_body_arrives_whole_before_the_end(relay: FaultyRelay) -> None:
    body = bytes(range(256)) * 20_000
    with dial(relay) as connection:
        thread = threading.Thread(target=connection.sendall, args=(body,))
        thread.start()
        received = b""
        while len(received) < len(body):
            received += connection.recv(1 << 20)
        thread.join()
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert received == body


def test_a_frozen_link_is_silent_and_delivers_when_it_thaws(relay: FaultyRelay) -> None:
    with dial(relay) as connection:
        connection.sendall(b"before")
        assert connection.recv(100) == b"before"
        relay.freeze()
        connection.sendall(b"held")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        relay.thaw()
        connection.settimeout(5)
        assert connection.recv(100) == b"held"


def test_a_frozen_link_accepts_connections_that_say_nothing(relay: FaultyRelay) -> None:
    relay.freeze()
    with dial(relay) as connection:
        connection.sendall(b"anybody?")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(100)


def test_a_cut_connection_is_reset_and_the_next_one_works(relay: FaultyRelay) -> None:
    with dial(relay) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        relay.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with dial(relay) as connection:
        connection.sendall(b"y")
        assert connection.recv(1) == b"y"


def test_a_torn_connection_delivers_exactly_that_many_bytes(relay: FaultyRelay) -> None:
    with dial(relay) as connection:
        relay.cut_after(13)  # ten to the echo, three on the way back
        connection.sendall(b"0123456789")
        received = b""
        try:
            while data := connection.recv(100):
                received += data
        except ConnectionResetError:
            pass
        # A RST may overtake bytes that lie in our kernel, never add any.
        assert b"012".startswith(received)


def test_a_refusing_relay_keeps_its_port_for_later(relay: FaultyRelay) -> None:
    port = relay.port
    relay.refuse()
    with pytest.raises(ConnectionRefusedError):
        dial(relay)
    relay.accept()
    assert relay.port == port
    with dial(relay) as connection:
        connection.sendall(b"back")
        assert connection.recv(100) == b"back"


def test_an_unreachable_target_ends_the_connection(relay: FaultyRelay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        relay.target = unused.getsockname()
    with dial(relay) as connection:
        try:
            assert connection.recv(1) == b""
        except ConnectionResetError:
            pass
