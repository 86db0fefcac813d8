"""What is read from objects and Secrets. Covered: defaults, names, what a join Secret says and does not show."""

import base64

import pytest
import yaml

from tests.fakes.cluster_objects import ALPHA, NOW, cluster
from tower_server.controllers.objects import (
    FINALIZER,
    cluster_object,
    cluster_of,
    join_secret,
    kubeconfig_secret,
    secret_view,
)
from tower_server.kube.resources import Object


def bare(name: str = "alpha") -> Object:
    return {"metadata": {"name": name, "uid": "u", "resourceVersion": "1"}}


def test_an_object_with_nothing_in_it_has_defaults() -> None:
    view = cluster_of(bare())
    assert view is not None
    assert (view.is_direct, view.is_paused, view.is_deleting) == (False, False, False)
    assert (view.secret_name, view.secret_key, view.has_finalizer) == (
        None,
        "value",
        False,
    )


@pytest.mark.parametrize("name", ["a.b", "A", "a" * 64])
def test_what_cannot_be_a_cluster_is_none(name: str) -> None:
    assert cluster_of(bare(name)) is None


def test_a_join_secret_comes_back_without_its_secret() -> None:
    view = cluster(uid="uid-9")
    item = join_secret(
        "tower",
        view,
        token_id="tok1",
        expires_at=NOW,
        fingerprint="f",
        join="the-join-string",
        manifest="the-manifest",
    )
    assert base64.b64decode(item["data"]["join"]) == b"the-join-string"
    # With its Cluster it goes, also while no server runs.
    assert item["metadata"]["ownerReferences"][0]["uid"] == "uid-9"
    read = secret_view(item)
    assert (read.token_id, read.fingerprint, read.owner_uid) == ("tok1", "f", "uid-9")
    assert (read.cluster, read.data) == ("alpha", {})


def test_a_kubeconfig_does_not_show() -> None:
    read = secret_view(kubeconfig_secret("tower", ALPHA, b"s3cret"))
    assert read.data["value"] == b"s3cret" and "s3cret" not in repr(read)


def test_an_object_that_we_make_is_held_by_us() -> None:
    made = cluster_object(ALPHA, is_direct=True)
    assert made["metadata"]["finalizers"] == [FINALIZER]
    assert yaml.safe_dump(made["spec"]).count("tower-kubeconfig-alpha") == 1
    assert cluster_object(ALPHA, is_direct=False)["spec"] == {
        "connection": {"type": "proxy"}
    }
