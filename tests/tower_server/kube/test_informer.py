"""A copy that stays current, against scripted answers; with the real apiserver in tests/e2e/test_host_apiserver.py.

Covered: list then watch, from where a watch goes on, 410, outages (kept, said once, over), own writes
at once and older events after them, own deletions, what `keep` drops, who is told what.
"""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.kube_api import Handler, KubeApi, kube_client, status
from tests.tower_server.kube.test_client import event, silence, streaming
from tower_server.kube import informer as informer_module
from tower_server.kube.client import KubeClient
from tower_server.kube.informer import Informer
from tower_server.kube.resources import SECRETS, Object


def secret(name: str, revision: int, **data: str) -> Object:
    metadata = {"resourceVersion": str(revision)}
    return SECRETS.object("t", name, data=data, metadata=metadata)


def listed(revision: int, *items: Object) -> dict[str, Any]:
    return {"items": list(items), "metadata": {"resourceVersion": str(revision)}}


def new_informer(client: KubeClient, told: list[str] | None = None) -> Informer[Object]:
    informer: Informer[Object] = Informer(
        client, SECRETS, "t", lambda item: None if "drop" in item["data"] else item
    )
    if told is not None:
        informer.listen(told.append)
    return informer


async def until(api: KubeApi, informer: Informer[Object], requests: int) -> None:
    """Run the informer until so many requests have come, and their answers have been taken in."""
    task = asyncio.get_running_loop().create_task(informer.run())
    async with asyncio.timeout(10):
        while len(api.requests) < requests:
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer_module, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(informer_module, "LAST_PAUSE_SECONDS", 0.002)


async def test_it_lists_and_then_follows(tmp_path: Path) -> None:
    changes = streaming(
        event("MODIFIED", **secret("a", 11, k="new")),
        event("DELETED", **secret("b", 12)),
        event("ADDED", **secret("c", 13)),
        event("BOOKMARK", metadata={"resourceVersion": "20"}),
    )
    api = KubeApi(listed(10, secret("a", 5), secret("b", 6)), changes, silence)
    told: list[str] = []
    async with kube_client(api, tmp_path) as client:
        informer = new_informer(client, told)
        await until(api, informer, 3)
    assert informer.synced.is_set() and informer.trouble is None
    assert sorted(informer.names()) == ["a", "c"]
    kept = informer.get("a")
    assert kept is not None and kept["data"] == {"k": "new"}
    assert told == ["a", "b", "a", "b", "c"]
    # The next watch begins after the bookmark.
    assert "resourceVersion=20" in api.requests[2]


@pytest.mark.parametrize("expired", [status(410), streaming(event("ERROR", code=410))])
async def test_when_it_is_too_late_to_watch_it_lists_again(
    tmp_path: Path, expired: Handler
) -> None:
    api = KubeApi(
        listed(10, secret("a", 5), secret("b", 6)),
        expired,
        listed(90, secret("b", 6), secret("c", 80)),
        silence,
    )
    told: list[str] = []
    async with kube_client(api, tmp_path) as client:
        informer = new_informer(client, told)
        await until(api, informer, 4)
    assert sorted(informer.names()) == ["b", "c"]
    # What did not change is not told again.
    assert told == ["a", "b", "c", "a"]


async def test_in_an_outage_the_copy_stays_and_then_goes_on(tmp_path: Path) -> None:
    def there() -> Handler:
        async def answer(_: web.Request) -> web.StreamResponse:
            seen.append((informer.names(), informer.trouble is not None))
            return web.json_response({"message": "away"}, status=403)

        return answer

    seen: list[tuple[list[str], bool]] = []
    api = KubeApi(
        listed(10, secret("a", 5)),
        *[there() for _ in range(3)],
        streaming(event("ADDED", **secret("b", 11))),
        silence,
    )
    async with kube_client(api, tmp_path) as client:
        informer = new_informer(client)
        await until(api, informer, 6)
    assert seen == [(["a"], False), (["a"], True), (["a"], True)]
    assert sorted(informer.names()) == ["a", "b"] and informer.trouble is None


async def test_trouble_and_its_end_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    api = KubeApi(*[status(403, "forbidden")] * 5, listed(10), silence)
    async with kube_client(api, tmp_path) as client:
        await until(api, new_informer(client), 7)
    lines = [r.message for r in caplog.records if "secrets" in r.message]
    assert len(lines) == 2
    assert "cannot be watched now" in lines[0] and "forbidden" in lines[0]
    assert "are watched again" in lines[1]


async def test_a_missing_definition_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api = KubeApi(status(404))
    async with kube_client(api, tmp_path) as client:
        await until(api, new_informer(client), 2)
    assert "CRDs of the chart" in caplog.text


async def test_our_own_writes_are_there_at_once_and_not_undone(tmp_path: Path) -> None:
    late = streaming(
        event("MODIFIED", **secret("a", 12, k="older")),
        event("MODIFIED", **secret("gone", 13)),
    )
    api = KubeApi(listed(10, secret("a", 5), secret("gone", 6)), silence)
    told: list[str] = []
    async with kube_client(api, tmp_path) as client:
        informer = new_informer(client, told)
        await until(api, informer, 2)
        informer.remember(secret("a", 20, k="ours"))
        informer.forget("gone", 13)
        assert told[2:] == ["a", "gone"]
        api.handlers = [listed(14, secret("a", 12, k="older")), late, silence]
        api.requests.clear()
        await until(api, informer, 3)
    kept = informer.get("a")
    assert kept is not None and kept["data"] == {"k": "ours"}


async def test_an_older_event_does_not_bring_back_what_we_deleted(
    tmp_path: Path,
) -> None:
    async with kube_client(KubeApi(silence), tmp_path) as client:
        informer = new_informer(client)
        informer.remember(secret("a", 5))
        informer.forget("a", 7)
        informer.remember(secret("a", 6))
        assert informer.get("a") is None
        informer.remember(secret("a", 8))  # made anew, by somebody
        assert informer.get("a") is not None
        informer.forget("a", 7)  # of the past
        assert informer.get("a") is not None


async def test_what_is_not_kept_is_nobodys_business(tmp_path: Path) -> None:
    told: list[str] = []
    async with kube_client(KubeApi(silence), tmp_path) as client:
        informer = new_informer(client, told)
        informer.remember(secret("a", 5, drop="me"))
        assert (informer.all(), told) == ([], [])
        informer.remember(secret("b", 6))
        informer.remember(secret("b", 7, drop="me"))
        assert (informer.all(), told) == ([], ["b", "b"])


async def test_a_watch_that_is_closed_at_once_is_no_busy_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer_module, "FIRST_PAUSE_SECONDS", 0.05)

    async def nothing(request: web.Request) -> web.StreamResponse:
        return web.Response()

    api = KubeApi(listed(10), nothing)
    async with kube_client(api, tmp_path) as client:
        informer = new_informer(client)
        task = asyncio.get_running_loop().create_task(informer.run())
        await informer.synced.wait()
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.wait([task])
    assert len(api.requests) <= 6
