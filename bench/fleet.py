"""Many agents on one server: what each costs, and how they all come back after a restart.

The agents are simulated by the load program (Go only): real TLS, real assertions, real
HELLO, a real control stream with its mutual TLS and a report, each from an address of
its own; and nothing behind it. They come back by the schedule that real agents have.
"""

import contextlib
import http.client
import json
import resource
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.certificates import SERVER_NAME
from bench.columns.tunnel import PROGRAMS, READY_WITHIN_SECONDS
from bench.credentials import write_identities
from bench.figures import percentile
from bench.generator import MeasurementFailed
from bench.machine import kernel_bytes
from bench.processes import Process, ProcessFailed
from bench.site import PYTHON, Site, free_port
from bench.workloads import Workload
from certs.assertion import assertion_audience
from certs.names import DEFAULT_ZONE
from tower_server.state_directory import AUTHORITY_NAME

__all__ = ["Fleet", "Health", "measure_fleet"]

# All agents at once at a server that knows none of them: minutes would be a failure.
CONNECTED_WITHIN_SECONDS = 120.0
# The server as it stands with no agent, and with all: timers have fired, garbage is freed.
SETTLE_SECONDS = 3.0
# Long enough for every period that there is: pings, reports, collections.
IDLE_SECONDS = 20.0
# Somebody else's request beside the storm: how often, and how long it may take.
HEALTH_EVERY_SECONDS = 0.2
HEALTH_WITHIN_SECONDS = 10.0
# A program's other files, and connections that are being made.
SPARE_FILES = 2000
KIB = 1024


@dataclass
class Health:
    """What another client of the server sees meanwhile."""

    milliseconds: list[float] = field(default_factory=list)
    failures: int = 0
    # Set with the first answer or failure.
    heard: threading.Event = field(default_factory=threading.Event)

    def wait_for_answer(self) -> None:
        """Return when one request at least has been answered, or has failed."""
        self.heard.wait(HEALTH_WITHIN_SECONDS)


class Fleet:
    """A server and its simulated agents in a directory of their own."""

    def __init__(self, site: Site, count: int) -> None:
        self._site = site
        self._count = count
        self._directory = site.directory / f"fleet-{count}"
        self._directory.mkdir(mode=0o700)
        self.admin_socket = self._directory / "admin.sock"
        self._state = self._directory / "server"
        self._identities = self._directory / "identities.json"
        self.address = f"{SERVER_NAME}:{free_port()}"
        self._starts = 0
        self.server: Process
        self.agents: Process
        write_identities(self._state, self._identities, count)

    @property
    def authority(self) -> Path:
        """The CA that the server's certificate leads to."""
        return self._state / AUTHORITY_NAME / "ca.crt"

    def start_server(self) -> None:
        """Start it (again), and wait until it listens."""
        self._starts += 1
        program = (
            f"import sys; from {PROGRAMS['tower-server']} import main; sys.exit(main())"
        )
        self.server = self._site.processes.start(
            f"fleet-server-{self._starts}",
            [
                *(PYTHON, "-c", program, "serve", f"--state-dir={self._state}"),
                *(f"--listen={self.address}", f"--public-address={self.address}"),
                f"--admin-socket={self.admin_socket}",
            ],
        )
        self.server.wait_for(
            r"^tower-server ready on ", within_seconds=READY_WITHIN_SECONDS
        )

    def start_agents(self) -> None:
        """Let all agents dial at once."""
        self.agents = self._site.generator.start_agents(
            self._site.processes,
            address=self.address,
            authority=self.authority,
            identities=self._identities,
            audience=assertion_audience(DEFAULT_ZONE),
        )

    def wait_connected(self, number: int) -> dict[str, Any]:
        """Wait until all agents are connected for this time (1, 2, ...); how that went."""
        line = self.agents.wait_for(
            rf'^{{"round":{number},.*}}$', within_seconds=CONNECTED_WITHIN_SECONDS
        )
        report: dict[str, Any] = json.loads(line.group())
        return report

    def kill_server(self) -> None:
        """As a crash does it: no farewell to anybody."""
        self._site.processes.kill(self.server)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Health]:
        """Ask for /healthz now and then, over a new connection each time, while in here."""
        health, stop = Health(), threading.Event()
        context = ssl.create_default_context(cafile=str(self.authority))

        def ask() -> None:
            while not stop.wait(HEALTH_EVERY_SECONDS):
                began = time.monotonic()
                try:
                    self._ask(context)
                except OSError:
                    health.failures += 1
                else:
                    health.milliseconds.append((time.monotonic() - began) * 1000)
                health.heard.set()

        thread = threading.Thread(target=ask, name="health")
        thread.start()
        try:
            yield health
        finally:
            stop.set()
            thread.join()

    def _ask(self, context: ssl.SSLContext) -> None:
        host, _, port = self.address.rpartition(":")
        connection = http.client.HTTPSConnection(
            host, int(port), timeout=HEALTH_WITHIN_SECONDS, context=context
        )
        try:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()


def measure_fleet(site: Site, workload: Workload) -> dict[str, float]:
    """Everything that `workloads.metrics_of` tells about a fleet, by its names there.

    Raises:
        MeasurementFailed: If not all agents got in, or came back.
    """
    if not site.generator.has_agents:
        raise MeasurementFailed("needs the simulated agents of the Go generator")
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if workload.workers + SPARE_FILES > limit:
        raise MeasurementFailed(
            f"{workload.workers} agents need as many files, and {limit} are allowed: "
            f"raise the limit (ulimit -n)"
        )
    fleet = Fleet(site, workload.workers)
    try:
        return _measure(fleet, workload.workers)
    except ProcessFailed as error:
        raise MeasurementFailed(str(error)) from error


def _measure(fleet: Fleet, count: int) -> dict[str, float]:
    fleet.start_server()
    time.sleep(SETTLE_SECONDS)
    resident, kernel = fleet.server.resident_bytes(), kernel_bytes()
    fleet.start_agents()
    first = fleet.wait_connected(1)
    time.sleep(SETTLE_SECONDS)
    cpu = fleet.server.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    idle = (fleet.server.cpu_seconds() - cpu) / IDLE_SECONDS
    grown = fleet.server.resident_bytes() - resident
    grown_kernel = kernel_bytes() - kernel
    fleet.kill_server()
    fleet.start_server()
    with fleet.watched() as health:
        second = fleet.wait_connected(2)
        health.wait_for_answer()
    spent = fleet.server.cpu_seconds()
    if not health.milliseconds:
        raise MeasurementFailed("nobody but agents got an answer during their return")
    return {
        "memory server": grown / KIB / count,
        "memory kernel": grown_kernel / KIB / count,
        "idle cpu": idle * 100,
        "handshake p50": second["p50_ms"],
        "handshake p99": second["p99_ms"],
        "all connected": first["seconds"],
        "all back": second["seconds"],
        "cpu of the return": spent,
        "dials per agent": second["dials"] / count,
        "healthz p99 meanwhile": percentile(health.milliseconds, 99),
    }
