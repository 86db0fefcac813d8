"""Names and roles: one spelling each, and no certificate says two things.

Covers cluster, zone and host names, server names in TLS, role URIs (property: round trip, and
whatever is accepted is spelled canonically), roles and identities read from certificates.
"""

import string
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from certs.keys import new_key
from certs.names import (
    MAX_GROUPS,
    MAX_PRINCIPAL_BYTES,
    AdminRole,
    AgentRole,
    ClusterName,
    Role,
    RoleError,
    ServerRole,
    UserRole,
    cluster_of_host,
    host_name,
    key_usages,
    parse_cluster_name,
    parse_host,
    parse_principal,
    parse_role,
    parse_zone,
    require_role,
    role_of,
    role_uri,
    user_identity,
)
from tests.certs.zone import ALPHA, BETA, NOW, ZONE, Zone

LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
CLUSTERS = LABELS.map(parse_cluster_name)
ZONES = st.lists(LABELS, min_size=1, max_size=2).map(
    lambda labels: ".".join([*labels, "internal"])
)
ROLES: st.SearchStrategy[Role] = st.one_of(
    st.builds(AgentRole, zone=ZONES, cluster=CLUSTERS),
    st.builds(ServerRole, zone=ZONES),
    st.builds(AdminRole, zone=ZONES),
    st.builds(
        UserRole,
        zone=ZONES,
        clusters=st.none() | st.frozensets(CLUSTERS, min_size=1, max_size=5),
    ),
)


# -- Names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "alpha", "0", "a-b", "x" * 63, "xn--80ak6aa92e"])
def test_a_dns_label_can_name_a_cluster(name: str) -> None:
    assert parse_cluster_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "A", "a.b", "a_b", "a\n", "x" * 64, "ä", "a b", "a/b", "a,b", "*"],
)
def test_anything_else_cannot_name_a_cluster(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a cluster: use 1 to 63"):
        parse_cluster_name(name)


def test_an_error_repeats_little_of_a_long_name_and_no_control_characters() -> None:
    with pytest.raises(ValueError) as caught:
        parse_cluster_name("\x1b[31m" + "x" * 10_000)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("zone", [ZONE, "internal", "a.b.c"])
def test_a_dns_suffix_can_be_the_zone(zone: str) -> None:
    assert parse_zone(zone) == zone


@pytest.mark.parametrize(
    "zone",
    ["", ".", "a.", ".a", "A.b", "a..b", "0.0.1", "a.1", "a b", "x." * 95 + "x"],
)
def test_anything_else_cannot_be_the_zone(zone: str) -> None:
    with pytest.raises(ValueError, match="cannot be the zone"):
        parse_zone(zone)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Tower.Example.org", "tower.example.org"),
        ("localhost", "localhost"),
        ("my_server", "my_server"),
        ("127.0.0.1", "127.0.0.1"),
        ("::0001", "::1"),
        ("2001:DB8::1", "2001:db8::1"),
    ],
)
def test_a_host_has_one_spelling(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.2.3",
        "300.1.1.1",
        "a:b",
        "[::1]",
        "*.a.b",
        "tower.",
        "tür.de",
        "a b",
        "fe80::1%eth0",
    ],
)
def test_anything_else_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match="neither a DNS name nor an IP address"):
        parse_host(text)


def test_a_server_name_in_the_zone_means_a_cluster() -> None:
    assert cluster_of_host(host_name(ALPHA, ZONE), ZONE) == "alpha"
    assert cluster_of_host(f"Alpha.{ZONE.upper()}.", ZONE) == "alpha"


@pytest.mark.parametrize(
    "host", ["", ZONE, "tower.example.org", f"alpha.not{ZONE}", f"alpha{ZONE}"]
)
def test_a_server_name_outside_of_the_zone_means_no_cluster(host: str) -> None:
    assert cluster_of_host(host, ZONE) is None


@pytest.mark.parametrize("label", ["", "a.b", "a_b", "x" * 64])
def test_a_server_name_in_the_zone_that_names_no_cluster_is_an_error(
    label: str,
) -> None:
    with pytest.raises(ValueError):
        cluster_of_host(f"{label}.{ZONE}", ZONE)


@given(CLUSTERS, ZONES)
def test_the_host_name_of_a_cluster_leads_back_to_it(
    cluster: ClusterName, zone: str
) -> None:
    host = host_name(cluster, zone)
    assert cluster_of_host(host, zone) == cluster
    assert len(host) <= 253


