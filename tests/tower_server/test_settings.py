"""The server's settings: defaults, what is refused, and that each refusal says what to write."""

from pathlib import Path

import pytest

from shared.settings import HostPort, SettingsError
from tower_server.admin_console import SOCKET_NAME
from tower_server.settings import (
    ADMIN_SOCKET_NAME,
    DEFAULT_LISTEN,
    MAX_SOCKET_PATH_BYTES,
    parse_serve_settings,
    parse_tcp_entry,
)

LOOPBACK = "127.0.0.1:8443"


def test_on_one_address_a_state_directory_is_enough() -> None:
    settings = parse_serve_settings(state_dir="/var/lib/tower", listen=LOOPBACK)
    assert settings.state_dir == Path("/var/lib/tower") and settings.host is None
    assert settings.admin_socket == Path("/var/lib/tower/admin.sock")
    assert settings.zone == "clusters.tower.internal"
    assert settings.public_address is None
    assert settings.public_address_at(8443) == HostPort(host="127.0.0.1", port=8443)


def test_state_in_kubernetes_needs_no_directory() -> None:
    settings = parse_serve_settings(
        state_dir=None,
        store="kubernetes",
        admin_socket="/s/admin.sock",
        listen=LOOPBACK,
    )
    assert settings.state_dir is None and settings.host is not None
    assert (settings.host.namespace, settings.host.kubeconfig) == (None, None)
    assert (settings.host.ca_secret, settings.host.may_create_ca) == ("tower-ca", True)


def test_a_ca_secret_that_is_named_has_to_be_there() -> None:
    settings = parse_serve_settings(
        state_dir="/s",
        store="kubernetes",
        namespace="tower",
        host_kubeconfig="/k",
        ca_secret="mine",
        listen=LOOPBACK,
    )
    assert settings.host is not None
    assert (settings.host.namespace, settings.host.kubeconfig) == ("tower", Path("/k"))
    assert (settings.host.ca_secret, settings.host.may_create_ca) == ("mine", False)


def test_with_port_zero_the_public_address_gets_the_port_that_was_bound() -> None:
    settings = parse_serve_settings(state_dir="/s", listen="127.0.0.1:0")
    assert str(settings.public_address_at(40123)) == "127.0.0.1:40123"


def test_a_public_address_counts_whatever_port_was_bound() -> None:
    settings = parse_serve_settings(
        state_dir="/s", listen="0.0.0.0:0", public_address="tower.example.com:443"
    )
    assert str(settings.public_address_at(40123)) == "tower.example.com:443"


def test_a_relative_state_directory_is_made_absolute() -> None:
    assert parse_serve_settings(
        state_dir="state", listen=LOOPBACK
    ).state_dir.is_absolute()


def test_the_zone_is_in_lower_case() -> None:
    settings = parse_serve_settings(
        state_dir="/s", listen=LOOPBACK, zone="Clusters.Example"
    )
    assert settings.zone == "clusters.example"


@pytest.mark.parametrize(
    ("changes", "what_to_do"),
    [
        ({"state_dir": None}, "--state-dir .* name a directory"),
        ({"state_dir": ""}, "--state-dir .* name a directory"),
        ({"store": "etcd"}, "use sqlite or kubernetes"),
        ({"namespace": "tower"}, "--namespace .* add --store kubernetes"),
        ({"host_kubeconfig": "/k"}, "--host-kubeconfig .* add --store kubernetes"),
        ({"ca_secret": "ca"}, "--ca-secret .* add --store kubernetes"),
        ({"store": "kubernetes", "namespace": "T"}, "--namespace 'T' .* lower-case"),
        ({"store": "kubernetes", "ca_secret": "a/b"}, "--ca-secret 'a/b' .* lower"),
        (
            {"store": "kubernetes", "state_dir": None},
            "--admin-socket .* or a --state-dir",
        ),
        ({"listen": DEFAULT_LISTEN}, "--public-address .* tower.example.com:8443"),
        ({"listen": "[::]:9"}, "--public-address .* tower.example.com:9"),
        ({"listen": "8443"}, "--listen '8443' has no port"),
        ({"public_address": "0.0.0.0:8443"}, "cannot be connected to"),
        ({"public_address": "tower.example.com:0"}, "cannot have port 0"),
        ({"zone": "under_score"}, "--zone: 'under_score' cannot be the zone"),
        ({"zone": "z" * 200}, "--zone: "),
        ({"admin_socket": "/" + "s" * MAX_SOCKET_PATH_BYTES}, "give a shorter one"),
        ({"drain_time": "20"}, "--drain-time: '20' is not a span of time"),
        ({"log_level": "loud"}, "--log-level 'loud' is unknown"),
        ({"log_format": "xml"}, "--log-format 'xml' is unknown"),
        (
            {"tcp_entries": ["127.0.0.1:9000"]},
            "--tcp-entry .* is not HOST:PORT=CLUSTER/TARGET",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    changes: dict[str, object], what_to_do: str
) -> None:
    arguments: dict[str, object] = {"state_dir": "/s", "listen": LOOPBACK}
    with pytest.raises(SettingsError, match=what_to_do):
        parse_serve_settings(**(arguments | changes))  # type: ignore[arg-type]


def test_metrics_are_off_unless_an_address_is_given() -> None:
    def metrics(text: str | None) -> HostPort | None:
        settings = parse_serve_settings(state_dir="/s", listen=LOOPBACK, metrics=text)
        return settings.metrics

    assert metrics(None) is metrics("") is None
    assert metrics("127.0.0.1:0") == HostPort(host="127.0.0.1", port=0)
    with pytest.raises(SettingsError, match="--metrics"):
        metrics("9643")


def test_a_tcp_entry_is_read_and_written_as_the_ready_line_says() -> None:
    entry = parse_tcp_entry("[::1]:0=alpha/web")
    assert str(entry) == "[::1]:0 -> alpha/web"
    assert (entry.cluster, entry.target) == ("alpha", "web")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "127.0.0.1:9000=alpha",
        "127.0.0.1:9000=alpha/",
        "127.0.0.1:9000=/web",
        "=alpha/web",
        "127.0.0.1:9000=alpha/web/x",
        "127.0.0.1:9000=Alpha/web",
        "9000=alpha/web",
        "0.0.0.0:9000=alpha/web",
    ],
)
def test_a_wrong_tcp_entry_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--tcp-entry"):
        parse_tcp_entry(text)


def test_two_tcp_entries_cannot_have_one_address_unless_the_system_chooses() -> None:
    def parse(*entries: str) -> None:
        parse_serve_settings(state_dir="/s", listen=LOOPBACK, tcp_entries=entries)

    parse("127.0.0.1:0=alpha/web", "127.0.0.1:0=beta/web")
    with pytest.raises(SettingsError, match="twice"):
        parse("127.0.0.1:9000=alpha/web", "127.0.0.1:9000=beta/web")


def test_server_and_admin_command_mean_the_same_socket() -> None:
    assert SOCKET_NAME == ADMIN_SOCKET_NAME


def test_memory_for_windows_is_a_quarter_gibibyte_unless_told_otherwise() -> None:
    assert (
        parse_serve_settings(state_dir="/s", listen="127.0.0.1:0").window_memory_bytes
        == 2**28
    )
    settings = parse_serve_settings(
        state_dir="/s", listen="127.0.0.1:0", window_memory="1Gi"
    )
    assert settings.window_memory_bytes == 2**30
    with pytest.raises(SettingsError, match="--window-memory"):
        parse_serve_settings(state_dir="/s", listen="127.0.0.1:0", window_memory="1Mi")
