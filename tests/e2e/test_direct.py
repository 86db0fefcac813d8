"""Direct connections to real control planes, by the command line: how a member is reached, and by what.

Covered: every form of credential that the real apiserver takes, files of these, HTTP proxies with and
without TLS, what is missing in the member's RBAC, kubeconfigs of another cluster, renewal under a
running watch, an end within seven days, the death of apiserver and server, removal, secrets in files
and logs. That kubectl and the Python client see no difference is in the tests that run for BOTH_KINDS.
"""

import base64
import json
import shutil
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.kinds import DIRECT
from tests.e2e.member import Member
from tests.e2e.neighbours import in_thread
from tests.e2e.raw_client import Access, works
from tests.e2e.tower import DIRECT_USER, Tower, wait_until
from tests.fakes.http_proxy import http_proxy
from tests.fakes.upstream import certificate_and_key, loopback_tls

TRUTH_SECONDS = 5.0
WORKS_AGAIN_SECONDS = 2.0


@pytest.fixture
def kind() -> str:
    return DIRECT


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tower]:
    """A Tower for members that are added and removed again."""
    directory = Path("/tmp") / tmp_path_factory.mktemp("direct").name
    directory.mkdir(mode=0o700)
    tower = Tower(directory)
    tower.start()
    yield tower
    tower.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def bare(towers: Tower) -> Iterator[Tower]:
    """The same without a cluster, before and after each test."""
    yield towers
    if not towers.server.running:
        towers.start()
    for cluster in json.loads(towers.admin("cluster", "list", "-o", "json"))[
        "clusters"
    ]:
        towers.admin("cluster", "remove", cluster["name"], "--yes")
    towers.added.clear()


@pytest.fixture
def admitted(bare: Tower, beta: Member) -> dict[str, Any]:
    """A kubeconfig of beta, parsed, whose user may do what an agent may."""
    return yaml.safe_load(bare.direct_kubeconfig(beta).read_text())  # type: ignore[no-any-return]


