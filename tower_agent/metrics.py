"""The agent's numbers for Prometheus; they are served beside its health."""

from collections.abc import Iterable, Mapping

from certs.names import ClusterName
from shared.http.relay import AnswerCounts
from shared.metrics import (
    Metric,
    build_info,
    counter,
    draining,
    gauge,
    memory_metrics,
    tunnel_metrics,
)
from shared.mux.readings import MemoryReading, TunnelReading

__all__ = ["agent_metrics"]


def agent_metrics(
    cluster: ClusterName,
    reading: TunnelReading,
    memory: MemoryReading,
    *,
    answers: AnswerCounts,
    client_connections: int,
    is_draining: bool,
) -> Iterable[Metric]:
    """All numbers of an agent.

    Args:
        reading: Its tunnels to the server.
        memory: What these hold.
        answers: What requests of the sealed face were answered with.
        client_connections: Connections of control planes whose TLS ends here.
        is_draining: The agent stops; what runs has its time to end.
    """
    yield build_info("tower-agent")
    yield draining(is_draining)
    readings: Mapping[str, TunnelReading] = {cluster: reading}
    yield gauge(
        "tower_cluster_connected",
        "1 while the cluster's agent is connected, 0 while it is away.",
        ("cluster",),
        [((cluster,), reading.sessions > 0)],
    )
    yield from tunnel_metrics(readings, is_server=False)
    yield from memory_metrics(memory)
    yield gauge(
        "tower_client_connections",
        "Connections of Kubernetes clients that the agent serves.",
        (),
        [((), client_connections)],
    )
    yield counter(
        "tower_requests_total",
        "Requests of Kubernetes clients, by who answered (apiserver, or the agent itself) and the status.",
        ("answered_by", "code"),
        [
            ((who, str(status)), count)
            for who, counted in (
                ("apiserver", answers.by_apiserver),
                ("agent", answers.by_agent),
            )
            for status, count in sorted(counted.items())
        ],
    )
