"""The admin API over its real socket: what each order does, and how it says no."""

import http.client
import json
import logging
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from certs.joining import JoinString, verifier_of
from certs.names import ClusterName, user_identity
from shared.durations import rfc3339
from shared.errors import Code
from shared.mux.counters import Counters
from shared.mux.readings import TunnelReading
from tests.fakes.admin_server import ZONE, AdminServer
from tower_server.admin_client import AdminClient, CommandFailed
from tower_server.admin_orders import MAX_BODY_BYTES
from tower_server.stores import StoreUnavailable
from tower_server.tokens import MAX_OUTSTANDING_TOKENS


@pytest.fixture
def server(tmp_path: Path):
    with AdminServer(tmp_path) as server:
        yield server


@pytest.fixture
def admin(server: AdminServer) -> AdminClient:
    return AdminClient(server.socket)


def create(admin: AdminClient, cluster: str, **order: object) -> dict[str, Any]:
    return admin.post("tokens", order={"cluster": cluster, **order})


def join(server: AdminServer, admin: AdminClient, cluster: str) -> None:
    string = create(admin, cluster)["join_string"]
    server.join(string, member_uid=f"uid-of-{cluster}")


def kubeconfig(admin: AdminClient, **order: object) -> dict[str, Any]:
    return admin.post("kubeconfig", order={"cluster": "alpha", **order})


def certificate_of(answer: dict[str, Any]) -> x509.Certificate:
    import base64

    user = yaml.safe_load(answer["kubeconfig"])["users"][0]["user"]
    return x509.load_pem_x509_certificate(
        base64.b64decode(user["client-certificate-data"])
    )


def refused(code: int, call: Any, *arguments: Any, **fields: Any) -> str:
    with pytest.raises(CommandFailed) as caught:
        call(*arguments, **fields)
    assert caught.value.exit_code == code
    return str(caught.value)


def raw_request(
    server: AdminServer, method: str, path: str, body: bytes = b""
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("tower")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(server.socket))
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


# What goes through


def test_top_has_every_known_cluster_with_its_totals(
    server: AdminServer, admin: AdminClient
) -> None:
    counters = Counters()
    counters.sent_bytes, counters.received_bytes = 10, 20
    counters.opened_by_server, counters.opened_by_agent = 3, 1
    counters.resets_sent[Code.TIMEOUT] += 2
    counters.resets_received[Code.OK] += 1
    server.registry.connected("alpha")
    server.registry.away("beta")
    server.registry.traffic["alpha"] = TunnelReading(
        sessions=1,
        rtt_seconds=0.0123456789,
        open_streams=2,
        stalled_streams=1,
        queued_bytes=30,
        unread_bytes=40,
        window_bytes=0,
        kept_bytes=0,
        counters=counters,
    )
    first, second = admin.get("top"), admin.get("top")
    assert first["clock_seconds"] < second["clock_seconds"]
    alpha, beta = first["clusters"]
    assert alpha == {
        "name": "alpha",
        "state": "connected",
        "since": None,
        "sessions": 1,
        "rtt_seconds": 0.012346,
        "open_streams": 2,
        "stalled_streams": 1,
        "queued_bytes": 30,
        "unread_bytes": 40,
        "window_bytes": 0,
        "kept_bytes": 0,
        "sent_bytes_total": 10,
        "sent_bulk_bytes_total": 0,
        "received_bytes_total": 20,
        "streams_opened_total": 4,
        "resets_total": 3,
        "window_stalls_total": 0,
        "resumes_total": 0,
        "retransmitted_bytes_total": 0,
    }
    assert (beta["name"], beta["state"], beta["sessions"]) == ("beta", "away", 0)


# Tokens


def test_a_token_s_join_string_leads_here_and_its_secret_is_not_stored(
    server: AdminServer, admin: AdminClient
) -> None:
    answer = create(admin, "alpha")
    string = JoinString.parse(answer["join_string"])
    assert (string.cluster, string.host, string.port) == (
        "alpha",
        "tower.example.com",
        8443,
    )
    assert string.pin == server.authority.pin
    (record,) = server.run(server.store.list_tokens())
    assert record.id == string.token_id == answer["id"]
    assert record.verifier == verifier_of(string.secret)
    assert string.secret.reveal() not in repr(record)


