"""`tower kubeconfig` and `tower credential` against a real admin API on its real socket.

Aspects: what goes to stdout and to stderr, files with secrets, several clusters in one file, the
forms of other control planes, a kubeconfig without a secret, and the plugin as client-go runs it.
"""

import base64
import json
import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from typer.testing import CliRunner, Result

from certs.names import user_identity
from tests.fakes.admin_server import AdminServer
from tower_server import access_cli, access_form, admin_cli
from tower_server.kubeconfig import Face


@pytest.fixture
def server(tmp_path: Path):
    with AdminServer(tmp_path) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("TOWER_ADMIN_SOCKET", "TOWER_STATE_DIR"),
        *(access_cli.CLUSTER_VARIABLE, access_cli.EXEC_INFO_VARIABLE),
    ):
        monkeypatch.delenv(name, raising=False)


def tower(server: AdminServer, *arguments: str) -> Result:
    return CliRunner().invoke(
        admin_cli.cli, ["--socket", str(server.socket), *arguments]
    )


def done(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    return result.stdout


def failed(result: Result, exit_code: int) -> str:
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    return result.stderr


def join(server: AdminServer, *names: str) -> None:
    for name in names:
        token = done(tower(server, "token", "create", name))
        server.join(token, member_uid=f"uid-of-{name}")


def test_a_kubeconfig_on_stdout_is_nothing_but_a_kubeconfig(
    server: AdminServer,
) -> None:
    join(server, "alpha")
    result = tower(server, "kubeconfig", "alpha")
    assert yaml.safe_load(done(result))["current-context"] == "alpha"
    assert result.stderr == ""


def test_a_kubeconfig_in_a_file_is_private_and_the_next_command_is_said(
    server: AdminServer, tmp_path: Path
) -> None:
    join(server, "alpha")
    out = tmp_path / "alpha.kubeconfig"
    out.write_text("an older one, open to all")
    out.chmod(0o644)
    result = tower(server, "kubeconfig", "alpha", "--out", str(out))
    assert done(result) == ""
    assert yaml.safe_load(out.read_text())["kind"] == "Config"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert f"kubectl --kubeconfig {out} get nodes" in result.stderr
    assert sorted(path.name for path in tmp_path.glob("*kubeconfig*")) == [out.name]


def test_user_groups_and_time_reach_the_server(
    server: AdminServer, tmp_path: Path
) -> None:
    join(server, "alpha")
    arguments = ["--user", "jane", "--group", "dev", "--group", "ops", "--ttl", "1h"]
    result = tower(
        server, "kubeconfig", "alpha", *arguments, "--out", str(tmp_path / "k")
    )
    end = (server.now + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    assert f"user jane, groups dev, ops, until {end}" in result.stderr


def test_a_system_name_is_refused(server: AdminServer) -> None:
    join(server, "alpha")
    result = tower(server, "kubeconfig", "alpha", "--group", "system:masters")
    assert "belongs to Kubernetes itself" in failed(result, 5)


def test_a_file_that_cannot_be_written_is_said_to_be(
    server: AdminServer, tmp_path: Path
) -> None:
    join(server, "alpha")
    for out in (tmp_path / "no" / "where", tmp_path):
        result = tower(server, "kubeconfig", "alpha", "--out", str(out))
        assert "choose another file with --out" in failed(result, 1)


def test_several_clusters_are_contexts_of_one_file(server: AdminServer) -> None:
    join(server, "alpha", "beta")
    for arguments in (["alpha", "beta"], ["--all"]):
        config = yaml.safe_load(done(tower(server, "kubeconfig", *arguments)))
        assert [c["name"] for c in config["contexts"]] == ["alpha", "beta"]
        servers = {c["cluster"]["server"] for c in config["clusters"]}
        assert len(servers) == 2


@pytest.mark.parametrize("arguments", [[], ["alpha", "--all"]])
def test_either_names_or_all(server: AdminServer, arguments: list[str]) -> None:
    join(server, "alpha")
    assert "not both" in failed(tower(server, "kubeconfig", *arguments), 2)


def test_all_of_nothing_says_how_to_begin(server: AdminServer) -> None:
    assert "tower token create" in failed(tower(server, "kubeconfig", "--all"), 1)


def applied(server: AdminServer, *arguments: str) -> dict[str, Any]:
    join(server, "alpha")
    return dict(yaml.safe_load(done(tower(server, "kubeconfig", "alpha", *arguments))))


def test_for_argo_cd_it_is_a_cluster_secret(server: AdminServer) -> None:
    secret = applied(server, "--format", "argocd", "--label", "env=prod")
    assert secret["metadata"]["namespace"] == "argocd"
    labels = secret["metadata"]["labels"]
    assert labels["argocd.argoproj.io/secret-type"] == "cluster"
    assert labels["env"] == "prod"
    assert base64.b64decode(secret["data"]["name"]) == b"alpha"


def test_where_the_object_goes_can_be_said(server: AdminServer) -> None:
    arguments = ["--format", "flux", "-n", "apps", "--object-name", "spoke"]
    metadata = applied(server, *arguments)["metadata"]
    assert (metadata["namespace"], metadata["name"]) == ("apps", "spoke")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--namespace", "apps"], "is no object"),
        (["--format", "flux", "--label", "env"], "write key=value"),
        (["--format", "flux", "--namespace", "No"], "cannot be a namespace"),
    ],
)
def test_what_makes_no_sense_is_refused(
    server: AdminServer, arguments: list[str], complaint: str
) -> None:
    join(server, "alpha")
    result = tower(server, "kubeconfig", "alpha", *arguments)
    assert complaint in failed(result, 5)


