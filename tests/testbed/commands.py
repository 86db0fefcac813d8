"""The command line of each process of a control plane: pure, from a layout of paths and ports."""

import random
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

__all__ = ["COMMANDS", "Layout", "Ports", "free_ports"]

# Below the ephemeral range (32768 and up on Linux), so that no outgoing connection takes a port
# between our look and its use, nor while a process is down for a restart.
PORT_RANGE = (15000, 32000)

AUDIT_POLICY = Path(__file__).with_name("audit-policy.yaml")
KWOK_STAGES = Path(__file__).with_name("kwok.yaml")


@dataclass(frozen=True, kw_only=True)
class Ports:
    """All on 127.0.0.1."""

    etcd: int
    etcd_peer: int
    apiserver: int
    kubelet: int
    kwok: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything of one control plane is."""

    name: str
    directory: Path
    ports: Ports
    apiserver_args: tuple[str, ...] = ()

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    @property
    def audit_log(self) -> Path:
        return self.directory / "audit.log"

    def program(self, name: str) -> str:
        """The multi-call binary under the name of one of its programs."""
        return str(self.directory / "bin" / name)


def free_ports() -> Ports:
    """Ports that were free a moment ago."""
    with ExitStack() as stack:
        numbers: list[int] = []
        while len(numbers) < 5:
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", random.randint(*PORT_RANGE)))
            except OSError:
                continue
            numbers.append(probe.getsockname()[1])
    etcd, etcd_peer, apiserver, kubelet, kwok = numbers
    return Ports(
        etcd=etcd, etcd_peer=etcd_peer, apiserver=apiserver, kubelet=kubelet, kwok=kwok
    )


def etcd(layout: Layout) -> list[str]:
    client = f"http://127.0.0.1:{layout.ports.etcd}"
    peer = f"http://127.0.0.1:{layout.ports.etcd_peer}"
    return [
        layout.program("etcd"),
        f"--name={layout.name}",
        f"--data-dir={layout.directory / 'etcd'}",
        "--unsafe-no-fsync",  # survives kill -9 (the pages are the kernel's), not a power cut
        "--log-level=warn",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={layout.name}={peer}",
    ]


def apiserver(layout: Layout) -> list[str]:
    pki = layout.pki
    return [
        layout.program("kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{layout.ports.etcd}",
        "--bind-address=127.0.0.1",
        f"--secure-port={layout.ports.apiserver}",
        # Endpoints may not hold loopback addresses: the `kubernetes` service gets none.
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--token-auth-file={pki}/tokens.csv",
        "--anonymous-auth=false",
        "--authorization-mode=Node,RBAC",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/kubelet-client.crt",
        f"--kubelet-client-key={pki}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/proxy-client.crt",
        f"--proxy-client-key-file={pki}/proxy-client.key",
        f"--audit-policy-file={AUDIT_POLICY}",
        f"--audit-log-path={layout.audit_log}",
        # An event is in the file before its response is out: a test that has the answer may read the log.
        "--audit-log-mode=blocking",
        *layout.apiserver_args,
    ]


def controller_manager(layout: Layout) -> list[str]:
    pki = layout.pki
    return [
        layout.program("kube-controller-manager"),
        f"--kubeconfig={layout.directory}/kcm.kubeconfig",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=500",  # the default of 20 costs 5 s at the start
        "--kube-api-burst=500",
        "--resource-quota-sync-period=10s",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki}/sa.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
    ]


def scheduler(layout: Layout) -> list[str]:
    return [
        layout.program("kube-scheduler"),
        f"--kubeconfig={layout.directory}/scheduler.kubeconfig",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=500",
        "--kube-api-burst=500",
    ]


def kwok(layout: Layout) -> list[str]:
    """Moves nodes and pods through their states, as kwok.yaml says."""
    return [
        layout.program("kwok"),
        f"--kubeconfig={layout.directory}/kwok.kubeconfig",
        f"--config={KWOK_STAGES}",
        "--manage-all-nodes=true",
        # Without leases a node turns NotReady after 50 s and loses its addresses, and with them logs and exec.
        "--node-lease-duration-seconds=40",
        "--node-ip=127.0.0.1",
        f"--node-port={layout.ports.kubelet}",
        f"--server-address=127.0.0.1:{layout.ports.kwok}",
    ]


def kubelet(layout: Layout) -> list[str]:
    """Serves logs, exec, attach and port-forward; see src/kubelet.go."""
    pki = layout.pki
    return [
        layout.program("kubelet"),
        f"-name={layout.name}",
        f"-listen=127.0.0.1:{layout.ports.kubelet}",
        f"-cert={pki}/kubelet.crt",
        f"-key={pki}/kubelet.key",
        f"-client-ca={pki}/ca.crt",
        f"-dir={layout.directory}/podfs",
    ]


# In the order of their start.
COMMANDS = {
    "etcd": etcd,
    "kube-apiserver": apiserver,
    "kubelet": kubelet,
    "kube-controller-manager": controller_manager,
    "kube-scheduler": scheduler,
    "kwok": kwok,
}
