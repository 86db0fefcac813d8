"""HTTPS_PROXY and NO_PROXY as operators write them.

Covered: spelling of the variables, credentials, exceptions by name, address, network and port.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tower_agent.proxies import proxy_for

PROXY = "http://proxy.example:3128"


def is_direct(host: str, no_proxy: str, port: int = 8443) -> bool:
    return proxy_for(host, port, {"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy}) is None


def test_without_a_setting_the_way_is_direct() -> None:
    assert proxy_for("tower.example", 8443, {}) is None
    assert proxy_for("tower.example", 8443, {"HTTPS_PROXY": " "}) is None
    assert proxy_for("tower.example", 8443, {"HTTP_PROXY": PROXY}) is None


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("http://proxy.example:3128", "proxy.example", 3128),
        ("proxy.example:3128", "proxy.example", 3128),
        ("http://proxy.example", "proxy.example", 80),
        ("http://[2001:db8::1]:3128/", "2001:db8::1", 3128),
    ],
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_a_proxy_is_found(name: str, text: str, host: str, port: int) -> None:
    proxy = proxy_for("tower.example", 8443, {name: text})
    assert proxy is not None
    assert (proxy.host, proxy.port, proxy.authorization) == (host, port, None)
    assert proxy.url.endswith(f":{port}")


def test_small_letters_win() -> None:
    proxy = proxy_for(
        "t", 1, {"HTTPS_PROXY": "http://large:1", "https_proxy": "http://small:1"}
    )
    assert proxy is not None and proxy.host == "small"


def test_credentials_are_decoded_and_not_shown() -> None:
    proxy = proxy_for("t", 1, {"HTTPS_PROXY": "http://me:p%40ss@proxy:3128"})
    assert proxy is not None
    assert proxy.authorization == "Basic bWU6cEBzcw=="
    assert "p@ss" not in repr(proxy) + str(proxy) + proxy.url


@pytest.mark.parametrize(
    "text",
    [
        "socks5://me:hunter2@proxy:1080",
        "https://me:hunter2@proxy:3128",
        "http://me:hunter2@",
        "http://me:hunter2@proxy:port",
        "http://me:hunter2@[proxy:1",
    ],
)
def test_what_is_no_http_proxy_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="HTTPS_PROXY is not") as caught:
        proxy_for("tower.example", 8443, {"HTTPS_PROXY": text})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__ in (
        True,
        False,
    )


@pytest.mark.parametrize(
    ("host", "no_proxy"),
    [
        ("tower.example", "*"),
        ("tower.example", "tower.example"),
        ("Tower.Example.", "tower.example"),
        ("a.tower.example", "tower.example"),
        ("a.tower.example", ".tower.example"),
        ("a.tower.example", "*.tower.example"),
        ("tower.example", "other, tower.example ,"),
        ("tower.example", "tower.example:8443"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3", "10.0.0.0/8"),
        ("2001:db8::1", "2001:db8::/32"),
        ("2001:db8::1", "[2001:db8:0::1]:8443"),
        ("localhost", ""),
        ("127.0.0.1", ""),
        ("::1", ""),
    ],
)
def test_exceptions_go_direct(host: str, no_proxy: str) -> None:
    assert is_direct(host, no_proxy)


@pytest.mark.parametrize(
    ("host", "no_proxy"),
    [
        ("tower.example", ""),
        ("tower.example", ","),
        ("nottower.example", "tower.example"),
        ("tower.example", "a.tower.example"),
        ("tower.example", "tower.example:443"),
        ("11.1.2.3", "10.0.0.0/8"),
        ("10.1.2.3", "10.0.0.0/99"),
        ("tower.example", "10.0.0.0/8"),
        ("10.1.2.3", "2.3"),
        ("tower.example", "."),
    ],
)
def test_everything_else_goes_through_the_proxy(host: str, no_proxy: str) -> None:
    assert not is_direct(host, no_proxy)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_no_setting_raises_anything_but_value_error(
    host: str, proxy: str, no_proxy: str
) -> None:
    try:
        proxy_for(host, 8443, {"HTTPS_PROXY": proxy, "NO_PROXY": no_proxy})
    except ValueError as error:
        assert "HTTPS_PROXY" in str(error)
