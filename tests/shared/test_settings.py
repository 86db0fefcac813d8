"""Addresses and times: what is read, what is refused, and that the error says what to write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.settings import (
    DEFAULT_DRAIN_TIME,
    HostPort,
    SettingsError,
    parse_drain_time,
    parse_host_port,
    parse_memory_bytes,
)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8443", "127.0.0.1", 8443),
        ("tower.example.com:443", "tower.example.com", 443),
        ("localhost:1", "localhost", 1),
        ("my_proxy:65535", "my_proxy", 65535),
        ("[::1]:8443", "::1", 8443),
        ("[2001:DB8:0::1]:8443", "2001:db8::1", 8443),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    assert parse_host_port(text, setting="--listen") == HostPort(host=host, port=port)


@pytest.mark.parametrize(
    ("text", "what_to_do"),
    [
        ("8443", "has no port"),
        ("", "has no port"),
        ("tower.example.com", "has no port"),
        (":8443", "0.0.0.0:8443 for all addresses"),
        ("::1:8443", "in brackets"),
        ("[::1]", "no port number"),
        ("[::1]8443", "no port number|in brackets"),
        ("[127.0.0.1]:80", "no IPv6 address"),
        ("[fe80::1", "in brackets"),
        ("256.0.0.1:80", "four numbers"),
        ("1.2.3:80", "four numbers"),
        ("host:http", "no port number"),
        ("host:-1", "no port number"),
        ("host:65536", "no port number"),
        ("host:٣", "no port number"),
        ("host:0", "cannot have port 0"),
        ("host:00", "cannot have port 0"),
        ("ho st:80", "no host name"),
        ("https://host:80", "in brackets"),
        ("-host:80", "no host name"),
        ("h" * 64 + ":80", "no host name"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(text: str, what_to_do: str) -> None:
    with pytest.raises(SettingsError, match=what_to_do) as caught:
        parse_host_port(text, setting="--listen")
    assert str(caught.value).startswith("--listen ")


def test_port_zero_is_for_listening_only() -> None:
    address = parse_host_port("127.0.0.1:0", setting="--listen", port_zero_allowed=True)
    assert address.port == 0


def test_wildcards_and_loopback_are_told_apart() -> None:
    assert HostPort(host="0.0.0.0", port=1).is_wildcard
    assert HostPort(host="::", port=1).is_wildcard
    assert not HostPort(host="tower.example.com", port=1).is_wildcard
    assert HostPort(host="127.8.9.1", port=1).is_loopback
    assert HostPort(host="localhost", port=1).is_loopback
    assert not HostPort(host="10.0.0.1", port=1).is_loopback


@given(st.ip_addresses(), st.integers(min_value=1, max_value=65535))
def test_what_is_written_can_be_read(address: object, port: int) -> None:
    written = HostPort(host=str(address), port=port)
    assert parse_host_port(str(written), setting="--listen") == written


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        parse_host_port(text, setting="--listen")
    except SettingsError:
        pass


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("16Mi", 2**24), ("256MiB", 2**28), ("1Gi", 2**30), ("2GiB", 2**31)],
)
def test_a_size_of_memory_is_written_as_kubernetes_or_people_do(
    text: str, size_bytes: int
) -> None:
    read = parse_memory_bytes(text, setting="--memory", at_least_bytes=2**24)
    assert read == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "256", "256M", "1.5Gi", "-1Gi", "256 Mi", "1Ti", "9" * 10 + "Gi", "٣Mi"],
)
def test_any_other_size_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match="such as 256Mi") as caught:
        parse_memory_bytes(text, setting="--memory", at_least_bytes=0)
    assert str(caught.value).startswith("--memory ")


def test_too_little_memory_is_refused_with_what_is_enough() -> None:
    with pytest.raises(SettingsError, match="write 16Mi or more"):
        parse_memory_bytes("15Mi", setting="--memory", at_least_bytes=2**24)


def test_a_drain_time_is_a_span_of_at_most_a_night() -> None:
    assert parse_drain_time("20s") == DEFAULT_DRAIN_TIME
    assert parse_drain_time("0s").total_seconds() == 0
    assert parse_drain_time("12h").total_seconds() == 43_200
    with pytest.raises(SettingsError, match="--drain-time 13h is longer than 12 hours"):
        parse_drain_time("13h")
    with pytest.raises(SettingsError, match="--drain-time: 'soon' is not a span"):
        parse_drain_time("soon")
