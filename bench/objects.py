"""Many Cluster objects on one server: how soon all are reconciled, what that costs, and what it costs idle.

The host is the real control plane of tests/testbed; its processes share the machine with the server.
Nobody joins: each object gets its finalizer, a token, a join Secret and a status, four writes.
"""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.columns.tunnel import PROGRAMS, READY_WITHIN_SECONDS
from bench.generator import MeasurementFailed
from bench.processes import Process
from bench.site import PYTHON, Site
from bench.workloads import Workload
from tests.testbed.binary import KUBELAB
from tests.testbed.controlplane import ControlPlane

__all__ = ["measure_objects"]

CRDS = Path(__file__).parent.parent / "charts" / "tower-server" / "crds"
OBJECTS = "/apis/tower.dev/v1alpha1/clusters"
NAMESPACE = "default"

# Three times what is wanted; longer is a failure and not a figure.
RECONCILED_WITHIN_SECONDS = 180.0
# Each look reads all objects: seldom, so that it is not the looking that is measured.
LOOK_EVERY_SECONDS = 1.0
SETTLE_SECONDS = 5.0
# Longer than every period that there is, but for the refresh of numbers (10 min).
IDLE_SECONDS = 20.0
# Who makes the objects: an admin's `kubectl apply`, or GitOps.
CREATORS = 8
MIB = 2**20


def measure_objects(site: Site, workload: Workload) -> dict[str, float]:
    """Everything that `workloads.metrics_of` tells about objects, by its names there.

    Raises:
        MeasurementFailed: If there is no control plane, or not all are reconciled in time.
    """
    if KUBELAB.missing():
        raise MeasurementFailed("needs the real control plane: make testbed")
    directory = site.directory / "host"
    directory.mkdir(mode=0o700)
    with ControlPlane("host", directory) as host:
        _install(host)
        return _measure(site, host, workload.workers)


def _install(host: ControlPlane) -> None:
    kubectl = [host.kubectl, "--kubeconfig", host.kubeconfig]
    subprocess.run([*kubectl, "apply", "-f", CRDS], check=True, capture_output=True)
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    while host.request("GET", OBJECTS)[0] != 200:
        if time.monotonic() > deadline:
            raise MeasurementFailed("the host does not serve Cluster objects")
        time.sleep(0.1)


def _measure(site: Site, host: ControlPlane, count: int) -> dict[str, float]:
    server = _start_server(site, host, 1)
    time.sleep(SETTLE_SECONDS)
    resident, spent = server.resident_bytes(), server.cpu_seconds()
    began = time.monotonic()
    with ThreadPoolExecutor(CREATORS) as creators:
        list(creators.map(lambda number: _create(host, number), range(count)))
    reconciled = _wait_until(host, began, lambda items: all(map(_is_invited, items)))
    spent = server.cpu_seconds() - spent
    time.sleep(SETTLE_SECONDS)
    idle_from = server.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    idle = (server.cpu_seconds() - idle_from) / IDLE_SECONDS
    grown = server.resident_bytes() - resident
    server.stop()
    again = time.monotonic()
    server = _start_server(site, host, 2)
    restarted = time.monotonic() - again
    began = time.monotonic()
    status, _ = host.request("DELETE", OBJECTS)
    if status >= 300:
        raise MeasurementFailed(f"the host does not delete the objects: {status}")
    removed = _wait_until(host, began, lambda items: not items)
    return {
        "reconciled": reconciled,
        "cpu to reconcile": spent,
        "memory server": resident / MIB,
        "memory of objects": grown / MIB,
        "idle cpu": idle * 100,
        "restart": restarted,
        "removed": removed,
    }


def _start_server(site: Site, host: ControlPlane, number: int) -> Process:
    program = (
        f"import sys; from {PROGRAMS['tower-server']} import main; sys.exit(main())"
    )
    socket = site.directory / "host-admin.sock"
    server = site.processes.start(
        f"objects-server-{number}",
        [
            *(PYTHON, "-c", program, "serve", "--store=kubernetes"),
            *(f"--namespace={NAMESPACE}", f"--host-kubeconfig={host.kubeconfig}"),
            *("--listen=127.0.0.1:0", f"--admin-socket={socket}"),
        ],
    )
    server.wait_for(r"^tower-server ready on ", within_seconds=READY_WITHIN_SECONDS)
    return server


def _create(host: ControlPlane, number: int) -> None:
    status, answer = host.request(
        "POST",
        OBJECTS,
        {
            "apiVersion": "tower.dev/v1alpha1",
            "kind": "Cluster",
            "metadata": {"name": f"cluster-{number}"},
        },
    )
    if status != 201:
        raise MeasurementFailed(f"the host takes no Cluster: {answer}")


def _is_invited(item: dict[str, Any]) -> bool:
    conditions = item.get("status", {}).get("conditions", ())
    return any(c["reason"] == "WaitingForAgent" for c in conditions)


def _wait_until(host: ControlPlane, began: float, is_so: Any) -> float:
    """Look until it is so; seconds since `began`."""
    while True:
        status, answer = host.request("GET", f"{OBJECTS}?resourceVersion=0")
        seconds = time.monotonic() - began
        if status == 200 and is_so(answer["items"]):
            return seconds
        if seconds > RECONCILED_WITHIN_SECONDS:
            raise MeasurementFailed(f"not after {seconds:.0f} s")
        time.sleep(LOOK_EVERY_SECONDS)
