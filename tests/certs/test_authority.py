"""The CA: made once, never silently again; what it signs, and what it refuses to sign.

Covers the files (modes, reopening, every way of half a CA, two processes at once, links, wrong
zone), agent, server and user certificates, and lifetimes.
"""

import os
import stat
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certs import authority as module
from certs.authority import (
    AGENT_LIFETIME,
    AUTHORITY_LIFETIME,
    BACKDATING,
    MAX_USER_LIFETIME,
    SERVER_LIFETIME,
    Authority,
)
from certs.chains import check_issuer, pem
from certs.keys import certificate_request, new_key, read_private, spki_pin
from certs.names import ClusterName, user_identity
from tests.certs.zone import ALPHA, NOW, ZONE, Zone


def hosts_of(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    dns = names.value.get_values_for_type(x509.DNSName)
    return dns + [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)]


# -- The files -----------------------------------------------------------------------------


def test_the_first_start_makes_a_ca_that_only_its_account_can_use(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "state" / "ca"
    authority = Authority.open_or_create(directory, ZONE, NOW)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "ca.key").stat().st_mode) == 0o600
    assert sorted(os.listdir(directory)) == ["ca.crt", "ca.key"]
    assert (directory / "ca.crt").read_bytes() == authority.pem
    assert authority.pin == spki_pin(authority.certificate.public_key())


def test_the_next_start_opens_the_same_ca(tmp_path: Path) -> None:
    first = Authority.open_or_create(tmp_path, ZONE, NOW)
    second = Authority.open_or_create(tmp_path, ZONE, NOW + timedelta(days=365))
    assert (second.pin, second.pem, second.zone) == (first.pin, first.pem, ZONE)
    # And its key fits.
    agent = second.issue_agent(certificate_request(new_key()), ALPHA, NOW)
    check_issuer(agent, [first.certificate])


def test_neither_the_ca_nor_its_key_shows_the_key(zone: Zone) -> None:
    shown = repr(zone.authority) + str(zone.authority)
    assert zone.authority.pin in shown
    assert "PRIVATE" not in shown


def damage_missing_key(directory: Path) -> None:
    (directory / "ca.key").unlink()


def damage_missing_certificate(directory: Path) -> None:
    (directory / "ca.crt").unlink()


def damage_empty_key(directory: Path) -> None:
    (directory / "ca.key").write_bytes(b"")


def damage_empty_certificate(directory: Path) -> None:
    (directory / "ca.crt").write_bytes(b"")


