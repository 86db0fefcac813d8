"""The kubeconfig: what is in it, that it is the same each time, and for whom none is made."""

import base64

import pytest
import yaml

from certs.names import ClusterName
from shared.settings import HostPort
from tower_server.kubeconfig import (
    DEFAULT_GROUPS,
    DEFAULT_USER,
    MAX_GROUPS,
    Face,
    build_kubeconfig,
    check_user,
    client_certificate,
    cluster_url,
    credential_plugin,
    merge_kubeconfigs,
)

ALPHA = ClusterName("alpha")


def build(**changes: object) -> str:
    arguments: dict[str, object] = {
        "cluster": ALPHA,
        "zone": "clusters.tower.internal",
        "public_address": HostPort(host="tower.example.com", port=8443),
        "ca_pem": b"the CA",
        "user": client_certificate(b"the certificate", b"the key"),
    }
    return build_kubeconfig(**(arguments | changes))  # type: ignore[arg-type]


def test_it_has_a_url_of_its_own_and_the_server_name_of_the_cluster() -> None:
    (cluster,) = yaml.safe_load(build())["clusters"]
    assert cluster == {
        "name": "alpha",
        "cluster": {
            "server": "https://tower.example.com:8443/clusters/alpha",
            "tls-server-name": "alpha.clusters.tower.internal",
            "certificate-authority-data": base64.b64encode(b"the CA").decode(),
        },
    }


def test_by_the_gateway_the_url_is_the_same_and_the_server_itself_is_asked_for() -> (
    None
):
    (cluster,) = yaml.safe_load(build(face=Face.GATEWAY))["clusters"]
    (sealed,) = yaml.safe_load(build(face=Face.SEALED))["clusters"]
    del sealed["cluster"]["tls-server-name"]
    assert cluster == sealed


def test_the_certificate_and_the_key_are_in_it() -> None:
    (user,) = yaml.safe_load(build())["users"]
    assert (
        base64.b64decode(user["user"]["client-certificate-data"]) == b"the certificate"
    )
    assert base64.b64decode(user["user"]["client-key-data"]) == b"the key"
    assert user["user"].keys() == {"client-certificate-data", "client-key-data"}


def test_everything_is_named_after_the_cluster() -> None:
    config = yaml.safe_load(build())
    assert config["current-context"] == "alpha"
    assert config["contexts"] == [
        {"name": "alpha", "context": {"cluster": "alpha", "user": "alpha"}}
    ]
    assert config["users"][0]["name"] == "alpha"


def test_the_same_arguments_give_the_same_text() -> None:
    assert build() == build()


def test_a_long_key_is_not_folded() -> None:
    assert all(
        "client-key-data: " in line
        for line in build(user=client_certificate(b"c", b"k" * 900)).splitlines()
        if "a2tra2" in line
    )


def test_an_ipv6_address_has_brackets_in_the_url() -> None:
    assert (
        cluster_url(HostPort(host="::1", port=8443), ALPHA)
        == "https://[::1]:8443/clusters/alpha"
    )


def test_a_name_that_yaml_would_read_as_a_number_stays_a_name() -> None:
    config = yaml.safe_load(build(cluster=ClusterName("123")))
    assert config["current-context"] == "123"


def test_without_names_it_is_for_the_admin_and_the_admins() -> None:
    identity = check_user(None, [])
    assert (identity.user, identity.groups) == (DEFAULT_USER, DEFAULT_GROUPS)


def test_another_user_gets_no_group_by_default() -> None:
    assert check_user("jane", []).groups == ()


def test_groups_without_a_user_replace_the_default_group() -> None:
    identity = check_user(None, ["viewers", "viewers"])
    assert (identity.user, identity.groups) == (DEFAULT_USER, ("viewers",))


@pytest.mark.parametrize(
    "name", ["system:admin", "system:kube-controller-manager", "system:"]
)
def test_names_of_kubernetes_itself_are_refused_as_users_and_groups(name: str) -> None:
    with pytest.raises(ValueError, match="belongs to Kubernetes itself"):
        check_user(name, [])
    with pytest.raises(ValueError, match="belongs to Kubernetes itself"):
        check_user("jane", [name])


@pytest.mark.parametrize("name", ["", " jane", "jane\n", "ja\x00ne", "g" * 257])
def test_names_that_no_agent_accepts_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        check_user("jane", [name])


def test_a_user_that_does_not_fit_into_a_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        check_user("u" * 65, [])


def test_too_many_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        check_user("jane", [f"group-{number}" for number in range(MAX_GROUPS + 1)])


def test_without_a_secret_it_names_the_plugin() -> None:
    (user,) = yaml.safe_load(build(user=credential_plugin(["credential", "alpha"])))[
        "users"
    ]
    plugin = user["user"]["exec"]
    assert (plugin["command"], plugin["args"]) == ("tower", ["credential", "alpha"])
    assert plugin["apiVersion"] == "client.authentication.k8s.io/v1"
    # client-go demands it of this version.
    assert plugin["interactiveMode"] == "Never"


def test_merged_each_cluster_is_a_context_and_the_first_is_current() -> None:
    merged = yaml.safe_load(
        merge_kubeconfigs([build(), build(cluster=ClusterName("beta"))])
    )
    assert merged["current-context"] == "alpha"
    for section in ("clusters", "users", "contexts"):
        assert [entry["name"] for entry in merged[section]] == ["alpha", "beta"]
