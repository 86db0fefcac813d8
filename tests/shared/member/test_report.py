"""How a member is, from the apiserver's answer to the server's memory.

Covered: what each answer becomes, the last version that stays, the way over the control stream,
a stranger's report.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.member import report as module
from shared.member.questions import MemberAnswer
from shared.member.report import MemberReport, ask_member, read_report

BEFORE = MemberReport(apiserver_version="v1.33.0")


def answering(answer: MemberAnswer | OSError) -> "module.MemberRequest":
    async def request(method: str, path: str, **_: object) -> MemberAnswer:
        assert (method, path) == ("GET", "/version")
        if isinstance(answer, OSError):
            raise answer
        return answer

    return request


async def test_an_answer_brings_the_version() -> None:
    request = answering(MemberAnswer(status=200, body={"gitVersion": "v1.34.1"}))
    assert await ask_member(request, BEFORE) == MemberReport(
        apiserver_version="v1.34.1"
    )


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
    report = await ask_member(answering(answer), BEFORE)
    assert report.apiserver_version == "v1.33.0"
    assert words in str(report.apiserver_error)


@pytest.mark.parametrize(
    "report",
    [
        MemberReport(),
        MemberReport(apiserver_version="v1.34.1"),
        MemberReport(apiserver_version="v1.34.1", apiserver_error="refused"),
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


@given(st.dictionaries(st.sampled_from(sorted(vars(BEFORE))), _json))
def test_whatever_an_agent_says_is_safe_to_show(message: dict[str, object]) -> None:
    for value in vars(read_report(message)).values():
        if isinstance(value, str):
            assert value.isprintable() and len(value) <= module.MAX_TEXT_CHARS
