"""What `tower-server serve` is told: flags and environment, checked before anything starts.

The command line knows names, help texts and environment variables; here is what a value
may be. Nothing is opened or created, so that a mistake costs nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from certs.names import DEFAULT_ZONE, ClusterName, parse_cluster_name, parse_zone
from shared.durations import parse_duration
from shared.logs import LogSettings, parse_log_settings
from shared.mux.budget import (
    DEFAULT_WINDOW_MEMORY_BYTES,
    MIN_WINDOW_MEMORY_BYTES,
)
from shared.settings import (
    DEFAULT_DRAIN_TIME,
    HostPort,
    SettingsError,
    parse_drain_time,
    parse_host_port,
    parse_memory_bytes,
)

__all__ = [
    "ADMIN_SOCKET_NAME",
    "DEFAULT_LISTEN",
    "DEFAULT_WINDOW_MEMORY",
    "HostSettings",
    "ServeSettings",
    "TcpEntry",
    "parse_serve_settings",
    "parse_tcp_entry",
]

DEFAULT_LISTEN = "0.0.0.0:8443"
DEFAULT_WINDOW_MEMORY = f"{DEFAULT_WINDOW_MEMORY_BYTES // 2**20}Mi"
ADMIN_SOCKET_NAME = "admin.sock"
STORES = ("sqlite", "kubernetes")
DEFAULT_CA_SECRET = "tower-ca"
MAX_OBJECT_NAME_CHARACTERS = 253
_OBJECT_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")

# An LB's idle cut, an ingress reload, a roaming address: seconds. The reboot of a firewall: a
# minute. Longer, and whoever waits at the other end has given up.
DEFAULT_RESUME_TIME = timedelta(seconds=60)
MAX_RESUME_TIME = timedelta(minutes=10)

# sun_path has 108 bytes on Linux and 104 on macOS and the BSDs, with the closing NUL.
# bind() says only "AF_UNIX path too long"; we say which path and what to do. It is bound under
# a temporary name first, which may be up to 7 bytes longer.
MAX_SOCKET_PATH_BYTES = 96


@dataclass(frozen=True, kw_only=True)
class TcpEntry:
    """A raw TCP entry (tests and bench): connections to `listen` go to `target` of `cluster`'s agent."""

    listen: HostPort
    cluster: ClusterName
    target: str

    def __str__(self) -> str:
        return f"{self.listen} -> {self.cluster}/{self.target}"