def test_a_token_is_good_for_a_day_or_as_long_as_was_asked(
    server: AdminServer, admin: AdminClient
) -> None:
    create(admin, "alpha")
    create(admin, "beta", ttl_seconds=90)
    day, short = server.run(server.store.list_tokens())
    assert (day.expires_at - day.created_at).total_seconds() == 86400
    assert (short.expires_at - short.created_at).total_seconds() == 90


@pytest.mark.parametrize("seconds", [0, -1, 59, 30 * 86400 + 1, 10**30])
def test_a_token_s_time_has_limits(admin: AdminClient, seconds: int) -> None:
    assert "span" in refused(2, create, admin, "alpha", ttl_seconds=seconds)


def test_a_manifest_and_an_env_file_carry_the_join_string(admin: AdminClient) -> None:
    manifest = create(admin, "alpha", format="manifest")
    kinds = [item["kind"] for item in yaml.safe_load_all(manifest["manifest"])]
    assert "Deployment" in kinds and "tower+join://alpha:" in manifest["manifest"]
    env = create(admin, "alpha", format="env")
    assert "\nTOWER_JOIN=tower+join://alpha:" in env["env"]
    assert "join_string" not in manifest and "join_string" not in env


def test_a_manifest_allows_whom_the_admin_names(admin: AdminClient) -> None:
    text = create(
        admin,
        "alpha",
        format="manifest",
        allow_users=["jane"],
        allow_groups=["dev"],
        image="registry.example.com/agent:1",
    )["manifest"]
    assert "--allow-user=jane" in text and "--allow-group=dev" in text
    assert "image: registry.example.com/agent:1" in text
    assert "tower:cluster-admins" not in text


def test_an_order_for_a_manifest_that_makes_no_sense_creates_no_token(
    server: AdminServer, admin: AdminClient
) -> None:
    assert "tower-agent run --allow-user" in refused(
        2, create, admin, "alpha", allow_users=["jane"]
    )
    refused(2, create, admin, "alpha", format="manifest", allow_groups=[" dev"])
    refused(2, create, admin, "alpha", format="manifest", allow_groups="dev")
    refused(2, create, admin, "alpha", format="manifest", image="a b")
    assert server.run(server.store.list_tokens()) == []


def test_the_list_shows_states_and_no_secrets(
    server: AdminServer, admin: AdminClient
) -> None:
    used = create(admin, "alpha")["join_string"]
    server.join(used)
    create(admin, "beta", ttl_seconds=60)
    revoked = create(admin, "gamma")["id"]
    admin.delete("tokens", revoked)
    server.later(seconds=61)
    create(admin, "delta")
    answer = admin.get("tokens")
    assert [(token["cluster"], token["state"]) for token in answer["tokens"]] == [
        ("alpha", "used"),
        ("beta", "expired"),
        ("gamma", "revoked"),
        ("delta", "ready"),
    ]
    assert JoinString.parse(used).secret.reveal() not in json.dumps(answer)


def test_a_token_that_is_not_there_cannot_be_revoked(admin: AdminClient) -> None:
    assert "tower token list" in refused(3, admin.delete, "tokens", "nosuchtoken")


