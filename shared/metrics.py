"""Numbers as Prometheus reads them: the text of /metrics, and the numbers that both ends have.

Nothing here counts. Every number is read from its owner when somebody scrapes, on the event
loop; what is made of them is made in a thread, because for 10,000 clusters it takes a second.
Each name is explained in README.md, "Operate"; a test compares.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from shared.errors import Code
from shared.mux.readings import MemoryReading, TunnelReading
from shared.version import VERSION

__all__ = [
    "CONTENT_TYPE",
    "Metric",
    "MetricsPage",
    "build_info",
    "counter",
    "draining",
    "gauge",
    "memory_metrics",
    "tunnel_metrics",
]

# The labels and the value of one number.
Sample = tuple[Sequence[str], float]

CONTENT_TYPE = CONTENT_TYPE_LATEST


def counter(
    name: str, meaning: str, labels: Sequence[str], samples: Iterable[Sample]
) -> Metric:
    """What only grows while the process lives. Its name ends in `_total`."""
    assert name.endswith("_total")
    return _filled(CounterMetricFamily(name, meaning, labels=labels), samples)


def gauge(
    name: str, meaning: str, labels: Sequence[str], samples: Iterable[Sample]
) -> Metric:
    """What goes up and down."""
    return _filled(GaugeMetricFamily(name, meaning, labels=labels), samples)


def build_info(program: str) -> Metric:
    """Which program this is, and of which version."""
    return gauge(
        "tower_build_info",
        "1, with the program and its version.",
        ("program", "version"),
        [((program, VERSION), 1)],
    )


def draining(is_draining: bool) -> Metric:
    """Whether the program stops, and gives what runs its time to end."""
    return gauge(
        "tower_draining",
        "1 while the program stops and lets running streams end, else 0.",
        (),
        [((), is_draining)],
    )


def memory_metrics(memory: MemoryReading) -> Iterable[Metric]:
    """What all tunnels of this process hold against the ceiling (`--window-memory`)."""
    yield gauge(
        "tower_window_memory_bytes",
        "Memory in windows and kept messages that counts against the ceiling.",
        (),
        [((), memory.used_bytes)],
    )
    yield gauge(
        "tower_window_memory_ceiling_bytes",
        "That ceiling.",
        (),
        [((), memory.ceiling_bytes)],
    )
    yield counter(
        "tower_window_memory_held_back_total",
        "How often a window wanted more than its share of it.",
        (),
        [((), memory.held_back)],
    )


def tunnel_metrics(
    readings: Mapping[str, TunnelReading], *, is_server: bool
) -> Iterable[Metric]:
    """The numbers of tunnels, by cluster, from the view of this end: sent is what it has sent."""
    yield from _now(readings)
    yield from _totals(readings, is_server=is_server)


class MetricsPage:
    """Makes the text of /metrics; one at a time, however many ask."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        # Called on the event loop, where it takes its numbers: they must not change any more.
        # What it returns is iterated in a thread.
        self._read = read
        self._process = CollectorRegistry()
        # Memory, CPU time, open files: process_*.
        ProcessCollector(registry=self._process)
        self._one_at_a_time = asyncio.Lock()

    async def text(self) -> bytes:
        async with self._one_at_a_time:
            metrics = chain(self._read(), [_tasks()])
            return await asyncio.to_thread(self._render, metrics)

    def _render(self, metrics: Iterable[Metric]) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Fixed(metrics))
        return generate_latest(registry) + generate_latest(self._process)


def _tasks() -> Metric:
    return gauge(
        "process_asyncio_tasks",
        "Tasks of the event loop; a number that only grows is a leak.",
        (),
        [((), len(asyncio.all_tasks()))],
    )


