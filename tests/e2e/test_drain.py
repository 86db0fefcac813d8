"""Updates without a broken request: SIGTERM of agent and server, with real processes and kubectl.

Covered: a rolling update of the agent (two downloads run through it, new requests all succeed), a
server that is replaced beside its successor, and the end of the grace: what still runs is cut off,
in time, with exit code 0, and nothing hangs.
"""

import contextlib
import hashlib
import itertools
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.kubectl import Kubectl
from tests.e2e.member import Member
from tests.e2e.raw_client import Access, works
from tests.e2e.script import ready_box
from tests.e2e.tower import AgentOptions, Tower, wait_until

# Bytes that a pod makes, slowly: some seconds for all of them.
PIECES = 40
PIECE_BYTES = 500_000
PAUSE_SECONDS = 0.1

# Between the end of the last stream, or of the grace, and that of the process.
EXIT_SECONDS = 5.0

_numbers = itertools.count(1)


@contextlib.contextmanager
def box(tower: Tower, member: Member) -> Iterator[Kubectl]:
    """kubectl through the tunnel, in a namespace of its own with a pod."""
    namespace = f"drain-{next(_numbers)}"
    kubectl = member.kubectl(tower.kubeconfig(member.name)).variant(namespace=namespace)
    kubectl.quiet("create", "namespace", namespace)
    kubectl.quiet("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    ready_box(kubectl)
    try:
        yield kubectl
    finally:
        with contextlib.suppress(AssertionError):
            kubectl.quiet("delete", "namespace", namespace, "--wait=false")


class Download(threading.Thread):
    """A long answer: `exec` of what makes bytes for some seconds, and says their digest."""

    def __init__(self, kubectl: Kubectl) -> None:
        super().__init__(name="download")
        self.kubectl = kubectl
        self.received = hashlib.sha256()
        self.received_bytes = 0
        self.said = b""
        self.code: int | None = None

    def run(self) -> None:
        script = (
            f"head -c {PIECES * PIECE_BYTES} /dev/urandom > $$; sha256sum < $$ >&2; "
            f"for i in $(seq 0 {PIECES - 1}); do "
            f"tail -c +$((i * {PIECE_BYTES} + 1)) $$ | head -c {PIECE_BYTES}; "
            f"sleep {PAUSE_SECONDS}; done; rm $$"
        )
        process = subprocess.Popen(
            self.kubectl.command_line("exec", "box", "--", "sh", "-c", script),
            env=self.kubectl.full_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        while data := process.stdout.read1(65536):  # type: ignore[attr-defined]
            self.received.update(data)
            self.received_bytes += len(data)
        self.said = process.stderr.read()
        self.code = process.wait()
        process.stdout.close()
        process.stderr.close()

    @property
    def is_half_done(self) -> bool:
        return self.received_bytes > PIECES * PIECE_BYTES // 4

    def check(self, tower: Tower) -> None:
        self.join(60)
        assert (self.code, self.received_bytes) == (0, PIECES * PIECE_BYTES), (
            self.said,
            tower.logs(),
        )
        assert self.said.decode().split()[0] == self.received.hexdigest()


class Prober(threading.Thread):
    """New requests, one after the other, each on a connection of its own."""

    def __init__(self, access: Access) -> None:
        super().__init__(name="prober")
        self.access = access
        self.asked = 0
        self.failed: list[float] = []
        self.is_done = threading.Event()

    def run(self) -> None:
        while not self.is_done.is_set():
            began = time.monotonic()
            if not works(self.access):
                self.failed.append(began)
            self.asked += 1


def test_an_agent_is_updated_without_a_broken_request(
    new_tower: Callable[..., Tower], alpha: Member
) -> None:
    tower = new_tower()
    tower.join(alpha, AgentOptions(arguments=("--tunnels", "2")))
    with box(tower, alpha) as kubectl, contextlib.ExitStack() as stack:
        old = tower.agents["alpha"].process
        downloads = [Download(kubectl) for _ in range(2)]
        for download in downloads:
            download.start()
        wait_until(lambda: all(d.is_half_done for d in downloads), 20, "downloads")
        prober = Prober(Access(tower.kubeconfig("alpha")))
        prober.start()
        stack.callback(prober.join)
        stack.callback(prober.is_done.set)
        # As a Deployment does it: the new one is ready before the old one is to stop.
        new = tower.second_agent("alpha")
        before = prober.asked
        wait_until(lambda: prober.asked > before + 5, 10, "requests with both")
        old.send_signal(signal.SIGTERM)
        for download in downloads:
            download.check(tower)
        assert old.wait(EXIT_SECONDS) == 0
        before = prober.asked
        wait_until(lambda: prober.asked > before + 20, 10, "requests with the new one")
        assert not prober.failed, (prober.failed, prober.asked, tower.logs())
        assert tower.cluster("alpha")["state"] == "connected"
        assert new.running


def test_a_server_is_replaced_while_a_download_runs_through_it(
    new_tower: Callable[..., Tower], alpha: Member
) -> None:
    tower = new_tower()
    tower.join(alpha, AgentOptions())
    access = Access(tower.kubeconfig("alpha"))
    with box(tower, alpha) as kubectl:
        download = Download(kubectl)
        download.start()
        wait_until(lambda: download.is_half_done, 20, "a download")
        old = tower.server
        old.send_signal(signal.SIGTERM)
        wait_until(lambda: not works(access), 5, "the old one lets nobody in")
        tower.start()
        wait_until(lambda: works(access), 2, f"the new one serves\n{tower.logs()}")
        assert old.running, "the download is long enough for this test"
        download.check(tower)
        assert old.wait(EXIT_SECONDS) == 0
        assert works(access)


@pytest.mark.parametrize("end", ["agent", "server"])
def test_what_runs_when_the_grace_is_over_is_cut_off_and_does_not_hang(
    new_tower: Callable[..., Tower], alpha: Member, end: str
) -> None:
    grace = ("--drain-time", "2s")
    tower = new_tower(arguments=grace)
    tower.join(alpha, AgentOptions(arguments=grace))
    process = tower.server if end == "server" else tower.agents["alpha"].process
    with (
        box(tower, alpha) as kubectl,
        kubectl.start("exec", "-i", "box", "--", "cat", stdin=True) as echo,
    ):
        echo.write(b"hello\n")
        echo.next_line("hello")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        echo.write(b"still here\n")
        echo.next_line("still here")
        assert process.wait(2.0 + EXIT_SECONDS) == 0
        assert time.monotonic() - began >= 2.0
        wait_until(lambda: echo.process.poll() is not None, 3, "kubectl ends")
        assert echo.process.returncode != 0, "half a stream is no whole one"
        if end == "server":
            tower.start()
        else:
            tower.agents["alpha"].process.start()
            tower.agents["alpha"].wait_ready()
