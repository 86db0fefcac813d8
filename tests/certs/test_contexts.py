"""TLS contexts: real handshakes, both ends in memory.

Covers who gets in and who does not (no certificate, other CA, expired, self-signed, TLS 1.2),
that no session is ever resumed, names, protocols (ALPN), what a role check adds, the modes of
the outer TLS, damaged identities, and that neither environment nor disk gets at a key.
"""

import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from certs import contexts
from certs.contexts import (
    HTTP_PROTOCOL,
    INNER_PROTOCOL,
    apiserver_client,
    inner_client,
    inner_server,
    outer_client,
    own_https,
    peer_certificate,
    peer_user,
    sealed_client,
    sealed_server,
    unverified,
)
from certs.names import AgentRole, RoleError, ServerRole, require_role, user_identity
from tests.certs.zone import ALPHA, BETA, NOW, ZONE, Holder, Zone

ALPHA_HOST = f"alpha.{ZONE}"


@dataclass
class Pair:
    """Both ends of a TLS connection and the two wires between them."""

    client: ssl.SSLObject
    server: ssl.SSLObject
    to_client: ssl.MemoryBIO
    to_server: ssl.MemoryBIO

    def exchange(self, data: bytes) -> bytes:
        """Send from client to server and back: all that TLS does later happens here."""
        self.client.write(data)
        self.server.write(self.server.read())
        return self.client.read()


def connect(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    host: str | None = ALPHA_HOST,
    session: ssl.SSLSession | None = None,
) -> Pair:
    """Shake hands; raises what the side that objects first raises."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    pair = Pair(
        client.wrap_bio(to_client, to_server, server_hostname=host, session=session),
        server.wrap_bio(to_server, to_client, server_side=True),
        to_client,
        to_server,
    )
    waiting = [pair.client, pair.server]
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
        if not waiting:
            return pair
    raise AssertionError("the handshake does not end")


def sealed(zone: Zone, agent: Holder | None = None) -> ssl.SSLContext:
    agent = agent or zone.agent()
    return sealed_server(agent.chain_pem, agent.key_pem, zone.ca_pem)


def user_of(
    zone: Zone, user: Holder | None = None, ca_pem: bytes | None = None
) -> ssl.SSLContext:
    user = user or zone.user()
    return sealed_client(user.chain_pem, user.key_pem, ca_pem or zone.ca_pem)


# -- The sealed face -----------------------------------------------------------------------


def test_a_user_reaches_the_agent_and_is_known_there(zone: Zone) -> None:
    pair = connect(sealed(zone), user_of(zone))
    assert pair.exchange(b"hello") == b"hello"
    assert pair.server.version() == "TLSv1.3"
    assert pair.server.selected_alpn_protocol() == HTTP_PROTOCOL
    identity = user_identity(peer_certificate(pair.server), ZONE)
    assert identity.user == "tower:admin"


def test_a_user_who_comes_again_is_who_his_certificate_says(zone: Zone) -> None:
    first, second = zone.user(groups=("a",)), zone.user(groups=("b",))
    for holder in (first, second, first, second):
        pair = connect(sealed(zone), user_of(zone, holder))
        identity = peer_user(pair.server, ZONE)
        assert identity == user_identity(holder.certificate, ZONE)


def test_a_known_certificate_is_refused_where_it_was_refused_before(zone: Zone) -> None:
    user = connect(sealed(zone), user_of(zone)).server
    agent = connect(sealed(zone), user_of(zone, zone.agent())).server
    for _ in range(2):
        assert peer_user(user, ZONE).user == "tower:admin"
        with pytest.raises(RoleError, match="this is zone other.zone"):
            peer_user(user, "other.zone")
        with pytest.raises(RoleError, match="a user certificate is needed"):
            peer_user(agent, ZONE)


def test_no_certificate_is_nobodys(zone: Zone) -> None:
    server = sealed(zone)
    server.verify_mode = ssl.CERT_NONE
    pair = connect(server, user_of(zone))
    with pytest.raises(ValueError, match="showed no certificate") as caught:
        peer_user(pair.server, ZONE)
    assert not isinstance(caught.value, RoleError)


def test_who_shows_no_certificate_is_refused(zone: Zone) -> None:
    nobody = ssl.create_default_context(cadata=zone.ca_pem.decode())
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        connect(sealed(zone), nobody)


def test_a_user_of_another_ca_is_refused(zone: Zone, other_zone: Zone) -> None:
    stranger = user_of(other_zone, ca_pem=zone.ca_pem)
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        connect(sealed(zone), stranger)


def test_an_expired_user_is_refused(old_zone: Zone) -> None:
    expired = old_zone.user(ttl=timedelta(hours=8), now=NOW - timedelta(hours=9))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        connect(sealed(old_zone, old_zone.agent()), user_of(old_zone, expired))


def test_the_servers_own_certificate_passes_tls_and_fails_the_role(zone: Zone) -> None:
    server = zone.server()
    pair = connect(sealed(zone), user_of(zone, server))
    with pytest.raises(RoleError, match="a user certificate is needed"):
        user_identity(peer_certificate(pair.server), ZONE)


def test_another_agents_certificate_passes_tls_and_fails_the_role(zone: Zone) -> None:
    pair = connect(sealed(zone), user_of(zone, zone.agent(BETA)))
    with pytest.raises(RoleError, match="a user certificate is needed"):
        user_identity(peer_certificate(pair.server), ZONE)


def test_tls_1_2_is_refused(zone: Zone) -> None:
    old = user_of(zone)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        connect(sealed(zone), old)


def test_no_ticket_is_given_out_and_no_session_resumed(zone: Zone) -> None:
    server, client = sealed(zone), user_of(zone)
    first = connect(server, client)
    first.exchange(b"tickets come with the first data")
    session = first.client.session
    assert session is None or not session.has_ticket
    assert server.session_stats()["hits"] == 0
    second = connect(server, client, session=session)
    second.exchange(b"again")
    assert not second.client.session_reused and not second.server.session_reused


def test_the_ticket_test_would_notice_a_ticket(zone: Zone) -> None:
    """The same with a context that gives tickets out: the test above can fail."""
    server, client = sealed(zone), user_of(zone)
    server.options &= ~ssl.OP_NO_TICKET
    server.num_tickets = 2
    pair = connect(server, client)
    pair.exchange(b"tickets come with the first data")
    assert pair.client.session is not None and pair.client.session.has_ticket


def test_a_user_notices_who_is_not_the_cluster_that_it_meant(zone: Zone) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        connect(sealed(zone, zone.agent(BETA)), user_of(zone))
    server = zone.server("tower.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        connect(sealed(zone, server), user_of(zone))


def test_a_user_notices_an_agent_of_another_ca(zone: Zone, other_zone: Zone) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(sealed(other_zone), user_of(zone))


def test_plain_openssl_defaults_reach_the_agent(zone: Zone) -> None:
    """As any client with the kubeconfig's certificate, key and CA would."""
    user = zone.user()
    client = ssl.create_default_context(cadata=zone.ca_pem.decode())
    client.set_alpn_protocols(["h2", "http/1.1"])
    with files_of(user) as (certificate, key):
        client.load_cert_chain(certificate, key)
    pair = connect(sealed(zone), client)
    assert pair.client.selected_alpn_protocol() == "http/1.1"


