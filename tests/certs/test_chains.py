"""Certificates as text, who signed them, and their dates.

Covers PEM bundles, the pinned CA in an unverified answer, issuers (other CA of the same name,
a leaf that signs), validity with the amount in the message, and when to renew.
"""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from certs.chains import (
    check_issuer,
    check_validity,
    is_authority,
    parse_certificate,
    parse_certificates,
    pem,
    pinned_authority,
    renewal_due_at,
    spoken,
)
from certs.keys import new_key, spki_pin
from tests.certs.zone import NOW, Holder, Zone


def signed_by(issuer: Holder) -> x509.Certificate:
    """A certificate that somebody signed who is no CA."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.certificate.subject)
        .public_key(new_key().public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(issuer.key, hashes.SHA256())
    )


def test_certificates_survive_being_written_and_read(zone: Zone) -> None:
    agent = zone.agent().certificate
    assert parse_certificates(pem(agent, zone.ca)) == (agent, zone.ca)
    assert parse_certificate(b"a remark\n" + pem(agent)) == agent


@pytest.mark.parametrize("data", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_damaged_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no certificate in it, or a damaged one"):
        parse_certificates(data)


def test_one_certificate_means_one(zone: Zone) -> None:
    with pytest.raises(ValueError, match="2 certificates in it instead of one"):
        parse_certificate(pem(zone.ca, zone.ca))


def test_the_pinned_ca_is_found_among_others(zone: Zone, other_zone: Zone) -> None:
    bundle = pem(other_zone.ca, zone.agent().certificate, zone.ca)
    assert pinned_authority(bundle, zone.authority.pin) == zone.ca


def test_another_ca_than_the_pinned_one_is_refused(
    zone: Zone, other_zone: Zone
) -> None:
    with pytest.raises(ValueError, match="not the one that the join string pins"):
        pinned_authority(other_zone.ca_pem, zone.authority.pin)


def test_a_pinned_key_is_no_ca_without_a_cas_certificate(zone: Zone) -> None:
    """Else whoever holds a leaf's key could be pinned as a CA."""
    server = zone.server()
    with pytest.raises(ValueError, match="not the one that the join string pins"):
        pinned_authority(server.chain_pem, spki_pin(server.key.public_key()))


@pytest.mark.parametrize(
    "key",
    [ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)],
)
def test_a_stranger_with_another_kind_of_key_is_just_another_ca(
    zone: Zone, key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
) -> None:
    name = x509.Name([])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    stranger = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, algorithm)
    )
    with pytest.raises(ValueError, match="not the one that the join string pins"):
        pinned_authority(pem(stranger), zone.authority.pin)
    with pytest.raises(ValueError, match="another CA"):
        check_issuer(stranger, [zone.ca])


def test_the_ca_that_signed_is_found(zone: Zone, other_zone: Zone) -> None:
    agent = zone.agent().certificate
    assert check_issuer(agent, [other_zone.ca, zone.ca]) == zone.ca


def test_a_ca_of_the_same_name_did_not_sign(zone: Zone, other_zone: Zone) -> None:
    assert zone.ca.subject == other_zone.ca.subject
    with pytest.raises(ValueError, match="issued by another CA"):
        check_issuer(zone.agent().certificate, [other_zone.ca])
    with pytest.raises(ValueError, match="issued by another CA"):
        check_issuer(zone.agent().certificate, [])


def test_a_leaf_cannot_sign_for_the_ca(zone: Zone) -> None:
    agent = zone.agent()
    below = signed_by(agent)
    below.verify_directly_issued_by(agent.certificate)
    with pytest.raises(ValueError, match="issued by another CA"):
        check_issuer(below, [zone.ca])
    with pytest.raises(ValueError, match="issued by another CA"):
        check_issuer(below, [agent.certificate])
    assert is_authority(zone.ca) and not is_authority(agent.certificate)


def test_validity_is_said_with_its_amount(zone: Zone) -> None:
    certificate = zone.user(ttl=timedelta(hours=8)).certificate
    check_validity(certificate, NOW)
    check_validity(certificate, NOW + timedelta(hours=8))
    with pytest.raises(ValueError, match="expired 2 h ago"):
        check_validity(certificate, NOW + timedelta(hours=10))
    with pytest.raises(ValueError, match=r"valid only in 55 min: check the clock"):
        check_validity(certificate, NOW - timedelta(hours=1))


def test_renewal_is_due_after_two_thirds(zone: Zone) -> None:
    certificate = zone.agent().certificate
    due = renewal_due_at(certificate)
    assert timedelta(days=19, hours=23) < due - NOW < timedelta(days=20)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (7200, "2 h"),
        (90_061, "1 d 1 h"),
        (86_400 * 400, "400 d"),
    ],
)
def test_durations_are_said_in_their_two_largest_units(
    seconds: float, text: str
) -> None:
    assert spoken(timedelta(seconds=seconds)) == text