@pytest.mark.parametrize("name", ["a", "tower:admin", "Zoë", "a b", "系统", "x" * 256])
def test_visible_text_can_name_a_user(name: str) -> None:
    assert parse_principal(name) == name


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "empty"),
        (" a", "blank"),
        ("a ", "blank"),
        ("a\u00a0", "blank"),
        ("a\nb", "control character"),
        ("a\x00", "control character"),
        ("a\x7fb", "control character"),
        ("a\x85b", "control character"),
        ("a\u202eb", "invisible"),
        ("a\u200bb", "invisible"),
        ("\ufeffa", "invisible"),
        ("a\u2028b", "invisible"),
        ("a\ud800", "invisible"),
        ("x" * 257, "longer than 256 bytes"),
        ("ä" * 129, "longer than 256 bytes"),
    ],
)
def test_a_name_that_could_deceive_is_refused(name: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_principal(name)


@given(st.text(max_size=300))
def test_an_accepted_name_is_safe_in_a_header_and_in_a_log(text: str) -> None:
    try:
        name = parse_principal(text)
    except ValueError:
        return
    assert name == name.strip() != ""
    assert len(name.encode()) <= MAX_PRINCIPAL_BYTES
    assert not set(name) & set("\r\n\0\t\x1b")


# -- Roles ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "uri"),
    [
        (AgentRole(zone=ZONE, cluster=ALPHA), f"tower://{ZONE}/agent/alpha"),
        (
            UserRole(zone=ZONE, clusters=frozenset({BETA, ALPHA})),
            f"tower://{ZONE}/user?clusters=alpha,beta",
        ),
        (UserRole(zone=ZONE, clusters=None), f"tower://{ZONE}/user?clusters=*"),
        (ServerRole(zone=ZONE), f"tower://{ZONE}/server"),
        (AdminRole(zone=ZONE), f"tower://{ZONE}/admin"),
    ],
)
def test_roles_are_written_as_the_design_says(role: Role, uri: str) -> None:
    assert role_uri(role) == uri
    assert parse_role(uri) == role


@given(ROLES)
def test_a_role_survives_being_written_and_read(role: Role) -> None:
    assert parse_role(role_uri(role)) == role


@given(
    st.one_of(
        st.text(max_size=80),
        st.text(string.printable, max_size=60).map(lambda text: f"tower://{text}"),
        ROLES.map(role_uri).flatmap(
            lambda uri: st.builds(
                lambda at, new: uri[:at] + new + uri[at + 1 :],
                st.integers(0, len(uri)),
                st.text(string.ascii_letters + "/?#%,*=&.:-", max_size=2),
            )
        ),
    )
)
@example("tower://a/user?clusters=a,a")
def test_what_is_read_as_a_role_is_written_in_the_same_way(text: str) -> None:
    try:
        role = parse_role(text)
    except RoleError:
        return
    assert role_uri(role) == text


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "tower://",
        f"tower://{ZONE}",
        f"tower://{ZONE}/",
        f"TOWER://{ZONE}/server",
        f"tower://{ZONE.upper()}/server",
        f"tower://{ZONE}/server/",
        f"tower://{ZONE}/server\n",
        f"tower://{ZONE}/server#admin",
        f"tower://{ZONE}:1/server",
        f"tower://x@{ZONE}/server",
        f"tower://{ZONE}/agent",
        f"tower://{ZONE}/agent/",
        f"tower://{ZONE}/agent/*",
        f"tower://{ZONE}/agent/Alpha",
        f"tower://{ZONE}/agent/alpha/beta",
        f"tower://{ZONE}/agent/%61lpha",
        f"tower://{ZONE}/user",
        f"tower://{ZONE}/user?clusters=",
        f"tower://{ZONE}/user?clusters=alpha,",
        f"tower://{ZONE}/user?clusters=beta,alpha",
        f"tower://{ZONE}/user?clusters=alpha,*",
        f"tower://{ZONE}/user?clusters=alpha&clusters=beta",
        f"tower://{ZONE}/authority",
        f"spiffe://{ZONE}/server",
        f"tower://{ZONE}/user?clusters=" + ",".join(f"c{n:060}" for n in range(150)),
    ],
)
def test_what_is_spelled_otherwise_is_no_role(uri: str) -> None:
    with pytest.raises(RoleError):
        parse_role(uri)


def test_a_user_of_no_cluster_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="at least one cluster"):
        role_uri(UserRole(zone=ZONE, clusters=frozenset()))


def test_more_clusters_than_fit_into_a_certificate_are_refused() -> None:
    many = frozenset(parse_cluster_name(f"c{n:060}") for n in range(150))
    with pytest.raises(ValueError, match="150 clusters do not fit"):
        role_uri(UserRole(zone=ZONE, clusters=many))


# -- Certificates --------------------------------------------------------------------------


