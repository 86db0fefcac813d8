"""Real processes on loopback: a server and an agent that are used, scraped, and watched with `tower top`."""

import base64
import json
import socket
import ssl
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.demo.shell import Shell
from tests.fakes.metrics import Numbers, numbers

ALPHA = (("cluster", "alpha"),)


@pytest.fixture
def shell() -> Iterator[Shell]:
    # Not pytest's directory: the path of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="tower-") as folder:
        shell = Shell(Path(folder), threading.Event())
        yield shell
        shell.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(url: str) -> Numbers:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return numbers(answer.read().decode())


def get_version(kubeconfig: str, folder: Path) -> bytes:
    """One request through the tunnel, as a control plane makes it; returns its status line."""
    document = yaml.safe_load(kubeconfig)
    cluster = document["clusters"][0]["cluster"]
    user = document["users"][0]["user"]
    pem = folder / "client.pem"
    pem.touch(mode=0o600)
    pem.write_bytes(
        _decoded(user["client-certificate-data"]) + _decoded(user["client-key-data"])
    )
    authority = _decoded(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    context.load_cert_chain(pem)
    url = urlsplit(cluster["server"])
    with (
        socket.create_connection((url.hostname, url.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=cluster["tls-server-name"]) as tls,
    ):
        head = f"GET {url.path}/version HTTP/1.1\r\nHost: alpha\r\nConnection: close\r\n\r\n"
        tls.sendall(head.encode())
        answer = b""
        while data := tls.recv(65536):
            answer += data
    return answer.partition(b"\r\n")[0]


def _decoded(text: str) -> bytes:
    return base64.b64decode(text)


def test_a_server_and_an_agent_that_are_used_show_it(shell: Shell) -> None:
    folder, health = shell.folder, free_port()
    state, api = folder / "server", folder / "api"
    shell.start(
        "api",
        ["tests.fakes.apiserver", "--dir", str(api), "--with-parent"],
        shown="",
        ready="ready ",
    )
    at = shell.start(
        "server",
        ["tower_server", "serve", "--state-dir", str(state)]
        + ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"],
        shown="",
        ready="metrics at ",
    ).removeprefix("metrics at ")
    admin = state / "admin.sock"
    join = folder / "join"
    shell.tower(admin, "token", "create", "alpha", "--out", str(join))
    shell.start(
        "agent",
        ["tower_agent", "run", "--join-file", str(join), "--state-dir"]
        + [str(folder / "agent"), "--kubeconfig", str(api / "admin.kubeconfig")]
        + ["--health", f"127.0.0.1:{health}"],
        shown="",
        ready="tower-agent ready: ",
    )
    kubeconfig = shell.tower(admin, "kubeconfig", "alpha")
    assert get_version(kubeconfig, folder) == b"HTTP/1.1 200 OK"

    server, agent = scrape(at), scrape(f"http://127.0.0.1:{health}/metrics")
    for end in (server, agent):
        assert end["tower_cluster_connected", ALPHA] == 1
        assert end["tower_tunnel_sessions", ALPHA] == 1
        by_server = (*ALPHA, ("opener", "server"))
        assert end["tower_tunnel_streams_opened_total", by_server] == 1
        for direction in ("sent", "received"):
            labels = (*ALPHA, ("direction", direction))
            assert end["tower_tunnel_bytes_total", labels] > 500
        assert end["process_resident_memory_bytes", ()] > 10e6
    assert server["tower_joins_total", (("outcome", "joined"),)] == 1
    outcome = "tower_front_door_connections_total"
    assert server[outcome, (("outcome", "sealed"),)] == 1
    assert server[outcome, (("outcome", "own"),)] >= 3  # join and tunnel
    answered = (("answered_by", "apiserver"), ("code", "200"))
    assert agent["tower_requests_total", answered] == 1

    top = json.loads(shell.tower(admin, "top", "-o", "json"))
    (alpha,) = top["clusters"]
    assert alpha["state"] == "connected" and alpha["streams_opened_total"] >= 2
    heading, row = shell.tower(admin, "top", "--once").splitlines()
    assert heading.split()[:2] == ["NAME", "STATE"]
    assert row.split()[:2] == ["alpha", "connected"] and " B" in row
