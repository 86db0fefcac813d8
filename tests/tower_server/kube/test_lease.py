"""Who may take the lease, as arithmetic; several servers with a real apiserver: tests/e2e/test_host_apiserver.py.

Covered: ours and nobody's at once, somebody's only when it saw no renewal for long, by our own clock;
that we may not is said once.
"""

import asyncio
from pathlib import Path

import pytest

from tests.fakes.kube_api import KubeApi, kube_client, status
from tower_server.kube import lease as lease_module
from tower_server.kube.lease import EXPIRE_SECONDS, Lease, Observation
from tower_server.kube.resources import Object


def lease(holder: str, renewed: str) -> Object:
    return {"spec": {"holderIdentity": holder, "renewTime": renewed}}


NEW = Observation(holder="?", renewed="", since=float("inf"))


def test_nobodys_and_our_own_are_taken_at_once() -> None:
    assert NEW.updated({}, 100.0).may_take("me", 100.0)
    assert NEW.updated(lease("", "t1"), 100.0).may_take("me", 100.0)
    assert NEW.updated(lease("me", "t1"), 100.0).may_take("me", 100.0)


def test_somebodys_is_taken_when_it_is_not_renewed() -> None:
    seen = NEW.updated(lease("other", "t1"), 100.0)
    assert not seen.may_take("me", 100.0)
    seen = seen.updated(lease("other", "t1"), 104.0)
    assert not seen.may_take("me", 100.0 + EXPIRE_SECONDS - 0.1)
    assert seen.may_take("me", 100.0 + EXPIRE_SECONDS)


def test_each_renewal_begins_the_time_anew_whatever_the_clocks_say() -> None:
    seen = NEW.updated(lease("other", "2030"), 100.0)
    seen = seen.updated(lease("other", "1999"), 107.0)
    assert not seen.may_take("me", 114.0)
    assert seen.may_take("me", 115.0)


async def test_that_we_may_not_hold_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.001)
    api = KubeApi(status(403, "forbidden"))
    async with kube_client(api, tmp_path) as client:
        candidate = Lease(client, "t", "l", "me", lambda held: None)
        task = asyncio.get_running_loop().create_task(candidate.run())
        async with asyncio.timeout(10):
            while len(api.requests) < 5:
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1 and "forbidden" in warnings[0]