def damage_half_a_key(directory: Path) -> None:
    data = (directory / "ca.key").read_bytes()
    (directory / "ca.key").write_bytes(data[: len(data) // 2])


def damage_half_a_certificate(directory: Path) -> None:
    data = (directory / "ca.crt").read_bytes()
    (directory / "ca.crt").write_bytes(data[: len(data) // 2])


def damage_two_certificates(directory: Path) -> None:
    data = (directory / "ca.crt").read_bytes()
    (directory / "ca.crt").write_bytes(data * 2)


def damage_key_of_another_ca(directory: Path) -> None:
    Authority.open_or_create(directory / "other", ZONE, NOW)
    (directory / "other" / "ca.key").replace(directory / "ca.key")


def damage_certificate_that_is_no_ca(directory: Path) -> None:
    authority = Authority.open_or_create(directory, ZONE, NOW)
    agent = authority.issue_agent(certificate_request(new_key()), ALPHA, NOW)
    (directory / "ca.crt").write_bytes(pem(agent))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (damage_missing_key, "ca.key is missing"),
        (damage_missing_certificate, "ca.crt is missing"),
        (damage_empty_key, "ca.key: the private key is damaged"),
        (damage_empty_certificate, "ca.crt: there is no certificate in it"),
        (damage_half_a_key, "ca.key: the private key is damaged"),
        (damage_half_a_certificate, "ca.crt: there is no certificate in it"),
        (damage_two_certificates, "ca.crt: there are 2 certificates"),
        (damage_key_of_another_ca, "do not belong together"),
        (damage_certificate_that_is_no_ca, "not the certificate of a CA"),
    ],
)
def test_half_a_ca_is_an_error_with_a_remedy_and_never_a_new_ca(
    tmp_path: Path, damage, what: str
) -> None:
    Authority.open_or_create(tmp_path, ZONE, NOW)
    damage(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(ValueError, match=rf"{what}.*[Rr]estore both") as caught:
        Authority.open_or_create(tmp_path, ZONE, NOW)
    assert str(tmp_path) in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_dangling_link_counts_as_something_that_is_there(tmp_path: Path) -> None:
    """The volume with the real files may just not be mounted yet."""
    for name in ("ca.key", "ca.crt"):
        (tmp_path / name).symlink_to(tmp_path / "volume" / name)
    with pytest.raises(ValueError, match="symbolic link"):
        Authority.open_or_create(tmp_path, ZONE, NOW)
    assert not (tmp_path / "volume").exists()


def test_a_key_that_others_could_read_is_not_used(tmp_path: Path) -> None:
    Authority.open_or_create(tmp_path, ZONE, NOW)
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        Authority.open_or_create(tmp_path, ZONE, NOW)


def test_a_directory_that_others_could_write_to_gets_no_ca(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ValueError, match="chmod 700"):
        Authority.open_or_create(tmp_path, ZONE, NOW)
    assert not os.listdir(tmp_path)


def test_a_ca_is_not_opened_for_another_zone(tmp_path: Path) -> None:
    Authority.open_or_create(tmp_path, ZONE, NOW)
    with pytest.raises(ValueError, match=rf"made for {ZONE}, not for the zone other"):
        Authority.open_or_create(tmp_path, "other.zone", NOW)


def test_a_ca_out_of_its_dates_is_not_used(tmp_path: Path) -> None:
    Authority.open_or_create(tmp_path, ZONE, NOW)
    with pytest.raises(ValueError, match="cannot be used.*expired 1 d ago"):
        late = NOW + AUTHORITY_LIFETIME + timedelta(days=1)
        Authority.open_or_create(tmp_path, ZONE, late)
    with pytest.raises(ValueError, match="cannot be used.*check the clock"):
        Authority.open_or_create(tmp_path, ZONE, NOW - timedelta(days=1))


def test_of_two_servers_that_start_at_once_one_makes_the_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other finds nothing, makes a key, and is then told instead of overwriting."""
    real_new_key = module.new_key
    made: list[Authority] = []

    def interrupted() -> ec.EllipticCurvePrivateKey:
        monkeypatch.setattr(module, "new_key", real_new_key)
        made.append(Authority.open_or_create(tmp_path, ZONE, NOW))
        return real_new_key()

    monkeypatch.setattr(module, "new_key", interrupted)
    with pytest.raises(ValueError, match="at the same moment"):
        Authority.open_or_create(tmp_path, ZONE, NOW)
    assert Authority.open_or_create(tmp_path, ZONE, NOW).pin == made[0].pin


def test_a_disk_that_fills_up_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, *, replace: bool) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_public", full)
        with pytest.raises(OSError, match="No space left"):
            Authority.open_or_create(tmp_path, ZONE, NOW)
    assert not os.listdir(tmp_path)
    Authority.open_or_create(tmp_path, ZONE, NOW)


# -- Agents --------------------------------------------------------------------------------


def test_an_agent_gets_its_key_certified_for_its_cluster(zone: Zone) -> None:
    key = new_key()
    certificate = zone.authority.issue_agent(certificate_request(key), ALPHA, NOW)
    assert certificate.public_key() == key.public_key()
    assert hosts_of(certificate) == [f"alpha.{ZONE}"]
    assert certificate.not_valid_before_utc == NOW - BACKDATING
    assert certificate.not_valid_after_utc == NOW + AGENT_LIFETIME


def test_of_an_agents_request_only_the_key_counts(zone: Zone) -> None:
    """A CSR that asks for another cluster, for more names and for a CA gets none of it."""
    key = new_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, "beta"),
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
                ]
            )
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName(f"beta.{ZONE}"),
                    x509.UniformResourceIdentifier(f"tower://{ZONE}/server"),
                ]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    certificate = zone.authority.issue_agent(greedy, ALPHA, NOW)
    assert certificate.subject.rfc4514_string() == "CN=alpha"
    assert hosts_of(certificate) == [f"alpha.{ZONE}"]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not constraints.value.ca


def test_a_request_that_its_key_did_not_sign_is_refused(zone: Zone) -> None:
    request = bytearray(certificate_request(new_key()))
    request[-1] ^= 1
    with pytest.raises(ValueError, match="not signed by the key in it|damaged"):
        zone.authority.issue_agent(bytes(request), ALPHA, NOW)


def test_a_request_for_somebody_elses_key_is_refused(zone: Zone) -> None:
    mine, theirs = certificate_request(new_key()), certificate_request(new_key())
    # Both have the same layout: the public key of one, the signature of the other.
    swapped = (
        theirs[: mine.index(b"\x30\x0a\x06\x08")]
        + mine[mine.index(b"\x30\x0a\x06\x08") :]
    )
    with pytest.raises(ValueError, match="not signed by the key in it|damaged"):
        zone.authority.issue_agent(swapped, ALPHA, NOW)


@pytest.mark.parametrize("request_der", [b"", b"nonsense", b"0" * 5000])
def test_a_damaged_request_is_refused(zone: Zone, request_der: bytes) -> None:
    with pytest.raises(ValueError, match="damaged|larger than"):
        zone.authority.issue_agent(request_der, ALPHA, NOW)


def test_a_request_for_another_kind_of_key_is_refused(zone: Zone) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ValueError, match="P-256"):
        zone.authority.issue_agent(certificate_request(key), ALPHA, NOW)


def test_a_cluster_name_that_nobody_checked_is_still_refused(zone: Zone) -> None:
    request = certificate_request(new_key())
    with pytest.raises(ValueError, match="cannot name a cluster"):
        zone.authority.issue_agent(request, ClusterName("a/../server"), NOW)


# -- Servers -------------------------------------------------------------------------------


def test_a_server_is_certified_for_its_names_and_addresses(zone: Zone) -> None:
    server = zone.server("Tower.example.org", "127.0.0.1", "::1", "127.0.0.1")
    assert hosts_of(server.certificate) == ["tower.example.org", "127.0.0.1", "::1"]
    assert server.certificate.not_valid_after_utc == NOW + SERVER_LIFETIME


@pytest.mark.parametrize(
    "host", [f"alpha.{ZONE}", ZONE, f"ALPHA.{ZONE}", f"a.b.{ZONE}"]
)
def test_a_server_is_never_certified_for_a_clusters_name(zone: Zone, host: str) -> None:
    with pytest.raises(ValueError, match="lies in the zone"):
        zone.server(host)


def test_a_zone_of_which_the_host_name_merely_ends_alike_is_no_matter(
    zone: Zone,
) -> None:
    assert hosts_of(zone.server(f"my{ZONE}").certificate) == [f"my{ZONE}"]


def test_a_server_needs_a_name(zone: Zone) -> None:
    with pytest.raises(ValueError, match="at least one host name"):
        zone.authority.issue_server(new_key().public_key(), [], NOW)
    with pytest.raises(ValueError, match="neither a DNS name"):
        zone.authority.issue_server(new_key().public_key(), ["*.example.org"], NOW)


# -- Users ---------------------------------------------------------------------------------


def test_a_user_gets_name_groups_and_clusters(zone: Zone) -> None:
    user = zone.user("Zoë", ("b", "a", "b"), (ALPHA,), timedelta(hours=1))
    identity = user_identity(user.certificate, ZONE)
    assert identity.user == "Zoë"
    assert identity.groups == ("b", "a")
    assert identity.clusters == {ALPHA}
    assert identity.not_after == NOW + timedelta(hours=1)
    assert hosts_of(user.certificate) == []


@pytest.mark.parametrize(
    ("user", "groups", "fault"),
    [
        ("", (), "empty"),
        ("a\nb", (), "control character"),
        ("a" * 65, (), "longer than 64 bytes"),
        ("a", (" b",), "blank"),
        ("a", tuple(map(str, range(129))), "128 groups"),
    ],
)
def test_what_agents_would_refuse_is_not_issued(
    zone: Zone, user: str, groups: tuple[str, ...], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        zone.user(user, groups)


@pytest.mark.parametrize(
    "ttl",
    [timedelta(0), timedelta(seconds=59), MAX_USER_LIFETIME + timedelta(seconds=1)],
)
def test_a_user_certificate_lives_neither_too_short_nor_too_long(
    zone: Zone, ttl: timedelta
) -> None:
    with pytest.raises(ValueError, match="lives between 1 min and 30 d"):
        zone.user(ttl=ttl)


def test_a_user_of_no_cluster_is_not_issued(zone: Zone) -> None:
    with pytest.raises(ValueError, match="at least one cluster"):
        zone.user(clusters=())


# -- All -----------------------------------------------------------------------------------


def test_nothing_outlives_the_ca(zone: Zone) -> None:
    last_day = NOW + AUTHORITY_LIFETIME - timedelta(days=1)
    agent = zone.agent(now=last_day)
    assert agent.certificate.not_valid_after_utc == zone.ca.not_valid_after_utc
    with pytest.raises(ValueError, match="expired"):
        zone.agent(now=last_day + timedelta(days=2))


def test_serials_do_not_repeat_and_cannot_be_guessed(zone: Zone) -> None:
    serials = {zone.server().certificate.serial_number for _ in range(20)}
    assert len(serials) == 20
    assert max(serials).bit_length() > 128


def test_times_of_any_zone_mean_the_same_and_times_of_none_are_refused(
    zone: Zone,
) -> None:
    tokyo = NOW.astimezone(timezone(timedelta(hours=9))) + timedelta(microseconds=7)
    assert zone.agent(now=tokyo).certificate.not_valid_after_utc == NOW + AGENT_LIFETIME
    with pytest.raises(ValueError, match="without a time zone"):
        zone.agent(now=datetime(2026, 1, 1))
    assert NOW.tzinfo is UTC


def test_the_key_on_disk_is_the_one_that_signs(tmp_path: Path) -> None:
    authority = Authority.open_or_create(tmp_path, ZONE, NOW)
    assert b"BEGIN PRIVATE KEY" in bytes(read_private(tmp_path / "ca.key"))
    agent = authority.issue_agent(certificate_request(new_key()), ALPHA, NOW)
    agent.verify_directly_issued_by(authority.certificate)
