"""A server whose state lies in the host cluster, with exactly the rights of the chart.

Covered: first light and the command `tower` are the same as with SQLite; a server that was killed knows
everything; the host's apiserver away for a while (tunnels and requests go on, also of an agent that has
to come back; joins and orders are refused with the reason; all converges when it is back).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.host import Host
from tests.e2e.member import Member
from tests.e2e.raw_client import Access, works
from tests.e2e.tower import AgentOptions, Tower, wait_until
from tests.testbed.controlplane import ControlPlane

# The 5 s that `tower cluster list` promises.
TRUTH_SECONDS = 5.0


@pytest.fixture
def place(host: ControlPlane, tmp_path: Path) -> Iterator[Host]:
    place = Host(host, tmp_path / "homes")
    yield place
    place.clear()


@pytest.fixture
def kept(place: Host, new_tower: Callable[..., Tower], alpha: Member) -> Tower:
    """A Tower of its own that keeps its state in the host cluster, with alpha joined."""
    tower = new_tower(arguments=place.arguments())
    tower.join(alpha)
    tower.wait_connected("alpha", TRUTH_SECONDS)
    return tower


def test_first_light_and_a_restart(kept: Tower, place: Host, alpha: Member) -> None:
    access = Access(kept.kubeconfig("alpha"))
    assert works(access)
    assert alpha.kubectl(kept.kubeconfig("alpha"))("get", "nodes")
    before = kept.admin("cluster", "list", "-o", "json")
    tokens = json.loads(kept.admin("token", "list", "-o", "json"))
    assert [t["state"] for t in tokens["tokens"]].count("used") == 1
    # Nothing lies on the server's disk but its socket.
    assert not kept.state.exists() or list(kept.state.iterdir()) == []
    kept.server.kill()
    kept.start()
    kept.wait_connected("alpha", TRUTH_SECONDS)
    wait_until(lambda: works(access), TRUTH_SECONDS, "works after the restart")
    after = json.loads(kept.admin("cluster", "list", "-o", "json"))
    for field in ("name", "member_uid", "joined_at", "url"):
        was = json.loads(before)["clusters"][0][field]
        assert after["clusters"][0][field] == was
    assert {"tower-ca", "tower-server-tls"} <= place.secrets().keys()
    assert "tower-ledger-alpha" in place.secrets()


def test_while_the_hosts_apiserver_is_away(
    kept: Tower, place: Host, alpha: Member, beta: Member
) -> None:
    access = Access(kept.kubeconfig("alpha"))
    waiting = kept.prepare(beta, AgentOptions())
    place.plane.kill("kube-apiserver")
    try:
        assert works(access)
        # An agent that comes back is let in from what we know.
        agent = kept.agents["alpha"]
        agent.process.kill()
        agent.process.start()
        agent.wait_ready()
        wait_until(lambda: works(access), TRUTH_SECONDS, "works during the outage")
        kept.wait_connected("alpha", TRUTH_SECONDS)
        # A join has to wait, and nothing is lost by trying.
        waiting.process.start()
        reason = "the host's apiserver does not answer"
        wait_until(
            lambda: reason in waiting.process.log_tail(),
            20,
            f"the agent says why\n{kept.logs()}",
        )
        assert "nothing was used up" in waiting.process.log_tail()
        refused = kept.run_admin("token", "create", "gamma")
        assert refused.returncode != 0 and reason in refused.stderr, refused
        assert "tunnels and requests go on" in refused.stderr
        assert works(access)
    finally:
        place.plane.restart("kube-apiserver")
        place.plane.wait_ready()
    if not waiting.process.running:
        waiting.process.start()
    waiting.wait_ready()
    kept.wait_connected("beta", TRUTH_SECONDS)
    kept.admin("token", "create", "gamma")
    assert works(access)
