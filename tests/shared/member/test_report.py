"""How a member is, from the apiserver's answer to the server's memory.

Covered: what each answer becomes, what stays known in trouble, counting nodes, the end of our
credential, the way over the control stream, a stranger's report.
"""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.http.status import AGENT
from shared.member.questions import MemberAnswer
from shared.member.report import (
    COUNT_NODES_EVERY_SECONDS,
    EXPIRES_SOON,
    MAX_NODE_COUNT,
    MAX_TEXT_CHARS,
    MemberProbe,
    MemberReport,
    read_report,
)

END = datetime(2026, 11, 24, 8, 0, 1, 5, tzinfo=UTC)


class Apiserver:
    """Its answers, changed by the test; the time is a number."""

    def __init__(self) -> None:
        self.version: MemberAnswer | OSError = version("v1.34.1")
        self.nodes = MemberAnswer(status=403, body={})
        self.asked: list[str] = []
        self.now = 0.0
        self.expires_at: datetime | None = None
        self.probe = MemberProbe(
            self.request,
            speaker=AGENT,
            expires_at=lambda: self.expires_at,
            clock=lambda: self.now,
        )

    async def request(self, method: str, path: str, **_: object) -> MemberAnswer:
        assert method == "GET"
        self.asked.append(path)
        if path != "/version":
            return self.nodes
        if isinstance(self.version, OSError):
            raise self.version
        return self.version


def version(text: str) -> MemberAnswer:
    return MemberAnswer(status=200, body={"gitVersion": text})


def nodes(items: int, remaining: object) -> MemberAnswer:
    metadata = {} if remaining is None else {"remainingItemCount": remaining}
    return MemberAnswer(status=200, body={"items": [{}] * items, "metadata": metadata})


async def test_an_answer_brings_the_version() -> None:
    assert await Apiserver().probe.ask() == MemberReport(apiserver_version="v1.34.1")


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        (nodes(0, None), 0),
        (nodes(1, None), 1),
        (nodes(1, 4999), 5000),
        (MemberAnswer(status=403, body={}), None),
        (MemberAnswer(status=200, body={}), None),
    ],
)
async def test_nodes_are_counted_where_we_may_look(
    answer: MemberAnswer, count: int | None
) -> None:
    apiserver = Apiserver()
    apiserver.nodes = answer
    assert (await apiserver.probe.ask()).node_count == count


async def test_nodes_are_counted_seldom() -> None:
    apiserver = Apiserver()
    apiserver.nodes = nodes(1, 2)
    await apiserver.probe.ask()
    apiserver.now += COUNT_NODES_EVERY_SECONDS - 1
    apiserver.nodes = nodes(1, 3)
    assert (await apiserver.probe.ask()).node_count == 3
    apiserver.now += 1
    assert (await apiserver.probe.ask()).node_count == 4
    assert [path.partition("?")[0] for path in apiserver.asked] == [
        *("/version", "/api/v1/nodes", "/version"),
        *("/version", "/api/v1/nodes"),
    ]


async def test_the_end_of_our_credential_is_looked_up_each_time() -> None:
    apiserver = Apiserver()
    assert (await apiserver.probe.ask()).credential_expires_at is None
    apiserver.expires_at = END
    assert (await apiserver.probe.ask()).credential_expires_at == END


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (MemberAnswer(status=401, body={}), "credential"),
        (MemberAnswer(status=500, body={"message": "etcd\ndown"}), "etcd down"),
        (ConnectionRefusedError("refused"), "refused"),
        (TimeoutError(), "in time"),
    ],
)
async def test_trouble_is_said_and_the_last_version_stays(
    answer: MemberAnswer | OSError, words: str
) -> None:
    apiserver = Apiserver()
    apiserver.nodes = nodes(1, 1)
    await apiserver.probe.ask()
    apiserver.version = answer
    report = await apiserver.probe.ask()
    assert (report.apiserver_version, report.node_count) == ("v1.34.1", 2)
    assert words in str(report.apiserver_error)
    apiserver.version = version("v1.35.0")
    report = await apiserver.probe.ask()
    assert (report.apiserver_version, report.apiserver_error) == ("v1.35.0", None)


@pytest.mark.parametrize(
    "report",
    [
        MemberReport(),
        MemberReport(apiserver_version="v1.34.1"),
        MemberReport(apiserver_version="v1.34.1", apiserver_error="refused"),
        MemberReport(node_count=0, credential_expires_at=END),
    ],
)
def test_a_report_arrives_as_it_was_sent(report: MemberReport) -> None:
    assert read_report(report.to_json()) == report


_json = (
    st.none()
    | st.integers()
    | st.text(max_size=400)
    | st.lists(st.booleans(), max_size=2)
)


@given(st.dictionaries(st.sampled_from(sorted(vars(MemberReport()))), _json))
def test_whatever_an_agent_says_is_safe_to_show(message: dict[str, object]) -> None:
    for value in vars(read_report(message)).values():
        if isinstance(value, str):
            assert value.isprintable() and len(value) <= MAX_TEXT_CHARS
        elif value is not None and not isinstance(value, datetime):
            assert type(value) is int and 0 <= value <= MAX_NODE_COUNT


@pytest.mark.parametrize(
    ("left", "soon"),
    [
        (EXPIRES_SOON, False),
        (EXPIRES_SOON - timedelta(seconds=1), True),
        (-timedelta(days=1), True),
        (None, False),
    ],
)
def test_what_ends_within_seven_days_ends_soon(
    left: timedelta | None, soon: bool
) -> None:
    ends = None if left is None else END + left
    assert MemberReport(credential_expires_at=ends).expires_soon(END) is soon
