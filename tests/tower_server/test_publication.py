"""A cluster's access in the forms of other control planes, field by field as their documents say."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from certs.names import ClusterName
from tower_server.publication import (
    CLUSTER_VARIABLE,
    ClusterAccess,
    Form,
    Place,
    exec_credential,
    published,
)

ACCESS = ClusterAccess(
    cluster=ClusterName("alpha"),
    url="https://tower.example.com:8443/clusters/alpha",
    tls_server_name="alpha.clusters.tower.internal",
    ca_pem=b"the CA",
    certificate_pem=b"the certificate",
    key_pem=b"the key",
    not_after=datetime(2026, 12, 1, 12, tzinfo=UTC),
    kubeconfig="kind: Config\n",
    version="v1.37.0",
)
PLACE = Place(namespace="apps", labels={"env": "prod"})


def decoded(secret: dict[str, Any]) -> dict[str, str]:
    return {key: base64.b64decode(v).decode() for key, v in secret["data"].items()}


@pytest.mark.parametrize("form", Form)
def test_every_form_says_whose_it_is(form: Form) -> None:
    metadata = published(form, ACCESS, PLACE)["metadata"]
    assert metadata["namespace"] == "apps"
    assert metadata["labels"]["env"] == "prod"
    assert metadata["labels"]["tower.dev/cluster"] == "alpha"
    assert metadata["labels"]["app.kubernetes.io/managed-by"] == "tower"


@pytest.mark.parametrize("form", Form)
def test_the_same_access_gives_the_same_object(form: Form) -> None:
    assert published(form, ACCESS, PLACE) == published(form, ACCESS, PLACE)


@pytest.mark.parametrize("form", [f for f in Form if f.holds_a_credential])
def test_a_secret_says_when_it_expires(form: Form) -> None:
    annotations = published(form, ACCESS, PLACE)["metadata"]["annotations"]
    assert annotations == {"tower.dev/expires-at": "2026-12-01T12:00:00Z"}


def test_argo_cd_finds_url_name_and_certificates() -> None:
    data = decoded(published(Form.ARGOCD, ACCESS, PLACE))
    assert (data["name"], data["server"]) == ("alpha", ACCESS.url)
    tls = json.loads(data["config"])["tlsClientConfig"]
    assert tls["serverName"] == ACCESS.tls_server_name and tls["insecure"] is False
    assert base64.b64decode(tls["certData"]) == b"the certificate"
    assert base64.b64decode(tls["keyData"]) == b"the key"
    assert base64.b64decode(tls["caData"]) == b"the CA"


def test_flux_finds_the_kubeconfig_under_value() -> None:
    assert decoded(published(Form.FLUX, ACCESS, PLACE)) == {"value": "kind: Config\n"}


def test_cluster_api_finds_name_type_and_label() -> None:
    secret = published(Form.CLUSTER_API, ACCESS, PLACE)
    assert secret["metadata"]["name"] == "alpha-kubeconfig"
    assert secret["type"] == "cluster.x-k8s.io/secret"
    assert secret["metadata"]["labels"]["cluster.x-k8s.io/cluster-name"] == "alpha"
    assert decoded(secret) == {"value": "kind: Config\n"}


def test_a_cluster_profile_holds_no_credential() -> None:
    profile = published(Form.CLUSTER_PROFILE, ACCESS, PLACE)
    text = yaml.safe_dump(profile)
    for secret in (b"the key", b"the certificate"):
        assert secret.decode() not in text
        assert base64.b64encode(secret).decode() not in text
    assert profile["status"]["version"] == {"kubernetes": "v1.37.0"}
    (provider,) = profile["status"]["accessProviders"]
    extensions = {e["name"]: e["extension"] for e in provider["cluster"]["extensions"]}
    assert list(extensions.values()) == [
        {CLUSTER_VARIABLE: "alpha"},
        {"cluster": "alpha"},
    ]


def test_a_credential_has_what_a_plugin_answers() -> None:
    answer = json.loads(exec_credential(ACCESS, "client.authentication.k8s.io/v1"))
    assert answer["status"] == {
        "expirationTimestamp": "2026-12-01T12:00:00Z",
        "clientCertificateData": "the certificate",
        "clientKeyData": "the key",
    }


def test_no_repr_shows_a_key() -> None:
    assert "the key" not in repr(ACCESS) and "Config" not in repr(ACCESS)
