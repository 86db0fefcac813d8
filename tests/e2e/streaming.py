"""The part of the kubectl script that upgrades connections: exec, attach, cp, port-forward.

Each step is run with both protocols that kubectl has for it, WebSocket (the default) and
SPDY/3.1. kubectl falls back from the first to the second in silence; `protocols_used`
reads from the member's audit log what really happened.
"""

import contextlib
import fcntl
import hashlib
import http.client
import http.server
import os
import random
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.kubectl import Kubectl
from tests.e2e.member import Member
from tests.e2e.script import Scene, Step, ready_box

__all__ = [
    "PROTOCOLS",
    "STREAMING",
    "exec_hands_everything_on",
    "protocols_used",
    "target",
]

COPY_BYTES = 20 * 1000 * 1000
STDIN_BYTES = 3 * 1000 * 1000

PORT_FORWARD_REQUESTS = 100
# Every request waits for the last one: they are concurrent, or the test fails.
BARRIER_TIMEOUT_SECONDS = 30.0
ANSWER_BYTES = 10_000

TERMINAL_TIMEOUT_SECONDS = 20.0

# kubectl's variables that choose the protocol.
PROTOCOLS: dict[str, dict[str, str]] = {
    "websocket": {
        "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "true",
        "KUBECTL_PORT_FORWARD_WEBSOCKETS": "true",
    },
    "spdy": {
        "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false",
        "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false",
    },
}

# A WebSocket begins with a GET, SPDY with a POST; the audit log's verbs for the two.
VERB_PROTOCOLS = {"get": "websocket", "create": "spdy"}


def exec_hands_everything_on(kubectl: Kubectl, scene: Scene) -> None:
    ready_box(kubectl)
    run = ("exec", "box", "--")
    assert kubectl(*run, "sh", "-c", "echo $POD_NAME") == "box\n"
    kubectl(*run, "sh", "-c", "echo out; echo err >&2")
    kubectl(*run, "sh", "-c", "exit 7", code=7)
    kubectl(*run, "no-such-program", code=127)
    kubectl("exec", "missing", "--", "true", code=1)
    data = random.Random(7).randbytes(STDIN_BYTES)
    told = kubectl("exec", "-i", "box", "--", "sha256sum", stdin=data)
    assert told.split()[0] == hashlib.sha256(data).hexdigest()
    # The end of stdin reaches the process, and it may still speak after it.
    kubectl(
        "exec",
        "-i",
        "box",
        "--",
        "sh",
        "-c",
        "cat; echo after; exit 7",
        stdin="x\n",
        code=7,
    )
    # Much output, little input.
    told = kubectl.quiet(*run, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' z")
    assert told == "z" * 3_000_000


def exec_on_a_terminal(kubectl: Kubectl, scene: Scene) -> None:
    ready_box(kubectl)
    wait_for_size = 'until [ "$(stty size)" = "{}" ]; do sleep 0.05; done; echo {};'
    script = (
        "test -t 0 && test -t 1 && echo is a terminal;"
        + wait_for_size.format("40 132", "wide")
        + wait_for_size.format("50 90", "resized")
        + "read line; echo read $line; exit 7"
    )
    with _Terminal(
        kubectl.command_line("exec", "-it", "box", "--", "sh", "-c", script),
        kubectl,
    ) as terminal:
        terminal.resize(40, 132)
        terminal.read_until("wide")
        terminal.resize(50, 90)
        terminal.read_until("resized")
        terminal.write("typed\n")
        terminal.read_until("read typed")
        assert terminal.process.wait(TERMINAL_TIMEOUT_SECONDS) == 7
        terminal.read_until("exit code 7")
    kubectl.note(terminal.text)


class _Terminal:
    """kubectl on a pseudo-terminal; its end is handed to the process as all three files."""

    def __init__(self, command: list[str], kubectl: Kubectl) -> None:
        self._master, slave = os.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=kubectl.full_environment(),
        )
        os.close(slave)

    def __enter__(self) -> "_Terminal":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def resize(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        # The kernel tells the terminal's foreground group, which kubectl is not in here.
        self.process.send_signal(signal.SIGWINCH)

    def write(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, wanted: str) -> None:
        deadline = time.monotonic() + TERMINAL_TIMEOUT_SECONDS
        while wanted not in self.text:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._master], [], [], max(0.0, left))
            assert readable, f"no {wanted!r} on the terminal, only {self.text!r}"
            try:
                self.text += os.read(self._master, 65536).decode()
            except OSError:  # EIO: the other end is closed, and all of it was read
                raise AssertionError(f"ended with {self.text!r}") from None


