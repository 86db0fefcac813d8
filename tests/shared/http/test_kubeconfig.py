"""What a kubeconfig says about one cluster; the sentences about broken ones are in test_apiserver.py.

Covered: contexts, proxies, files that may or may not be named, one context taken out of many,
that no repr and no sentence shows a secret.
"""

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.http.kubeconfig import (
    MAX_KUBECONFIG_BYTES,
    BadKubeconfig,
    Kubeconfig,
    one_context,
    parse_kubeconfig,
)

SECRETS = ("t0ken", "passw0rd", "pr0xy")


def config(cluster: dict[str, Any], user: dict[str, Any] | None = None) -> str:
    """Two contexts: `here`, the current one, and `there`, whose user is somebody else."""
    return yaml.safe_dump(
        {
            "current-context": "here",
            "contexts": [
                {"name": "here", "context": {"cluster": "c", "user": "u"}},
                {"name": "there", "context": {"cluster": "d", "user": "v"}},
            ],
            "clusters": [
                {"name": "c", "cluster": {"server": "https://h", **cluster}},
                {"name": "d", "cluster": {"server": "https://other:6443"}},
            ],
            "users": [
                {"name": "u", "user": user or {}},
                {"name": "v", "user": {"token": "of-another"}},
            ],
        }
    )


def parse(text: str, **how: Any) -> Kubeconfig:
    return parse_kubeconfig(text, **{"source": "it", "directory": None, **how})


def test_a_context_is_taken_by_name_or_the_current_one() -> None:
    assert parse(config({})).host == "h"
    there = parse(config({}), context="there")
    assert (there.host, there.port, there.token) == ("other", 6443, "of-another")
    with pytest.raises(BadKubeconfig, match="no entry 'nowhere'.*it has here, there"):
        parse(config({}), context="nowhere")


@pytest.mark.parametrize(
    ("url", "host", "port", "is_tls", "login"),
    [
        ("http://p", "p", 80, False, None),
        ("http://p:3128", "p", 3128, False, None),
        ("https://p", "p", 443, True, None),
        ("http://me%40x:pr0xy%3A@p:1", "p", 1, False, ("me@x", "pr0xy:")),
        ("https://[::1]:8443", "::1", 8443, True, None),
    ],
)
def test_a_proxy_is_understood(
    url: str, host: str, port: int, is_tls: bool, login: tuple[str, str] | None
) -> None:
    proxy = parse(config({"proxy-url": url})).proxy
    assert proxy is not None
    assert (proxy.host, proxy.port, proxy.is_tls) == (host, port, is_tls)
    assert (proxy.user, proxy.password) == (login or (None, None))


@pytest.mark.parametrize(
    "url", ["p:3128", "ftp://p", "http://me:pr0xy@p:port", "http://", "socks5h://p"]
)
def test_another_proxy_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BadKubeconfig, match="proxy") as caught:
        parse(config({"proxy-url": url}))
    assert "pr0xy" not in str(caught.value)


@pytest.mark.parametrize(
    ("cluster", "user"),
    [
        ({"certificate-authority": "/etc/passwd"}, {}),
        ({}, {"client-certificate": "/etc/passwd"}),
        ({}, {"client-key": "key"}),
        ({}, {"tokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token"}),
    ],
)
def test_a_strangers_kubeconfig_may_not_name_files(
    cluster: dict[str, Any], user: dict[str, Any]
) -> None:
    with pytest.raises(BadKubeconfig, match="names a file, which is not allowed"):
        parse(config(cluster, user))


def test_files_that_were_read_are_known(tmp_path: Path) -> None:
    for name in ("ca", "crt", "key"):
        (tmp_path / name).write_text(name)
    user = {
        "client-certificate": "crt",
        "client-key": str(tmp_path / "key"),
        "tokenFile": "not-read-here",
    }
    parsed = parse(config({"certificate-authority": "ca"}, user), directory=tmp_path)
    assert parsed.files == tuple(tmp_path / name for name in ("ca", "crt", "key"))
    assert (parsed.ca_pem, parsed.certificate_pem, parsed.key_pem) == (
        *("ca", "crt"),
        "key",
    )
    assert parsed.token_file == tmp_path / "not-read-here"


