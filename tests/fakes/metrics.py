"""The text of /metrics read back, and a reading of tunnels with a different number in each field."""

from prometheus_client.parser import text_string_to_metric_families

from shared.mux.counters import Counters
from shared.mux.readings import MemoryReading, TunnelReading

__all__ = ["MEMORY", "Numbers", "numbers", "reading"]

MEMORY = MemoryReading(used_bytes=30, ceiling_bytes=200, held_back=4)

# By name and labels, which are sorted pairs.
Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def numbers(text: str) -> Numbers:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def reading(counters: Counters | None = None, **changes: object) -> TunnelReading:
    fields: dict[str, object] = {
        "sessions": 1,
        "rtt_seconds": 0.025,
        "open_streams": 3,
        "stalled_streams": 2,
        "queued_bytes": 400,
        "unread_bytes": 50,
        "window_bytes": 7000,
        "kept_bytes": 600,
        "counters": counters or Counters(),
    }
    return TunnelReading(**(fields | changes))  # type: ignore[arg-type]
