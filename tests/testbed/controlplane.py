"""A real Kubernetes control plane on loopback: as many at a time as you like, no root, no containers.

    with ControlPlane("alpha", tmp_path) as member:
        subprocess.run([member.kubectl, "--kubeconfig", member.kubeconfig, "get", "nodes"])
        member.kill("kube-apiserver")
        member.restart("kube-apiserver")
        member.wait_ready()

What its pods do is written in README.md. Nothing is left behind when the process that made
it dies; supervisor.py says how.
"""

import http.client
import itertools
import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.testbed import pki
from tests.testbed.binary import KUBELAB
from tests.testbed.commands import COMMANDS, Layout, free_ports
from tests.testbed.folder import FolderInUse, claim, write_identities
from tests.testbed.kubeconfigs import write_kubeconfig
from tests.testbed.processes import Processes, ProcessFailed

__all__ = ["ControlPlane", "ControlPlaneFailed"]

# Measured: 3 s on idle cores. Two at once beside a test run on 2 cores need a multiple.
START_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.05

# Room for the 2,000 pods that list-and-watch tests make.
NODE_RESOURCES = {
    "cpu": "256",
    "memory": "2Ti",
    "pods": "5000",
    "ephemeral-storage": "2Ti",
}


class ControlPlaneFailed(Exception):
    """The control plane did not come up, or did not answer as it should."""


