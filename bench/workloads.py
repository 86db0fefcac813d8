"""What is measured: workloads, the links they run over, and the metrics they give.

A table, so that a new row of an issue is a line here. Names are stable: results of
different commits are compared by them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatch
from typing import Any

__all__ = [
    "DISASTERS",
    "DISASTER_UNITS",
    "FLEET_UNITS",
    "OBJECT_UNITS",
    "LOCAL",
    "WORKLOADS",
    "Face",
    "Kind",
    "Link",
    "Measurement",
    "Workload",
    "metrics_of",
    "selected",
]

REQUEST_BYTES = 1024
RESPONSE_BYTES = 8192
GIB = 2**30
MEGABYTE = 10**6
KIB = 1024


class Face(Enum):
    """Which entry the client uses."""

    RAW = "raw"  # a TCP entry to a target of the agent
    SEALED = "sealed"  # TLS through the front door, HTTP to the member's apiserver


class Kind(Enum):
    """How a workload is taken; the load generator's own words where it makes load."""

    REQUEST = "request"  # warm streams, one request at a time on each
    CONNECT = "connect"  # new stream, one request, close
    DOWNLOAD = "download"
    UPLOAD = "upload"
    BESIDE = "beside"  # one warm request stream beside downloads flat out
    HOLD = "hold"  # idle streams; memory is read
    MEMORY = "memory"  # no client at all; memory is read
    AGENTS = "agents"  # many agents on one server; `workers` of them
    OBJECTS = "objects"  # many Cluster objects on one server; `workers` of them
    STALLED = "stalled"  # downloads that nobody reads; `workers` of them
    FROZEN = "frozen"  # the link lets nothing pass, and then does again
    DROPS = "drops"  # the link is cut again and again under load


@dataclass(frozen=True, kw_only=True)
class Link:
    """What lies between agent and server (direct: between client and upstream)."""

    name: str
    round_trip_ms: float = 0
    rate_mbit: float = 0  # 0: no limit
    queue_bytes: int = 0  # 0: no limit
    socket_buffer_bytes: int = 0  # of the relay; 0: the kernel's choice

    @property
    def is_local(self) -> bool:
        """No relay in between."""
        return not self.round_trip_ms


