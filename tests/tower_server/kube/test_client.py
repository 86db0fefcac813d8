"""One request and one watch, against scripted answers.

Covered: authentication, paging, which failures are asked again and which are not, Retry-After,
deadlines, what each verb sends, watches that end, expire, break.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.kube_api import Handler, KubeApi, kube_client, status
from tower_server.kube import client as client_module
from tower_server.kube.client import KubeClient, WatchEvent
from tower_server.kube.errors import (
    Conflict,
    Expired,
    KubeError,
    NotFound,
    Rejected,
    Unreachable,
)
from tower_server.kube.resources import CLUSTERS, SECRETS, Object

SECRET: Object = SECRETS.object("t", "a", data={}, metadata={"resourceVersion": "7"})


async def cut(request: web.Request) -> web.StreamResponse:
    """Close the connection instead of an answer."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def silence(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def test_a_request_is_authenticated_and_answered(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers["Authorization"], request.headers["User-Agent"]))
        return web.json_response(SECRET)

    async with kube_client(KubeApi(answer), tmp_path) as client:
        assert await client.get(SECRETS, "t", "a") == SECRET
    assert seen[0][0] == "Bearer t0ken" and seen[0][1].startswith("tower-server/")


async def test_a_list_is_read_page_by_page(tmp_path: Path) -> None:
    first = {"items": [{"metadata": {"name": "a"}}], "metadata": {"continue": "c&d"}}
    last = {
        "items": [{"metadata": {"name": "b"}}],
        "metadata": {"resourceVersion": "9"},
    }
    api = KubeApi(first, last)
    async with kube_client(api, tmp_path) as client:
        items, version = await client.list(SECRETS, "t", labelSelector="a=b")
    assert [item["metadata"]["name"] for item in items] == ["a", "b"]
    assert items[0]["kind"] == "Secret" and version == "9"
    assert (
        "continue=c%26d" in api.requests[1]
        and "labelSelector=a%3Db" in (api.requests[1])
    )


@pytest.mark.parametrize(
    "trouble", [cut, status(500), status(503), status(429)], ids=str
)
async def test_a_read_is_asked_again(tmp_path: Path, trouble: Handler) -> None:
    api = KubeApi(trouble, trouble, SECRET)
    async with kube_client(api, tmp_path) as client:
        assert await client.get(SECRETS, "t", "a") == SECRET
    assert len(api.requests) == 3


async def test_a_read_is_not_asked_again_for_ever(tmp_path: Path) -> None:
    api = KubeApi(status(503, "overloaded"))
    async with kube_client(api, tmp_path) as client:
        with pytest.raises(Unreachable, match="503 overloaded"):
            await client.get(SECRETS, "t", "a")
    assert len(api.requests) == client_module.ATTEMPTS


@pytest.mark.parametrize(("trouble", "requests"), [(status(503), 2), (status(429), 2)])
async def test_a_write_is_asked_again_if_it_was_not_done(
    tmp_path: Path, trouble: Handler, requests: int
) -> None:
    api = KubeApi(trouble, SECRET)
    async with kube_client(api, tmp_path) as client:
        await client.create(SECRETS, SECRET)
    assert len(api.requests) == requests


@pytest.mark.parametrize("trouble", [cut, status(500)], ids=str)
async def test_a_write_that_may_have_been_done_is_not(
    tmp_path: Path, trouble: Handler
) -> None:
    api = KubeApi(trouble, SECRET)
    async with kube_client(api, tmp_path) as client:
        with pytest.raises(Unreachable):
            await client.create(SECRETS, SECRET)
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("code", "kind"), [(403, Rejected), (404, NotFound), (409, Conflict)]
)
async def test_a_no_is_a_no(tmp_path: Path, code: int, kind: type[KubeError]) -> None:
    api = KubeApi(status(code, "because"))
    async with kube_client(api, tmp_path) as client:
        with pytest.raises(kind, match="because"):
            await client.get(SECRETS, "t", "a")
    assert len(api.requests) == 1


