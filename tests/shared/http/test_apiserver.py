"""Where the apiserver is and who we are to it: kubeconfigs, ServiceAccounts, and their errors."""

import base64
import json
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.http.apiserver import (
    TOKEN_REREAD_SECONDS,
    BadKubeconfig,
    Credential,
    from_kubeconfig,
    in_cluster,
)
from tests.fakes.upstream import certificate_and_key

CERTIFICATE, KEY = certificate_and_key()


def clock() -> float:
    return 0.0


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def write_kubeconfig(
    directory: Path, cluster: dict[str, Any], user: dict[str, Any]
) -> Path:
    path = directory / "kubeconfig"
    config = {
        "current-context": "here",
        "contexts": [
            {"name": "other", "context": {"cluster": "x", "user": "x"}},
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
        ],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_kubeconfig_with_everything_inside(tmp_path: Path) -> None:
    path = write_kubeconfig(
        tmp_path,
        {
            "server": "https://10.0.0.1:6443/k8s/c-1/",
            "certificate-authority-data": encoded(CERTIFICATE),
            "tls-server-name": "kubernetes",
        },
        {
            "client-certificate-data": encoded(CERTIFICATE),
            "client-key-data": encoded(KEY),
        },
    )
    server = from_kubeconfig(path, monotonic=clock)
    assert (server.host, server.port) == ("10.0.0.1", 6443)
    assert server.server_hostname == "kubernetes"
    assert server.base_path == b"/k8s/c-1"
    assert server.authority == b"10.0.0.1:6443"
    assert server.credential.line() == b""
    assert server.tls is not None
    assert server.tls.verify_mode is ssl.CERT_REQUIRED and server.tls.check_hostname
    assert server.tls.cert_store_stats()["x509_ca"] == 1


def test_files_lie_beside_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(CERTIFICATE)
    (tmp_path / "tls.crt").write_text(CERTIFICATE)
    (tmp_path / "tls.key").write_text(KEY)
    (tmp_path / "token").write_text("abc\n")
    path = write_kubeconfig(
        tmp_path,
        {"server": "https://[::1]", "certificate-authority": "ca.pem"},
        {
            "client-certificate": str(tmp_path / "tls.crt"),
            "client-key": "tls.key",
            "tokenFile": "token",
        },
    )
    server = from_kubeconfig(path, monotonic=clock)
    assert server.authority == b"[::1]:443"
    assert server.server_hostname == "::1"
    assert server.credential.line() == b"Authorization: Bearer abc\r\n"


def test_verification_can_be_switched_off_and_plain_http_has_none(
    tmp_path: Path,
) -> None:
    cluster = {"server": "https://h", "insecure-skip-tls-verify": True}
    server = from_kubeconfig(
        write_kubeconfig(tmp_path, cluster, {"token": "abc"}), monotonic=clock
    )
    assert server.tls is not None and server.tls.verify_mode is ssl.CERT_NONE
    server = from_kubeconfig(
        write_kubeconfig(tmp_path, {"server": "http://127.0.0.1:8001"}, {}),
        monotonic=clock,
    )
    assert server.tls is None and server.port == 8001


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({}, {"exec": {"command": "aws"}}, "'exec'.*ServiceAccount token"),
        ({}, {"auth-provider": {"name": "gcp"}}, "'auth-provider'"),
        ({}, {"username": "u", "token": "abc"}, "a token and a password"),
        ({}, {"as": "somebody"}, "impersonates"),
        ({"proxy-url": "socks5://p"}, {}, "SOCKS proxy, which is not supported"),
        ({"server": "ftp://h"}, {}, "URL with https"),
        ({"server": "h:6443"}, {}, "URL with https"),
        ({"server": "https://h:port"}, {}, "not a URL"),
        (
            {"certificate-authority": "gone.pem"},
            {},
            "cannot read certificate-authority",
        ),
        ({"certificate-authority-data": "!"}, {}, "certificate-authority is not PEM"),
        ({"certificate-authority-data": encoded("x")}, {}, "cannot be used"),
        ({}, {"client-certificate-data": encoded(CERTIFICATE)}, "go together"),
        ({}, {"tokenFile": "gone"}, "cannot read the token"),
        ({}, {"token": "two words"}, "no token has"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], words: str
) -> None:
    path = write_kubeconfig(tmp_path, {"server": "https://h", **cluster}, user)
    with pytest.raises(BadKubeconfig, match=words) as caught:
        from_kubeconfig(path, monotonic=clock)
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks 'current-context'"),
        ("[1]", "lacks 'current-context'"),
        ("a: [", "YAML"),
        ("current-context: x", "contexts"),
        ("current-context: x\ncontexts: []", "lacks 'contexts'"),
        ("current-context: x\ncontexts: [1]", "no entry 'x'"),
        ("current-context: x\ncontexts: [{name: x}]", "context"),
    ],
)
def test_broken_kubeconfigs_are_one_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(BadKubeconfig, match=words):
        from_kubeconfig(path, monotonic=clock)
    with pytest.raises(BadKubeconfig, match="cannot read"):
        from_kubeconfig(tmp_path / "gone", monotonic=clock)