def test_the_forms_of_the_command_are_those_of_the_server() -> None:
    assert {*access_cli.Format, access_form.CREDENTIAL} == set(
        access_form.access_formats()
    )


def test_without_a_secret_the_kubeconfig_runs_the_plugin(
    server: AdminServer, tmp_path: Path
) -> None:
    join(server, "alpha", "beta")
    out = tmp_path / "all"
    asked = ["--exec", "--user", "jane", "--group", "dev", "--ttl", "10m"]
    result = tower(server, "kubeconfig", "--all", *asked, "--out", str(out))
    assert "no secret in it" in result.stderr
    assert "client-key-data" not in out.read_text()
    plugin = yaml.safe_load(out.read_text())["users"][0]["user"]["exec"]
    # What kubectl would run.
    status = json.loads(done(CliRunner().invoke(admin_cli.cli, plugin["args"])))[
        "status"
    ]
    certificate = x509.load_pem_x509_certificate(
        status["clientCertificateData"].encode()
    )
    identity = user_identity(certificate, server.authority.zone)
    assert (identity.user, identity.groups) == ("jane", ("dev",))
    assert identity.clusters == {"alpha"}


def test_an_object_without_a_secret_is_not_of_this_kind(server: AdminServer) -> None:
    join(server, "alpha")
    result = tower(server, "kubeconfig", "alpha", "--exec", "--format", "argocd")
    assert "leave one of them out" in failed(result, 2)


def credential(result: Result) -> dict[str, Any]:
    return dict(json.loads(done(result)))


def test_a_credential_is_what_client_go_reads(server: AdminServer) -> None:
    join(server, "alpha")
    answer = credential(tower(server, "credential", "alpha", "--ttl", "1h"))
    assert (answer["apiVersion"], answer["kind"]) == (
        "client.authentication.k8s.io/v1",
        "ExecCredential",
    )
    end = (server.now + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    assert answer["status"]["expirationTimestamp"] == end
    assert answer["status"]["clientKeyData"].startswith("-----BEGIN PRIVATE KEY")


def test_the_cluster_comes_from_what_client_go_says(
    server: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(server, "alpha")
    version = "client.authentication.k8s.io/v1beta1"
    info = {
        "apiVersion": version,
        "kind": "ExecCredential",
        "spec": {"cluster": {"server": "https://x", "config": {"cluster": "alpha"}}},
    }
    monkeypatch.setenv(access_cli.EXEC_INFO_VARIABLE, json.dumps(info))
    assert credential(tower(server, "credential"))["apiVersion"] == version


def test_or_from_the_environment(
    server: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(server, "alpha")
    monkeypatch.setenv(access_cli.EXEC_INFO_VARIABLE, "no JSON")
    monkeypatch.setenv(access_cli.CLUSTER_VARIABLE, "alpha")
    assert credential(tower(server, "credential"))["status"]


def test_without_any_it_asks_which(server: AdminServer) -> None:
    assert "which cluster?" in failed(tower(server, "credential"), 2)


def test_an_unknown_cluster_has_no_credential(server: AdminServer) -> None:
    assert "There is no cluster" in failed(tower(server, "credential", "gamma"), 3)


def test_the_gateway_is_another_way_to_the_same_cluster(server: AdminServer) -> None:
    join(server, "alpha")
    (cluster,) = yaml.safe_load(
        done(tower(server, "kubeconfig", "alpha", "--face", "gateway"))
    )["clusters"]
    assert cluster["cluster"]["server"].endswith("/clusters/alpha")
    assert "tls-server-name" not in cluster["cluster"]
    (plugin,) = yaml.safe_load(
        done(tower(server, "kubeconfig", "alpha", "--exec", "--face", "gateway"))
    )["clusters"]
    assert plugin == cluster
    argocd = yaml.safe_load(
        done(
            tower(
                server, "kubeconfig", "alpha", "--format", "argocd", "--face", "gateway"
            )
        )
    )
    config = json.loads(base64.b64decode(argocd["data"]["config"]))
    assert "serverName" not in config["tlsClientConfig"]


def test_the_faces_of_the_command_are_those_there_are() -> None:
    assert list(access_cli.Face) == list(Face)
