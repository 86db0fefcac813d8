"""How the tunnel's column reads the kubeconfig that `tower kubeconfig` wrote."""

import base64
import stat
from pathlib import Path

import yaml

from bench.columns.tunnel import read_kubeconfig


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_kubeconfig_becomes_an_endpoint_at_the_clients_own_address(
    tmp_path: Path,
) -> None:
    config = {
        "clusters": [
            {
                "name": "alpha",
                "cluster": {
                    "server": "https://127.0.0.1:9999/clusters/alpha",
                    "tls-server-name": "alpha.clusters.tower.internal",
                    "certificate-authority-data": encoded("the CA"),
                },
            }
        ],
        "users": [
            {
                "name": "tower:admin",
                "user": {
                    "client-certificate-data": encoded("the certificate"),
                    "client-key-data": encoded("the key"),
                },
            }
        ],
    }
    endpoint = read_kubeconfig(yaml.safe_dump(config), tmp_path, "127.0.0.1:8443")
    assert endpoint.address == "127.0.0.1:8443"
    assert endpoint.path == "/clusters/alpha"
    assert endpoint.server_name == "alpha.clusters.tower.internal"
    assert endpoint.ca is not None and endpoint.ca.read_text() == "the CA"
    assert endpoint.certificate is not None
    assert endpoint.certificate.read_text() == "the certificate"
    assert endpoint.key is not None and endpoint.key.read_text() == "the key"
    assert stat.S_IMODE(endpoint.key.stat().st_mode) == 0o600
