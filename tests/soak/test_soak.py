"""A mixed load with faults, for a minute in CI and for ten by `make soak`: nothing breaks, nothing leaks.

Real processes and a real control plane: requests, watches, exec, downloads, new connections, slow
readers and leavers on the sealed face; echoes, downloads and slow readers on the raw one. The link
is cut, torn in the middle of frames, and frozen; early on the agent is killed with -9. Covered:
every byte is right, only what has a reason to break does; memory of server and agent is the
same in the last third as in the first; in the end both have the files, sockets, tasks and streams
that they began with.

SOAK_SECONDS=600 makes it the long one. Figures are printed with `pytest -s`.
"""

import contextlib
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.e2e.kubectl import Kubectl
from tests.e2e.member import Member
from tests.e2e.neighbours import free_port, host_port
from tests.e2e.raw_client import Access, works
from tests.e2e.script import ready_box
from tests.e2e.tower import AgentOptions, Tower, wait_until
from tests.fakes.faults import FaultyRelay
from tests.soak.accounts import Account, account_of, resident_bytes
from tests.soak.load import COUNTER_PATH, Load, Weather

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))

# In the first part of the time the agent is killed: what is compared later is one process.
KILLS = max(1, round(SECONDS / 200))
KILLING_UNTIL = 0.2
# In the last part nothing is done to the link: what is under way may end.
FAULTS_UNTIL = 0.95
APART_SECONDS = (1.5, 5.0)
# Longer than a dead peer takes to be noticed (4.5 s), and shorter.
FREEZE_SECONDS = (0.5, 7.0)
# From the kill until the new process has its tunnel, on a busy machine.
BACK_SECONDS = 15.0
# What was excused by a fault may be noticed so much later.
AFTERMATH_SECONDS = 3.0

# Memory may still grow by so much: what allocators keep differs by some megabytes from minute
# to minute, and a minute is hardly over its beginning; a leak does not stop.
GROWTH_AT_MOST = 1.05
GROWTH_BYTES_AT_MOST = (6 if SECONDS >= 600 else 16) * 2**20
SAMPLE_SECONDS = 0.5

# Idle things end within their own timeouts; the pool to the apiserver keeps up to 64.
SETTLED_SECONDS = 30.0
POOL_AT_MOST = 64


@dataclass
class Site:
    """All that takes part."""

    tower: Tower
    relay: FaultyRelay
    member: Member
    load: Load
    weather: Weather
    metrics: dict[str, str] = field(default_factory=dict)

    def pids(self) -> dict[str, int]:
        agent = self.tower.agents["alpha"].process
        return {"server": self.tower.server.pid, "agent": agent.pid}

    def accounts(self) -> dict[str, Account]:
        port = self.member.plane.port
        return {
            end: account_of(pid, self.metrics[end], port)
            for end, pid in self.pids().items()
        }


@pytest.fixture
def site(new_tower: Callable[..., Tower], alpha: Member) -> Iterator[Site]:
    raw = free_port()
    metrics = {end: f"127.0.0.1:{free_port()}" for end in ("server", "agent")}
    tower = new_tower(
        arguments=(
            *("--tcp-entry", f"127.0.0.1:{raw}=alpha/load"),
            *("--metrics", metrics["server"]),
        )
    )
    weather = Weather()
    kubectl = _namespace(alpha, tower)
    with (
        FaultyRelay(host_port(tower.address)) as relay,
        Load(weather, kubectl) as load,
    ):
        load.raw_port = raw
        target = f"load=127.0.0.1:{load.target_port}"
        arguments = "--target", target, "--health", metrics["agent"]
        tower.join(alpha, AgentOptions(through=relay.address, arguments=arguments))
        kubeconfig = tower.kubeconfig("alpha")
        load.access = Access(kubeconfig)
        load.kubectl = alpha.kubectl(kubeconfig).variant(namespace="soak")
        wait_until(lambda: works(load.access), 10, "a first request")
        yield Site(tower, relay, alpha, load, weather, metrics)


def _namespace(member: Member, tower: Tower) -> Kubectl:
    kubectl = member.admin.variant(namespace="soak")
    with contextlib.suppress(AssertionError):
        kubectl.quiet("create", "namespace", "soak")
    kubectl.quiet("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    ready_box(kubectl)
    return kubectl


class Ticker(threading.Thread):
    """Counts in a ConfigMap, at the member itself, and takes samples of memory."""

    def __init__(self, site: Site) -> None:
        super().__init__(name="ticker")
        self._site = site
        self.is_done = threading.Event()
        self.count = 0
        # By end: (when, bytes).
        self.memory: dict[str, list[tuple[float, int]]] = {"server": [], "agent": []}

    def put(self) -> None:
        """Write the counter as it is; creates it."""
        collection, _, name = COUNTER_PATH.rpartition("/")
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"n": str(self.count)},
        }
        status, answer = self._site.member.plane.request("PUT", COUNTER_PATH, body)
        if status == 404:
            self._site.member.request("POST", collection, body)
        else:
            assert status == 200, answer

    def run(self) -> None:
        while not self.is_done.wait(SAMPLE_SECONDS):
            self.count += 1
            self.put()
            for end, pid in self._site.pids().items():
                # A process that was killed a moment ago has no numbers.
                with contextlib.suppress(OSError, IndexError):
                    sample = time.monotonic(), resident_bytes(pid)
                    self.memory[end].append(sample)