LOCAL = Link(name="local")
WAN50 = Link(name="wan50", round_trip_ms=50)
WAN100 = Link(name="wan100", round_trip_ms=100)
WAN200 = Link(name="wan200", round_trip_ms=200)
# 1 Gbit/s: what a good path between two sites has, each with an unlimited queue.
WAN50_GBIT = Link(name="wan50-1g", round_trip_ms=50, rate_mbit=1000)
WAN100_GBIT = Link(name="wan100-1g", round_trip_ms=100, rate_mbit=1000)
WAN200_GBIT = Link(name="wan200-1g", round_trip_ms=200, rate_mbit=1000)
# A full line: a queue of one bandwidth-delay product, as routers are built.
BUSY = Link(
    name="busy100m",
    round_trip_ms=50,
    rate_mbit=100,
    queue_bytes=100_000_000 // 8 * 50 // 1000,
    socket_buffer_bytes=64 * KIB,
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One workload; its metrics come from `metrics_of`."""

    name: str
    face: Face = Face.RAW
    kind: Kind = Kind.REQUEST
    workers: int = 1
    link: Link = LOCAL
    warmup_seconds: float = 0.4
    # Growing windows need some round trips: WAN rows measure at least so long.
    at_least_seconds: float = 0
    # Memory is only told by fresh processes: a second round would reuse freed pages.
    once: bool = False


def _over(link: Link) -> Iterator[Workload]:
    """A bulk stream over a long link, after it had time to open its window."""
    yield Workload(
        name=f"{link.name}-download-1",
        kind=Kind.DOWNLOAD,
        link=link,
        warmup_seconds=1 + 20 * link.round_trip_ms / 1000,
        at_least_seconds=3,
    )


_D, _C, _S = Kind.DOWNLOAD, Kind.CONNECT, Face.SEALED
WORKLOADS: Sequence[Workload] = (
    Workload(name="idle-memory", kind=Kind.MEMORY, once=True),
    Workload(name="raw-idle-1000", kind=Kind.HOLD, workers=1000, once=True),
    Workload(name="sealed-idle-1000", face=_S, kind=Kind.HOLD, workers=1000, once=True),
    Workload(name="raw-request-1"),
    Workload(name="raw-request-16", workers=16),
    Workload(name="raw-request-128", workers=128),
    Workload(name="raw-connect-16", kind=_C, workers=16),
    Workload(name="raw-download-1", kind=_D),
    Workload(name="raw-download-8", kind=_D, workers=8),
    Workload(name="raw-upload-1", kind=Kind.UPLOAD),
    Workload(name="raw-request-beside-downloads", kind=Kind.BESIDE, workers=4),
    Workload(name="sealed-request-1", face=_S),
    Workload(name="sealed-request-16", face=_S, workers=16),
    Workload(name="sealed-connect-16", face=_S, kind=_C, workers=16),
    Workload(name="sealed-download-1", face=_S, kind=_D),
    Workload(name="stalled-1000", kind=Kind.STALLED, workers=1000, once=True),
    Workload(name="frozen-link", kind=Kind.FROZEN, once=True),
    Workload(name="drops-100", kind=Kind.DROPS, once=True),
    Workload(name="agents-5000", kind=Kind.AGENTS, workers=5000, once=True),
    Workload(name="objects-1000", kind=Kind.OBJECTS, workers=1000, once=True),
    Workload(name="wan50-open-request", kind=_C, link=WAN50, at_least_seconds=2),
    *_over(WAN50),
    *_over(WAN100),
    *_over(WAN200),
    *_over(WAN50_GBIT),
    *_over(WAN100_GBIT),
    *_over(WAN200_GBIT),
    Workload(
        name="busy100m-request-beside-downloads",
        kind=Kind.BESIDE,
        workers=4,
        link=BUSY,
        warmup_seconds=2,
        at_least_seconds=4,
    ),
)


def selected(patterns: Sequence[str], *, wan: bool) -> list[Workload]:
    """The workloads of a run: those that match any pattern, in the table's order.

    A whole name is that workload alone; any other pattern without wildcards matches
    anywhere in the name. Without patterns all
    are taken, those over a long link only with `wan`; a pattern that fits a long
    link's name asks for it without `wan`.
    """
    if not patterns:
        return [item for item in WORKLOADS if item.link.is_local or wan]
    names = {item.name for item in WORKLOADS}
    globs = [
        text if text in names or set("*?[") & set(text) else f"*{text}*"
        for text in patterns
    ]
    return [
        item for item in WORKLOADS if any(fnmatch(item.name, glob) for glob in globs)
    ]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one run of one workload in one column gave."""

    # The load generator's report; {} where no load was made.
    report: Mapping[str, Any]
    # CPU seconds of each of the column's processes over the whole run, warm-up too.
    cpu_seconds: Mapping[str, float]
    # Resident bytes of each, and how much that grew while streams were held.
    resident_bytes: Mapping[str, int]
    grown_bytes: Mapping[str, int]
    # What `bench.fleet` measured, by the names of FLEET_UNITS.
    fleet: Mapping[str, float] = field(default_factory=dict)
    # What `bench.disasters` measured, by the names of DISASTER_UNITS.
    disaster: Mapping[str, float] = field(default_factory=dict)
    # What `bench.objects` measured, by the names of OBJECT_UNITS.
    objects: Mapping[str, float] = field(default_factory=dict)


# The metrics of a fleet. Kernel memory is that of both ends; the share of one core.
FLEET_UNITS = {
    "memory server": "KiB/agent",
    "memory kernel": "KiB/agent",
    "idle cpu": "%",
    "handshake p50": "ms",
    "handshake p99": "ms",
    "all connected": "s",
    "all back": "s",
    "cpu of the return": "s",
    "dials per agent": "1",
    "healthz p99 meanwhile": "ms",
}

# The metrics of many objects: of one server beside a real control plane.
OBJECT_UNITS = {
    "reconciled": "s",
    "cpu to reconcile": "s",
    "memory server": "MiB",
    "memory of objects": "MiB",
    "idle cpu": "%",
    "restart": "s",
    "removed": "s",
}

# Of ours only: nobody else goes on after them.
DISASTERS = frozenset({Kind.STALLED, Kind.FROZEN, Kind.DROPS})

# Their metrics. Times of a frozen link are the worst of some freezes.
DISASTER_UNITS = {
    "memory server": "MiB",
    "memory agent": "MiB",
    "memory both": "MiB",
    "memory kernel": "MiB",
    "p99 without them": "ms",
    "p99 beside them": "ms",
    "noticed by agent": "s",
    "noticed by server": "s",
    "resumed": "s",
    "broken streams": "1",
    "streams with wrong bytes": "1",
    "drops": "1",
    "echoes": "1",
    "downloaded": "MB",
    "back after p50": "ms",
    "back after max": "ms",
    "echo p99": "ms",
    "seconds": "s",
}

# metric, unit, value
Metric = tuple[str, str, float]


def metrics_of(workload: Workload, measured: Measurement) -> Iterator[Metric]:
    """Name, unit and value of each metric, in the order of the table."""
    match workload.kind:
        case Kind.MEMORY:
            for end, size in measured.resident_bytes.items():
                yield f"memory {end}", "MiB", size / 2**20
        case Kind.HOLD:
            for end, size in measured.grown_bytes.items():
                yield f"memory {end}", "KiB/stream", size / KIB / workload.workers
        case Kind.AGENTS:
            for metric, value in measured.fleet.items():
                yield metric, FLEET_UNITS[metric], value
        case Kind.OBJECTS:
            for metric, value in measured.objects.items():
                yield metric, OBJECT_UNITS[metric], value
        case Kind.STALLED | Kind.FROZEN | Kind.DROPS:
            for metric, value in measured.disaster.items():
                yield metric, DISASTER_UNITS[metric], value
        case Kind.REQUEST | Kind.CONNECT:
            yield from _request_metrics(workload, measured)
        case Kind.BESIDE:
            yield from _latencies(workload, measured.report)
            yield _throughput(measured.report)
        case Kind.DOWNLOAD | Kind.UPLOAD:
            yield _throughput(measured.report)
            yield from _cpu(measured, "bytes_total", GIB, "s/GiB")


def _request_metrics(workload: Workload, measured: Measurement) -> Iterator[Metric]:
    report = measured.report
    # One at a time the rate is only the latency again.
    if workload.workers > 1:
        yield "rate", "1/s", report["operations"] / report["seconds"]
    yield from _latencies(workload, report)
    yield from _cpu(measured, "operations_total", 10_000, "s/10k")


def _latencies(workload: Workload, report: Mapping[str, Any]) -> Iterator[Metric]:
    yield "p50", "ms", report["p50_ms"]
    yield "p99", "ms", report["p99_ms"]
    if not workload.link.is_local:
        round_trip = workload.link.round_trip_ms
        yield "p50 in round trips", "RTT", report["p50_ms"] / round_trip
        yield "p99 in round trips", "RTT", report["p99_ms"] / round_trip


def _throughput(report: Mapping[str, Any]) -> Metric:
    return "throughput", "MB/s", report["bytes"] / report["seconds"] / MEGABYTE


def _cpu(measured: Measurement, total: str, per: int, unit: str) -> Iterator[Metric]:
    """CPU of both ends together and of each, for `per` of what was done in all."""
    done = measured.report[total]
    if not measured.cpu_seconds or not done:
        return
    yield "cpu", unit, sum(measured.cpu_seconds.values()) * per / done
    for end, seconds in measured.cpu_seconds.items():
        yield f"cpu {end}", unit, seconds * per / done
