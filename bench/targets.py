"""What Tower wants to reach, by workload and metric: shown beside the figures, judged by people.

A target is a sentence's rest: "throughput: at least 0.95 of the prototype". It is not compared
by the program, because one run on a busy machine proves neither success nor failure.
"""

from collections.abc import Mapping

__all__ = ["TARGETS"]

_OF_PROTOTYPE = "≥ 0.95 × prototype"
_CPU = "≤ 1.05 × prototype"
_GBIT = "≥ 90 % of 1 Gbit/s"

TARGETS: Mapping[tuple[str, str], str] = {
    ("raw-idle-1000", "memory server"): "≤ 4",
    ("raw-idle-1000", "memory agent"): "≤ 4",
    ("raw-request-1", "p50"): "≤ 1.0 × prototype",
    ("raw-request-16", "rate"): _OF_PROTOTYPE,
    ("raw-request-16", "cpu"): _CPU,
    ("raw-request-128", "rate"): _OF_PROTOTYPE,
    ("raw-request-128", "cpu"): _CPU,
    ("raw-connect-16", "rate"): _OF_PROTOTYPE,
    ("raw-download-1", "throughput"): _OF_PROTOTYPE,
    ("raw-download-1", "cpu"): _CPU,
    ("raw-download-8", "throughput"): _OF_PROTOTYPE,
    ("raw-download-8", "cpu"): _CPU,
    ("raw-request-beside-downloads", "p50"): "≤ 1",
    ("raw-request-beside-downloads", "p99"): "≤ 10",
    ("raw-request-beside-downloads", "throughput"): "≥ 80 % of alone",
    ("sealed-request-1", "p50"): "≤ 0.45",
    ("sealed-request-16", "rate"): "≥ 7,000",
    ("sealed-connect-16", "rate"): "≥ 600",
    ("sealed-download-1", "throughput"): "≥ 350",
    ("stalled-1000", "memory both"): "< 95",  # 100 MB
    ("stalled-1000", "p99 beside them"): "as without them",
    ("frozen-link", "noticed by agent"): "≤ 5",
    ("frozen-link", "noticed by server"): "≤ 5",
    ("frozen-link", "resumed"): "≤ 2",
    ("frozen-link", "broken streams"): "0",
    ("drops-100", "broken streams"): "0",
    ("drops-100", "streams with wrong bytes"): "0",
    ("agents-5000", "memory server"): "≤ 40",
    ("agents-5000", "idle cpu"): "≤ 25",
    ("agents-5000", "handshake p99"): "< 5,000",
    ("agents-5000", "all back"): "< 60",
    ("objects-1000", "reconciled"): "< 60",
    ("objects-1000", "idle cpu"): "≈ 0",
    ("wan50-open-request", "p50 in round trips"): "≤ 1.05",
    ("wan50-download-1", "throughput"): "≥ 300",
    ("wan50-1g-download-1", "throughput"): _GBIT,
    ("wan100-1g-download-1", "throughput"): _GBIT,
    ("wan200-1g-download-1", "throughput"): _GBIT,
    ("busy100m-request-beside-downloads", "p50 in round trips"): "≤ 2",
    ("busy100m-request-beside-downloads", "p99 in round trips"): "≤ 3",
}
