"""What certificates look like: the strictest verifiers that we have accept all of them.

OpenSSL with X509_STRICT is covered by the handshakes in test_contexts; here it is the verifier
of `cryptography` (RFC 5280 and the web's profile), and the extensions one by one.
"""

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from certs import profiles
from tests.certs.zone import NOW, ZONE, Zone


@pytest.mark.parametrize("kind", ["agent", "user"])
def test_a_strict_verifier_accepts_clients(zone: Zone, kind: str) -> None:
    policy = PolicyBuilder().store(Store([zone.ca])).time(NOW)
    holder = getattr(zone, kind)()
    verified = policy.build_client_verifier().verify(holder.certificate, [])
    assert verified.chain == [holder.certificate, zone.ca]


def test_a_strict_verifier_accepts_servers_and_agents_for_their_names(
    zone: Zone,
) -> None:
    policy = PolicyBuilder().store(Store([zone.ca])).time(NOW)
    for name, holder in (
        ("tower.example.org", zone.server("tower.example.org")),
        (f"alpha.{ZONE}", zone.agent()),
    ):
        verifier = policy.build_server_verifier(x509.DNSName(name))
        assert verifier.verify(holder.certificate, [])


@pytest.mark.parametrize("kind", ["agent", "server", "user"])
def test_a_leaf_signs_nothing_but_handshakes_and_statements(
    zone: Zone, kind: str
) -> None:
    extensions = getattr(zone, kind)().certificate.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature
    assert not usage.value.key_cert_sign and not usage.value.crl_sign
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and not constraints.value.ca


def test_the_ca_signs_leaves_only(zone: Zone) -> None:
    extensions = zone.ca.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign and not usage.digital_signature


def test_a_ca_says_its_zone_and_nothing_else_does(zone: Zone) -> None:
    assert profiles.zone_of_authority(zone.ca) == ZONE
    for holder in (zone.agent(), zone.server(), zone.user()):
        assert profiles.zone_of_authority(holder.certificate) is None
