"""README.md explains every metric that the two programs export, and no other."""

import re

from certs.names import ClusterName
from shared.errors import Code
from shared.http.relay import AnswerCounts
from shared.metrics import Metric
from shared.mux.counters import Counters
from tests.docs.cli_reference import README
from tests.fakes.metrics import MEMORY, reading
from tower_agent.metrics import agent_metrics
from tower_server.metrics import server_metrics
from tower_server.parking import ParkingReading


def exported() -> dict[str, set[str]]:
    """Every metric's name as one queries it, with its labels."""
    counters = Counters()
    counters.resets_sent[Code.OK] += 1
    metrics: list[Metric] = [
        *server_metrics(
            {"alpha": reading(counters)},
            MEMORY,
            ParkingReading(parked=0, resumed=0, expired=0),
            upgrades={"busy": 1},
            joins={"joined": 1},
            front_door={"own": 1},
            direct_answers={"beta": AnswerCounts(by_agent={502: 1})},  # type: ignore[arg-type]
            is_draining=False,
        ),
        *agent_metrics(
            ClusterName("alpha"),
            reading(counters),
            MEMORY,
            answers=AnswerCounts(by_agent={403: 1}),  # type: ignore[arg-type]
            client_connections=0,
            is_draining=False,
        ),
    ]
    return {
        sample.name: set(sample.labels)
        for metric in metrics
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def documented() -> dict[str, set[str]]:
    """The rows of the table in "Operate": a name, with its labels in braces."""
    operate = README.read_text().partition("\n## Operate\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(tower_\w+)(?:\{([\w, ]+)\})?` \|", operate, re.MULTILINE)
    return {name: set(labels.split(", ")) - {""} for name, labels in rows}


def test_the_readme_has_each_metric_with_its_labels() -> None:
    assert len(exported()) > 15
    assert documented() == exported()