class _Fixed:
    """A collector of what has been read already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics

    def describe(self) -> Iterable[Metric]:
        return ()


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, samples: Iterable[Sample]
) -> Metric:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _now(readings: Mapping[str, TunnelReading]) -> Iterable[Metric]:
    def by_cluster(
        name: str, meaning: str, value: Callable[[TunnelReading], float | None]
    ) -> Metric:
        values = ((cluster, value(reading)) for cluster, reading in readings.items())
        samples = [
            ((cluster,), number) for cluster, number in values if number is not None
        ]
        return gauge(name, meaning, ("cluster",), samples)

    yield by_cluster(
        "tower_tunnel_sessions", "Sessions that are up.", lambda r: r.sessions
    )
    yield by_cluster(
        "tower_tunnel_rtt_seconds",
        "The last round trip that was measured; absent while the tunnel is down.",
        lambda r: r.rtt_seconds,
    )
    yield by_cluster(
        "tower_tunnel_streams",
        "Open streams, without those for reports.",
        lambda r: r.open_streams,
    )
    yield by_cluster(
        "tower_tunnel_stalled_streams",
        "Streams that have data to send and no credit: their reader does not take it.",
        lambda r: r.stalled_streams,
    )
    yield by_cluster(
        "tower_tunnel_queued_bytes",
        "Written to streams and not sent yet.",
        lambda r: r.queued_bytes,
    )
    yield by_cluster(
        "tower_tunnel_unread_bytes",
        "Arrived on streams and not taken by their readers yet.",
        lambda r: r.unread_bytes,
    )
    yield by_cluster(
        "tower_tunnel_window_bytes",
        "Promised to senders beyond the first window of each stream.",
        lambda r: r.window_bytes,
    )
    yield by_cluster(
        "tower_tunnel_kept_bytes",
        "Sent, and kept until the other end has it.",
        lambda r: r.kept_bytes,
    )


def _totals(
    readings: Mapping[str, TunnelReading], *, is_server: bool
) -> Iterable[Metric]:
    counted = [(cluster, reading.counters) for cluster, reading in readings.items()]
    yield counter(
        "tower_tunnel_bytes_total",
        "Bytes in tunnel messages, frame headers included.",
        ("cluster", "direction"),
        [
            *(((cluster, "sent"), c.sent_bytes) for cluster, c in counted),
            *(((cluster, "received"), c.received_bytes) for cluster, c in counted),
        ],
    )
    yield counter(
        "tower_tunnel_sent_bytes_total",
        "The sent ones by class: data of streams that send much (bulk), and all else.",
        ("cluster", "class"),
        [
            *(((cluster, "bulk"), c.sent_bulk_bytes) for cluster, c in counted),
            *(
                ((cluster, "interactive"), c.sent_bytes - c.sent_bulk_bytes)
                for cluster, c in counted
            ),
        ],
    )
    yield counter(
        "tower_tunnel_resumes_total",
        "Sessions that went on over another connection.",
        ("cluster",),
        [((cluster,), c.resumes) for cluster, c in counted],
    )
    yield counter(
        "tower_tunnel_retransmitted_bytes_total",
        "Sent again after a lost connection.",
        ("cluster",),
        [((cluster,), c.resent_bytes) for cluster, c in counted],
    )
    yield counter(
        "tower_tunnel_streams_opened_total",
        "Streams, by the end that opened them.",
        ("cluster", "opener"),
        [
            *(((cluster, "server"), c.opened_by_server) for cluster, c in counted),
            *(((cluster, "agent"), c.opened_by_agent) for cluster, c in counted),
        ],
    )
    us, peer = ("server", "agent") if is_server else ("agent", "server")
    yield counter(
        "tower_tunnel_resets_total",
        "Streams that ended early, by the end that reset them and its code; those that ended with "
        "their session count for the other end.",
        ("cluster", "by", "code"),
        [
            ((cluster, end, _name(code)), number)
            for cluster, c in counted
            for end, resets in ((us, c.resets_sent), (peer, c.resets_received))
            for code, number in sorted(resets.items())
        ],
    )
    yield counter(
        "tower_tunnel_window_stalls_total",
        "How often a stream that had data waited for credit; counted when it got some.",
        ("cluster",),
        [((cluster,), c.window_stalls) for cluster, c in counted],
    )


def _name(code: Code) -> str:
    return code.name.lower()
