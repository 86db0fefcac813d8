"""What a process holds: memory, open files by kind, tasks and streams by its own word."""

import os
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.metrics import Numbers, numbers

__all__ = ["Account", "account_of", "read_metrics", "resident_bytes"]

METRICS_TIMEOUT_SECONDS = 10.0

# A connection that we closed first: the kernel keeps it a while, no process does.
_ESTABLISHED = "01"


@dataclass(frozen=True, kw_only=True)
class Account:
    """One look at a process."""

    # Descriptors: sockets, pipes, files, anonymous inodes; without those to `pool_port`.
    files: Counter[str]
    # Connections to `pool_port`: the pool to the apiserver, which keeps some on purpose.
    pooled: int
    tasks: int
    # Streams of all tunnels, and connections of clients, where the process has such.
    streams: int
    clients: int

    def leaks(self, baseline: "Account") -> dict[str, str]:
        """What there is more of than in the baseline; empty when nothing leaked."""
        more = {
            kind: f"{baseline.files[kind]} before, {count} now"
            for kind, count in self.files.items()
            if count > baseline.files[kind]
        }
        for name in ("tasks", "streams", "clients"):
            before, now = getattr(baseline, name), getattr(self, name)
            if now > before:
                more[name] = f"{before} before, {now} now"
        return more


def account_of(pid: int, metrics_address: str, pool_port: int) -> Account:
    """Look at a process, and ask it."""
    files, pooled = _open_files(pid, pool_port)
    said = read_metrics(metrics_address)
    return Account(
        files=files,
        pooled=pooled,
        tasks=int(said["process_asyncio_tasks", ()]),
        streams=int(_sum(said, "tower_tunnel_streams")),
        clients=int(_sum(said, "tower_client_connections")),
    )


def read_metrics(address: str) -> Numbers:
    """What /metrics says."""
    url = f"http://{address}/metrics"
    with urllib.request.urlopen(url, timeout=METRICS_TIMEOUT_SECONDS) as answer:
        return numbers(answer.read().decode())


def resident_bytes(pid: int) -> int:
    """How much memory it has."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _sum(said: Numbers, name: str) -> float:
    return sum(value for (found, _), value in said.items() if found == name)


def _open_files(pid: int, pool_port: int) -> tuple[Counter[str], int]:
    files: Counter[str] = Counter()
    remote = _remote_ports()
    pooled = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(descriptor)
        except FileNotFoundError:
            continue  # closed in between
        kind, _, inode = name.partition(":")
        if kind == "socket" and remote.get(inode.strip("[]")) == pool_port:
            pooled += 1
        else:
            files[kind if not kind.startswith("/") else "file"] += 1
    return files, pooled


def _remote_ports() -> dict[str, int]:
    """The other end's port of each TCP connection, by the inode of its socket."""
    ports = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _ESTABLISHED:
                ports[fields[9]] = int(fields[2].rpartition(":")[2], 16)
    return ports
