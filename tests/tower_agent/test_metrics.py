"""The agent's numbers: its tunnels, and what it answered to Kubernetes clients."""

from certs.names import ClusterName
from shared.http.relay import AnswerCounts
from shared.metrics import MetricsPage
from tests.fakes.metrics import MEMORY, numbers, reading
from tower_agent.metrics import agent_metrics


async def test_tunnels_clients_and_answers_are_counted() -> None:
    answers = AnswerCounts()
    answers.by_apiserver[200] += 5
    answers.by_agent[403] += 2
    metrics = agent_metrics(
        ClusterName("alpha"),
        reading(),
        MEMORY,
        answers=answers,
        client_connections=4,
        is_draining=True,
    )
    written = numbers((await MetricsPage(lambda: metrics).text()).decode())
    alpha = (("cluster", "alpha"),)
    assert written["tower_cluster_connected", alpha] == 1
    assert written["tower_tunnel_streams", alpha] == 3
    assert written["tower_client_connections", ()] == 4
    assert written["tower_draining", ()] == 1
    assert written["tower_window_memory_bytes", ()] == 30
    by_apiserver = (("answered_by", "apiserver"), ("code", "200"))
    by_agent = (("answered_by", "agent"), ("code", "403"))
    assert written["tower_requests_total", by_apiserver] == 5
    assert written["tower_requests_total", by_agent] == 2
