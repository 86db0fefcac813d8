"""A cluster's access where other control planes look for it: applied, read back as they do, and used.

Covered: the objects are accepted by a real apiserver, twice without a change; the credential of Argo CD's
Secret, of Flux's and of Cluster API's works as each consumer builds its client; a ClusterProfile fits the
definition of SIG Multicluster's module; kubectl runs the credential plugin.
"""

import base64
import json
import os
import shutil
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.kubectl import Kubectl
from tests.e2e.member import Member
from tests.e2e.tower import ROOT, Tower

INVENTORY_MODULE = "sigs.k8s.io/cluster-inventory-api@v0.1.2"


def applied(tower: Tower, member: Member, *arguments: str) -> dict[str, Any]:
    """The object after `kubectl apply`, as a consumer reads it."""
    manifest = tower.admin("kubeconfig", "alpha", "--namespace", "default", *arguments)
    member.admin.quiet("apply", "--validate=strict", "-f", "-", stdin=manifest)
    assert "unchanged" in member.admin.quiet("apply", "-f", "-", stdin=manifest)
    name = yaml.safe_load(manifest)["metadata"]["name"]
    secret = member.request("GET", f"/api/v1/namespaces/default/secrets/{name}")
    member.request("DELETE", f"/api/v1/namespaces/default/secrets/{name}")
    return dict(secret)


def test_argo_cd_reaches_the_member_with_its_secret(
    tower: Tower, alpha: Member, tmp_path: Path
) -> None:
    secret = applied(tower, alpha, "--format", "argocd", "--label", "env=prod")
    assert secret["metadata"]["labels"]["argocd.argoproj.io/secret-type"] == "cluster"
    data = {key: base64.b64decode(value) for key, value in secret["data"].items()}
    # As Argo CD makes a rest.Config of it: host, and the fields of tlsClientConfig.
    tls = json.loads(data["config"])["tlsClientConfig"]
    context = ssl.create_default_context(cadata=pem(tls["caData"]).decode())
    chain = tmp_path / "client.pem"
    chain.touch(mode=0o600)
    chain.write_bytes(pem(tls["certData"]) + pem(tls["keyData"]))
    context.load_cert_chain(chain)
    url = f"{data['server'].decode()}/version"
    with open_with_server_name(url, context, tls["serverName"]) as answer:
        assert json.load(answer)["gitVersion"].startswith("v1.")


@pytest.mark.parametrize(
    ("form", "kind"), [("flux", "Opaque"), ("cluster-api", "cluster.x-k8s.io/secret")]
)
def test_flux_and_cluster_api_find_a_kubeconfig_that_works(
    tower: Tower, alpha: Member, tmp_path: Path, form: str, kind: str
) -> None:
    secret = applied(tower, alpha, "--format", form)
    assert secret["type"] == kind
    kubeconfig = tmp_path / "value"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_bytes(base64.b64decode(secret["data"]["value"]))
    assert "default" in alpha.kubectl(kubeconfig).quiet("get", "namespaces")


def test_a_cluster_profile_fits_the_definition(tower: Tower, alpha: Member) -> None:
    definition = inventory_definition()
    alpha.admin.quiet("apply", "--server-side", "-f", str(definition))
    try:
        alpha.admin.quiet("wait", "--for=condition=Established", "-f", str(definition))
        manifest = tower.admin(
            "kubeconfig", "alpha", "--format", "clusterprofile", "-n", "default"
        )
        profile = yaml.safe_load(manifest)
        status = json.dumps({"status": profile["status"]})
        alpha.admin.quiet("apply", "--validate=strict", "-f", "-", stdin=manifest)
        alpha.admin.quiet(
            *("patch", "clusterprofile", "alpha", "-n", "default"),
            *("--subresource=status", "--type=merge", "--patch", status),
        )
        path = "/apis/multicluster.x-k8s.io/v1alpha1/namespaces/default/clusterprofiles/alpha"
        stored = alpha.request("GET", path)
        # Nothing of it is unknown there, or it would be gone.
        assert stored["status"] == profile["status"]
        assert stored["spec"] == profile["spec"]
    finally:
        alpha.admin.quiet("delete", "-f", str(definition), "--wait=false")


def test_kubectl_runs_the_plugin(tower: Tower, alpha: Member, tmp_path: Path) -> None:
    kubeconfig = tower.kubeconfig("alpha", "--exec", name="plugin")
    assert "client-key-data" not in kubeconfig.read_text()
    command = tmp_path / "bin" / "tower"
    command.parent.mkdir()
    run = "from tower_server.admin_cli import main; main()"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -c "{run}" "$@"\n')
    command.chmod(0o755)
    kubectl = Kubectl(
        alpha.plane.kubectl,
        kubeconfig,
        tmp_path,
        environment={
            "PATH": f"{command.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
    )
    assert "default" in kubectl.quiet("get", "namespaces")


def pem(text: str) -> bytes:
    return base64.b64decode(text)


def open_with_server_name(url: str, context: ssl.SSLContext, name: str) -> Any:
    """GET with another TLS server name than the URL's host, as client-go's `ServerName` does."""

    class Named(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(self.connection, request)

        def connection(self, host: str, **options: Any) -> Any:
            import http.client
            import socket

            class Connection(http.client.HTTPSConnection):
                def connect(self) -> None:
                    raw = socket.create_connection((self.host, self.port), timeout=10)
                    self.sock = context.wrap_socket(raw, server_hostname=name)

            return Connection(host, **options)

    return urllib.request.build_opener(Named()).open(url, timeout=10)


def inventory_definition() -> Path:
    """The CRD of ClusterProfile, out of its Go module."""
    if shutil.which("go") is None:
        pytest.skip("no Go: the definition of ClusterProfile comes from its Go module")
    done = subprocess.run(
        ["go", "mod", "download", "-json", INVENTORY_MODULE],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    module = Path(json.loads(done.stdout)["Dir"])
    return module / "config/crd/bases/multicluster.x-k8s.io_clusterprofiles.yaml"
