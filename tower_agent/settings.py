"""What `tower-agent run` is told: flags and environment, checked before anything starts.

The join string is the one secret here. It comes by file, environment or stdin, never as an
argument (any user of the machine reads those), and is read only when the agent has to
join: an agent that has its certificates starts without it.
"""

import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from certs.names import parse_principal
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
    "ANY_NAME",
    "DEFAULT_ALLOW_GROUPS",
    "DEFAULT_ALLOW_USERS",
    "DEFAULT_WINDOW_MEMORY",
    "MAX_TUNNELS",
    "AgentSettings",
    "JoinSource",
    "SecretReference",
    "Target",
    "parse_agent_settings",
]

DEFAULT_WINDOW_MEMORY = f"{DEFAULT_WINDOW_MEMORY_BYTES // 2**20}Mi"
DEFAULT_ALLOW_USERS = ("tower:admin",)
DEFAULT_ALLOW_GROUPS = ("tower:cluster-admins",)

# Four TCP connections fill whatever path holds one back, and hold the others' streams when one
# is cut. Each costs the server memory and a handshake at every return.
MAX_TUNNELS = 4

# Stands for every name that does not begin with `system:`.
ANY_NAME = "*"

# A join string has about 200 bytes; anything much larger is some other file.
MAX_JOIN_FILE_BYTES = 16 * 1024

STDIN = "-"
_ASSIGNMENT = "TOWER_JOIN="

# Targets are words in logs, OPEN frames and command lines.
_TARGET_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_KUBERNETES_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class JoinSource:
    """Where the join string comes from: a file, stdin, or the environment. Its repr never shows it."""

    # None: `text` came from the environment. `-`: stdin.
    file: str | None = None
    text: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.file == STDIN:
            return "the join string on stdin"
        return f"the join file {self.file}" if self.file else "TOWER_JOIN"

    def read(self) -> str:
        """The join string, without the white space around it. Blocks on stdin; read it once.

        Raises:
            SettingsError: If it is not there, empty, too large, or a file that others can read.
        """
        if self.file == STDIN:
            text = sys.stdin.read(MAX_JOIN_FILE_BYTES + 1)
        elif self.file is not None:
            text = _read_private_text(Path(self.file))
        else:
            text = self.text or ""
        if len(text) > MAX_JOIN_FILE_BYTES:
            raise SettingsError(
                f"{self} has more than {MAX_JOIN_FILE_BYTES} bytes: it should be the one line "
                "that `tower token create` printed."
            )
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        # What `--format env` made is understood, too: the one assignment counts.
        assigned = [line for line in lines if line.startswith(_ASSIGNMENT)]
        lines = assigned or lines
        if len(lines) != 1:
            raise SettingsError(
                f"{self} {'is empty' if not lines else 'has more than one line'}: "
                "it should be the one line that `tower token create` printed."
            )
        return lines[0].removeprefix(_ASSIGNMENT)


@dataclass(frozen=True, kw_only=True)
class SecretReference:
    """A Secret of the member, in which an agent inside the cluster keeps its credentials."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A name that streams `tcp/NAME` may be opened to, and where it leads from the member."""

    name: str
    address: HostPort

    def __str__(self) -> str:
        return f"{self.name}={self.address}"


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """Everything that `tower_agent.app.run` needs to know."""

    # None: there must be credentials already.
    join: JoinSource | None = None
    # Exactly one of the two is set, unless nothing is to be kept (`tower-agent check`).
    state_dir: Path | None = None
    state_secret: SecretReference | None = None
    # None: in a pod, with its ServiceAccount.
    kubeconfig: Path | None = None
    targets: tuple[Target, ...] = ()
    # As whom the host may act. ANY_NAME: everybody but system: names, which count only when listed.
    allow_users: frozenset[str] = frozenset(DEFAULT_ALLOW_USERS)
    allow_groups: frozenset[str] = frozenset(DEFAULT_ALLOW_GROUPS)
    # The roots for the outer TLS where something ends it before the server.
    ca_file: Path | None = None
    # None: no health endpoint.
    health: HostPort | None = None
    # What all streams together may hold beyond their first windows.
    window_memory_bytes: int = DEFAULT_WINDOW_MEMORY_BYTES
    # How many tunnels to hold at a time; streams are spread over them.
    tunnels: int = 1
    # How long running streams get to end when the agent is asked to stop.
    drain_time: timedelta = DEFAULT_DRAIN_TIME
    log: LogSettings = LogSettings()


