"""Runs the workloads: for each link all columns at once, interleaved round by round.

All columns of a link stand ready at the same time and one is measured after the
other, so that a workload's row is of one minute on one machine. Every second round
goes backwards: what drifts then drifts against each column alike.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from bench.columns import STARTERS, Column
from bench.disasters import measure_disaster
from bench.figures import Samples
from bench.fleet import measure_fleet
from bench.generator import MeasurementFailed
from bench.objects import measure_objects
from bench.processes import ProcessFailed
from bench.site import Site, Unavailable
from bench.workloads import (
    DISASTERS,
    Kind,
    Link,
    Measurement,
    Workload,
    metrics_of,
)

__all__ = ["Outcome", "run"]

# After a client has gone: what lies in the tunnel's buffers drains, streams close.
SETTLE_SECONDS = 0.15
# Memory is read after this: the last connects' garbage is freed, timers have fired.
IDLE_SECONDS = 0.5


@dataclass
class Outcome:
    """What a run gave, also when it was interrupted halfway."""

    samples: Samples = field(default_factory=Samples)
    # Column or "column: workload" -> why there is no number. In order of appearance.
    troubles: dict[str, str] = field(default_factory=dict)


def run(
    site: Site,
    workloads: Iterable[Workload],
    columns: Sequence[str],
    *,
    seconds: float,
    rounds: int,
    outcome: Outcome,
    progress: Callable[[str], None],
) -> None:
    """Measure everything into `outcome`; a column or row that fails leaves the others be."""
    for link, group in groupby(workloads, key=lambda workload: workload.link):
        wanted = list(group)
        if not link.is_local and not site.generator.has_relay:
            outcome.troubles[link.name] = "needs the relay of the Go generator"
            continue
        progress(f"starting {', '.join(columns)} ({link.name})")
        started = _start_columns(site, link, columns, outcome)
        try:
            for workload in wanted:
                _measure_rows(
                    site, workload, started, seconds, rounds, outcome, progress
                )
        finally:
            # Another link's columns are others; nothing of these may burn CPU beside them.
            site.processes.stop_all_but(site.upstream_process)


def _start_columns(
    site: Site, link: Link, columns: Sequence[str], outcome: Outcome
) -> dict[str, Column]:
    started: dict[str, Column] = {}
    for name in columns:
        try:
            started[name] = STARTERS[name](site, link)
        except (Unavailable, ProcessFailed) as error:
            where = name if link.is_local else f"{name}: {link.name}"
            outcome.troubles[where] = str(error)
    return started


def _measure_rows(
    site: Site,
    workload: Workload,
    started: dict[str, Column],
    seconds: float,
    rounds: int,
    outcome: Outcome,
    progress: Callable[[str], None],
) -> None:
    for number in range(1 if workload.once else rounds):
        order = list(started.items())
        alone = workload.kind in DISASTERS | {Kind.AGENTS, Kind.OBJECTS}
        if alone:  # of ours only
            order = [item for item in order if item[0] == "tunnel"]
        for name, column in order if number % 2 == 0 else reversed(order):
            progress(f"{workload.name}, round {number + 1}, {name}")
            try:
                measured = _measure(site, workload, column, seconds)
            except MeasurementFailed as error:
                outcome.troubles[f"{name}: {workload.name}"] = str(error)
                continue
            for metric, unit, value in metrics_of(workload, measured):
                outcome.samples.add(workload.name, metric, unit, name, value)


def _measure(
    site: Site, workload: Workload, column: Column, seconds: float
) -> Measurement:
    ends = column.ends(workload.face)
    for end, process in ends.items():
        if not process.alive():
            raise MeasurementFailed(f"its {end} has died: {process.said()}")
    endpoint = column.endpoints[workload.face]
    if workload.kind is Kind.AGENTS:
        fleet = measure_fleet(site, workload)
        return Measurement(
            report={}, cpu_seconds={}, resident_bytes={}, grown_bytes={}, fleet=fleet
        )
    if workload.kind is Kind.OBJECTS:
        objects = measure_objects(site, workload)
        return Measurement(
            report={},
            cpu_seconds={},
            resident_bytes={},
            grown_bytes={},
            objects=objects,
        )
    if workload.kind in DISASTERS:
        told = measure_disaster(site, workload)
        return Measurement(
            report={}, cpu_seconds={}, resident_bytes={}, grown_bytes={}, disaster=told
        )
    if workload.kind in (Kind.MEMORY, Kind.HOLD):
        return _measure_memory(site, workload, column)
    before = {end: process.cpu_seconds() for end, process in ends.items()}
    report = site.generator.measure(
        workload,
        endpoint,
        seconds=max(seconds, workload.at_least_seconds),
        warmup_seconds=workload.warmup_seconds,
    )
    time.sleep(SETTLE_SECONDS)
    spent = {end: process.cpu_seconds() - before[end] for end, process in ends.items()}
    return Measurement(
        report=report, cpu_seconds=spent, resident_bytes={}, grown_bytes={}
    )


def _measure_memory(site: Site, workload: Workload, column: Column) -> Measurement:
    ends = column.ends(workload.face)
    if not ends:
        return Measurement(report={}, cpu_seconds={}, resident_bytes={}, grown_bytes={})
    time.sleep(IDLE_SECONDS)
    before = {end: process.resident_bytes() for end, process in ends.items()}
    grown: dict[str, int] = {}
    if workload.kind is Kind.HOLD:
        holder = site.generator.hold(
            site.processes, workload, column.endpoints[workload.face]
        )
        try:
            time.sleep(IDLE_SECONDS)
            grown = {
                end: process.resident_bytes() - before[end]
                for end, process in ends.items()
            }
        finally:
            site.processes.stop(holder)
    return Measurement(
        report={}, cpu_seconds={}, resident_bytes=before, grown_bytes=grown
    )
