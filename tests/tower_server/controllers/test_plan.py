"""What has to be done about a cluster. Pure.

Covered: each way in which object and ledger disagree, and that nothing is done where they agree; a join
Secret that is missing, used, old, of other wishes or of another object; deletion in every state; kubeconfigs
that are new, taken, refused; paused; every plan comes to an end.
"""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from tests.fakes.cluster_objects import (
    ALPHA,
    NOW,
    cluster,
    invited,
    join_view,
    ledger,
    token,
)
from tower_server.controllers.objects import FINALIZER, digest_of
from tower_server.controllers.plan import (
    RENEW_BEFORE,
    RETRY_REJECTED,
    Action,
    Observed,
    Rejection,
    plan,
)

A = Action
HOUR = timedelta(hours=1)
DIRECT = {"type": "direct", "kubeconfigSecret": {"name": "s", "key": "value"}}


def seen(**fields: Any) -> Observed:
    return Observed(name=ALPHA, now=NOW, **{"ledger": ledger(), **fields})


def actions(**fields: Any) -> tuple[Action, ...]:
    return plan(seen(**fields)).actions


def test_where_there_is_nothing_nothing_is_done() -> None:
    assert plan(seen(ledger=ledger(owner_uid=None))).actions == ()


def test_a_new_object_is_held_and_invited() -> None:
    new = {"cluster": cluster(finalizers=()), "ledger": ledger(owner_uid=None)}
    assert actions(**new) == (A.ADD_FINALIZER, A.INVITE)


def test_an_invitation_that_is_good_is_left_alone_until_it_is_due() -> None:
    decided = plan(seen(**invited()))
    assert decided.actions == ()
    assert decided.look_again_at == token().expires_at - RENEW_BEFORE


@pytest.mark.parametrize(
    "changed",
    [
        {"join": None},
        {"join": join_view(token_id="other")},
        {"join": join_view(token_id=None)},
        {"join": join_view(owner_uid="of an earlier object")},
        {"fingerprint": "other wishes"},
        {"ledger": ledger(tokens=(dataclasses.replace(token(), revoked_at=NOW),))},
        {"ledger": ledger(tokens=(dataclasses.replace(token(), used_at=NOW),))},
        {"ledger": ledger(tokens=(token(expires_in=RENEW_BEFORE),))},
        {"ledger": ledger(tokens=(token(),), owner_uid=None)},
    ],
)
def test_one_that_is_not_is_made_anew(changed: dict[str, Any]) -> None:
    assert actions(**invited() | changed) == (A.INVITE,)


def test_a_spec_that_cannot_be_is_not_tried_again_and_again() -> None:
    rejection = Rejection(
        digest="f", reason="BadSpec", sentence="no.", at=NOW, may_pass=False
    )
    assert actions(cluster=cluster(), rejection=rejection) == ()


def test_who_has_joined_needs_no_join_secret() -> None:
    joined = {"cluster": cluster(), "ledger": ledger(joined=True)}
    assert actions(**joined) == ()
    assert actions(**joined, join=join_view()) == (A.DELETE_JOIN_SECRET,)


def test_a_member_that_was_here_before_the_object_is_adopted() -> None:
    # Also after a backup was restored, whose objects have other UIDs.
    for owner in (None, "uid-0"):
        kept = ledger(joined=True, owner_uid=owner)
        assert actions(cluster=cluster(), ledger=kept) == (A.ADOPT,)


def test_a_member_without_an_object_gets_one() -> None:
    for kind in ("joined", "direct"):
        member = ledger(**{kind: True}, owner_uid=None)
        assert actions(ledger=member) == (A.CREATE_OBJECT,)


def test_who_is_only_invited_by_the_command_line_gets_none() -> None:
    assert actions(ledger=ledger(tokens=(token(),), owner_uid=None)) == ()


def test_without_its_object_a_member_is_an_orphan() -> None:
    assert actions(ledger=ledger(joined=True)) == (A.REMOVE_ORPHAN,)
    assert actions(ledger=ledger(tokens=(token(),))) == (A.REMOVE_ORPHAN,)


@pytest.mark.parametrize(
    ("kept", "join", "steps"),
    [
        (ledger(owner_uid=None), None, (A.DROP_FINALIZER,)),
        (ledger(joined=True), None, (A.REMOVE_MEMBER, A.DROP_FINALIZER)),
        (
            ledger(tokens=(token(),)),
            join_view(),
            (A.REMOVE_MEMBER, A.DELETE_JOIN_SECRET, A.DROP_FINALIZER),
        ),
        (ledger(direct=True), None, (A.REMOVE_MEMBER, A.DROP_FINALIZER)),
    ],
)
@pytest.mark.parametrize("is_paused", [False, True])
def test_a_deleted_object_waits_for_nobody(
    kept: Any, join: Any, steps: tuple[Action, ...], is_paused: bool
) -> None:
    going = cluster(is_deleting=True, paused=is_paused)
    assert actions(cluster=going, ledger=kept, join=join) == steps


def test_a_deleted_object_that_others_hold_is_theirs() -> None:
    going = cluster(is_deleting=True, finalizers=("other.example/x",))
    assert actions(cluster=going, ledger=ledger(owner_uid=None)) == ()


def test_an_object_that_an_admin_dismissed_is_deleted() -> None:
    dismissed = ledger(owner_uid=None, dismissed_uid="uid-1")
    assert actions(cluster=cluster(), ledger=dismissed) == (A.DELETE_OBJECT,)
    # One that was made after it is another.
    later = cluster(uid="uid-2")
    assert actions(cluster=later, ledger=dismissed) == (A.INVITE,)
    assert actions(ledger=dismissed) == (A.DISOWN,)


