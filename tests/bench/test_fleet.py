"""Simulated agents against a real server: all get in, and all come back after its crash.

The aspects: credentials in bulk that the server honours; every agent connected with its
report; kill -9 and a restart, after which all are there again; others are served meanwhile;
what is measured of it has every name of the table.
"""

import json
import shutil
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import fleet as fleet_module
from bench.columns.tunnel import PROGRAMS
from bench.fleet import Fleet, measure_fleet
from bench.generator import MeasurementFailed, find_generator
from bench.processes import Processes
from bench.site import PYTHON, Site, clean_environment, open_site
from bench.workloads import FLEET_UNITS, Kind, Workload

# Enough for a storm in small: more than are let in without a word of the server's.
AGENTS = 200

needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    generator, _ = find_generator(getattr(request, "param", "go"), clean_environment())
    with Processes(tmp_path, clean_environment()) as processes:
        yield open_site(tmp_path, processes, generator)


def clusters_of(fleet: Fleet) -> list[dict[str, object]]:
    """What an admin sees."""
    program = f"import sys; from {PROGRAMS['tower']} import main; sys.exit(main())"
    listed = subprocess.run(
        [
            *(PYTHON, "-c", program, f"--socket={fleet.admin_socket}"),
            *("cluster", "list", "-o", "json"),
        ],
        env=clean_environment(),
        capture_output=True,
        check=True,
        timeout=30,
    )
    clusters: list[dict[str, object]] = json.loads(listed.stdout)["clusters"]
    return clusters


def wait_until_all_are_known(fleet: Fleet) -> None:
    """An agent counts as connected when it has sent its report: the server has to read it."""
    deadline = time.monotonic() + 10
    while True:
        clusters = clusters_of(fleet)
        # Each has shaken hands inside its tunnel, and reported.
        seen = Counter((c["state"], c["apiserver_version"]) for c in clusters)
        if seen == {("connected", "v1.34.0"): AGENTS}:
            return
        assert time.monotonic() < deadline, seen


@needs_go
def test_all_agents_are_back_after_a_crash_of_the_server_and_others_are_served(
    site: Site,
) -> None:
    fleet = Fleet(site, AGENTS)
    fleet.start_server()
    fleet.start_agents()
    first = fleet.wait_connected(1)
    assert first["agents"] == AGENTS and first["lost"] == 0
    wait_until_all_are_known(fleet)
    fleet.kill_server()
    fleet.start_server()
    with fleet.watched() as health:
        second = fleet.wait_connected(2)
        health.wait_for_answer()
    assert second["lost"] >= AGENTS
    assert health.failures == 0
    wait_until_all_are_known(fleet)


@needs_go
def test_a_measurement_has_every_name_of_the_table(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(fleet_module, "IDLE_SECONDS", 0.5)
    workload = Workload(name="agents-5", kind=Kind.AGENTS, workers=5)
    assert measure_fleet(site, workload).keys() == FLEET_UNITS.keys()
    identities = site.directory / "fleet-5" / "identities.json"
    assert stat.S_IMODE(identities.stat().st_mode) == 0o600


@pytest.mark.parametrize("site", ["python"], indirect=True)
def test_the_python_generator_says_that_it_has_no_agents(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Workload(name="agents-1", kind=Kind.AGENTS, workers=1)
    with pytest.raises(MeasurementFailed, match="needs the simulated agents of the Go"):
        measure_fleet(site, workload)


@needs_go
def test_more_agents_than_files_are_refused_with_the_remedy(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Workload(name="agents-many", kind=Kind.AGENTS, workers=10**7)
    with pytest.raises(MeasurementFailed, match="ulimit -n"):
        measure_fleet(site, workload)
