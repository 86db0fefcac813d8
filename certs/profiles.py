"""What our certificates look like: the extensions of a CA and of what it signs.

Dates and signatures are the authority's business. The extensions are those that RFC 5280
demands of a strict verifier (Python 3.13 verifies strictly by default), and no others.
"""

from collections.abc import Sequence
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs.keys import require_p256
from certs.names import UNREADABLE_EXTENSIONS, Role, key_usages, role_uri

__all__ = ["authority", "leaf", "zone_of_authority"]

_URI_BEFORE_ZONE, _URI_AFTER_ZONE = "tower://", "/authority"


def authority(
    zone: str, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    """A CA that signs itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tower CA")])
    # Keeps the zone with the CA, so that nobody opens it for another by mistake. This is not
    # a role: `names.role_of` refuses it.
    uri = f"{_URI_BEFORE_ZONE}{zone}{_URI_AFTER_ZONE}"
    return (
        _begin(name, name, public_key, issuer_key=public_key)
        # Nothing below it may be a CA.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]),
            critical=False,
        )
    )


def leaf(
    role: Role,
    *,
    subject: Sequence[tuple[x509.ObjectIdentifier, str]],
    hosts: Sequence[str],
    public_key: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
) -> x509.CertificateBuilder:
    """A certificate in one role, for a key, with the host names that it may serve."""
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in subject])
    issuer_key = require_p256(authority.public_key())
    usages = sorted(key_usages(role), key=lambda usage: usage.dotted_string)
    names = [*map(_general_name, hosts), x509.UniformResourceIdentifier(role_uri(role))]
    return (
        _begin(name, authority.subject, public_key, issuer_key=issuer_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )


def zone_of_authority(certificate: x509.Certificate) -> str | None:
    """The zone that a CA of ours was made for; None when it is not one of ours."""
    try:
        extensions = certificate.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, *UNREADABLE_EXTENSIONS):
        return None
    if not uri.startswith(_URI_BEFORE_ZONE) or not uri.endswith(_URI_AFTER_ZONE):
        return None
    return uri.removeprefix(_URI_BEFORE_ZONE).removesuffix(_URI_AFTER_ZONE)


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        # 159 random bits: serials name certificates in deny-lists and must never repeat.
        .serial_number(x509.random_serial_number())
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key),
            critical=False,
        )
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