def test_a_paused_object_is_left_alone() -> None:
    assert actions(cluster=cluster(paused=True, finalizers=())) == ()


# -- direct ------------------------------------------------------------------------------


def direct(**fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "cluster": cluster(connection=DIRECT),
        "ledger": ledger(owner_uid=None),
        "kubeconfig": b"k1",
    }
    return values | fields


def taken(kubeconfig: bytes, **fields: Any) -> Any:
    return ledger(direct=True, taken=digest_of(kubeconfig), **fields)


def rejected(kubeconfig: bytes, *, may_pass: bool) -> Rejection:
    return Rejection(
        digest=digest_of(kubeconfig),
        reason="R",
        sentence="no.",
        at=NOW - timedelta(seconds=1),
        may_pass=may_pass,
    )


def test_a_kubeconfig_is_taken_when_it_is_there_and_when_it_changes() -> None:
    assert actions(**direct(kubeconfig=None)) == ()
    assert actions(**direct()) == (A.TAKE_KUBECONFIG,)
    assert actions(**direct(ledger=taken(b"k1"))) == ()
    assert actions(**direct(ledger=taken(b"k0"))) == (A.TAKE_KUBECONFIG,)
    # The Secret is gone: what was taken from it is still good.
    assert actions(**direct(ledger=taken(b"k1"), kubeconfig=None)) == ()


def test_one_that_was_refused_is_tried_again_if_it_may_pass() -> None:
    refused = rejected(b"k1", may_pass=True)
    decided = plan(seen(**direct(rejection=refused)))
    assert decided.actions == ()
    assert decided.look_again_at == refused.at + RETRY_REJECTED
    later = dataclasses.replace(seen(**direct(rejection=refused)), now=NOW + HOUR)
    assert plan(later).actions == (A.TAKE_KUBECONFIG,)
    for_ever = rejected(b"k1", may_pass=False)
    later = dataclasses.replace(later, rejection=for_ever)
    assert plan(later).actions == ()


def test_a_name_that_an_agent_has_takes_no_kubeconfig() -> None:
    assert actions(**direct(ledger=ledger(joined=True))) == ()


def test_a_direct_member_is_adopted() -> None:
    assert actions(**direct(ledger=taken(b"k1", owner_uid=None))) == (A.ADOPT,)


# -- to an end ---------------------------------------------------------------------------


def after(seen: Observed) -> Observed:
    """The world once the plan is carried out."""
    kept, view, join = seen.ledger, seen.cluster, seen.join
    for action in plan(seen).actions:
        match action:
            case A.ADD_FINALIZER:
                view = dataclasses.replace(view, finalizers=(FINALIZER,))
            case A.DROP_FINALIZER | A.DELETE_OBJECT if not view.has_finalizer:
                view = None
            case A.DROP_FINALIZER:
                view = None
            case A.DELETE_OBJECT:
                view = dataclasses.replace(view, is_deleting=True)
            case A.REMOVE_MEMBER | A.REMOVE_ORPHAN:
                kept = dataclasses.replace(
                    kept.without_member(NOW), owner_uid=None, dismissed_uid=None
                )
            case A.CREATE_OBJECT:
                direct = kept.record is not None and kept.record.is_direct
                view = cluster(connection=DIRECT) if direct else cluster()
                kept = dataclasses.replace(kept, owner_uid=view.uid)
            case A.DISOWN:
                kept = dataclasses.replace(kept, owner_uid=None, dismissed_uid=None)
            case A.ADOPT:
                kept = dataclasses.replace(kept, owner_uid=view.uid, dismissed_uid=None)
            case A.INVITE:
                kept = dataclasses.replace(
                    kept.with_token(token()), owner_uid=view.uid, dismissed_uid=None
                )
                join = join_view(fingerprint=seen.fingerprint, owner_uid=view.uid)
            case A.DELETE_JOIN_SECRET:
                join = None
            case A.TAKE_KUBECONFIG:
                kept = dataclasses.replace(
                    taken(seen.kubeconfig), owner_uid=kept.owner_uid
                )
    return dataclasses.replace(seen, ledger=kept, cluster=view, join=join)


@pytest.mark.parametrize(
    "view", ["none", "new", "held", "deleting", "direct", "paused"]
)
@pytest.mark.parametrize("kept", ["empty", "invited", "joined", "direct", "dismissed"])
@pytest.mark.parametrize("owner_uid", [None, "uid-1", "uid-0"])
@pytest.mark.parametrize("has_join", [False, True])
def test_every_plan_comes_to_an_end(
    view: str, kept: str, owner_uid: str | None, has_join: bool
) -> None:
    views = {
        "none": None,
        "new": cluster(finalizers=()),
        "held": cluster(),
        "deleting": cluster(is_deleting=True),
        "direct": cluster(connection=DIRECT),
        "paused": cluster(paused=True),
    }
    ledgers = {
        "empty": ledger(owner_uid=owner_uid),
        "invited": ledger(tokens=(token(),), owner_uid=owner_uid),
        "joined": ledger(joined=True, owner_uid=owner_uid),
        "direct": taken(b"k0", owner_uid=owner_uid),
        "dismissed": ledger(owner_uid=None, dismissed_uid=owner_uid),
    }
    world = seen(
        cluster=views[view],
        ledger=ledgers[kept],
        join=join_view() if has_join else None,
        kubeconfig=b"k1",
        fingerprint="f",
    )
    for _ in range(5):
        world = after(world)
    assert plan(world).actions == (), world
    if view == "deleting":
        assert world.cluster is None and world.ledger.record is None
