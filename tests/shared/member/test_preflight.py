"""A member that is ready for its agent, or not; the sentences are in test_wrong_joins.py too.

Covered: facts, which rights are asked for, `*`, an apiserver that hangs or answers otherwise.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from shared.member import preflight
from shared.member.preflight import MemberFacts, PreflightFailed, check_member
from shared.member.questions import MemberAnswer
from tests.fakes.member_api import member_api


async def test_a_ready_member_tells_who_it_is() -> None:
    async with member_api() as (member, request):
        facts = await check_member(
            request, apiserver="a", allow_users=["tower:admin"], allow_groups=["x"]
        )
    assert facts == MemberFacts(uid=member.uid, apiserver_version="v1.34.1")


async def test_it_asks_for_each_name_and_for_all_when_all_are_allowed() -> None:
    asked: list[tuple[str, str, str]] = []

    async with member_api() as (_, request):

        async def recorded(
            method: str,
            path: str,
            *,
            body: Mapping[str, Any] | None = None,
            **rest: Any,
        ) -> MemberAnswer:
            if body is not None:
                attributes = body["spec"]["resourceAttributes"]
                asked.append(
                    (attributes["verb"], attributes["resource"], attributes["name"])
                )
            return await request(method, path, body=body, **rest)

        await check_member(
            recorded, apiserver="a", allow_users=["b", "a"], allow_groups=["*"]
        )
    assert asked == [
        ("impersonate", "users", "a"),
        ("impersonate", "users", "b"),
        ("impersonate", "groups", ""),
        ("create", "subjectaccessreviews", ""),
    ]


async def test_all_missing_rights_are_named_at_once() -> None:
    async with member_api() as (member, request):
        member.denied = {"impersonate users", "create subjectaccessreviews"}
        with pytest.raises(
            PreflightFailed, match="users 'a'; create subjectaccessreviews"
        ):
            await check_member(
                request, apiserver="a", allow_users=["a"], allow_groups=["b"]
            )


async def test_an_apiserver_that_hangs_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "PREFLIGHT_TIMEOUT_SECONDS", 0.05)

    async def hangs(*_args: object, **_kwargs: object) -> MemberAnswer:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(PreflightFailed, match="does not answer .no answer in time"):
        await check_member(hangs, apiserver="a", allow_users=["a"], allow_groups=["b"])


@pytest.mark.parametrize(
    ("status", "says"), [(500, "healthy"), (404, "is a Kubernetes")]
)
async def test_other_answers_name_the_address(status: int, says: str) -> None:
    async with member_api() as (member, request):
        member.answer_with = status
        with pytest.raises(PreflightFailed, match=f"answered {status}.*{says}"):
            await check_member(
                request, apiserver="a", allow_users=["a"], allow_groups=["b"]
            )


async def test_something_without_a_uid_is_no_apiserver() -> None:
    async with member_api() as (member, request):
        member.uid = ""
        with pytest.raises(PreflightFailed, match="not a Kubernetes apiserver"):
            await check_member(
                request, apiserver="a", allow_users=["a"], allow_groups=["b"]
            )
