"""An agent's certificate is renewed: in time, while it works, and late, after weeks off.

Time cannot be turned in a real process, so the agent finds an older certificate for its key where it
keeps its own, signed by the server's CA as if it had joined back then.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from certs import profiles
from certs.authority import AGENT_LIFETIME
from certs.chains import parse_certificates, pem
from certs.keys import parse_private_key, read_private, write_private
from certs.names import AgentRole, host_name, parse_cluster_name
from tests.e2e.member import Member
from tests.e2e.tower import Tower, wait_until

RENEWED_WITHIN_SECONDS = 10.0

ZONE = "clusters.tower.internal"
ALPHA = parse_cluster_name("alpha")


def age(tower: Tower, days: int) -> Path:
    """Make the stopped agent's certificate so many days old; returns its file."""
    path = tower.directory / "agent-alpha" / "credentials.json"
    fields = json.loads(path.read_text())
    own = parse_private_key(fields["key_pem"].encode()).public_key()
    ca = tower.state / "ca"
    key = parse_private_key(read_private(ca / "ca.key"))
    authority = parse_certificates((ca / "ca.crt").read_bytes())[0]
    # Not by the `Authority`, which signs nothing before its own beginning.
    builder = profiles.leaf(
        AgentRole(zone=ZONE, cluster=ALPHA),
        subject=[(NameOID.COMMON_NAME, "alpha")],
        hosts=[host_name(ALPHA, ZONE)],
        public_key=own,
        authority=authority,
    )
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(days=days)
    builder = builder.not_valid_before(begin)
    old = builder.not_valid_after(begin + AGENT_LIFETIME).sign(key, hashes.SHA256())
    fields["certificate_pem"] = pem(old).decode()
    write_private(path, json.dumps(fields).encode())
    return path


def days_left(path: Path) -> float:
    text = json.loads(path.read_text())["certificate_pem"]
    certificate = parse_certificates(text.encode())[0]
    return (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def test_in_time_nobody_notices(alpha: Member, new_tower: Callable[..., Tower]) -> None:
    tower = new_tower()
    agent = tower.join(alpha)
    agent.process.stop()
    path = age(tower, days=25)
    agent.process.start()
    agent.wait_ready()
    kubectl = alpha.kubectl(tower.kubeconfig("alpha"))
    with kubectl.start("get", "namespaces", "--watch", "-o", "name") as watch:
        watch.next_line("namespace/default")
        wait_until(lambda: days_left(path) > 29, RENEWED_WITHIN_SECONDS, "renewal")
        # New connections meet the new certificate, the old ones go on.
        kubectl.quiet("create", "namespace", "after-renewal")
        watch.next_line("namespace/after-renewal")
        kubectl.quiet("delete", "namespace", "after-renewal", "--wait=false")
    # One for the start before, one for this one, and no other connection.
    assert agent.process.log.read_text().count("tower-agent ready") == 2


def test_after_weeks_off_it_renews_before_it_dials(
    alpha: Member, new_tower: Callable[..., Tower]
) -> None:
    tower = new_tower()
    agent = tower.join(alpha)
    agent.process.stop()
    path = age(tower, days=50)
    assert days_left(path) < -19
    agent.process.start()
    agent.wait_ready()
    assert days_left(path) > 29
    kubectl = alpha.kubectl(tower.kubeconfig("alpha"))
    assert "default" in kubectl.quiet("get", "namespaces", "-o", "name")


def test_a_removed_cluster_gets_no_certificate_however_old_its_own_is(
    alpha: Member, new_tower: Callable[..., Tower]
) -> None:
    tower = new_tower()
    agent = tower.join(alpha)
    agent.process.stop()
    age(tower, days=50)
    tower.admin("cluster", "remove", "alpha", "--yes")
    agent.process.start()
    assert agent.process.wait(20) == 5
    assert "tower token create alpha" in agent.process.log_tail()
