"""Streams that outlive their connection, with the tools that people use. SPEC 10.

The agent dials through a relay that cuts its connection again and again, by RST and in the
middle of frames. Covered, all at once: an `exec` that echoes numbered lines, watches that
count every change, `logs -f`, a large download and an upload through `exec`: nothing breaks,
nothing is lost, doubled or reordered. And a server that is killed: streams end at once.

The minute of CI is `make soak`'s ten, shortened: DROP_SECONDS=600 has 100 drops, 50 watches
and a download of 1 GB.
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
from typing import IO

import pytest

from tests.e2e.kubectl import Kubectl, StreamingKubectl
from tests.e2e.member import Member
from tests.e2e.neighbours import host_port
from tests.e2e.script import ready_box
from tests.e2e.tower import AgentOptions, Tower, wait_until
from tests.fakes.faults import FaultyRelay

SECONDS = float(os.environ.get("DROP_SECONDS", "60"))
IS_LONG = SECONDS >= 600

# A drop every six seconds; in the minute of CI twice as often.
DROPS = round(SECONDS / 6) if IS_LONG else round(SECONDS / 3)
# Each is a kubectl, with 50 MB of memory.
WATCHES = 50 if IS_LONG else 10
DOWNLOAD_BYTES = 1_000_000_000 if IS_LONG else 100_000_000
UPLOAD_BYTES = DOWNLOAD_BYTES // 10

# Both transfers go in so many pieces over most of the time: most drops hit bulk data.
PIECES = 100
TRANSFER_SECONDS = 0.8 * SECONDS
# After the last drop: what a busy machine is behind with.
GRACE_SECONDS = 120.0

# The agent is back after half a second at most, and a new drop waits for that.
BACK_SECONDS = 10.0

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
        # Drops after which the agent was back.
        self.drops = 0
        self.is_done = threading.Event()

    def run(self) -> None:
        rng = random.Random(DROPS)
        start = time.monotonic()
        for number in range(DROPS):
            # At a random time within each of equal spans.
            at = start + (number + rng.random()) * SECONDS / DROPS
            if self.is_done.wait(max(0.0, at - time.monotonic())):
                return
            before = self.relay.connections_accepted
            if rng.random() < 0.5:
                self.relay.cut()
            else:
                self.relay.cut_after(rng.randrange(1, 200_000))
            if not self._is_back(before):
                return
            self.drops += 1

    def _is_back(self, before: int) -> bool:
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline and not self.is_done.is_set():
            if self.relay.connections_accepted > before:
                return True
            time.sleep(0.05)
        return False


class Transfer(threading.Thread):
    """One kubectl that moves many bytes; both digests are compared in the end."""

    def __init__(self, kubectl: Kubectl, script: str, upload_bytes: int = 0) -> None:
        super().__init__(name="upload" if upload_bytes else "download")
        self._upload_bytes = upload_bytes
        self.process = subprocess.Popen(
            kubectl.command_line("exec", "-i", "box", "--", "sh", "-c", script),
            env=kubectl.full_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        # What went through our hands, and what the pod says of it.
        self.ours = self.pods = ""

    def run(self) -> None:
        process = self.process
        assert process.stdin and process.stdout and process.stderr
        if self._upload_bytes:
            self.ours = self._send(process.stdin)
            self.pods = process.stdout.read().decode().split()[0]
        else:
            digest = hashlib.sha256()
            while data := process.stdout.read(1 << 20):
                digest.update(data)
            self.ours = digest.hexdigest()
            self.pods = process.stderr.read().decode().split()[0]
        process.wait(GRACE_SECONDS)

    def stop(self) -> None:
        """End it in whatever state it is."""
        self.process.kill()
        self.process.wait()
        if self.ident is not None:
            self.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _send(self, stdin: IO[bytes]) -> str:
        rng, digest = random.Random(self._upload_bytes), hashlib.sha256()
        for _ in range(PIECES):
            piece = rng.randbytes(self._upload_bytes // PIECES)
            digest.update(piece)
            stdin.write(piece)
            stdin.flush()
            time.sleep(TRANSFER_SECONDS / PIECES)
        stdin.close()
        return digest.hexdigest()


def download(kubectl: Kubectl) -> Transfer:
    """Bytes that a pod makes; it says their digest on stderr."""
    piece = DOWNLOAD_BYTES // PIECES
    return Transfer(
        kubectl,
        f"head -c {PIECES * piece} /dev/urandom >big; sha256sum <big >&2; n=0; "
        f"while [ $n -lt {PIECES} ]; do dd if=big bs={piece} count=1 skip=$n 2>/dev/null; "
        f"n=$((n+1)); sleep {TRANSFER_SECONDS / PIECES:.2f}; done; rm big",
    )


@pytest.mark.timeout(2 * SECONDS + 3 * GRACE_SECONDS)
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
        watches = start_watches(kubectl, stack)
        transfers = download(kubectl), Transfer(kubectl, "sha256sum", UPLOAD_BYTES)
        dropper = Dropper(relay)
        for transfer in transfers:
            stack.callback(transfer.stop)
            transfer.start()
        dropper.start()
        stack.callback(dropper.join)
        stack.callback(dropper.is_done.set)
        count = 0
        while dropper.is_alive() or any(t.is_alive() for t in transfers):
            count += 1
            echo.write(b"line %d\n" % count)
            assert echo.next_line(timeout=15).text == f"line {count}", tower.logs()
            if count % 5 == 0:
                _step(kubectl, watches, logs, count)
            time.sleep(0.02)
        for transfer in transfers:
            assert transfer.process.wait(GRACE_SECONDS) == 0, tower.logs()
            assert transfer.ours == transfer.pods, f"{transfer.name}\n{tower.logs()}"
        assert dropper.drops == DROPS and count > DROPS
        assert echo.process.poll() is logs.process.poll() is None
        assert [watch.process.poll() for watch in watches] == WATCHES * [None]


def start_watches(
    kubectl: Kubectl, stack: contextlib.ExitStack
) -> list[StreamingKubectl]:
    """Watches that print a counter's every value."""
    kubectl.quiet("create", "configmap", "counter", "--from-literal=n=0")
    arguments = "--watch", "-o", "jsonpath={.data.n}{'\\n'}"
    watches = [
        stack.enter_context(kubectl.start("get", "configmap/counter", *arguments))
        for _ in range(WATCHES)
    ]
    for watch in watches:
        watch.next_line("0", timeout=GRACE_SECONDS)
    return watches


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
