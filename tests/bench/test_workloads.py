"""The table of workloads, which of them a run takes, and the metrics that each gives."""

import pytest

from bench.targets import TARGETS
from bench.workloads import (
    BUSY,
    DISASTERS,
    WORKLOADS,
    Face,
    Kind,
    Measurement,
    Workload,
    metrics_of,
    selected,
)

REPORT = {
    "seconds": 2.0,
    "operations": 200,
    "operations_total": 250,
    "p50_ms": 60.0,
    "p99_ms": 100.0,
    "bytes": 8_000_000,
    "bytes_total": 2**30,
}


def measurement(**changes: object) -> Measurement:
    fields: dict[str, object] = {
        "report": REPORT,
        "cpu_seconds": {"server": 1.0, "agent": 1.5},
        "resident_bytes": {},
        "grown_bytes": {},
    }
    return Measurement(**{**fields, **changes})  # type: ignore[arg-type]


def names(patterns: list[str], *, wan: bool = False) -> list[str]:
    return [workload.name for workload in selected(patterns, wan=wan)]


def test_names_are_unique() -> None:
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)


def test_rows_over_one_link_stand_together() -> None:
    """Each link's columns are started once: a link that returns would start them twice."""
    links = [workload.link for workload in WORKLOADS]
    changes = 1 + sum(a != b for a, b in zip(links, links[1:], strict=False))
    assert changes == len(set(links))


def test_memory_comes_before_every_load() -> None:
    """Memory that a load has freed would hide what idle streams take."""
    kinds = [workload.kind in (Kind.MEMORY, Kind.HOLD) for workload in WORKLOADS]
    assert kinds == sorted(kinds, reverse=True)


def test_without_patterns_long_links_are_left_out_unless_asked_for() -> None:
    assert "wan50-download-1" not in names([])
    assert "sealed-request-16" in names([])
    assert names([], wan=True) == [workload.name for workload in WORKLOADS]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("raw-request-1", ["raw-request-1"]),
        ("raw-request-1*", ["raw-request-1", "raw-request-16", "raw-request-128"]),
        ("busy", ["busy100m-request-beside-downloads"]),
        ("upload", ["raw-upload-1"]),
        ("nothing", []),
    ],
)
def test_a_pattern_is_a_name_a_part_or_a_glob(
    pattern: str, expected: list[str]
) -> None:
    assert names([pattern]) == expected


def test_several_patterns_keep_the_order_of_the_table() -> None:
    assert names(["sealed-request-1", "raw-upload"]) == [
        "raw-upload-1",
        "sealed-request-1",
    ]


def test_requests_give_rate_latencies_and_cpu_of_both_ends() -> None:
    workload = Workload(name="x", workers=16)
    assert list(metrics_of(workload, measurement())) == [
        ("rate", "1/s", 100.0),
        ("p50", "ms", 60.0),
        ("p99", "ms", 100.0),
        # Of the 250 operations with the warm-up, for which the CPU was used.
        ("cpu", "s/10k", 100.0),
        ("cpu server", "s/10k", 40.0),
        ("cpu agent", "s/10k", 60.0),
    ]


def test_one_at_a_time_the_rate_is_left_to_the_latency() -> None:
    assert "rate" not in [
        name for name, *_ in metrics_of(Workload(name="x"), measurement())
    ]


def test_a_column_without_a_tunnel_has_no_cpu() -> None:
    metrics = list(metrics_of(Workload(name="x"), measurement(cpu_seconds={})))
    assert [name for name, *_ in metrics] == ["p50", "p99"]


def test_downloads_give_megabytes_a_second_and_cpu_a_gibibyte() -> None:
    workload = Workload(name="x", face=Face.SEALED, kind=Kind.DOWNLOAD)
    throughput, cpu, *_ = metrics_of(workload, measurement())
    assert throughput == ("throughput", "MB/s", 4.0)
    assert cpu == ("cpu", "s/GiB", 2.5)


def test_over_a_long_link_latency_is_also_told_in_round_trips() -> None:
    workload = Workload(name="x", kind=Kind.BESIDE, link=BUSY)
    metrics = {name: value for name, _, value in metrics_of(workload, measurement())}
    assert metrics["p50 in round trips"] == 1.2
    assert metrics["p99 in round trips"] == 2.0


def test_a_fleet_gives_what_was_measured_with_its_units() -> None:
    workload = Workload(name="x", kind=Kind.AGENTS, workers=5)
    measured = measurement(fleet={"memory server": 28.0, "all back": 9.5})
    assert list(metrics_of(workload, measured)) == [
        ("memory server", "KiB/agent", 28.0),
        ("all back", "s", 9.5),
    ]


def test_objects_give_what_was_measured_with_its_units() -> None:
    workload = Workload(name="x", kind=Kind.OBJECTS, workers=5)
    measured = measurement(objects={"reconciled": 26.4, "idle cpu": 0.15})
    assert list(metrics_of(workload, measured)) == [
        ("reconciled", "s", 26.4),
        ("idle cpu", "%", 0.15),
    ]


@pytest.mark.parametrize("kind", DISASTERS)
def test_a_disaster_gives_what_was_measured_with_its_units(kind: Kind) -> None:
    measured = measurement(disaster={"memory both": 80.0, "resumed": 0.3})
    assert list(metrics_of(Workload(name="x", kind=kind), measured)) == [
        ("memory both", "MiB", 80.0),
        ("resumed", "s", 0.3),
    ]


def test_a_target_belongs_to_a_workload() -> None:
    assert {name for name, _ in TARGETS} <= {workload.name for workload in WORKLOADS}


def test_idle_streams_give_kibibytes_a_stream() -> None:
    workload = Workload(name="x", kind=Kind.HOLD, workers=1000)
    measured = measurement(grown_bytes={"server": 2048_000})
    assert list(metrics_of(workload, measured)) == [
        ("memory server", "KiB/stream", 2.0)
    ]