def test_one_context_leaves_the_others_at_home(tmp_path: Path) -> None:
    text = config(
        {"certificate-authority": "ca", "tls-server-name": "k"},
        {"tokenFile": "token", "client-key": "/abs/key"},
    )
    reduced = one_context(text, source="it", directory=tmp_path)
    assert b"of-another" not in reduced and b"other" not in reduced
    kept = yaml.safe_load(reduced)
    assert kept["clusters"][0]["cluster"] == {
        "server": "https://h",
        "certificate-authority": str(tmp_path / "ca"),
        "tls-server-name": "k",
    }
    assert kept["users"][0]["user"] == {
        "tokenFile": str(tmp_path / "token"),
        "client-key": "/abs/key",
    }
    there = one_context(text, source="it", directory=None, context="there")
    assert parse(there.decode()).token == "of-another"


def test_from_stdin_only_absolute_paths_mean_something() -> None:
    with pytest.raises(BadKubeconfig, match="'ca'.*--flatten"):
        one_context(
            config({"certificate-authority": "ca"}), source="it", directory=None
        )
    one_context(config({"certificate-authority": "/ca"}), source="it", directory=None)


def test_nothing_shows_a_secret() -> None:
    user = {"username": "me", "password": "passw0rd"}
    parsed = parse(config({"proxy-url": "http://me:pr0xy@p"}, user))
    with_token = parse(config({}, {"token": "t0ken", "client-key-data": "a2V5"}))
    for text in (repr(parsed), str(parsed), repr(with_token)):
        assert not any(secret in text for secret in SECRETS)
        assert "key_pem" not in text


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({"exec": {"command": "aws"}}, "'exec'.*needs a program"),
        ({"auth-provider": {"name": "oidc"}}, "'auth-provider'.*needs a program"),
        ({"as": "x", "token": "t0ken"}, "impersonates"),
        ({"as-groups": ["x"]}, "impersonates"),
        ({"password": "passw0rd"}, "no username"),
        ({"username": "a:b", "password": "passw0rd"}, "with a colon"),
        ({"username": "a", "password": "passw0rd", "token": "t0ken"}, "leave one"),
    ],
)
def test_what_a_user_cannot_be_is_said(user: dict[str, Any], words: str) -> None:
    with pytest.raises(BadKubeconfig, match=words) as caught:
        parse(config({}, user))
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_a_kubeconfig_of_many_megabytes_is_none() -> None:
    with pytest.raises(BadKubeconfig, match="bytes, so it is no kubeconfig"):
        parse("#" * (MAX_KUBECONFIG_BYTES + 1))


_leaf = (
    st.none() | st.text(max_size=5) | st.integers() | st.lists(st.none(), max_size=1)
)


@given(
    st.dictionaries(
        st.sampled_from(["current-context", "contexts", "clusters", "users"]),
        _leaf
        | st.lists(
            st.fixed_dictionaries(
                {"name": st.just("x")},
                optional={
                    key: _leaf
                    | st.dictionaries(
                        st.sampled_from(["server", "cluster", "user", "proxy-url"]),
                        st.sampled_from(["x", "https://[", "https://h:1"]) | _leaf,
                    )
                    for key in ("context", "cluster", "user")
                },
            ),
            max_size=2,
        )
        | st.just("x"),
    )
)
def test_whatever_it_holds_it_is_parsed_or_refused(document: dict[str, Any]) -> None:
    for function in (parse_kubeconfig, one_context):
        try:
            function(yaml.safe_dump(document), source="it", directory=None)
        except BadKubeconfig as error:
            assert "\n" not in str(error)


def test_data_is_preferred_to_files_as_kubectl_does(tmp_path: Path) -> None:
    data = base64.b64encode(b"inside").decode()
    both = {"certificate-authority": "gone", "certificate-authority-data": data}
    assert parse(config(both), directory=tmp_path).ca_pem == "inside"