def forged(
    uris: list[str],
    usages: list[x509.ObjectIdentifier] | None = None,
    names: list[x509.NameAttribute] | None = None,
    *,
    ca: bool = False,
) -> x509.Certificate:
    """What our CA would never sign; `role_of` must not depend on that."""
    key = new_key()
    subject = x509.Name(names or [])
    builder = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if uris:
        san = x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier(uri) for uri in uris]
        )
        builder = builder.add_extension(san, critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(key, hashes.SHA256())


CLIENT = [ExtendedKeyUsageOID.CLIENT_AUTH]
BOTH = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
USER_URI = f"tower://{ZONE}/user?clusters=alpha"


def test_issued_certificates_have_the_roles_that_were_asked_for(zone: Zone) -> None:
    assert role_of(zone.agent().certificate) == AgentRole(zone=ZONE, cluster=ALPHA)
    assert role_of(zone.server().certificate) == ServerRole(zone=ZONE)
    everywhere = zone.user(clusters=None).certificate
    assert role_of(everywhere) == UserRole(zone=ZONE, clusters=None)


def test_a_forged_certificate_is_read_like_a_real_one() -> None:
    """Else the refusals below would show nothing."""
    role = role_of(forged([USER_URI], CLIENT))
    assert role == UserRole(zone=ZONE, clusters=frozenset({ALPHA}))


@pytest.mark.parametrize(
    ("certificate", "fault"),
    [
        (forged([], CLIENT), "has no role"),
        (forged([USER_URI]), "has no role"),
        (forged([USER_URI, f"tower://{ZONE}/admin"], CLIENT), "has 2 URIs"),
        (forged([USER_URI, "https://example.org"], CLIENT), "has 2 URIs"),
        (forged([USER_URI, USER_URI], CLIENT), "has 2 URIs"),
        (forged(["https://example.org"], CLIENT), "not a role of Tower"),
        (forged([USER_URI], CLIENT, ca=True), "a CA acts in no role"),
        (forged([USER_URI], BOTH), "key usages do not fit the role"),
        (
            forged([f"tower://{ZONE}/agent/alpha"], CLIENT),
            "key usages do not fit the role",
        ),
        (forged([f"tower://{ZONE}/server"], CLIENT), "key usages do not fit the role"),
        (
            forged([USER_URI], [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
            "key usages do not fit the role",
        ),
    ],
)
def test_a_certificate_without_exactly_one_fitting_role_is_refused(
    certificate: x509.Certificate, fault: str
) -> None:
    with pytest.raises(RoleError, match=fault):
        role_of(certificate)


def test_the_ca_itself_has_no_role(zone: Zone) -> None:
    with pytest.raises(RoleError):
        role_of(zone.ca)


def test_a_verifier_demands_its_role(zone: Zone) -> None:
    server = zone.server().certificate
    require_role(server, ServerRole(zone=ZONE))
    with pytest.raises(RoleError, match=r"/server; here .*/agent/alpha is needed"):
        require_role(server, AgentRole(zone=ZONE, cluster=ALPHA))
    with pytest.raises(RoleError, match=r"/agent/beta; here .*/agent/alpha is needed"):
        require_role(zone.agent(BETA).certificate, AgentRole(zone=ZONE, cluster=ALPHA))
    with pytest.raises(RoleError):
        require_role(server, ServerRole(zone="other.zone"))


def test_users_and_admins_only_open_connections() -> None:
    for role in (UserRole(zone=ZONE, clusters=None), AdminRole(zone=ZONE)):
        assert key_usages(role) == {ExtendedKeyUsageOID.CLIENT_AUTH}


def test_a_user_certificate_says_who_where_and_until_when(zone: Zone) -> None:
    certificate = zone.user("jane", ("dev", "ops"), (ALPHA,)).certificate
    identity = user_identity(certificate, ZONE)
    assert (identity.user, identity.groups) == ("jane", ("dev", "ops"))
    assert identity.serial == certificate.serial_number
    assert identity.not_after == NOW + timedelta(hours=8)
    assert identity.may_use(ALPHA)
    assert not identity.may_use(BETA)


def test_a_user_of_all_clusters_may_use_each(zone: Zone) -> None:
    identity = user_identity(zone.user(clusters=None).certificate, ZONE)
    assert identity.may_use(ALPHA) and identity.may_use(BETA)


@pytest.mark.parametrize("kind", ["agent", "server"])
def test_another_role_is_no_user_and_the_error_says_what_to_use(
    zone: Zone, kind: str
) -> None:
    with pytest.raises(RoleError, match="use a kubeconfig that `tower kubeconfig`"):
        user_identity(getattr(zone, kind)().certificate, ZONE)


def test_a_user_of_another_zone_is_refused(zone: Zone) -> None:
    with pytest.raises(RoleError, match=r"this is zone other\.zone"):
        user_identity(zone.user().certificate, "other.zone")


def cn(value: str) -> x509.NameAttribute:
    return x509.NameAttribute(NameOID.COMMON_NAME, value)


def o(value: str) -> x509.NameAttribute:
    return x509.NameAttribute(NameOID.ORGANIZATION_NAME, value)


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ([], "0 users in"),
        ([o("dev")], "0 users in"),
        ([cn("a"), cn("b")], "2 users in"),
        ([cn(" a")], "blank"),
        ([cn("a\nb")], "control character"),
        ([cn("a"), o("")], "empty"),
        ([cn("a"), o("dev"), o("ops\r")], "control character"),
        ([cn("a"), o("dev ")], "blank"),
        ([cn("a"), o("x" * 257)], "longer than 256 bytes"),
        ([cn("a"), *(o(f"g{n}") for n in range(MAX_GROUPS + 1))], "129 groups in"),
    ],
)
def test_one_bad_name_refuses_the_whole_certificate(
    names: list[x509.NameAttribute], fault: str
) -> None:
    with pytest.raises(RoleError, match=fault):
        user_identity(forged([USER_URI], CLIENT, names), ZONE)