@contextmanager
def files_of(holder: Holder) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = Path(directory, "crt"), Path(directory, "key")
        certificate.write_bytes(holder.chain_pem)
        key.write_bytes(holder.key_pem)
        yield str(certificate), str(key)


# -- Inside the tunnel ---------------------------------------------------------------------


def inner(zone: Zone, role: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Server and client contexts of a holder."""
    holder = getattr(zone, role)()
    arguments = (holder.chain_pem, holder.key_pem, zone.ca_pem)
    return inner_server(*arguments), inner_client(*arguments)


def test_agent_and_server_know_each_other_inside_the_tunnel(zone: Zone) -> None:
    server, _ = inner(zone, "server")
    _, agent = inner(zone, "agent")
    pair = connect(server, agent, host=None)
    assert pair.exchange(b"status") == b"status"
    seen_by_server = peer_certificate(pair.server, protocol=INNER_PROTOCOL)
    seen_by_agent = peer_certificate(pair.client, protocol=INNER_PROTOCOL)
    require_role(seen_by_server, AgentRole(zone=ZONE, cluster=ALPHA))
    require_role(seen_by_agent, ServerRole(zone=ZONE))


def test_a_user_inside_the_tunnel_is_not_taken_for_the_server(zone: Zone) -> None:
    """It cannot even serve: its certificate is for clients only."""
    server, _ = inner(zone, "user")
    _, agent = inner(zone, "agent")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        connect(server, agent, host=None)


def test_another_agent_is_not_taken_for_the_server(zone: Zone) -> None:
    server, _ = inner(zone, "agent")
    _, agent = inner(zone, "agent")
    pair = connect(server, agent, host=None)
    with pytest.raises(RoleError, match=r"here tower://.*/server is needed"):
        require_role(peer_certificate(pair.client), ServerRole(zone=ZONE))


@pytest.mark.parametrize("stranger", ["server", "agent"])
def test_strangers_are_refused_inside_the_tunnel_from_both_sides(
    zone: Zone, other_zone: Zone, stranger: str
) -> None:
    server = inner(other_zone if stranger == "server" else zone, "server")[0]
    agent = inner(other_zone if stranger == "agent" else zone, "agent")[1]
    with pytest.raises(ssl.SSLError):
        connect(server, agent, host=None)


def test_who_shows_no_certificate_inside_the_tunnel_is_refused(zone: Zone) -> None:
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        connect(inner(zone, "server")[0], unverified(), host=None)


def test_tls_1_2_is_refused_inside_the_tunnel(zone: Zone) -> None:
    server, client = inner(zone, "server")[0], inner(zone, "agent")[1]
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        connect(server, client, host=None)


def test_no_session_is_resumed_inside_the_tunnel(zone: Zone) -> None:
    pair = connect(inner(zone, "server")[0], inner(zone, "agent")[1], host=None)
    pair.exchange(b"tickets come with the first data")
    assert pair.client.session is None or not pair.client.session.has_ticket


def test_a_connection_that_was_led_astray_is_noticed(zone: Zone) -> None:
    """An agent's control stream that ends at the server's own HTTPS port."""
    server = zone.server()
    https = own_https(server.chain_pem, server.key_pem)
    pair = connect(https, inner(zone, "agent")[1], host=None)
    with pytest.raises(ValueError, match="does not speak tower-inner/1"):
        peer_certificate(pair.client, protocol=INNER_PROTOCOL)


# -- The outer TLS -------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("mode", ["tower", "custom"])
def test_an_agent_reaches_a_server_of_the_ca_that_it_trusts(
    zone: Zone, mode: contexts.OuterMode, host: str
) -> None:
    server = zone.server()
    https = own_https(server.chain_pem, server.key_pem)
    pair = connect(https, outer_client(mode, zone.ca_pem), host)
    assert pair.exchange(b"GET") == b"GET"
    assert pair.client.selected_alpn_protocol() == HTTP_PROTOCOL
    with pytest.raises(ValueError, match="showed no certificate"):
        peer_certificate(pair.server)


@pytest.mark.parametrize("mode", ["tower", "custom"])
def test_an_agent_notices_a_server_of_another_ca(
    zone: Zone, other_zone: Zone, mode: contexts.OuterMode
) -> None:
    server = other_zone.server()
    https = own_https(server.chain_pem, server.key_pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(https, outer_client(mode, zone.ca_pem), "localhost")


def test_an_agent_notices_a_server_of_another_name(zone: Zone) -> None:
    server = zone.server("tower.example.org")
    https = own_https(server.chain_pem, server.key_pem)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        connect(https, outer_client("tower", zone.ca_pem), "localhost")


def test_an_agent_notices_another_agent_in_the_servers_place(zone: Zone) -> None:
    agent = zone.agent(BETA)
    https = own_https(agent.chain_pem, agent.key_pem)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        connect(https, outer_client("tower", zone.ca_pem), "tower.example.org")


def test_an_agent_notices_an_expired_server(old_zone: Zone) -> None:
    server = old_zone.server(now=NOW - timedelta(days=91))
    https = own_https(server.chain_pem, server.key_pem)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        connect(https, outer_client("tower", old_zone.ca_pem), "localhost")


def test_the_public_roots_do_not_vouch_for_a_tower_server(zone: Zone) -> None:
    server = zone.server()
    https = own_https(server.chain_pem, server.key_pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(https, outer_client("system"), "localhost")


def test_proxies_that_speak_tls_1_2_are_served_and_used(zone: Zone) -> None:
    server = zone.server()
    https = own_https(server.chain_pem, server.key_pem)
    proxy = outer_client("custom", zone.ca_pem)
    proxy.maximum_version = ssl.TLSVersion.TLSv1_2
    assert connect(https, proxy, "localhost").client.version() == "TLSv1.2"
    https.maximum_version = ssl.TLSVersion.TLSv1_2
    client = outer_client("custom", zone.ca_pem)
    assert connect(https, client, "localhost").client.version() == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        connect(https, outer_client("tower", zone.ca_pem), "localhost")


def test_a_mode_and_its_ca_belong_together(zone: Zone) -> None:
    for mode, ca_pem in (("tower", None), ("custom", None), ("system", zone.ca_pem)):
        with pytest.raises(ValueError, match="do not go together"):
            outer_client(mode, ca_pem)


@pytest.mark.parametrize("ca_pem", [b"", b"nonsense", "Käse".encode()])
def test_a_damaged_ca_bundle_is_refused(ca_pem: bytes) -> None:
    with pytest.raises(ValueError, match="CA bundle is damaged"):
        outer_client("custom", ca_pem)


def test_the_unverified_context_takes_anybody(other_zone: Zone) -> None:
    server = other_zone.server("elsewhere.example.org")
    https = own_https(server.chain_pem, server.key_pem)
    assert connect(https, unverified(), "localhost").exchange(b"x") == b"x"


# -- Towards an apiserver ------------------------------------------------------------------


def test_an_apiserver_sees_the_kubeconfigs_certificate(zone: Zone) -> None:
    user = zone.user()
    client = apiserver_client(
        ca_pem=zone.ca_pem, cert_chain_pem=user.chain_pem, key_pem=user.key_pem
    )
    pair = connect(sealed(zone), client)
    assert peer_certificate(pair.server) == user.certificate


def test_an_apiserver_of_another_ca_or_name_is_noticed(
    zone: Zone, other_zone: Zone
) -> None:
    server = other_zone.server()
    https = own_https(server.chain_pem, server.key_pem)
    for ca_pem, host in (
        (zone.ca_pem, "localhost"),
        (other_zone.ca_pem, "elsewhere"),
        (None, "localhost"),
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(https, apiserver_client(ca_pem=ca_pem), host)
    skipping = apiserver_client(ca_pem=None, verified=False)
    assert connect(https, skipping, "elsewhere").exchange(b"x") == b"x"


def test_an_old_fashioned_ca_of_a_member_is_good_enough(zone: Zone) -> None:
    """Members' CAs lack what strict verification demands; Python 3.13 is strict by default."""
    context = apiserver_client(ca_pem=zone.ca_pem)
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT


def test_a_client_certificate_without_its_key_is_refused(zone: Zone) -> None:
    with pytest.raises(ValueError, match="only good together"):
        apiserver_client(ca_pem=None, cert_chain_pem=zone.user().chain_pem)


# -- Identities ----------------------------------------------------------------------------


def test_a_key_of_another_certificate_is_refused(zone: Zone) -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        own_https(zone.server().chain_pem, zone.server().key_pem)


@pytest.mark.parametrize("part", ["certificate", "key"])
def test_a_damaged_identity_is_refused_without_showing_it(
    zone: Zone, part: str
) -> None:
    server = zone.server()
    cut = server.key_pem[:100] if part == "key" else server.key_pem
    chain = server.chain_pem[:100] if part == "certificate" else server.chain_pem
    with pytest.raises(ValueError, match="damaged") as caught:
        own_https(chain, cut)
    assert caught.value.__suppress_context__


def test_an_encrypted_key_is_refused_instead_of_asked_for(zone: Zone) -> None:
    server = zone.server()
    encrypted = server.key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    with pytest.raises(ValueError, match="encrypted"):
        own_https(server.chain_pem, encrypted)


def test_the_whole_chain_is_shown(zone: Zone) -> None:
    server = zone.server()
    https = own_https(server.chain_pem + zone.ca_pem, server.key_pem)
    assert connect(https, outer_client("tower", zone.ca_pem), "localhost")


def no_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)