def trouble(site: Site, until: float, rng: random.Random) -> None:
    """Do something to the link again and again, until the time is reached."""
    while time.monotonic() < until:
        time.sleep(rng.uniform(*APART_SECONDS))
        what = rng.random()
        if what < 0.4:
            cut(site, site.relay.cut)
        elif what < 0.8:
            cut(site, partial(site.relay.cut_after, rng.randrange(1, 300_000)))
        else:
            freeze(site, rng.uniform(*FREEZE_SECONDS))
        assert not site.load.failures, site.load.failures


def cut(site: Site, how: Callable[[], None]) -> None:
    """Lose the connection, and wait for the next one."""
    dialled = site.relay.connections_accepted
    site.weather.cuts.append((time.monotonic(), float("inf")))
    how()
    wait_until(
        lambda: site.relay.connections_accepted > dialled, BACK_SECONDS, "dialled again"
    )
    site.weather.cuts[-1] = site.weather.cuts[-1][0], time.monotonic() + 1.0


def freeze(site: Site, seconds: float) -> None:
    begin = time.monotonic()
    site.weather.freezes.append((begin, float("inf")))
    site.relay.freeze()
    time.sleep(seconds)
    site.relay.thaw()
    site.weather.freezes[-1] = begin, time.monotonic() + AFTERMATH_SECONDS


def kill_agent(site: Site) -> None:
    """kill -9, and start it again; its streams end, and nothing else of it remains."""
    agent = site.tower.agents["alpha"].process
    begin = time.monotonic()
    site.weather.outages.append((begin, float("inf")))
    agent.kill()
    agent.start()
    agent.wait_for_line("tower-agent ready", BACK_SECONDS)
    wait_until(lambda: works(site.load.access), BACK_SECONDS, "back after kill -9")
    site.weather.outages[-1] = begin, time.monotonic() + AFTERMATH_SECONDS


@pytest.mark.timeout(2 * SECONDS + 180)
def test_a_mixed_load_with_faults_breaks_nothing_and_leaks_nothing(site: Site) -> None:
    before = site.accounts()
    ticker = Ticker(site)
    ticker.put()
    rng = random.Random(SECONDS)
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        ticker.start()
        stack.callback(ticker.join)
        stack.callback(ticker.is_done.set)
        site.load.start()
        for number in range(KILLS):
            share = (number + 1) / (KILLS + 1) * KILLING_UNTIL
            trouble(site, start + share * SECONDS, rng)
            kill_agent(site)
        steady = time.monotonic()
        trouble(site, start + FAULTS_UNTIL * SECONDS, rng)
        time.sleep(max(0.0, start + SECONDS - time.monotonic()))
        site.load.stop()
    report(site, ticker, steady)
    assert not site.load.failures, "\n".join([*site.load.failures, site.tower.logs()])
    assert all(site.load.done[name] for name in site.load.kinds), site.load.done
    assert_flat(ticker, steady)
    assert_settled(site, before)


def thirds(samples: list[tuple[float, int]], since: float) -> tuple[float, float]:
    """The lower quartile in the first and in the last third of what came after `since`.

    A peak comes and goes with what readers leave lying; a leak raises the floor.
    """
    values = [value for at, value in samples if at >= since]
    third = len(values) // 3
    first, last = values[:third], values[-third:]
    return statistics.quantiles(first, n=4)[0], statistics.quantiles(last, n=4)[0]


def assert_flat(ticker: Ticker, since: float) -> None:
    for end, samples in ticker.memory.items():
        first, last = thirds(samples, since)
        grown = f"{end}: {first / 2**20:.1f} MiB, then {last / 2**20:.1f} MiB"
        assert last <= first * GROWTH_AT_MOST + GROWTH_BYTES_AT_MOST, grown


def assert_settled(site: Site, before: dict[str, Account]) -> None:
    """Both ends have what they began with, once all idle things have ended."""
    leaks: dict[str, dict[str, str]] = {}

    def is_settled() -> bool:
        now = site.accounts()
        leaks.clear()
        leaks.update({end: now[end].leaks(before[end]) for end in now})
        return not any(leaks.values()) and now["agent"].pooled <= POOL_AT_MOST

    try:
        wait_until(is_settled, SETTLED_SECONDS, "all is as it was")
    except AssertionError:
        raise AssertionError(f"leaked: {leaks}\n{site.tower.logs()}") from None


def report(site: Site, ticker: Ticker, since: float) -> None:
    """For people who look: pytest -s."""
    print(
        f"\n{SECONDS:.0f} s, {site.relay.connections_accepted} connections of the agent"
    )
    for name, count in site.load.done.items():
        print(
            f"  {name}: {count} rounds, {site.load.excused[name]} broken with a reason"
        )
    for end, samples in ticker.memory.items():
        first, last = thirds(samples, since)
        print(
            f"  {end}: {first / 2**20:.1f} MiB, then {last / 2**20:.1f} MiB; by tenths:"
        )
        every = max(1, len(samples) // 10)
        print("   ", *(f"{value / 2**20:.1f}" for _, value in samples[::every]))