def test_the_service_account_of_a_pod(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    (tmp_path / "ca.crt").write_text(CERTIFICATE)
    environment = {
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "KUBERNETES_SERVICE_PORT": "6443",
    }
    server = in_cluster(monotonic=clock, environment=environment, directory=tmp_path)
    assert str(server) == "10.96.0.1:6443"
    assert server.credential.line() == b"Authorization: Bearer abc\r\n"
    with pytest.raises(BadKubeconfig, match="--kubeconfig"):
        in_cluster(monotonic=clock, environment={}, directory=tmp_path)
    (tmp_path / "token").unlink()
    with pytest.raises(BadKubeconfig, match="not a Pod"):
        in_cluster(monotonic=clock, environment=environment, directory=tmp_path)


def test_a_token_file_is_read_again_and_outlives_its_absence(tmp_path: Path) -> None:
    time, token = [0.0], tmp_path / "token"
    token.write_text("one")
    credential = Credential(token_file=token, monotonic=lambda: time[0])
    assert credential.line() == b"Authorization: Bearer one\r\n"
    token.write_text("two")
    assert credential.line() == b"Authorization: Bearer one\r\n"
    time[0] += TOKEN_REREAD_SECONDS
    assert credential.line() == b"Authorization: Bearer two\r\n"
    token.unlink()
    credential.was_refused()
    assert credential.line() == b"Authorization: Bearer two\r\n"
    token.write_text("")  # caught in the middle of being written
    credential.was_refused()
    assert credential.line() == b"Authorization: Bearer two\r\n"
    token.write_text("bad\ntoken")
    credential.was_refused()
    assert credential.line() == b"Authorization: Bearer two\r\n"
    token.write_text("three")
    credential.was_refused()
    assert credential.line() == b"Authorization: Bearer three\r\n"


def test_no_repr_shows_a_secret() -> None:
    credential = Credential(token="s3cret", monotonic=clock)
    assert "s3cret" not in repr(credential)


def test_a_password_is_sent_as_basic_authentication(tmp_path: Path) -> None:
    user = {"username": "jürgen", "password": "a:b"}
    path = write_kubeconfig(tmp_path, {"server": "https://h"}, user)
    credential = from_kubeconfig(path, monotonic=clock).credential
    pair = base64.b64encode("jürgen:a:b".encode())
    assert credential.line() == b"Authorization: Basic %b\r\n" % pair
    assert "a:b" not in repr(credential)


def test_a_proxy_that_wants_tls_gets_a_context_of_its_own(tmp_path: Path) -> None:
    cluster = {
        "server": "https://h",
        "certificate-authority-data": encoded(CERTIFICATE),
        "insecure-skip-tls-verify": False,
    }
    plain, secure = (
        from_kubeconfig(
            write_kubeconfig(tmp_path, {**cluster, "proxy-url": url}, {}),
            monotonic=clock,
        )
        for url in ("http://p:3128", "https://p")
    )
    assert plain.proxy is not None and plain.proxy_tls is None
    assert secure.proxy_tls is not None and secure.proxy_tls is not secure.tls
    assert secure.proxy_tls.verify_mode is ssl.CERT_REQUIRED
    assert secure.proxy_tls.check_hostname


def jwt(claims: object) -> str:
    parts = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "RS256"}, claims)
    )
    return ".".join((*parts, "c2ln"))


@pytest.mark.parametrize(
    ("token", "expires_at"),
    [
        (jwt({"exp": 1795507200}), datetime(2026, 11, 24, 8, 0, tzinfo=UTC)),
        (jwt({"sub": "x"}), None),
        (jwt({"exp": "soon"}), None),
        (jwt({"exp": 1e300}), None),
        (jwt([1]), None),
        ("a.b.c", None),
        ("opaque", None),
    ],
)
def test_a_fixed_token_says_when_it_ends(
    token: str, expires_at: datetime | None
) -> None:
    assert Credential(token=token, monotonic=clock).expires_at == expires_at


def test_a_token_in_a_file_is_renewed_by_somebody(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(jwt({"exp": 1795507200}))
    credential = Credential(token_file=tmp_path / "token", monotonic=clock)
    assert credential.line() and credential.expires_at is None