def parse_agent_settings(
    *,
    join_file: str | None = None,
    join_text: str | None = None,
    state_dir: str | Path | None = None,
    state_secret: str | None = None,
    kubeconfig: str | Path | None = None,
    targets: Sequence[str] = (),
    allow_users: Sequence[str] = (),
    allow_groups: Sequence[str] = (),
    ca_file: str | Path | None = None,
    health: str | None = None,
    window_memory: str = DEFAULT_WINDOW_MEMORY,
    tunnels: int = 1,
    drain_time: str = "20s",
    log_level: str = "info",
    log_format: str = "text",
    needs_state: bool = True,
) -> AgentSettings:
    """Check every value and put defaults where something is left out.

    Without `needs_state` no place for credentials has to be named (`tower-agent check`).

    Raises:
        SettingsError: For the first value that cannot be used.
    """
    if needs_state and bool(state_dir) == bool(state_secret):
        raise SettingsError(
            "the agent needs one place for its key and certificates: --state-dir DIR outside Kubernetes, "
            "or --state-secret NAMESPACE/NAME inside"
            + (", not both." if state_dir else ".")
        )
    return AgentSettings(
        join=_parse_join(join_file, join_text),
        state_dir=_path(state_dir),
        state_secret=_parse_secret_reference(state_secret) if state_secret else None,
        kubeconfig=_existing_file(kubeconfig, "--kubeconfig"),
        targets=_parse_targets(targets),
        allow_users=_parse_names(allow_users, DEFAULT_ALLOW_USERS, "--allow-user"),
        allow_groups=_parse_names(allow_groups, DEFAULT_ALLOW_GROUPS, "--allow-group"),
        ca_file=_existing_file(ca_file, "--ca-file"),
        health=parse_host_port(health, setting="--health", port_zero_allowed=True)
        if health
        else None,
        window_memory_bytes=parse_memory_bytes(
            window_memory,
            setting="--window-memory",
            at_least_bytes=MIN_WINDOW_MEMORY_BYTES,
        ),
        tunnels=_parse_tunnels(tunnels),
        drain_time=parse_drain_time(drain_time),
        log=parse_log_settings(log_level, log_format),
    )


def _parse_join(join_file: str | None, join_text: str | None) -> JoinSource | None:
    # The file wins, as flags win over the environment everywhere else.
    if join_file and join_file.startswith("tower+join:"):
        raise SettingsError(
            "--join-file takes the path of a file, not the join string itself, which every user of this machine "
            "could read in the process list: put it into a file (mode 0600), into TOWER_JOIN, or on stdin (-)."
        )
    if join_file:
        return JoinSource(file=join_file)
    return JoinSource(text=join_text) if join_text else None


def _parse_secret_reference(text: str) -> SecretReference:
    namespace, slash, name = text.partition("/")
    if (
        not slash
        or not _TARGET_NAME.fullmatch(namespace)
        or not _KUBERNETES_NAME.fullmatch(name)
    ):
        raise SettingsError(
            f"--state-secret {text!r} is not NAMESPACE/NAME: write one like tower-agent/tower-agent-credentials."
        )
    return SecretReference(namespace=namespace, name=name)


def _parse_targets(texts: Sequence[str]) -> tuple[Target, ...]:
    targets: dict[str, Target] = {}
    for text in texts:
        name, equals, address = text.partition("=")
        if not equals or not _TARGET_NAME.fullmatch(name):
            raise SettingsError(
                f"--target {text!r} is not NAME=HOST:PORT with a name of small letters, digits and hyphens: "
                "write one like web=127.0.0.1:8080."
            )
        if name in targets:
            raise SettingsError(
                f"--target has the name {name!r} twice: one name leads to one address."
            )
        targets[name] = Target(
            name=name, address=parse_host_port(address, setting="--target")
        )
    return tuple(targets.values())


def _parse_names(
    names: Sequence[str], default: tuple[str, ...], setting: str
) -> frozenset[str]:
    for name in names:
        try:
            parse_principal(name)
        except ValueError as error:
            raise SettingsError(f"{setting}: {error}.") from error
    return frozenset(names or default)


def _parse_tunnels(count: int) -> int:
    if not 1 <= count <= MAX_TUNNELS:
        raise SettingsError(
            f"--tunnels {count} is not a number from 1 to {MAX_TUNNELS}: one is enough for most; more help where "
            "single TCP connections are held back or cut."
        )
    return count


def _path(value: str | Path | None) -> Path | None:
    return Path(value).expanduser().absolute() if value else None


def _existing_file(value: str | Path | None, setting: str) -> Path | None:
    path = _path(value)
    if path is not None and not path.is_file():
        raise SettingsError(
            f"{setting} {path} is not there or not a file: check the path."
        )
    return path


def _read_private_text(path: Path) -> str:
    """Read a file that only its owner may read; the check and the read use the same open file."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise SettingsError(
                    f"the join file {path} can be read or changed by other users (mode {mode:04o}): run "
                    f"`chmod 600 {path}`, and if others use this machine, revoke the token and create a new one."
                )
            return file.read(MAX_JOIN_FILE_BYTES + 1).decode("utf-8", "replace")
    except OSError as error:
        raise SettingsError(
            f"the join file {path} cannot be read ({error.strerror or error}): "
            "check --join-file, or save what `tower token create` printed there (mode 0600)."
        ) from error