async def test_retry_after_is_obeyed_up_to_a_limit(tmp_path: Path) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    api = KubeApi(
        status(429, headers={"Retry-After": "2"}),
        status(429, headers={"Retry-After": "900"}),
        SECRET,
    )
    async with kube_client(api, tmp_path) as client:
        client._sleep = sleep
        await client.get(SECRETS, "t", "a")
    assert waits == [2.0, client_module.MAX_RETRY_AFTER_SECONDS]


async def test_silence_ends_within_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "ATTEMPT_SECONDS", 0.1)
    monkeypatch.setattr(client_module, "REQUEST_SECONDS", 0.15)
    api = KubeApi(silence)
    async with kube_client(api, tmp_path) as client, asyncio.timeout(5):
        with pytest.raises(Unreachable, match="no answer in time"):
            await client.get(SECRETS, "t", "a")
    assert len(api.requests) <= 2


async def test_each_verb_sends_what_the_api_wants(tmp_path: Path) -> None:
    api = KubeApi(SECRET)
    async with kube_client(api, tmp_path) as client:
        await client.create(SECRETS, SECRET)
        await client.replace(SECRETS, SECRET)
        await client.apply(CLUSTERS, CLUSTERS.object(None, "b"), subresource="status")
        await client.merge(CLUSTERS, None, "b", {"metadata": {"finalizers": ["x"]}})
        await client.delete(SECRETS, "t", "a", revision="7")
    assert api.requests == [
        "POST /api/v1/namespaces/t/secrets",
        "PUT /api/v1/namespaces/t/secrets/a",
        "PATCH /apis/tower.dev/v1alpha1/clusters/b/status?fieldManager=tower-server&force=true",
        "PATCH /apis/tower.dev/v1alpha1/clusters/b",
        "DELETE /api/v1/namespaces/t/secrets/a",
    ]
    assert api.bodies[-1]["preconditions"] == {"resourceVersion": "7"}


async def test_replacing_something_that_was_not_read_is_our_mistake(
    tmp_path: Path,
) -> None:
    async with kube_client(KubeApi(SECRET), tmp_path) as client:
        with pytest.raises(AssertionError):
            await client.replace(SECRETS, SECRETS.object("t", "a"))


# -- watches -----------------------------------------------------------------------------


def streaming(*lines: bytes, then_cut: bool = False) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line)
        if then_cut:
            assert request.transport is not None
            request.transport.close()
        return response

    return answer


def event(kind: str, /, **fields: Any) -> bytes:
    return json.dumps({"type": kind, "object": fields}).encode() + b"\n"


async def collected(client: KubeClient) -> list[WatchEvent]:
    return [event async for event in client.watch(SECRETS, "t", "5")]


async def test_a_watch_yields_events_until_it_ends(tmp_path: Path) -> None:
    # Longer than one read, and more than the library's default line.
    large = "x" * 300_000
    api = KubeApi(streaming(event("ADDED", name="a", text=large), event("DELETED")))
    async with kube_client(api, tmp_path) as client:
        events = await collected(client)
    assert [kind for kind, _ in events] == ["ADDED", "DELETED"]
    assert events[0][1]["text"] == large
    assert "resourceVersion=5" in api.requests[0] and "watch=true" in api.requests[0]


@pytest.mark.parametrize(
    "handler", [status(410), streaming(event("ERROR", code=410, message="too old"))]
)
async def test_a_watch_from_too_long_ago_says_so(
    tmp_path: Path, handler: Handler
) -> None:
    async with kube_client(KubeApi(handler), tmp_path) as client:
        with pytest.raises(Expired):
            await collected(client)


@pytest.mark.parametrize(
    "handler",
    [
        streaming(event("ADDED"), then_cut=True),
        streaming(b'{"type": "ADD'),
        status(500),
        cut,
    ],
)
async def test_a_watch_that_breaks_says_so(tmp_path: Path, handler: Handler) -> None:
    async with kube_client(KubeApi(handler), tmp_path) as client:
        with pytest.raises(Unreachable):
            await collected(client)
