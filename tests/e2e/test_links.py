"""The link between agent and server: what cuts, freezes, inspects or proxies it.

Each test has a server of its own, whose agent dials through a relay or a proxy.
Covered: a frozen link without RST is noticed by both ends within five seconds; a link that
is reset or torn in the middle of a frame; an agent behind something that ends TLS joins
and works; an agent (and kubectl) that reach the server only through HTTPS_PROXY.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.member import Member
from tests.e2e.neighbours import free_port, host_port, in_thread
from tests.e2e.raw_client import Access, ask_once, works
from tests.e2e.tower import AgentOptions, Tower, wait_until
from tests.fakes.faults import FaultyRelay
from tests.fakes.http_proxy import http_proxy
from tests.fakes.tls_proxy import StrangeAuthority, tls_terminator

# The numbers.
NOTICED_SECONDS = 5.0
WORKS_AGAIN_SECONDS = 2.0

# The agent's pause before its next dial is up to half a second (design 4.8).
REDIAL_SECONDS = 0.5

# A request to a cluster that is away is held for two seconds, and then fails.
HELD_SECONDS = 2.0


@pytest.fixture
def relay(tower_behind: Tower) -> Iterator[FaultyRelay]:
    with FaultyRelay(host_port(tower_behind.address)) as relay:
        yield relay


@pytest.fixture
def tower_behind(new_tower: Callable[..., Tower]) -> Tower:
    """A Tower of the test's own, that nobody has joined."""
    return new_tower()


@pytest.fixture
def access(tower_behind: Tower, relay: FaultyRelay, alpha: Member) -> Access:
    """The way to alpha, whose agent dials through the relay; the client does not."""
    tower_behind.join(alpha, AgentOptions(through=relay.address))
    access = Access(tower_behind.kubeconfig("alpha"))
    wait_until(lambda: works(access), 10, "a request before anything is cut")
    return access


def test_a_frozen_link_is_noticed_by_both_ends(
    tower_behind: Tower, relay: FaultyRelay, access: Access
) -> None:
    dialled = relay.connections_accepted
    relay.freeze()
    frozen_at = time.monotonic()
    # A request that is under way when the link freezes.
    hanging = threading.Thread(target=lambda: works_within(access, 60))
    hanging.start()
    # The agent's end: it dials again.
    wait_until(
        lambda: relay.connections_accepted > dialled,
        NOTICED_SECONDS + REDIAL_SECONDS,
        f"the agent dials again\n{tower_behind.logs()}",
    )
    # The server's end: asked after five seconds, the list says so.
    left = max(0.0, frozen_at + NOTICED_SECONDS - time.monotonic())
    wait_until(
        lambda: tower_behind.cluster("alpha")["state"] == "away",
        left,
        f"alpha is away\n{tower_behind.logs()}",
    )
    # No request of a stranger waits on a tunnel that is gone: neither the one whose handshake
    # was under way, nor a new one.
    hanging.join(HELD_SECONDS + 1)
    assert not hanging.is_alive()
    began = time.monotonic()
    assert not works_within(access, 60)
    assert time.monotonic() - began < HELD_SECONDS + 1
    relay.thaw()
    tower_behind.wait_connected("alpha", 10)
    wait_until(lambda: works(access), WORKS_AGAIN_SECONDS, "works after the thaw")


def works_within(access: Access, seconds: float) -> bool:
    """As `raw_client.works`, with patience: the other end has to be the one to give up."""
    try:
        asyncio.run(asyncio.wait_for(ask_once(access, "/version"), seconds))
    except (OSError, EOFError):
        return False
    return True


def test_requests_work_again_after_a_reset(
    tower_behind: Tower, relay: FaultyRelay, access: Access
) -> None:
    for _ in range(3):
        relay.cut()
        wait_until(
            lambda: works(access),
            WORKS_AGAIN_SECONDS,
            f"works after a reset\n{tower_behind.logs()}",
        )


def test_a_link_torn_in_the_middle_of_a_frame_breaks_no_request(
    tower_behind: Tower, relay: FaultyRelay, access: Access
) -> None:
    # 0.4 MB of discovery and schema, cut at several places.
    path = "/openapi/v3/api/v1"
    whole = asyncio.run(ask_once(access, path)).body
    for bytes_left in (1, 1_000, 33_333, 100_001):
        relay.cut_after(bytes_left)
        answer = asyncio.run(asyncio.wait_for(ask_once(access, path), 10))
        assert answer.body == whole, tower_behind.logs()
        wait_until(
            lambda: works(access),
            WORKS_AGAIN_SECONDS,
            f"works after {bytes_left} bytes\n{tower_behind.logs()}",
        )
        assert asyncio.run(ask_once(access, path)).body == whole


def test_an_agent_behind_something_that_ends_tls_joins_and_works(
    tower_behind: Tower, alpha: Member, tmp_path: Path
) -> None:
    company = StrangeAuthority()
    ca_file = tmp_path / "company-ca.crt"
    ca_file.write_bytes(company.pem)
    _, port = host_port(tower_behind.address)
    with in_thread(tls_terminator(company.server_context("127.0.0.1"), port)) as proxy:
        through = AgentOptions(
            through=f"127.0.0.1:{proxy}", arguments=("--ca-file", str(ca_file))
        )
        agent = tower_behind.join(alpha, through)
        access = Access(tower_behind.kubeconfig("alpha"))
        wait_until(lambda: works(access), 10, "works behind the proxy")
        # And so does the next start, by the certificate and without the token.
        agent.process.kill()
        agent.process.start()
        agent.wait_ready()
        wait_until(
            lambda: works(access), WORKS_AGAIN_SECONDS, "works after the restart"
        )
        agent.process.stop()


def test_agent_and_kubectl_reach_the_server_through_a_proxy_alone(
    new_tower: Callable[..., Tower], alpha: Member
) -> None:
    # A name that only the proxy can resolve: without it nobody gets anywhere.
    port = free_port()
    public = f"tower.invalid:{port}"
    tower = new_tower(port=port, arguments=("--public-address", public))
    with in_thread(http_proxy(login="agent:secret word")) as proxy:
        url = f"http://agent:secret%20word@127.0.0.1:{proxy.port}"
        agent = tower.join(alpha, AgentOptions(environment={"HTTPS_PROXY": url}))
        assert public in proxy.connected_to
        assert "secret" not in agent.process.log.read_text()
        kubectl = alpha.kubectl(tower.kubeconfig("alpha"))
        kubectl = kubectl.variant(namespace="default", HTTPS_PROXY=url)
        assert kubectl("get", "namespace", "default", "-o", "name")
        agent.process.stop()