def test_too_many_tokens_are_refused(
    server: AdminServer, admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tower_server.stores.memory.MAX_OUTSTANDING_TOKENS", 1)
    create(admin, "alpha")
    assert str(MAX_OUTSTANDING_TOKENS) in refused(5, create, admin, "alpha")


def test_a_token_for_a_cluster_that_has_joined_is_for_joining_again(
    server: AdminServer, admin: AdminClient
) -> None:
    join(server, admin, "alpha")
    create(admin, "alpha")
    (cluster,) = admin.get("clusters")["clusters"]
    assert cluster["joined"]


# Clusters


def test_an_invited_cluster_is_listed_until_its_token_expires(
    server: AdminServer, admin: AdminClient
) -> None:
    create(admin, "alpha", ttl_seconds=60)
    (cluster,) = admin.get("clusters")["clusters"]
    assert (cluster["name"], cluster["state"], cluster["joined"]) == (
        "alpha",
        "never",
        False,
    )
    server.later(seconds=60)
    assert admin.get("clusters")["clusters"] == []


def test_a_connected_cluster_shows_what_its_agent_reported(
    server: AdminServer, admin: AdminClient
) -> None:
    join(server, admin, "alpha")
    server.registry.connected(
        "alpha",
        since=server.now,
        rtt_seconds=0.0125,
        agent_version="0.1.0",
        apiserver_version="v1.34.1",
        open_streams=3,
    )
    cluster = admin.get("clusters", "alpha")
    assert cluster["state"] == "connected"
    assert cluster["rtt_seconds"] == 0.0125
    assert cluster["apiserver_version"] == "v1.34.1"
    assert cluster["open_streams"] == 3
    assert cluster["member_uid"] == "uid-of-alpha"
    assert cluster["url"] == "https://tower.example.com:8443/clusters/alpha"


def test_a_credential_that_ends_within_seven_days_is_a_warning(
    server: AdminServer, admin: AdminClient
) -> None:
    join(server, admin, "alpha")
    for days, words in ((7, None), (6, "expires in 6d"), (-1, "expired 1d ago")):
        ends = server.now + timedelta(days=days)
        server.registry.connected("alpha", node_count=3, credential_expires_at=ends)
        cluster = admin.get("clusters", "alpha")
        assert (cluster["connection"], cluster["node_count"]) == ("proxy", 3)
        assert cluster["credential_expires_at"] == rfc3339(ends)
        # The server repeats them, among others.
        said = admin.get("status")["warnings"]
        assert {f"alpha: {w}" for w in cluster["warnings"]} <= set(said)
        assert len(cluster["warnings"]) == (words is not None)
        if words is not None:
            (warning,) = cluster["warnings"]
            assert words in warning and "renew it in the member" in warning


def test_a_joined_cluster_that_was_not_seen_since_the_start_is_away_since_the_start(
    server: AdminServer, admin: AdminClient
) -> None:
    started = server.now
    join(server, admin, "alpha")
    server.later(minutes=5)
    cluster = admin.get("clusters", "alpha")
    assert cluster["state"] == "away"
    assert cluster["since"] == started.isoformat().replace("+00:00", "Z")


def test_one_that_joined_since_is_away_since_it_joined(
    server: AdminServer, admin: AdminClient
) -> None:
    server.later(minutes=5)
    join(server, admin, "alpha")
    joined = server.now
    server.later(minutes=5)
    cluster = admin.get("clusters", "alpha")
    assert cluster["since"] == joined.isoformat().replace("+00:00", "Z")


def test_clusters_are_listed_by_name(server: AdminServer, admin: AdminClient) -> None:
    for name in ("gamma", "alpha"):
        join(server, admin, name)
    create(admin, "beta")
    names = [cluster["name"] for cluster in admin.get("clusters")["clusters"]]
    assert names == ["alpha", "beta", "gamma"]


def test_an_unknown_cluster_is_not_found_and_names_alike_are_offered(
    server: AdminServer, admin: AdminClient
) -> None:
    assert "begin with `tower token create alpha`" in refused(
        3, admin.get, "clusters", "alpha"
    )
    create(admin, "alpha")
    assert "did you mean alpha?" in refused(3, admin.get, "clusters", "alhpa")
    assert "tower cluster list" in refused(3, admin.get, "clusters", "xyz")


def test_what_cannot_be_a_name_is_wrong_usage(admin: AdminClient) -> None:
    assert "cannot name a cluster" in refused(2, admin.get, "clusters", "Alpha/../beta")
    refused(2, create, admin, "")


def test_removing_cuts_the_tunnel_and_frees_the_uid(
    server: AdminServer, admin: AdminClient
) -> None:
    join(server, admin, "alpha")
    server.registry.connected("alpha")
    waiting = create(admin, "alpha")
    answer = admin.delete("clusters", "alpha")
    assert answer["member_uid"] == "uid-of-alpha"
    assert answer["revoked_tokens"] == [waiting["id"]]
    assert [(name, code) for name, code, _ in server.registry.cuts] == [
        ("alpha", Code.REVOKED)
    ]
    assert server.registry.forgotten == ["alpha"]
    assert admin.get("clusters")["clusters"] == []
    # The same member may now join under another name.
    server.join(create(admin, "beta")["join_string"], member_uid="uid-of-alpha")


def test_the_store_forgets_a_cluster_before_its_tunnel_is_cut(
    server: AdminServer, admin: AdminClient
) -> None:
    join(server, admin, "alpha")
    known_at_cut = []
    cut = server.registry.cut

    async def look_and_cut(name: ClusterName, code: Code, reason: str) -> None:
        known_at_cut.append(await server.store.get_cluster(name))
        await cut(name, code, reason)

    server.registry.cut = look_and_cut  # type: ignore[method-assign]
    admin.delete("clusters", "alpha")
    assert known_at_cut == [None]


def test_removing_an_invited_cluster_takes_the_invitation_back(
    server: AdminServer, admin: AdminClient
) -> None:
    create(admin, "alpha")
    assert admin.delete("clusters", "alpha")["joined"] is False
    (token,) = admin.get("tokens")["tokens"]
    assert token["state"] == "revoked"


def test_removing_an_unknown_cluster_is_not_found(
    server: AdminServer, admin: AdminClient
) -> None:
    refused(3, admin.delete, "clusters", "alpha")
    assert server.registry.cuts == []


# Kubeconfigs


def test_a_kubeconfig_is_for_the_default_admin_of_this_cluster_only(
    server: AdminServer, admin: AdminClient
) -> None:
    join(server, admin, "alpha")
    answer = kubeconfig(admin)
    identity = user_identity(certificate_of(answer), ZONE)
    assert (identity.user, identity.groups) == (
        "tower:admin",
        ("tower:cluster-admins",),
    )
    assert identity.clusters == {"alpha"}
    assert (identity.not_after - server.now).total_seconds() == 8 * 3600
    assert answer["expires_at"] == identity.not_after.isoformat().replace("+00:00", "Z")


def test_user_groups_and_time_are_those_that_were_asked_for(
    server: AdminServer, admin: AdminClient
) -> None:
    join(server, admin, "alpha")
    answer = kubeconfig(admin, user="jane", groups=["dev", "ops"], ttl_seconds=60)
    identity = user_identity(certificate_of(answer), ZONE)
    assert (identity.user, identity.groups) == ("jane", ("dev", "ops"))
    assert (identity.not_after - server.now).total_seconds() == 60


def test_each_kubeconfig_has_its_own_key_and_the_same_place(
    server: AdminServer, admin: AdminClient
) -> None:
    join(server, admin, "alpha")
    first, second = (yaml.safe_load(kubeconfig(admin)["kubeconfig"]) for _ in range(2))
    assert first["clusters"] == second["clusters"]
    assert first["users"] != second["users"]


@pytest.mark.parametrize(
    ("order", "exit_code", "sentence"),
    [
        ({"user": "system:admin"}, 5, "belongs to Kubernetes itself"),
        ({"groups": ["system:masters"]}, 5, "belongs to Kubernetes itself"),
        ({"user": ""}, 5, "empty"),
        ({"user": "ja\nne"}, 5, "control character"),
        ({"ttl_seconds": 59}, 2, "1m to 30d"),
        ({"ttl_seconds": 30 * 86400 + 1}, 2, "1m to 30d"),
        ({"ttl_seconds": True}, 2, "whole number"),
        ({"ttl_seconds": "8h"}, 2, "whole number"),
        ({"groups": "dev"}, 2, "list of strings"),
        ({"groups": [1]}, 2, "list of strings"),
        ({"user": 7}, 2, "a string"),
        ({"role": "admin"}, 2, "'role' is unknown"),
    ],
)
def test_wrong_orders_for_a_kubeconfig_are_refused(
    server: AdminServer,
    admin: AdminClient,
    order: dict[str, object],
    exit_code: int,
    sentence: str,
) -> None:
    join(server, admin, "alpha")
    assert sentence in refused(exit_code, kubeconfig, admin, **order)


def test_there_is_none_for_an_unknown_cluster_or_one_that_has_not_joined(
    admin: AdminClient,
) -> None:
    assert "There is no cluster 'alpha'" in refused(3, kubeconfig, admin)
    token = create(admin, "alpha")
    message = refused(3, kubeconfig, admin)
    assert "has not joined yet" in message and token["id"] in message


# The server


def test_the_status_counts(server: AdminServer, admin: AdminClient) -> None:
    for name in ("alpha", "beta"):
        join(server, admin, name)
    create(admin, "gamma")
    server.registry.connected("alpha", open_streams=4)
    status = admin.get("status")
    assert status["clusters"] == {"connected": 1, "away": 1, "never": 1}
    assert (status["open_streams"], status["tokens_ready"]) == (4, 1)
    assert status["ca_pin"] == server.authority.pin
    assert status["public_address"] == "tower.example.com:8443"


def test_orders_are_logged_with_who_gave_them_and_without_secrets(
    server: AdminServer, admin: AdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    import os

    caplog.set_level(logging.INFO)
    string = create(admin, "alpha")["join_string"]
    server.join(string)
    key = kubeconfig(admin, user="jane")["kubeconfig"]
    messages = [record for record in caplog.records if hasattr(record, "admin_uid")]
    assert [record.getMessage().split(" ")[0] for record in messages] == [
        "created",
        "issued",
    ]
    assert {record.admin_uid for record in messages} == {os.getuid()}
    assert JoinString.parse(string).secret.reveal() not in caplog.text
    assert yaml.safe_load(key)["users"][0]["user"]["client-key-data"] not in caplog.text


# Bad input


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"[]", b'"alpha"', b"\xff", b"[" * 50_000, b'{"cluster": 1}'],
)
def test_a_body_that_is_no_order_is_refused(server: AdminServer, body: bytes) -> None:
    status, answer = raw_request(server, "POST", "/admin/v1/tokens", body)
    assert (status, answer["error"]) == (400, "bad_request")