class ControlPlane:
    """One control plane; everything of it lies in DIRECTORY. Blocking, usable from any thread.

    Attributes:
        kubeconfig: Client certificate, user `admin`, group system:masters.
        admin_token_kubeconfig: Bearer token, user `admin-token`, group system:masters.
        alice_kubeconfig: Bearer token, user `alice`, group `dev`: no rights at all.
        audit_log: JSON lines, level Metadata; an event is there before its response is.
        kubectl: The kubectl of the same version.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        nodes: int = 1,
        binary: Path | None = None,
        apiserver_args: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.directory = directory.absolute()
        self.nodes = nodes
        self.binary = binary or KUBELAB.path()
        self.layout = Layout(
            name=name,
            directory=self.directory,
            ports=free_ports(),
            apiserver_args=apiserver_args,
        )
        self.port = self.layout.ports.apiserver
        self.url = f"https://127.0.0.1:{self.port}"
        self.audit_log = self.layout.audit_log
        self.kubectl = self.directory / "bin" / "kubectl"
        self.kubeconfig = self.directory / "admin.kubeconfig"
        self.admin_token_kubeconfig = self.directory / "admin-token.kubeconfig"
        self.alice_kubeconfig = self.directory / "alice.kubeconfig"
        self._authority: pki.TestAuthority | None = None  # set by start()
        self._processes: Processes | None = (
            None  # set by start(), None again after stop()
        )
        self._lock_file: int | None = None  # held between start() and stop()
        self._serial = itertools.count()  # names of the kubeconfigs made on request
        self._client_context: threading.local = threading.local()

    # Life

    def start(self) -> None:
        """Bring everything up in an empty folder; returns when nodes and the default ServiceAccount are ready.

        Raises:
            ControlPlaneFailed: If the binary is missing, the folder is in use, or a process
                ends; then nothing runs any more.
        """
        if not self.binary.exists():
            raise ControlPlaneFailed(f"no {self.binary}: run `make testbed`")
        try:
            self._lock_file = claim(self.directory)
        except FolderInUse as error:
            raise ControlPlaneFailed(str(error)) from error
        try:
            self._write_files()
            self._processes = Processes(self.directory)
            self._bring_up()
        except ProcessFailed as error:
            self.stop()
            raise ControlPlaneFailed(f"{self.name}: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill all processes and wait for their end. The files stay until the next start. Twice does no harm."""
        if self._processes is not None:
            self._processes.close()
            self._processes = None
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Single processes: etcd kube-apiserver kubelet kube-controller-manager kube-scheduler kwok

    def kill(self, process: str) -> None:
        """SIGKILL one process and wait for its end."""
        self._running().kill(process, signal.SIGKILL)

    def restart(self, process: str) -> None:
        """Start one process again, with the same ports and data; kills it first if it runs.

        Returns at once: `wait_ready` waits for the apiserver.
        """
        processes = self._running()
        if processes.running(process):
            processes.kill(process, signal.SIGKILL)
        processes.start(process, COMMANDS[process](self.layout))

    def freeze(self, process: str) -> None:
        """SIGSTOP: the process keeps its connections and says nothing more."""
        self._running().send_signal(process, signal.SIGSTOP)

    def thaw(self, process: str) -> None:
        """SIGCONT."""
        self._running().send_signal(process, signal.SIGCONT)

    def pid(self, process: str) -> int:
        """The pid that runs, or ran last, under this name."""
        return self._running().pid(process)

    def wait_ready(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Wait until the apiserver says that it is ready and answers from etcd."""
        self._wait(
            "the apiserver's /readyz", self._is_ready, timeout_seconds, "kube-apiserver"
        )

    # Identities

    @property
    def ca(self) -> pki.TestAuthority:
        """The member's CA (serving and client certificates): `.certificate_pem`, `.certificate_path`, `.key_path`."""
        if self._authority is None:
            raise ControlPlaneFailed(f"{self.name} was never started")
        return self._authority

    def client_kubeconfig(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """A kubeconfig with a new client certificate of the member's CA."""
        return self._kubeconfig(client=self.ca.issue_client(user, groups))

    def service_account_token(
        self, namespace: str, name: str, *, lifetime_seconds: int = 3600
    ) -> str:
        """A token of an existing ServiceAccount, as a pod would have it (at least 10 minutes long)."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": lifetime_seconds},
        }
        status, answer = self.request("POST", path, body)
        if status != 201:
            raise ControlPlaneFailed(
                f"no token for {namespace}/{name}: {answer.get('message', status)}"
            )
        token: str = answer["status"]["token"]
        return token

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig with a token of an existing ServiceAccount."""
        return self._kubeconfig(token=self.service_account_token(namespace, name))

    # What happened

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        """One request as admin: (status, parsed JSON; text where it is not JSON)."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=30, context=self._context()
        )
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": content_type})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def audit_events(self) -> list[dict[str, Any]]:
        """The audit log so far, without the control plane's own traffic."""
        lines = self.audit_log.read_text().splitlines()
        return [json.loads(line) for line in lines]

    def log(self, process: str) -> str:
        """What one process has written so far."""
        return (self.directory / "log" / f"{process}.log").read_text(errors="replace")

    # Inside

    def _running(self) -> Processes:
        if self._processes is None:
            raise ControlPlaneFailed(f"{self.name} is not started")
        return self._processes

    def _write_files(self) -> None:
        """Certificates, tokens, kubeconfigs, and a symlink for each program."""
        for program in (*COMMANDS, "kubectl"):
            link = self.directory / "bin" / program
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(self.binary)
        self._client_context = threading.local()
        self._authority, tokens = write_identities(self.layout)
        admin = self._authority.issue_client("admin", ("system:masters",))
        admin.write(self.layout.pki / "admin")
        self._kubeconfig(self.kubeconfig, client=admin)
        self._kubeconfig(self.admin_token_kubeconfig, token=tokens["admin-token"])
        self._kubeconfig(self.alice_kubeconfig, token=tokens["alice"])
        self._kubeconfig(self.directory / "kwok.kubeconfig", token=tokens["kwok"])
        for file, user in (
            ("kcm", "system:kube-controller-manager"),
            ("scheduler", "system:kube-scheduler"),
        ):
            client = self._authority.issue_client(user)
            self._kubeconfig(self.directory / f"{file}.kubeconfig", client=client)

    def _bring_up(self) -> None:
        processes = self._running()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        for name, command in COMMANDS.items():
            if name == "kube-controller-manager":
                # The rest only retries without an apiserver, and on few cores keeps it from coming up.
                self.wait_ready()
            processes.start(name, command(self.layout))
        for index in range(self.nodes):
            status, answer = self.request("POST", "/api/v1/nodes", _node(index))
            if status != 201:
                raise ControlPlaneFailed(f"cannot make a node: {answer}")
        self._wait_for_nodes(deadline)
        self._wait(
            "the default ServiceAccount",
            lambda: self._exists("/api/v1/namespaces/default/serviceaccounts/default"),
            deadline - time.monotonic(),
            "kube-controller-manager",
        )

    def _wait_for_nodes(self, deadline: float) -> None:
        """Wait until kwok has made the nodes ready, and start it again if it dies of itself.

        Its workers fill an unguarded map when they look at the first node ("concurrent map writes",
        kwok 0.8.0 with easycel 0.6.0), which now and then ends a start.
        """
        for last in (False, False, True):
            try:
                left = deadline - time.monotonic()
                self._wait("ready nodes", self._nodes_are_ready, left, "kwok")
                return
            except ProcessFailed:
                if last:
                    raise
                self.restart("kwok")

    def _wait(
        self,
        what: str,
        condition: Callable[[], bool],
        timeout_seconds: float,
        process: str,
    ) -> None:
        """Poll until a condition holds; a dead process ends the wait at once."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            for name in ("etcd", "kube-apiserver", process):
                self._running().check(name)
            if time.monotonic() > deadline:
                raise ControlPlaneFailed(
                    f"{self.name}: {what} not there after {timeout_seconds:.0f} s;"
                    f" see {self.directory}/log/{process}.log"
                )
            time.sleep(POLL_SECONDS)

    def _is_ready(self) -> bool:
        try:
            # /readyz remembers its last look at etcd for a while; reading an object asks etcd itself.
            return self.request("GET", "/readyz") == (200, "ok") and self._exists(
                "/api/v1/namespaces/kube-system"
            )
        except OSError:  # not listening yet
            return False
        except http.client.HTTPException:  # killed in the middle of an answer
            return False

    def _exists(self, path: str) -> bool:
        return self.request("GET", path)[0] == 200

    def _nodes_are_ready(self) -> bool:
        _, nodes = self.request("GET", "/api/v1/nodes")
        ready = [
            condition
            for node in nodes["items"]
            for condition in node["status"].get("conditions", [])
            if condition["type"] == "Ready" and condition["status"] == "True"
        ]
        return len(ready) >= self.nodes

    def _context(self) -> ssl.SSLContext:
        # One a thread: OpenSSL's contexts are not made for use by several at once.
        context: ssl.SSLContext | None = getattr(self._client_context, "value", None)
        if context is None:
            context = ssl.create_default_context(cafile=self.ca.certificate_path)
            stem = self.layout.pki / "admin"
            context.load_cert_chain(f"{stem}.crt", f"{stem}.key")
            self._client_context.value = context
        return context

    def _kubeconfig(
        self,
        path: Path | None = None,
        *,
        client: pki.KeyPair | None = None,
        token: str | None = None,
    ) -> Path:
        if path is None:
            path = self.directory / f"client-{next(self._serial)}.kubeconfig"
        return write_kubeconfig(
            path,
            name=self.name,
            server=self.url,
            ca_pem=self.ca.certificate_pem,
            client=client,
            token=token,
        )


def _node(index: int) -> dict[str, Any]:
    name = f"fake-{index}"
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "type": "kwok",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"capacity": NODE_RESOURCES, "allocatable": NODE_RESOURCES},
    }