def attach_streams_both_ways(kubectl: Kubectl, scene: Scene) -> None:
    ready_box(kubectl)
    data = random.Random(8).randbytes(150_000).hex()
    told = kubectl.quiet("attach", "-qi", "box", stdin=data)  # the fake pod echoes
    assert told == data
    # Without stdin it follows the log.
    with kubectl.start("attach", "-q", "box") as attached:
        attached.next_line("third line")
        kubectl("exec", "box", "--", "sh", "-c", "echo attached >>$LOG")
        kubectl.note(attached.next_line("attached").text)


def copy_both_ways(kubectl: Kubectl, scene: Scene) -> None:
    ready_box(kubectl)
    here, back = scene.directory / "here", scene.directory / "back"
    here.write_bytes(random.Random(20).randbytes(COPY_BYTES))
    checksum = hashlib.sha256(here.read_bytes()).hexdigest()
    kubectl.quiet("cp", str(here), "box:copied")
    told = kubectl("exec", "box", "--", "sha256sum", "copied")
    assert told.split()[0] == checksum
    kubectl.quiet("cp", "box:copied", str(back))
    assert hashlib.sha256(back.read_bytes()).hexdigest() == checksum
    kubectl.note(checksum)


def forward_a_hundred_at_once(kubectl: Kubectl, scene: Scene) -> None:
    ready_box(kubectl)
    forwarded = "pod/box", f":{scene.target_port}"
    with kubectl.start("port-forward", "--address=127.0.0.1", *forwarded) as forward:
        line = forward.next_line("Forwarding from").text
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found, line
        port = int(found[1])
        with ThreadPoolExecutor(PORT_FORWARD_REQUESTS) as threads:
            answers = list(
                threads.map(
                    lambda number: _ask(port, f"/wait/{number}"),
                    range(PORT_FORWARD_REQUESTS),
                )
            )
        expected = [_answer(f"/wait/{n}") for n in range(PORT_FORWARD_REQUESTS)]
        assert answers == expected
        # And the same forwarding goes on to serve.
        assert _ask(port, "/after") == _answer("/after")
    kubectl.note(line)


def _ask(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


def _answer(path: str) -> bytes:
    return random.Random(path).randbytes(ANSWER_BYTES)


@contextlib.contextmanager
def target() -> Iterator[int]:
    """An HTTP server behind `port-forward`; yields its port.

    Answers under /wait/ go out when a hundred requests are in the house.
    """
    barrier = threading.Barrier(PORT_FORWARD_REQUESTS)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/wait/"):
                barrier.wait(BARRIER_TIMEOUT_SECONDS)
            self.send_response(200)
            self.send_header("Content-Length", str(ANSWER_BYTES))
            self.end_headers()
            self.wfile.write(_answer(self.path))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        # The default of 5 makes the kernel drop the other SYNs for a second.
        request_queue_size = 2 * PORT_FORWARD_REQUESTS
        # A handler that hangs must not keep the test run from its end.
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that went away; the test's own asserts say more

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def protocols_used(member: Member, namespace: str) -> set[str]:
    """By which protocols streams were opened in a namespace, by the member's audit log."""
    return {
        VERB_PROTOCOLS[event["verb"]]
        for event in member.plane.audit_events()
        if event.get("objectRef", {}).get("namespace") == namespace
        and event["objectRef"].get("subresource") in ("exec", "attach", "portforward")
    }


STREAMING: tuple[Step, ...] = (
    exec_hands_everything_on,
    exec_on_a_terminal,
    attach_streams_both_ways,
    copy_both_ways,
    forward_a_hundred_at_once,
)