def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.path.exists
    monkeypatch.setattr(
        os.path, "exists", lambda p: not str(p).startswith("/proc") and real(p)
    )


@pytest.mark.parametrize("without", [no_memfd, no_proc])
def test_where_there_are_no_files_in_memory_a_private_one_is_gone_at_once(
    zone: Zone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without: Callable[[pytest.MonkeyPatch], None],
) -> None:
    modes: list[int] = []
    real = ssl.SSLContext.load_cert_chain

    def spy(self: ssl.SSLContext, path: str, **arguments: object) -> None:
        modes.append(os.stat(path).st_mode & 0o777)
        assert Path(path).parent == tmp_path
        real(self, path, **arguments)

    without(monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
    server = zone.server()
    https = own_https(server.chain_pem, server.key_pem)
    with pytest.raises(ValueError, match="damaged"):
        own_https(server.chain_pem, b"nonsense")
    assert modes == [0o600, 0o600]
    assert not os.listdir(tmp_path)
    monkeypatch.undo()
    assert connect(https, outer_client("tower", zone.ca_pem), "localhost")


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs files in memory")
def test_on_linux_no_key_ever_is_in_a_file(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("a temporary file was made")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    server = zone.server()
    open_before = len(os.listdir("/proc/self/fd"))
    own_https(server.chain_pem, server.key_pem)
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_the_environment_cannot_have_session_keys_written_down(
    zone: Zone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    pair = connect(sealed(zone), user_of(zone))
    pair.exchange(b"secret")
    for context in (
        outer_client("system"),
        unverified(),
        apiserver_client(ca_pem=None),
    ):
        assert context.keylog_filename is None
    assert not log.exists()