def test_a_body_that_is_too_large_is_refused(server: AdminServer) -> None:
    body = json.dumps({"cluster": "a" * MAX_BODY_BYTES}).encode()
    status, answer = raw_request(server, "POST", "/admin/v1/tokens", body)
    assert (status, answer["error"]) == (400, "bad_request")
    assert "larger than" in answer["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/admin/v2/status"),
        ("PUT", "/admin/v1/tokens"),
        ("POST", "/admin/v1/status"),
    ],
)
def test_an_unknown_path_or_method_is_answered_in_json(
    server: AdminServer, method: str, path: str
) -> None:
    status, answer = raw_request(server, method, path)
    assert (status, answer["error"]) == (404, "not_found")
    assert "another version" in answer["message"]


def test_a_store_that_is_not_available_is_said_to_be(
    server: AdminServer, admin: AdminClient
) -> None:
    async def full(*_: object) -> None:
        raise StoreUnavailable("the disk is full", "make room")

    server.store.add_token = full  # type: ignore[method-assign]
    assert refused(1, create, admin, "alpha") == "the disk is full: make room"


def test_our_own_mistake_is_answered_and_its_text_stays_in_the_log(
    server: AdminServer, admin: AdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise RuntimeError("internal detail")

    server.store.list_tokens = broken  # type: ignore[method-assign]
    message = refused(1, admin.get, "tokens")
    assert "log" in message and "internal detail" not in message
    assert "internal detail" in caplog.text


def test_an_order_that_takes_too_long_is_ended(
    server: AdminServer, admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    async def stuck() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("tower_server.admin_orders.REQUEST_TIMEOUT_SECONDS", 0.05)
    server.store.list_tokens = stuck  # type: ignore[method-assign]
    assert "could not do it within" in refused(1, admin.get, "tokens")
