"""Cluster objects on a real server and a real control plane: a few, and every name of the table."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import objects as objects_module
from bench.generator import find_generator
from bench.objects import measure_objects
from bench.processes import Processes
from bench.site import Site, clean_environment, open_site
from bench.workloads import OBJECT_UNITS, Kind, Workload
from tests.testbed.controlplane import ControlPlane

pytestmark = pytest.mark.e2e


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    generator, _ = find_generator("python", clean_environment())
    with Processes(tmp_path, clean_environment()) as processes:
        yield open_site(tmp_path, processes, generator)


def test_a_few_objects_give_every_figure(
    site: Site, host: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_module, "SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(objects_module, "IDLE_SECONDS", 0.5)
    workload = Workload(name="objects-20", kind=Kind.OBJECTS, workers=20)
    measured = measure_objects(site, workload)
    assert measured.keys() == OBJECT_UNITS.keys()
    assert 0 < measured["reconciled"] < 60 and measured["memory server"] > 10
