"""Paths and new objects. Covered: core and other groups, namespaces, subresources, odd names, order."""

import pytest

from tower_server.kube.resources import (
    CLUSTERS,
    LEASES,
    SECRETS,
    name_of,
    revision_of,
)


def test_paths_are_those_of_the_api() -> None:
    assert SECRETS.path("tower") == "/api/v1/namespaces/tower/secrets"
    assert SECRETS.path("tower", "a") == "/api/v1/namespaces/tower/secrets/a"
    assert LEASES.path("t", "l") == "/apis/coordination.k8s.io/v1/namespaces/t/leases/l"
    assert (
        CLUSTERS.path(None, "alpha", "status")
        == "/apis/tower.dev/v1alpha1/clusters/alpha/status"
    )


def test_a_name_cannot_leave_its_place_in_the_path() -> None:
    assert SECRETS.path("a/b", "../x").endswith("/namespaces/a%2Fb/secrets/..%2Fx")


def test_what_is_namespaced_needs_a_namespace() -> None:
    with pytest.raises(AssertionError, match="namespace"):
        SECRETS.path(None, "a")


def test_a_new_object_has_its_type_and_place() -> None:
    assert SECRETS.object("t", "a", type="x", metadata={"labels": {"l": "1"}}) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "a", "namespace": "t", "labels": {"l": "1"}},
        "type": "x",
    }
    assert "namespace" not in CLUSTERS.object(None, "alpha")["metadata"]


def test_revisions_are_numbers_and_not_texts() -> None:
    older, newer = (
        {"metadata": {"name": "a", "resourceVersion": v}} for v in ("99", "100")
    )
    assert revision_of(newer) > revision_of(older)
    assert name_of(older) == "a"
