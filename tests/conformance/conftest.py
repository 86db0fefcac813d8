"""One member for each test of this folder: the demo apiserver, and the real control plane (marked e2e)."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.fakes.apiserver.server import DemoApiserver
from tests.fakes.apiserver.threaded import ThreadedDemoApiserver
from tests.testbed import binary
from tests.testbed.controlplane import ControlPlane

# Everything of these tests happens in a namespace of their own, made once for each member.
NAMESPACE = "conformance"
POD = "runner"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A member, and how the tests reach it."""

    plane: ControlPlane | DemoApiserver
    kubectl_command: tuple[str, ...]  # empty where there is none

    def kubectl(
        self, *arguments: str, stdin: bytes | str = "", kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl in the namespace of the tests; no check of its exit status."""
        return subprocess.run(
            self.kubectl_line(*arguments, kubeconfig=kubeconfig),
            input=stdin.decode() if isinstance(stdin, bytes) else stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def kubectl_line(
        self, *arguments: str, kubeconfig: Path | None = None
    ) -> list[str]:
        """The command line of `kubectl`, for those who start it themselves."""
        if not self.kubectl_command:
            pytest.skip("no kubectl: install one, or build the test bed (make testbed)")
        config = str(kubeconfig or self.plane.kubeconfig)
        return [
            *self.kubectl_command,
            "--kubeconfig",
            config,
            "-n",
            NAMESPACE,
            *arguments,
        ]

    def token(self, kubeconfig: Path | None = None) -> str:
        config = yaml.safe_load(
            (kubeconfig or self.plane.admin_token_kubeconfig).read_text()
        )
        token: str = config["users"][0]["user"]["token"]
        return token


@pytest.fixture(scope="session")
def demo_member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    with ThreadedDemoApiserver("demo", tmp_path_factory.mktemp("demo")) as demo:
        yield _prepared(demo.server)


@pytest.fixture(scope="session")
def real_member(member_a: ControlPlane) -> Member:
    return _prepared(member_a)


@pytest.fixture(params=["demo", pytest.param("real", marks=pytest.mark.e2e)])
def member(request: pytest.FixtureRequest) -> Member:
    """The same test for both."""
    found: Member = request.getfixturevalue(f"{request.param}_member")
    return found


@pytest.fixture
async def https(member: Member) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTPS client of the member, admin by bearer token."""
    context = ssl.create_default_context(cafile=member.plane.ca.certificate_path)
    sockets: list[socket.socket] = []

    def open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, *_ = address
        sockets.append(socket.socket(family, kind, protocol))
        return sockets[-1]

    connector = aiohttp.TCPConnector(ssl=context, socket_factory=open_socket)
    async with aiohttp.ClientSession(
        member.plane.url,
        connector=connector,
        headers={"Authorization": f"Bearer {member.token()}"},
    ) as session:
        yield session
    # aiohttp does not wait for the end of TLS; the test's event loop must not end before it.
    async with asyncio.timeout(10):
        while any(opened.fileno() != -1 for opened in sockets):
            await asyncio.sleep(0.002)


def _prepared(plane: ControlPlane | DemoApiserver) -> Member:
    """Make the namespace and the pod of the tests, by plain HTTPS: kubectl may not be there."""
    member = Member(plane=plane, kubectl_command=_kubectl())
    context = ssl.create_default_context(cafile=plane.ca.certificate_path)

    def post(path: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(
            plane.url + path, json.dumps(body).encode(), method="POST"
        )
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {member.token()}")
        with urllib.request.urlopen(request, context=context) as response:
            assert response.status == 201

    def running() -> bool:
        request = urllib.request.Request(
            f"{plane.url}/api/v1/namespaces/{NAMESPACE}/pods/{POD}"
        )
        request.add_header("Authorization", f"Bearer {member.token()}")
        with urllib.request.urlopen(request, context=context) as response:
            return bool(json.load(response)["status"]["phase"] == "Running")

    post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    container = {"name": "main", "image": "example.com/none"}
    pod = {
        "metadata": {"name": POD, "labels": {"app": POD}},
        "spec": {"containers": [container], "automountServiceAccountToken": False},
    }
    _eventually(lambda: _accepted(post, f"/api/v1/namespaces/{NAMESPACE}/pods", pod))
    _eventually(running)
    return member


def _accepted(post: Any, path: str, body: dict[str, Any]) -> bool:
    """A pod is refused until the namespace has its ServiceAccount, which takes the real one a moment."""
    try:
        post(path, body)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 403:
                raise
        return False
    return True


def _eventually(condition: Any, timeout_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "the member is not ready in time"
        time.sleep(0.05)


def _kubectl() -> tuple[str, ...]:
    built = binary.KUBELAB.path()
    if built.exists():
        return (str(built), "kubectl")
    found = shutil.which("kubectl")
    return (found,) if found else ()
