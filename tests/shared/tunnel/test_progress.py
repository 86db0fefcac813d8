"""Whether a connection's writes still leave, with a transport and times given by hand.

Covered: each of the three things that may move, a peer that takes nothing, beginning and
ending to watch. Real peers that stop reading are in test_connection.
"""

import sys
from types import SimpleNamespace

from shared.mux.session import Role, Session
from shared.tunnel.progress import (
    LEAST_PROGRESS_BYTES,
    WRITE_DEADLINE_SECONDS,
    WriteProgress,
)
from tests.fakes.session_pair import End, hello


class Transport:
    """What a transport and its socket's TCP_INFO say."""

    def __init__(self) -> None:
        self.held_bytes = 1000
        self.acked_bytes = 5000

    def get_write_buffer_size(self) -> int:
        return self.held_bytes

    def get_extra_info(self, name: str):
        return SimpleNamespace(getsockopt=self._tcp_info)

    def _tcp_info(self, level: int, option: int, size: int) -> bytes:
        return bytes(120) + self.acked_bytes.to_bytes(8, sys.byteorder)


def watched(now: float) -> tuple[WriteProgress, Transport, Session]:
    progress, transport = WriteProgress(), Transport()
    session = Session(Role.AGENT, hello(), End(), now)
    progress.begin(transport, session, now)  # type: ignore[arg-type]
    return progress, transport, session


def test_a_peer_that_takes_nothing_is_stuck_after_the_deadline() -> None:
    progress, transport, session = watched(100.0)
    assert not progress.is_stuck(transport, session, 104.4)
    assert progress.is_stuck(transport, session, 100.0 + WRITE_DEADLINE_SECONDS)


def test_anything_that_moves_is_progress() -> None:
    """On a slow link a TLS transport's own buffer stands still for seconds."""

    def kernel(transport: Transport, _: Session) -> None:
        transport.acked_bytes += LEAST_PROGRESS_BYTES

    def buffer(transport: Transport, _: Session) -> None:
        transport.held_bytes -= 1

    def ack(_: Transport, session: Session) -> None:
        session.replay.acked_count += 1

    for move in (kernel, buffer, ack):
        progress, transport, session = watched(100.0)
        assert not progress.is_stuck(transport, session, 104.0)
        move(transport, session)
        assert not progress.is_stuck(transport, session, 105.0)
        assert not progress.is_stuck(transport, session, 109.0)
        assert progress.is_stuck(transport, session, 109.5)


def test_answers_to_a_peer_that_only_speaks_are_no_progress() -> None:
    progress, transport, session = watched(100.0)
    for look in range(8):
        transport.acked_bytes += 500
        assert not progress.is_stuck(transport, session, 100.5 + look / 2)
    assert progress.is_stuck(transport, session, 104.5)


def test_watching_begins_once_and_anew_after_its_end() -> None:
    progress, transport, session = watched(100.0)
    progress.begin(transport, session, 103.0)
    assert progress.is_stuck(transport, session, 104.5)
    progress.end()
    assert not progress.is_watching
    progress.begin(transport, session, 105.0)
    assert progress.is_watching and not progress.is_stuck(transport, session, 109.0)
