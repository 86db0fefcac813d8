"""What the columns of a run share: a directory, certificates, upstream and links.

Everything here is made new for a run and gone after it.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.certificates import SERVER_NAME, Certificates, make_certificates
from bench.generator import Endpoint, Generator, MeasurementFailed
from bench.processes import Process, Processes
from bench.workloads import Face, Kind, Link, Workload

__all__ = [
    "MEMBER_UID",
    "PYTHON",
    "ROOT",
    "Site",
    "Unavailable",
    "clean_environment",
    "free_port",
    "open_site",
]

ROOT = Path(__file__).parent.parent
# kube-system's UID of the member that our upstream plays.
MEMBER_UID = "5ca1ab1e-0000-4000-8000-0000000be7c4"
ENTRY_WITHIN_SECONDS = 10.0
# A try against an entry whose tunnel is not up yet may be accepted and never answered.
TRY_AGAIN_SECONDS = 0.1
# The environment of every child. The rest of ours (TOWER_*, *_PROXY, PYTHON*) would
# let one person's settings into everybody's numbers, or lead off loopback.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TOWER_BENCH_DEBUG")

# For every Python program of a run: the interpreter, and so the libraries, of the harness.
PYTHON = sys.executable


class Unavailable(Exception):
    """A column cannot be measured here; the text says why, and what would help."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Shared by all columns; owned by `open_site`'s caller through its Processes."""

    directory: Path
    environment: Mapping[str, str]
    processes: Processes
    generator: Generator
    certificates: Certificates
    upstream_process: Process
    raw_address: str
    https_address: str

    def upstream(self, face: Face, address: str | None = None) -> Endpoint:
        """The upstream as a client sees it without any tunnel."""
        if face is Face.RAW:
            return Endpoint(address=address or self.raw_address)
        return Endpoint(
            address=address or self.https_address,
            ca=self.certificates.ca,
            certificate=self.certificates.client,
            key=self.certificates.client_key,
            server_name=SERVER_NAME,
        )

    def behind(self, link: Link, name: str, address: str) -> str:
        """`address` as it is reached over `link`."""
        if link.is_local:
            return address
        return self.generator.start_relay(
            self.processes, f"relay-{name}", address, link
        )

    def wait_until_served(self, what: str, endpoint: Endpoint) -> None:
        """Ask until an answer comes all the way from the upstream.

        Raises:
            Unavailable: None came in time.
        """
        once = Workload(name="ready", kind=Kind.CONNECT)
        deadline = time.monotonic() + ENTRY_WITHIN_SECONDS
        while True:
            try:
                self.generator.measure(once, endpoint, seconds=0.5, warmup_seconds=0)
                return
            except MeasurementFailed as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{what} does not answer: {error}") from error
            time.sleep(TRY_AGAIN_SECONDS)


def open_site(directory: Path, processes: Processes, generator: Generator) -> Site:
    """Make certificates and start the upstream."""
    certificates = make_certificates(directory / "certificates")
    upstream, addresses = generator.start_upstream(
        processes, certificates.server, certificates.server_key, MEMBER_UID
    )
    return Site(
        directory=directory,
        environment=clean_environment(),
        processes=processes,
        generator=generator,
        certificates=certificates,
        upstream_process=upstream,
        raw_address=addresses["raw"],
        https_address=addresses["https"],
    )


def clean_environment() -> dict[str, str]:
    """What children get; the checkout is importable whatever is installed."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """A port that was free a moment ago, for programs that must be told one."""
    with socket.socket() as probe:
        probe.bind((SERVER_NAME, 0))
        port: int = probe.getsockname()[1]
        return port