@dataclass(frozen=True, kw_only=True)
class HostSettings:
    """Where the state lies that is kept in Kubernetes."""

    # Of our Secrets. None: that of the pod.
    namespace: str | None
    # Of the host cluster. None: the pod's ServiceAccount.
    kubeconfig: Path | None
    ca_secret: str
    # Not where an admin names a Secret that has to be there.
    may_create_ca: bool


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Everything that `tower_server.app.serve` needs to know."""

    # None only where the state is kept in Kubernetes and the admin socket lies elsewhere.
    state_dir: Path | None
    # Set where the state is kept in Kubernetes.
    host: HostSettings | None = None
    listen: HostPort
    # What agents and kubeconfigs use. None: the listen address, with the port that was really bound.
    public_address: HostPort | None
    zone: str
    admin_socket: Path
    tcp_entries: tuple[TcpEntry, ...] = ()
    # Where /metrics is served, plain and for everybody. None: nowhere.
    metrics: HostPort | None = None
    # Bearer tokens for the gateway. None: it accepts none.
    gateway_token_file: Path | None = None
    # How long a session and its streams wait for their agent after a lost connection.
    resume_time: timedelta = DEFAULT_RESUME_TIME
    # What all streams together may hold beyond their first windows.
    window_memory_bytes: int = DEFAULT_WINDOW_MEMORY_BYTES
    # How long running streams get to end when the server is asked to stop.
    drain_time: timedelta = DEFAULT_DRAIN_TIME
    log: LogSettings = LogSettings()

    def public_address_at(self, bound_port: int) -> HostPort:
        """The public address, once the port is known that `listen` (perhaps with port 0) got."""
        return self.public_address or replace(self.listen, port=bound_port)


def parse_serve_settings(
    *,
    state_dir: str | Path | None,
    store: str = "sqlite",
    namespace: str | None = None,
    host_kubeconfig: str | Path | None = None,
    ca_secret: str | None = None,
    listen: str = DEFAULT_LISTEN,
    public_address: str | None = None,
    zone: str = DEFAULT_ZONE,
    admin_socket: str | Path | None = None,
    tcp_entries: Sequence[str] = (),
    metrics: str | None = None,
    gateway_token_file: str | Path | None = None,
    resume_time: str = "60s",
    window_memory: str = DEFAULT_WINDOW_MEMORY,
    drain_time: str = "20s",
    log_level: str = "info",
    log_format: str = "text",
) -> ServeSettings:
    """Check every value and put defaults where something is left out.

    Raises:
        SettingsError: For the first value that cannot be used.
    """
    host = _parse_host(store, namespace, host_kubeconfig, ca_secret)
    if not state_dir and host is None:
        raise SettingsError(
            "--state-dir (or TOWER_STATE_DIR) is missing: name a directory for the CA, the clusters and the tokens."
        )
    listening = parse_host_port(listen, setting="--listen", port_zero_allowed=True)
    directory = Path(state_dir).expanduser().absolute() if state_dir else None
    return ServeSettings(
        state_dir=directory,
        host=host,
        listen=listening,
        public_address=_parse_public_address(public_address, listening),
        zone=_parse_zone(zone),
        admin_socket=_parse_admin_socket(admin_socket, directory),
        tcp_entries=_parse_tcp_entries(tcp_entries),
        metrics=parse_host_port(metrics, setting="--metrics", port_zero_allowed=True)
        if metrics
        else None,
        gateway_token_file=Path(gateway_token_file).expanduser().absolute()
        if gateway_token_file
        else None,
        resume_time=_parse_resume_time(resume_time),
        window_memory_bytes=parse_memory_bytes(
            window_memory,
            setting="--window-memory",
            at_least_bytes=MIN_WINDOW_MEMORY_BYTES,
        ),
        drain_time=parse_drain_time(drain_time),
        log=parse_log_settings(log_level, log_format),
    )


def parse_tcp_entry(text: str) -> TcpEntry:
    """Read `HOST:PORT=CLUSTER/TARGET`.

    Raises:
        SettingsError: If a part is missing or not what it should be.
    """
    listen, equals, destination = text.partition("=")
    cluster, slash, target = destination.partition("/")
    if not (listen and equals and cluster and slash and target) or "/" in target:
        raise SettingsError(
            f"--tcp-entry {text!r} is not HOST:PORT=CLUSTER/TARGET: write one like 127.0.0.1:9000=alpha/web."
        )
    try:
        name = parse_cluster_name(cluster)
    except ValueError as error:
        raise SettingsError(f"--tcp-entry {text!r}: {error}") from error
    address = parse_host_port(listen, setting="--tcp-entry", port_zero_allowed=True)
    if not address.is_loopback:
        raise SettingsError(
            f"--tcp-entry {text!r} is open to other machines, and nobody is authenticated on it: "
            "use an address of this machine's loopback, like 127.0.0.1."
        )
    return TcpEntry(listen=address, cluster=name, target=target)


def _parse_resume_time(text: str) -> timedelta:
    try:
        time = parse_duration(text)
    except ValueError as error:
        raise SettingsError(f"--resume-time: {error}") from None
    if time > MAX_RESUME_TIME:
        raise SettingsError(
            f"--resume-time {text} is longer than {MAX_RESUME_TIME.seconds // 60} minutes: nobody waits so long."
        )
    return time


def _parse_tcp_entries(texts: Sequence[str]) -> tuple[TcpEntry, ...]:
    entries = tuple(parse_tcp_entry(text) for text in texts)
    fixed = [entry.listen for entry in entries if entry.listen.port]
    for address in fixed:
        if fixed.count(address) > 1:
            raise SettingsError(
                f"--tcp-entry has {address} twice: one address leads to one target."
            )
    return entries


def _parse_public_address(text: str | None, listen: HostPort) -> HostPort | None:
    if text:
        address = parse_host_port(text, setting="--public-address")
        if address.is_wildcard:
            raise SettingsError(
                f"--public-address {text!r} cannot be connected to: write the name or address that agents dial."
            )
        return address
    if listen.is_wildcard:
        raise SettingsError(
            f"--public-address (or TOWER_PUBLIC_ADDRESS) is missing: the server listens on {listen}, and agents and "
            f"kubeconfigs need an address to dial, such as tower.example.com:{listen.port or 8443}."
        )
    return None


def _parse_zone(text: str) -> str:
    try:
        return parse_zone(text.lower())
    except ValueError as error:
        raise SettingsError(f"--zone: {error}.") from error


def _parse_host(
    store: str,
    namespace: str | None,
    kubeconfig: str | Path | None,
    ca_secret: str | None,
) -> HostSettings | None:
    if store not in STORES:
        raise SettingsError(f"--store {store!r} is none: use {' or '.join(STORES)}.")
    if store == "sqlite":
        for option, value in (
            ("--namespace", namespace),
            ("--host-kubeconfig", kubeconfig),
            ("--ca-secret", ca_secret),
        ):
            if value:
                raise SettingsError(
                    f"{option} is for state that is kept in Kubernetes: add --store kubernetes, or leave it out."
                )
        return None
    return HostSettings(
        namespace=_parse_object_name(namespace, "--namespace") if namespace else None,
        kubeconfig=Path(kubeconfig).expanduser().absolute() if kubeconfig else None,
        ca_secret=_parse_object_name(ca_secret or DEFAULT_CA_SECRET, "--ca-secret"),
        may_create_ca=not ca_secret,
    )


def _parse_object_name(text: str, option: str) -> str:
    if not _OBJECT_NAME.fullmatch(text) or len(text) > MAX_OBJECT_NAME_CHARACTERS:
        raise SettingsError(
            f"{option} {text!r} cannot be a name in Kubernetes: use lower-case letters, digits, '-' and '.'."
        )
    return text


def _parse_admin_socket(text: str | Path | None, state_dir: Path | None) -> Path:
    if not text and state_dir is None:
        raise SettingsError(
            "--admin-socket (or TOWER_ADMIN_SOCKET) is missing: name a path for the socket of the command `tower`, "
            "or a --state-dir to put it in."
        )
    directory = state_dir or Path()
    path = Path(text).expanduser().absolute() if text else directory / ADMIN_SOCKET_NAME
    size = len(str(path).encode())
    if size > MAX_SOCKET_PATH_BYTES:
        raise SettingsError(
            f"the path of the admin socket has {size} bytes and the system allows {MAX_SOCKET_PATH_BYTES}: "
            f"give a shorter one with --admin-socket (it is {path})."
        )
    return path
