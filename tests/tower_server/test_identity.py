"""The server's key and certificate on disk: made once, kept while they fit, made anew when not.

Covered: first start, unchanged restart, other names and addresses in any spelling, age,
a clock that was ahead, another CA or zone, other files in their place, a damaged or open
key, names that a server may not have.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from certs.authority import Authority
from certs.chains import pem
from certs.keys import new_key, private_pem, write_private
from certs.names import ClusterName
from tower_server.identity import CERTIFICATE_NAME, KEY_NAME, server_identity

ZONE = "clusters.tower.internal"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOSTS = ["tower.example.com", "127.0.0.1"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def authority(state: Path) -> Authority:
    return open_authority(state / "ca")


def open_authority(directory: Path, zone: str = ZONE) -> Authority:
    directory.mkdir(mode=0o700)
    return Authority.open_or_create(directory, zone, NOW - timedelta(days=1))


def names(certificate: x509.Certificate) -> set[str]:
    extension = certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return {str(name.value) for name in extension.value} - {f"tower://{ZONE}/server"}


def test_the_first_start_makes_both_and_the_next_keeps_them(
    state: Path, authority: Authority
) -> None:
    first = server_identity(state, authority, HOSTS, NOW)
    assert names(first.certificate) == set(HOSTS)
    assert (state / KEY_NAME).stat().st_mode & 0o777 == 0o600
    again = server_identity(state, authority, HOSTS, NOW + timedelta(days=59))
    assert again.certificate == first.certificate and again.key_pem == first.key_pem
    assert (state / CERTIFICATE_NAME).read_bytes() == first.chain_pem
    assert "PRIVATE" not in repr(first) + repr(first.key_pem)


@pytest.mark.parametrize(
    "hosts",
    [["TOWER.example.com"], ["127.0.0.1"], list(reversed(HOSTS))],
)
def test_names_in_another_spelling_or_fewer_change_nothing(
    state: Path, authority: Authority, hosts: list[str]
) -> None:
    first = server_identity(state, authority, HOSTS, NOW)
    assert server_identity(state, authority, hosts, NOW).certificate == (
        first.certificate
    )


def test_an_ipv6_address_has_one_spelling(state: Path, authority: Authority) -> None:
    first = server_identity(state, authority, ["2001:db8::1"], NOW)
    again = server_identity(state, authority, ["2001:0DB8:0::1"], NOW)
    assert again.certificate == first.certificate


def test_another_name_makes_another_certificate_for_the_same_key(
    state: Path, authority: Authority
) -> None:
    first = server_identity(state, authority, HOSTS, NOW)
    moved = server_identity(state, authority, ["new.example.com"], NOW)
    assert names(moved.certificate) == {"new.example.com"}
    assert moved.key_pem == first.key_pem
    again = server_identity(state, authority, ["new.example.com"], NOW)
    assert again.certificate == moved.certificate, "it was not kept"


def test_two_thirds_of_its_life_are_enough(state: Path, authority: Authority) -> None:
    first = server_identity(state, authority, HOSTS, NOW)
    later = server_identity(state, authority, HOSTS, NOW + timedelta(days=61))
    assert later.certificate != first.certificate
    assert later.certificate.not_valid_after_utc > NOW + timedelta(days=140)


def test_one_from_the_future_is_replaced(state: Path, authority: Authority) -> None:
    ahead = server_identity(state, authority, HOSTS, NOW + timedelta(days=30))
    set_right = server_identity(state, authority, HOSTS, NOW)
    assert set_right.certificate != ahead.certificate
    assert set_right.certificate.not_valid_before_utc <= NOW


def test_one_of_another_ca_is_replaced(state: Path, authority: Authority) -> None:
    first = server_identity(state, authority, HOSTS, NOW)
    other = open_authority(state / "other")
    assert server_identity(state, other, HOSTS, NOW).certificate != first.certificate


def test_what_is_no_server_certificate_for_our_key_is_replaced(
    state: Path, authority: Authority
) -> None:
    first = server_identity(state, authority, HOSTS, NOW)
    key = first.key.public_key()
    users = authority.issue_user(
        key, "u", [], [ClusterName("a")], timedelta(hours=1), NOW
    )
    foreign_key = authority.issue_server(new_key().public_key(), HOSTS, NOW)
    wrongs = (
        b"",
        b"noise",
        first.chain_pem[:200],
        authority.pem,
        pem(users),
        pem(foreign_key),
    )
    for wrong in wrongs:
        (state / CERTIFICATE_NAME).write_bytes(wrong)
        identity = server_identity(state, authority, HOSTS, NOW)
        assert names(identity.certificate) == set(HOSTS), wrong[:30]
        assert identity.certificate.public_key() == key


def test_a_missing_key_is_made_with_a_certificate_of_its_own(
    state: Path, authority: Authority
) -> None:
    server_identity(state, authority, HOSTS, NOW)
    (state / KEY_NAME).unlink()
    identity = server_identity(state, authority, HOSTS, NOW)
    assert identity.certificate.public_key() == identity.key.public_key()


@pytest.mark.parametrize("damage", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_key_is_named_with_a_remedy_and_not_replaced(
    state: Path, authority: Authority, damage: bytes
) -> None:
    write_private(state / KEY_NAME, damage)
    with pytest.raises(ValueError, match=r"server\.key: .*damaged.*remove the file"):
        server_identity(state, authority, HOSTS, NOW)
    assert (state / KEY_NAME).read_bytes() == damage


def test_a_key_that_others_can_read_is_refused(
    state: Path, authority: Authority
) -> None:
    write_private(state / KEY_NAME, private_pem(new_key()))
    (state / KEY_NAME).chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        server_identity(state, authority, HOSTS, NOW)


def test_a_server_cannot_have_a_clusters_name(
    state: Path, authority: Authority
) -> None:
    with pytest.raises(ValueError, match="lies in the zone"):
        server_identity(state, authority, [f"alpha.{ZONE}"], NOW)
