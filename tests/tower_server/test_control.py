"""The control stream's server end: whom it believes, and what it makes of lines.

Covered: only the very certificate of the tunnel over real mutual TLS, reports in any
pieces, unknown kinds and fields, values of wrong types, garbage, oversized lines, ends.
"""

import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.assertion import AgentIdentity
from certs.authority import Authority
from certs.chains import pem
from certs.contexts import inner_client, inner_server
from certs.keys import certificate_request, new_key, private_pem, spki_pin
from certs.names import ClusterName
from shared.errors import Code
from shared.member.report import MAX_TEXT_CHARS
from shared.wire.hello import Hello
from tests.fakes.streams import FakeStream
from tower_server.control import (
    MAX_LINE_BYTES,
    ControlEnd,
    identify_agent,
)
from tower_server.registry import LiveSession, MemberReport

ZONE = "clusters.tower.internal"


def session(cluster: str = "alpha", key_pin: str = "") -> LiveSession:
    identity = AgentIdentity(
        cluster=ClusterName(cluster),
        serial=1,
        public_key_pin=key_pin,
        not_after=datetime.max.replace(tzinfo=UTC),
    )
    return LiveSession(
        identity,
        None,  # type: ignore[arg-type]
        Hello(session_id="", window_bytes=1, software="agent/1"),
    )


def line(**fields: object) -> bytes:
    return json.dumps({"kind": "report", **fields}).encode() + b"\n"


# Lines


@given(st.lists(st.integers(1, 40), max_size=20))
def test_reports_may_come_in_any_pieces_and_the_last_one_counts(
    sizes: list[int],
) -> None:
    data = line(apiserver_version="v1") + line(
        apiserver_version="v2", apiserver_error="it is slow", more=[1, {}]
    )
    live, stream = session(), FakeStream()
    end = ControlEnd(live, stream)
    rest = data
    for size in [*sizes, len(data)]:
        if rest[:size]:
            end.data_received(memoryview(rest[:size]))
        rest = rest[size:]
    assert live.report == MemberReport(
        apiserver_version="v2", apiserver_error="it is slow"
    )
    assert stream.taken_bytes == len(data) and stream.reset_with is None


@pytest.mark.parametrize(
    "message", [b"{}\n", b"[]\n", b"null\n", b"7\n", b'{"kind":"later"}\n']
)
def test_other_kinds_of_messages_are_skipped(message: bytes) -> None:
    live, stream = session(), FakeStream()
    ControlEnd(live, stream).data_received(message)
    assert live.report == MemberReport() and stream.reset_with is None


@pytest.mark.parametrize("value", [None, 7, ["v1"], {"a": 1}, True])
def test_a_field_that_is_no_text_is_not_known(value: object) -> None:
    live = session()
    ControlEnd(live, FakeStream()).data_received(line(apiserver_version=value))
    assert live.report.apiserver_version is None


def test_texts_are_safe_to_show() -> None:
    live = session()
    ControlEnd(live, FakeStream()).data_received(
        line(apiserver_error="\x1b[31mred\n" + "x" * 1000)
    )
    assert live.report.apiserver_error is not None
    assert live.report.apiserver_error.startswith("[31mredxxx")
    assert len(live.report.apiserver_error) == MAX_TEXT_CHARS


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\n",
        b"\n",
        b"\xff\xfe\n",
        b"[" * 10_000 + b"\n",
        b"9" * 5_000 + b"\n",
        b"x" * (MAX_LINE_BYTES + 1),
        b'"' + b"x" * MAX_LINE_BYTES + b'"\n',
    ],
)
def test_what_is_no_line_of_json_ends_the_stream_once(data: bytes) -> None:
    live, stream = session(), FakeStream()
    ControlEnd(live, stream).data_received(data + line(apiserver_version="v1"))
    assert stream.reset_with is not None and stream.reset_with[0] is Code.PROTOCOL
    assert live.report == MemberReport(), "what follows garbage is not believed"


def test_the_agents_end_is_answered_with_ours() -> None:
    stream = FakeStream()
    end = ControlEnd(session(), stream)
    end.eof_received()
    assert stream.has_eof
    end.stream_closed(None)


# Who


class Peers:
    """Real mutual TLS between the server and whoever has a certificate."""

    def __init__(self, directory: Path) -> None:
        self.now = datetime.now(UTC)
        self.authority = Authority.open_or_create(directory, ZONE, self.now)
        key = new_key()
        issued = self.authority.issue_server(key.public_key(), ["x"], self.now)
        self.server = (pem(issued), private_pem(key), self.authority.pem)

    def agent(self, cluster: str) -> tuple[str, tuple[bytes, bytes, bytes]]:
        key = new_key()
        issued = self.authority.issue_agent(
            certificate_request(key), ClusterName(cluster), self.now
        )
        return spki_pin(key.public_key()), (
            pem(issued),
            private_pem(key),
            self.authority.pem,
        )

    def user(self) -> tuple[str, tuple[bytes, bytes, bytes]]:
        key = new_key()
        issued = self.authority.issue_user(
            key.public_key(), "u", ["g"], None, timedelta(hours=1), self.now
        )
        return spki_pin(key.public_key()), (
            pem(issued),
            private_pem(key),
            self.authority.pem,
        )

    def met(self, client: tuple[bytes, bytes, bytes]) -> ssl.SSLObject:
        """The server's end after the handshake."""
        a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = inner_server(*self.server).wrap_bio(a, b, server_side=True)
        agent = inner_client(*client).wrap_bio(b, a)
        for _ in range(4):
            for end in (agent, server):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
        return server


@pytest.fixture
def peers(tmp_path: Path) -> Peers:
    tmp_path.chmod(0o700)
    return Peers(tmp_path)


def test_the_agent_of_the_tunnel_is_believed(peers: Peers) -> None:
    key_pin, identity = peers.agent("alpha")
    identify_agent(peers.met(identity), session("alpha", key_pin), ZONE)


def test_another_clusters_agent_is_not(peers: Peers) -> None:
    key_pin, identity = peers.agent("beta")
    with pytest.raises(ValueError):
        identify_agent(peers.met(identity), session("alpha", key_pin), ZONE)


def test_another_key_of_the_same_cluster_is_not(peers: Peers) -> None:
    _, identity = peers.agent("alpha")
    with pytest.raises(ValueError, match="another than that of the tunnel"):
        identify_agent(peers.met(identity), session("alpha", "sha256:00"), ZONE)


def test_a_user_is_not(peers: Peers) -> None:
    key_pin, identity = peers.user()
    with pytest.raises(ValueError):
        identify_agent(peers.met(identity), session("alpha", key_pin), ZONE)


def test_another_zone_is_not(peers: Peers) -> None:
    key_pin, identity = peers.agent("alpha")
    with pytest.raises(ValueError):
        identify_agent(peers.met(identity), session("alpha", key_pin), "other.zone")