def parts(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its cluster and its user."""
    return config["clusters"][0]["cluster"], config["users"][0]["user"]


def saved(tmp_path: Path, config: dict[str, Any]) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def token_user(beta: Member) -> str:
    """A token of a ServiceAccount that may do what DIRECT_USER may."""
    name = "tower-direct"
    beta.apply(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": "default"},
        }
    )
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
    for role in ("tower-direct-may-act", "tower-direct-looks"):
        beta.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": f"{role}-by-token"},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": role,
                },
                "subjects": [subject],
            }
        )
    return beta.plane.service_account_token("default", name)


def serves(tower: Tower, beta: Member) -> None:
    """It is a cluster like any other: kubectl works, and status knows it."""
    listed = tower.cluster("beta")
    assert (listed["connection"], listed["state"]) == ("direct", "connected")
    assert listed["apiserver_version"].startswith("v1.")
    assert listed["node_count"] == len(beta.request("GET", "/api/v1/nodes")["items"])
    assert listed["rtt_seconds"] is None or 0 < listed["rtt_seconds"] < 1
    kubectl = beta.kubectl(tower.kubeconfig("beta"))
    assert "kube-system" in str(kubectl("get", "namespaces"))


def test_certificates_in_files(
    bare: Tower, beta: Member, admitted: dict[str, Any], tmp_path: Path
) -> None:
    cluster, user = parts(admitted)
    for entry, key in (
        (cluster, "certificate-authority"),
        (user, "client-certificate"),
        (user, "client-key"),
    ):
        (tmp_path / key).write_bytes(base64.b64decode(entry.pop(f"{key}-data")))
        entry[key] = key  # beside the kubeconfig
    bare.add(beta, saved(tmp_path, admitted))
    serves(bare, beta)


def test_a_token(
    bare: Tower, beta: Member, admitted: dict[str, Any], tmp_path: Path
) -> None:
    _, user = parts(admitted)
    user.clear()
    user["token"] = token_user(beta)
    bare.add(beta, saved(tmp_path, admitted))
    serves(bare, beta)
    # It is one of an hour, so somebody should see to it.
    shown = bare.cluster("beta")
    assert shown["credential_expires_at"] is not None
    (warning,) = shown["warnings"]
    assert "expires in" in warning and "set-kubeconfig beta" in warning
    assert "set-kubeconfig beta" in bare.admin("status")


def test_a_token_file_that_is_renewed(
    bare: Tower, beta: Member, admitted: dict[str, Any], tmp_path: Path
) -> None:
    _, user = parts(admitted)
    user.clear()
    user["tokenFile"] = "token"
    (tmp_path / "token").write_text(token_user(beta))
    bare.add(beta, saved(tmp_path, admitted))
    serves(bare, beta)
    assert bare.cluster("beta")["warnings"] == []
    # The old one is no good any more: the ServiceAccount is another.
    beta.admin.quiet("delete", "serviceaccount", "tower-direct", "-n", "default")
    access = Access(bare.kubeconfig("beta"))
    wait_until(lambda: not works(access), 20, "the old token is refused")
    (tmp_path / "token").write_text(token_user(beta))
    wait_until(lambda: works(access), 20, "the renewed token is used")


def test_a_name_of_the_certificate_and_an_address_of_another(
    bare: Tower, beta: Member, admitted: dict[str, Any], tmp_path: Path
) -> None:
    cluster, _ = parts(admitted)
    cluster["tls-server-name"] = "kubernetes.default.svc"
    bare.add(beta, saved(tmp_path, admitted))
    serves(bare, beta)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_proxy(
    bare: Tower, beta: Member, admitted: dict[str, Any], tmp_path: Path, tls: bool
) -> None:
    cluster, _ = parts(admitted)
    own = base64.b64decode(cluster["certificate-authority-data"]).decode()
    proxy_ca = certificate_and_key()[0] if tls else ""
    cluster["certificate-authority-data"] = base64.b64encode(
        (own + proxy_ca).encode()
    ).decode()
    server_tls: ssl.SSLContext | None = loopback_tls()[0] if tls else None
    with in_thread(http_proxy(login="me:pa:ss", tls=server_tls)) as proxy:
        scheme = "https" if tls else "http"
        cluster["proxy-url"] = f"{scheme}://me:pa%3Ass@127.0.0.1:{proxy.port}"
        bare.add(beta, saved(tmp_path, admitted))
        serves(bare, beta)
        where = beta.plane.url.removeprefix("https://")
        assert set(proxy.connected_to) == {where}
    assert "pa:ss" not in bare.logs() and "pa%3Ass" not in bare.logs()


def test_insecure_only_when_it_is_said(
    bare: Tower, beta: Member, admitted: dict[str, Any], tmp_path: Path
) -> None:
    cluster, _ = parts(admitted)
    del cluster["certificate-authority-data"]
    cluster["insecure-skip-tls-verify"] = True
    path = saved(tmp_path, admitted)
    words = ("cluster", "add", "beta", "--kubeconfig", str(path))
    refused = bare.run_admin(*words)
    assert refused.returncode == 2 and "--insecure" in refused.stderr
    bare.add(beta, path, "--insecure")
    serves(bare, beta)


def test_rights_that_are_missing_are_named_by_the_real_apiserver(
    bare: Tower, beta: Member
) -> None:
    path = beta.plane.client_kubeconfig("nobody-in-particular")
    refused = bare.run_admin("cluster", "add", "beta", "--kubeconfig", str(path))
    assert refused.returncode == 5
    for right in (
        "impersonate users 'tower:admin'",
        "impersonate groups 'tower:cluster-admins'",
        "create subjectaccessreviews",
        "get namespaces 'kube-system'",
    ):
        assert right in refused.stderr
    assert json.loads(bare.admin("cluster", "list", "-o", "json"))["clusters"] == []


def test_a_kubeconfig_of_another_cluster_and_a_second_name_are_refused(
    bare: Tower, alpha: Member, beta: Member
) -> None:
    own, other = bare.direct_kubeconfig(beta), bare.direct_kubeconfig(alpha)
    bare.add(beta, own)
    words = ("cluster", "set-kubeconfig", "beta", "--kubeconfig", str(other))
    refused = bare.run_admin(*words)
    assert refused.returncode == 5
    assert "leads to another cluster than 'beta'" in refused.stderr
    words = ("cluster", "add", "gamma", "--kubeconfig", str(own))
    refused = bare.run_admin(*words)
    assert refused.returncode == 5
    assert "already joined as 'beta'" in refused.stderr
    serves(bare, beta)


def test_a_renewed_kubeconfig_is_used_and_a_running_watch_goes_on(
    bare: Tower, beta: Member, admitted: dict[str, Any], tmp_path: Path
) -> None:
    bare.add(beta, saved(tmp_path, admitted))
    kubectl = beta.kubectl(bare.kubeconfig("beta"))
    watching = ("get", "configmaps", "-n", "default", "--watch", "-o", "name")
    with kubectl.start(*watching) as watch:
        watch.next_line("configmap/kube-root-ca.crt")
        _, user = parts(admitted)
        user.clear()
        user["token"] = token_user(beta)
        path = saved(tmp_path, admitted)
        bare.admin("cluster", "set-kubeconfig", "beta", "--kubeconfig", str(path))
        try:
            kubectl("create", "configmap", "seen-after-it", "-n", "default")
            watch.next_line("configmap/seen-after-it")
        finally:
            words = ("delete", "configmap", "seen-after-it", "-n", "default")
            beta.admin.run(*words)
    event = next(
        event
        for event in beta.plane.audit_events()
        if event.get("verb") == "create"
        and event.get("objectRef", {}).get("name") == "seen-after-it"
    )
    account = "system:serviceaccount:default:tower-direct"
    assert event["user"]["username"] == account
    assert event["impersonatedUser"]["username"] == "tower:admin"


def states(tower: Tower, state: str) -> Callable[[], bool]:
    return lambda: tower.cluster("beta")["state"] == state


def test_an_apiserver_that_is_killed_is_noticed_and_comes_back_by_itself(
    bare: Tower, beta: Member
) -> None:
    bare.add(beta)
    kubectl = beta.kubectl(bare.kubeconfig("beta"))
    kubectl("get", "nodes")
    access = Access(bare.kubeconfig("beta"))
    beta.plane.kill("kube-apiserver")
    try:
        wait_until(states(bare, "away"), TRUTH_SECONDS, f"away\n{bare.logs()}")
        listed = bare.cluster("beta")
        assert "connection refused" in listed["apiserver_error"]
        assert "unreachable" in bare.admin("cluster", "list")
        began = time.monotonic()
        failed = kubectl.run("get", "--raw", "/api/v1/nodes")
        assert failed.code == 1 and time.monotonic() - began < TRUTH_SECONDS
        assert "the server cannot reach the apiserver at" in failed.err
    finally:
        beta.plane.restart("kube-apiserver")
    beta.plane.wait_ready()
    wait_until(lambda: works(access), WORKS_AGAIN_SECONDS, "works again")
    wait_until(states(bare, "connected"), TRUTH_SECONDS, f"back\n{bare.logs()}")


def test_a_server_that_is_killed_knows_it_again(bare: Tower, beta: Member) -> None:
    bare.add(beta)
    access = Access(bare.kubeconfig("beta"))
    bare.server.kill()
    bare.start()
    wait_until(lambda: works(access), WORKS_AGAIN_SECONDS, "works again")
    wait_until(states(bare, "connected"), TRUTH_SECONDS, f"back\n{bare.logs()}")


def test_a_removed_cluster_is_gone_and_can_be_added_again(
    bare: Tower, beta: Member
) -> None:
    bare.add(beta)
    access = Access(bare.kubeconfig("beta"))
    assert works(access)
    bare.admin("cluster", "remove", "beta", "--yes")
    assert not works(access)
    bare.add(beta)
    serves(bare, beta)


def test_the_credential_lies_in_one_private_file_and_is_told_to_nobody(
    bare: Tower, beta: Member, admitted: dict[str, Any], tmp_path: Path
) -> None:
    _, user = parts(admitted)
    user.clear()
    user["token"] = token = token_user(beta)
    bare.add(beta, saved(tmp_path, admitted))
    serves(bare, beta)
    said = [
        *(bare.admin("cluster", word, "-o", "json") for word in ("list",)),
        bare.admin("cluster", "show", "beta", "-o", "json"),
        bare.admin("status", "-o", "json"),
        (bare.directory / "server.log").read_text(),
        bare.kubeconfig("beta").read_text(),
    ]
    assert not any(token in text for text in said)
    holders = [
        path
        for path in bare.state.rglob("*")
        if path.is_file() and token.encode() in path.read_bytes()
    ]
    assert holders and {path.name.partition("-")[0] for path in holders} == {
        "tower.sqlite"
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}
    bare.admin("cluster", "remove", "beta", "--yes")
    bare.server.stop()  # the file's journal goes with the server
    assert not any(
        token.encode() in path.read_bytes()
        for path in bare.state.rglob("*")
        if path.is_file()
    )


def test_whom_the_host_acts_as_is_seen_in_the_members_audit_log(
    bare: Tower, beta: Member
) -> None:
    bare.add(beta)
    beta.kubectl(bare.kubeconfig("beta"))("get", "configmaps", "-n", "default")
    event = next(
        event
        for event in reversed(beta.plane.audit_events())
        if event.get("impersonatedUser")
    )
    assert event["user"]["username"] == DIRECT_USER
