"""Who may take the lease, as arithmetic; several servers with a real apiserver: tests/e2e/test_host_apiserver.py.

Covered: ours and nobody's at once, somebody's only when it saw no renewal for long, by our own clock.
"""

from tower_server.kube.lease import EXPIRE_SECONDS, Observation
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
