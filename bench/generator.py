"""The load generator as a separate program: the Go one, or the Python one without Go.

The Go program is built once into a cache outside the checkout, under the digest of
its sources. Both take the same flags and print the same JSON, so that nobody else
needs to know which one it is; the Python one has no relay.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import Process, Processes, ProcessFailed
from bench.workloads import REQUEST_BYTES, RESPONSE_BYTES, Link, Workload

__all__ = [
    "CACHE_VARIABLE",
    "Endpoint",
    "Generator",
    "MeasurementFailed",
    "find_generator",
]

SOURCES = Path(__file__).parent / "load"
# Shared with the test bed's binaries: one folder to keep, or to remove.
CACHE_VARIABLE = "TOWER_TESTBED_CACHE"
DEFAULT_CACHE = "~/.cache/tower-testbed"
BUILD_WITHIN_SECONDS = 300
# What a client may take beyond its warm-up and window: stuck streams give up after 10 s.
CLIENT_GRACE_SECONDS = 25.0
READY_WITHIN_SECONDS = 20.0


class MeasurementFailed(Exception):
    """A client saw an error; a number from such a run would be a lie."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a client connects to; with a CA it speaks HTTPS there."""

    address: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    path: str | None = None

    def flags(self) -> list[str]:
        """The flags of `load client`."""
        named = {
            "-address": self.address,
            "-ca": self.ca,
            "-cert": self.certificate,
            "-key": self.key,
            "-server-name": self.server_name,
            "-path": self.path,
        }
        return [
            text
            for flag, value in named.items()
            if value
            for text in (flag, str(value))
        ]


class Generator:
    """How to start the load programs, whichever language they are in."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        has_relay: bool,
    ) -> None:
        self.name = name
        self.has_relay = has_relay
        # The Go one has both.
        self.has_agents = has_relay
        self._command = tuple(command)
        self._environment = dict(environment)

    def start_upstream(
        self, processes: Processes, certificate: Path, key: Path, uid: str
    ) -> tuple[Process, dict[str, str]]:
        """Start raw and HTTPS servers; their addresses as {"raw": ..., "https": ...}."""
        flags = ["-cert", str(certificate), "-key", str(key), "-uid", uid]
        process = processes.start("upstream", [*self._command, "upstream", *flags])
        return process, _first_json(process)

    def start_relay(self, processes: Processes, name: str, to: str, link: Link) -> str:
        """Start a link in front of `to`; the address to use instead."""
        flags = ["-to", to, "-rtt-ms", str(link.round_trip_ms)]
        flags += [
            "-rate-mbit",
            str(link.rate_mbit),
            "-queue-bytes",
            str(link.queue_bytes),
        ]
        flags += ["-socket-buffer-bytes", str(link.socket_buffer_bytes)]
        process = processes.start(name, [*self._command, "relay", *flags])
        return _first_json(process)["relay"]

    def measure(
        self,
        workload: Workload,
        endpoint: Endpoint,
        *,
        seconds: float,
        warmup_seconds: float,
    ) -> dict[str, Any]:
        """Run one client to its end; its report.

        Raises:
            MeasurementFailed: Any operation failed, or the client did.
        """
        command = self._client(workload, endpoint)
        command += ["-seconds", f"{seconds:g}", "-warmup", f"{warmup_seconds:g}"]
        try:
            ended = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds + warmup_seconds + CLIENT_GRACE_SECONDS,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise MeasurementFailed("the client hangs") from error
        return _checked_report(ended.stdout, ended.stderr)

    def hold(
        self, processes: Processes, workload: Workload, endpoint: Endpoint
    ) -> Process:
        """Open idle streams and return the process that holds them, to be stopped."""
        process = processes.start("holder", self._client(workload, endpoint))
        try:
            line = process.wait_for(r"^\{.*\}$", within_seconds=CLIENT_GRACE_SECONDS)
            _checked_report(line.group(), "")
        except ProcessFailed as error:
            processes.stop(process)
            raise MeasurementFailed(str(error)) from error
        except MeasurementFailed:
            processes.stop(process)
            raise
        return process

    def start_agents(
        self,
        processes: Processes,
        *,
        address: str,
        authority: Path,
        identities: Path,
        audience: str,
    ) -> Process:
        """Start simulated agents (`has_agents`): a line of JSON comes whenever all are
        connected, with how that went."""
        flags = ["-address", address, "-ca", str(authority), "-audience", audience]
        flags += ["-identities", str(identities)]
        return processes.start("agents", [*self._command, "agents", *flags])

    def _client(self, workload: Workload, endpoint: Endpoint) -> list[str]:
        flags = ["-workload", workload.kind.value, "-workers", str(workload.workers)]
        flags += [
            "-request-bytes",
            str(REQUEST_BYTES),
            "-response-bytes",
            str(RESPONSE_BYTES),
        ]
        return [*self._command, "client", *flags, *endpoint.flags()]


def find_generator(
    wanted: str, environment: Mapping[str, str]
) -> tuple[Generator, str | None]:
    """The generator to use, and why it is not the Go one where it should have been.

    Args:
        wanted: `go`, `python` or `auto`.
        environment: Of the programs to start.

    Raises:
        ProcessFailed: The Go one was demanded and cannot be built.
    """
    python = Generator(
        "the Python generator",
        [sys.executable, "-m", "bench.pyload"],
        environment,
        has_relay=False,
    )
    if wanted == "python":
        return python, None
    try:
        binary, version = _build()
    except ProcessFailed as error:
        if wanted == "go":
            raise
        return (
            python,
            f"{error}; the Python generator is slower and has no relay (--wan)",
        )
    return Generator(
        f"the Go generator ({version})", [str(binary)], environment, has_relay=True
    ), None


def _build() -> tuple[Path, str]:
    go = shutil.which("go")
    if go is None:
        raise ProcessFailed("there is no `go` on the PATH")
    settings = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    # The same answer in every folder: a go.mod above must not choose another version.
    version = _run([go, "env", "GOVERSION"], settings)
    base = Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser()
    binary = base / f"bench-{_digest(version)}" / "load"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        # Two runs may build at once: each its own file, and the rename decides.
        building = binary.with_name(f"load.{os.getpid()}")
        try:
            _run([go, "build", "-trimpath", "-o", str(building), "."], settings)
            building.replace(binary)
        finally:
            building.unlink(missing_ok=True)
    return binary, version


def _digest(version: str) -> str:
    digest = hashlib.sha256(version.encode())
    for path in sorted(SOURCES.glob("*.go")) + [SOURCES / "go.mod"]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    try:
        ended = subprocess.run(
            command,
            cwd=SOURCES,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_WITHIN_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProcessFailed(f"`{' '.join(command[:2])}` failed: {error}") from error
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["it said nothing"]
        raise ProcessFailed(f"bench/load does not build: {said[-1]}")
    return ended.stdout.strip()


def _first_json(process: Process) -> dict[str, str]:
    line = process.wait_for(r"^\{.*\}$", within_seconds=READY_WITHIN_SECONDS)
    addresses: dict[str, str] = json.loads(line.group())
    return addresses


def _checked_report(stdout: str, stderr: str) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(stdout)
    except ValueError as error:
        said = stderr.strip().splitlines() or ["it said nothing"]
        raise MeasurementFailed(f"the client failed: {said[-1]}") from error
    if report.get("error"):
        raise MeasurementFailed(report["error"])
    return report
