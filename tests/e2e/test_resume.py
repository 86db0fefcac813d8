"""Streams that outlive their connection, with the tools that people use. SPEC 10.

The agent dials through a relay that cuts its connection again and again, by RST and in the
middle of frames. Covered, all at once: an `exec` that echoes numbered lines, watches that
count every change, `logs -f`, and a large download through `exec`: nothing breaks, nothing
is lost, doubled or reordered. And a server that is killed: streams end at once.

`DROPS=100` and more makes a longer test of it.
"""

import contextlib
import hashlib
import itertools
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.kubectl import Kubectl, StreamingKubectl
from tests.e2e.member import Member
from tests.e2e.neighbours import host_port
from tests.e2e.script import ready_box
from tests.e2e.tower import AgentOptions, Tower, wait_until
from tests.fakes.faults import FaultyRelay

DROPS = int(os.environ.get("DROPS", "12"))
WATCHES = 5
DOWNLOAD_BYTES = 60_000_000

# Between two drops; the agent is back after half a second at most.
APART_SECONDS = (0.8, 2.0)

_numbers = itertools.count(1)


@pytest.fixture
def site(
    new_tower: Callable[..., Tower], alpha: Member
) -> Iterator[tuple[Tower, FaultyRelay, Kubectl]]:
    tower = new_tower()
    with FaultyRelay(host_port(tower.address)) as relay:
        tower.join(alpha, AgentOptions(through=relay.address))
        namespace = f"resume-{next(_numbers)}"
        kubectl = alpha.kubectl(tower.kubeconfig("alpha")).variant(namespace=namespace)
        kubectl.quiet("create", "namespace", namespace)
        kubectl.quiet("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
        ready_box(kubectl)
        try:
            yield tower, relay, kubectl
        finally:
            with contextlib.suppress(AssertionError):
                kubectl.quiet("delete", "namespace", namespace, "--wait=false")


class Dropper(threading.Thread):
    """Cuts the relay's connections until told to stop."""

    def __init__(self, relay: FaultyRelay) -> None:
        super().__init__(name="dropper")
        self.relay = relay
        self.drops = 0
        self.is_done = threading.Event()

    def run(self) -> None:
        rng = random.Random(DROPS)
        while self.drops < DROPS and not self.is_done.is_set():
            self.is_done.wait(rng.uniform(*APART_SECONDS))
            before = self.relay.connections_accepted
            if rng.random() < 0.5:
                self.relay.cut()
            else:
                self.relay.cut_after(rng.randrange(1, 200_000))
            deadline = time.monotonic() + 10
            while (
                self.relay.connections_accepted == before
                and time.monotonic() < deadline
                and not self.is_done.is_set()
            ):
                time.sleep(0.05)
            self.drops += 1


def download(kubectl: Kubectl, results: list[str]) -> None:
    """Bytes that a pod makes, as a digest; compared with what the pod itself says."""
    script = (
        f"head -c {DOWNLOAD_BYTES} /dev/urandom > big; sha256sum < big >&2; cat big"
    )
    done = subprocess.run(
        kubectl.command_line("exec", "box", "--", "sh", "-c", script),
        env=kubectl.full_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=240,
    )
    results.append(hashlib.sha256(done.stdout).hexdigest())
    results.append(done.stderr.decode().split()[0])


@pytest.mark.timeout(400)
def test_nothing_breaks_when_the_connection_drops_again_and_again(
    site: tuple[Tower, FaultyRelay, Kubectl],
) -> None:
    tower, relay, kubectl = site
    with contextlib.ExitStack() as stack:
        echo = stack.enter_context(
            kubectl.start("exec", "-i", "box", "--", "cat", stdin=True)
        )
        logs = stack.enter_context(kubectl.start("logs", "-f", "box"))
        logs.next_line("third line")
        kubectl.quiet("create", "configmap", "counter", "--from-literal=n=0")
        watches = [
            stack.enter_context(
                kubectl.start(
                    "get",
                    "configmap/counter",
                    "--watch",
                    "-o",
                    "jsonpath={.data.n}{'\\n'}",
                )
            )
            for _ in range(WATCHES)
        ]
        for watch in watches:
            watch.next_line("0")
        digests: list[str] = []
        loading = threading.Thread(target=download, args=(kubectl, digests))
        loading.start()
        dropper = Dropper(relay)
        dropper.start()
        stack.callback(dropper.is_done.set)
        count = 0
        while dropper.is_alive() or loading.is_alive():
            count += 1
            echo.write(b"line %d\n" % count)
            assert echo.next_line(timeout=15).text == f"line {count}"
            if count % 5 == 0:
                _step(kubectl, watches, logs, count)
            time.sleep(0.02)
        loading.join()
        dropper.join()
        assert digests[0] == digests[1], tower.logs()
        assert dropper.drops == DROPS and count > DROPS


def _step(
    kubectl: Kubectl, watches: list[StreamingKubectl], logs: StreamingKubectl, n: int
) -> None:
    """One change that every watch must see, and one line of the log."""
    kubectl.quiet("exec", "box", "--", "sh", "-c", f"echo logged {n} >>$LOG")
    assert logs.next_line(timeout=20).text == f"logged {n}"
    patch = f'{{"data": {{"n": "{n}"}}}}'
    kubectl.quiet("patch", "configmap/counter", "-p", patch)
    for watch in watches:
        assert watch.next_line(timeout=20).text == str(n)


def test_a_killed_servers_streams_end_and_do_not_hang(
    site: tuple[Tower, FaultyRelay, Kubectl],
) -> None:
    tower, _, kubectl = site
    with kubectl.start("exec", "-i", "box", "--", "cat", stdin=True) as echo:
        echo.write(b"hello\n")
        echo.next_line("hello")
        tower.server.kill()
        wait_until(lambda: echo.process.poll() is not None, 3, "kubectl ends")
