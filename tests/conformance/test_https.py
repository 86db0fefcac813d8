"""What an API client sees on the wire is the same from the demo apiserver and from a real one.

Aspects: discovery, errors, optimistic locking, paging, watches (start, selectors, bookmarks,
410), Tables, reviews, authentication, impersonation, exec over WebSocket, the audit log.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.conformance.conftest import NAMESPACE, POD, Member
from tests.testbed.controlplane import ControlPlane

Json = dict[str, Any]

CONFIGMAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


async def call(
    https: aiohttp.ClientSession, method: str, path: str, body: Any = None, **more: Any
) -> tuple[int, Any]:
    async with https.request(method, path, json=body, **more) as response:
        return response.status, await response.json()


async def create(https: aiohttp.ClientSession, name: str, **fields: Any) -> Json:
    body = {"metadata": {"name": name, **fields.pop("metadata", {})}, **fields}
    status, item = await call(https, "POST", CONFIGMAPS, body)
    assert status == 201, item
    return item


async def delete(https: aiohttp.ClientSession, *names: str) -> None:
    for name in names:
        status, answer = await call(https, "DELETE", f"{CONFIGMAPS}/{name}")
        assert status == 200, answer


@asynccontextmanager
async def watching(
    https: aiohttp.ClientSession, path: str, **query: Any
) -> AsyncIterator[AsyncIterator[Json]]:
    """Iterate over the events of a watch."""
    params = {"watch": "true", "timeoutSeconds": "20", **query}

    async def events(response: aiohttp.ClientResponse) -> AsyncIterator[Json]:
        async for line in response.content:
            yield json.loads(line)

    async with https.get(path, params=params) as response:
        assert response.status == 200
        yield events(response)


async def take(events: AsyncIterator[Json], count: int) -> list[tuple[str, str]]:
    """(type, name) of the next events."""
    async with asyncio.timeout(10):
        found = [await anext(events) for _ in range(count)]
    return [(event["type"], event["object"]["metadata"]["name"]) for event in found]


# Discovery


async def test_discovery_has_the_subset_with_its_verbs(
    https: aiohttp.ClientSession,
) -> None:
    _, core = await call(https, "GET", "/api/v1")
    resources = {item["name"]: item for item in core["resources"]}
    for name, kind, namespaced in (
        ("namespaces", "Namespace", False),
        ("nodes", "Node", False),
        ("pods", "Pod", True),
        ("configmaps", "ConfigMap", True),
        ("secrets", "Secret", True),
        ("serviceaccounts", "ServiceAccount", True),
    ):
        item = resources[name]
        assert (item["kind"], item["namespaced"]) == (kind, namespaced)
        assert {"create", "delete", "get", "list", "patch", "update", "watch"} <= set(
            item["verbs"]
        )
    assert {"pods/log", "pods/exec", "pods/status", "serviceaccounts/token"} <= set(
        resources
    )


async def test_groups_and_version_are_there(https: aiohttp.ClientSession) -> None:
    _, versions = await call(https, "GET", "/api")
    assert versions["versions"] == ["v1"]
    _, groups = await call(https, "GET", "/apis")
    names = {group["name"] for group in groups["groups"]}
    assert {
        "apps",
        "authentication.k8s.io",
        "authorization.k8s.io",
        "rbac.authorization.k8s.io",
    } <= names
    _, apps = await call(https, "GET", "/apis/apps/v1")
    assert "deployments" in [item["name"] for item in apps["resources"]]
    _, version = await call(https, "GET", "/version")
    assert version["gitVersion"].startswith(f"v{version['major']}.{version['minor']}.")
    async with https.get("/readyz") as ready:
        assert (ready.status, await ready.text()) == (200, "ok")


async def test_kube_system_has_a_uid(https: aiohttp.ClientSession) -> None:
    status, namespace = await call(https, "GET", "/api/v1/namespaces/kube-system")
    assert status == 200
    assert len(namespace["metadata"]["uid"]) == 36


# Errors


OTHER_NAME = {"metadata": {"name": "other"}}
OTHER_NAMESPACE = {"metadata": {"name": "a", "namespace": "b"}}
TAKEN_NAME = {"metadata": {"name": "kube-root-ca.crt"}}
TAKEN = f"{CONFIGMAPS}/kube-root-ca.crt"
NO_NAMESPACE = "/api/v1/namespaces/absent/configmaps"
NO_DEPLOYMENT = "/apis/apps/v1/namespaces/x/deployments/y"
WRONG_CONTAINER = f"{PODS}/{POD}/log?container=no"

ERRORS = [
    ("GET", f"{CONFIGMAPS}/absent", None, 404, "NotFound", 'configmaps "absent" not found'),
    ("GET", NO_DEPLOYMENT, None, 404, "NotFound", 'deployments.apps "y" not found'),
    ("GET", f"{PODS}/absent/log", None, 404, "NotFound", 'pods "absent" not found'),
    ("GET", WRONG_CONTAINER, None, 400, "BadRequest", f"container no is not valid for pod {POD}"),
    ("POST", CONFIGMAPS, TAKEN_NAME, 409, "AlreadyExists", 'configmaps "kube-root-ca.crt" already exists'),
    ("POST", NO_NAMESPACE, OTHER_NAME, 404, "NotFound", 'namespaces "absent" not found'),
    ("PUT", TAKEN, OTHER_NAME, 400, "BadRequest",
     "the name of the object (other) does not match the name on the URL (kube-root-ca.crt)"),
    ("POST", CONFIGMAPS, OTHER_NAMESPACE, 400, "BadRequest",
     "the namespace of the provided object does not match the namespace sent on the request"),
    ("PUT", "/api/v1/nodes", {}, 405, "MethodNotAllowed",
     "the server does not allow this method on the requested resource"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "reason", "message"), ERRORS
)
async def test_errors_are_statuses_with_the_same_words(
    https: aiohttp.ClientSession,
    method: str,
    path: str,
    body: Any,
    code: int,
    reason: str,
    message: str,
) -> None:
    status, answer = await call(https, method, path, body)
    assert (status, answer["kind"], answer["apiVersion"]) == (code, "Status", "v1")
    assert (answer["code"], answer["reason"], answer["message"]) == (
        code,
        reason,
        message,
    )


async def test_a_name_that_cannot_be_is_invalid(https: aiohttp.ClientSession) -> None:
    status, answer = await call(
        https, "POST", CONFIGMAPS, {"metadata": {"name": "Not_Good"}}
    )
    assert (status, answer["reason"]) == (422, "Invalid")
    assert answer["message"].startswith(
        'ConfigMap "Not_Good" is invalid: metadata.name: Invalid value: "Not_Good"'
    )


async def test_a_resource_that_is_not_there_is_404(
    https: aiohttp.ClientSession,
) -> None:
    async with https.get("/apis/example.com/v1/widgets") as response:
        assert response.status == 404


async def test_a_body_beyond_3_mib_is_refused(https: aiohttp.ClientSession) -> None:
    body = {"metadata": {"name": "big"}, "data": {"a": "x" * 3 * 1024 * 1024}}
    data = io.BytesIO(json.dumps(body).encode())
    kind = {"Content-Type": "application/json"}
    async with https.post(CONFIGMAPS, data=data, headers=kind) as response:
        assert response.status == 413


# Objects


async def test_an_object_gets_its_metadata(https: aiohttp.ClientSession) -> None:
    item = await create(https, "fresh", data={"a": "1"})
    assert (item["kind"], item["apiVersion"]) == ("ConfigMap", "v1")
    metadata = item["metadata"]
    assert metadata["namespace"] == NAMESPACE
    assert {"uid", "resourceVersion", "creationTimestamp"} <= set(metadata)
    await delete(https, "fresh")


async def test_a_generated_name_begins_with_its_prefix(
    https: aiohttp.ClientSession,
) -> None:
    status, item = await call(
        https, "POST", CONFIGMAPS, {"metadata": {"generateName": "some-"}}
    )
    name = item["metadata"]["name"]
    assert status == 201
    assert name.startswith("some-") and len(name) == len("some-12345")
    await delete(https, name)


async def test_an_update_of_an_old_version_is_a_conflict(
    https: aiohttp.ClientSession,
) -> None:
    old = await create(https, "contended", data={"a": "1"})
    path = f"{CONFIGMAPS}/contended"
    status, new = await call(https, "PUT", path, {**old, "data": {"a": "2"}})
    assert status == 200
    assert int(new["metadata"]["resourceVersion"]) > int(
        old["metadata"]["resourceVersion"]
    )
    status, answer = await call(https, "PUT", path, {**old, "data": {"a": "3"}})
    assert (status, answer["reason"]) == (409, "Conflict")
    assert answer["message"] == (
        'Operation cannot be fulfilled on configmaps "contended": the object has been modified;'
        " please apply your changes to the latest version and try again"
    )
    await delete(https, "contended")


async def test_an_update_that_changes_nothing_makes_no_version(
    https: aiohttp.ClientSession,
) -> None:
    item = await create(https, "same", data={"a": "1"})
    _, again = await call(https, "PUT", f"{CONFIGMAPS}/same", item)
    assert again["metadata"]["resourceVersion"] == item["metadata"]["resourceVersion"]
    await delete(https, "same")


async def test_a_delete_answers_with_what_it_removed(
    https: aiohttp.ClientSession,
) -> None:
    item = await create(https, "doomed")
    wrong = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
    status, answer = await call(https, "DELETE", f"{CONFIGMAPS}/doomed", wrong)
    assert (status, answer["reason"]) == (409, "Conflict")
    status, answer = await call(https, "DELETE", f"{CONFIGMAPS}/doomed")
    assert (status, answer["status"]) == (200, "Success")
    assert answer["details"] == {
        "name": "doomed",
        "kind": "configmaps",
        "uid": item["metadata"]["uid"],
    }


async def test_string_data_of_a_secret_becomes_data(
    https: aiohttp.ClientSession,
) -> None:
    secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets"
    body = {"metadata": {"name": "words"}, "stringData": {"a": "b"}}
    _, item = await call(https, "POST", secrets, body)
    assert (item["data"], item["type"], "stringData" in item) == (
        {"a": "Yg=="},
        "Opaque",
        False,
    )
    assert (await call(https, "DELETE", f"{secrets}/words"))[0] == 200


async def test_the_status_of_a_pod_is_not_changed_with_the_pod(
    https: aiohttp.ClientSession,
) -> None:
    _, pod = await call(https, "GET", f"{PODS}/{POD}")
    changed = {
        **pod,
        "metadata": {**pod["metadata"], "labels": {"app": POD, "x": "y"}},
        "status": {"phase": "Failed"},
    }
    status, answer = await call(https, "PUT", f"{PODS}/{POD}", changed)
    assert (status, answer["status"]["phase"]) == (200, "Running")
    assert answer["metadata"]["labels"]["x"] == "y"


async def test_a_strategic_patch_joins_lists_by_name(
    https: aiohttp.ClientSession,
) -> None:
    deployments = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
    labels = {"app": "two"}
    containers = [{"name": "one", "image": "a"}, {"name": "two", "image": "b"}]
    body = {
        "metadata": {"name": "two"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": containers},
            },
        },
    }
    assert (await call(https, "POST", deployments, body))[0] == 201
    patch = {
        "spec": {"template": {"spec": {"containers": [{"name": "two", "image": "c"}]}}}
    }
    kind = {"Content-Type": "application/strategic-merge-patch+json"}
    _, item = await call(https, "PATCH", f"{deployments}/two", patch, headers=kind)
    images = {
        entry["name"]: entry["image"]
        for entry in item["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"one": "a", "two": "c"}
    assert (await call(https, "DELETE", f"{deployments}/two"))[0] == 200


# Lists


async def test_a_list_in_pages_is_of_one_moment(https: aiohttp.ClientSession) -> None:
    names = [f"page-{index}" for index in range(5)]
    for name in names:
        await create(https, name, metadata={"labels": {"paged": "yes"}})
    query = {"labelSelector": "paged=yes", "limit": "2"}
    _, first = await call(https, "GET", CONFIGMAPS, params=query)
    assert first["kind"] == "ConfigMapList"
    await delete(https, "page-4")
    found = [item["metadata"]["name"] for item in first["items"]]
    token = first["metadata"]["continue"]
    while token:
        _, page = await call(
            https, "GET", CONFIGMAPS, params={**query, "continue": token}
        )
        assert (
            page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        )
        found += [item["metadata"]["name"] for item in page["items"]]
        token = page["metadata"].get("continue")
    assert found == names  # page-4 was there when the list began
    await delete(https, *names[:4])


async def test_items_of_a_list_do_not_repeat_their_kind(
    https: aiohttp.ClientSession,
) -> None:
    _, listing = await call(https, "GET", CONFIGMAPS)
    assert all(
        "kind" not in item and "apiVersion" not in item for item in listing["items"]
    )


async def test_a_table_has_columns_and_rows_with_metadata(
    https: aiohttp.ClientSession,
) -> None:
    _, table = await call(https, "GET", PODS, headers={"Accept": TABLE})
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    names = [
        column["name"]
        for column in table["columnDefinitions"]
        if column["priority"] == 0
    ]
    assert names == ["Name", "Ready", "Status", "Restarts", "Age"]
    row = next(row for row in table["rows"] if row["cells"][0] == POD)
    assert row["cells"][1:4] == ["1/1", "Running", "0"] or row["cells"][1:3] == [
        "1/1",
        "Running",
    ]
    assert row["object"]["kind"] == "PartialObjectMetadata"


async def test_metadata_alone_can_be_had(https: aiohttp.ClientSession) -> None:
    accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
    _, listing = await call(https, "GET", CONFIGMAPS, headers={"Accept": accept})
    assert listing["kind"] == "PartialObjectMetadataList"
    assert all("data" not in item for item in listing["items"])


async def test_an_unknown_media_type_is_not_acceptable(
    https: aiohttp.ClientSession,
) -> None:
    async with https.get(CONFIGMAPS, headers={"Accept": "text/html"}) as response:
        assert response.status == 406


# Watches


async def test_a_watch_from_a_list_sees_each_change_once(
    https: aiohttp.ClientSession,
) -> None:
    _, listing = await call(https, "GET", CONFIGMAPS)
    version = listing["metadata"]["resourceVersion"]
    await create(https, "seen")
    async with watching(https, CONFIGMAPS, resourceVersion=version) as events:
        assert await take(events, 1) == [("ADDED", "seen")]
        patch = {"Content-Type": "application/merge-patch+json"}
        await call(
            https, "PATCH", f"{CONFIGMAPS}/seen", {"data": {"a": "1"}}, headers=patch
        )
        await delete(https, "seen")
        assert await take(events, 2) == [("MODIFIED", "seen"), ("DELETED", "seen")]


async def test_a_watch_without_a_version_begins_with_what_is_there(
    https: aiohttp.ClientSession,
) -> None:
    async with watching(https, CONFIGMAPS) as events:
        assert await take(events, 1) == [("ADDED", "kube-root-ca.crt")]


async def test_through_a_selector_relabelling_is_arrival_and_departure(
    https: aiohttp.ClientSession,
) -> None:
    item = await create(https, "moving")
    version = item["metadata"]["resourceVersion"]
    async with watching(
        https, CONFIGMAPS, resourceVersion=version, labelSelector="on=yes"
    ) as events:
        patch = {"Content-Type": "application/merge-patch+json"}
        for value in ("yes", "no"):
            body = {"metadata": {"labels": {"on": value}}}
            await call(https, "PATCH", f"{CONFIGMAPS}/moving", body, headers=patch)
        assert await take(events, 2) == [("ADDED", "moving"), ("DELETED", "moving")]
    await delete(https, "moving")


async def test_a_bookmark_comes_before_the_watch_ends(
    https: aiohttp.ClientSession,
) -> None:
    _, listing = await call(https, "GET", CONFIGMAPS)
    version = listing["metadata"]["resourceVersion"]
    query = {
        "resourceVersion": version,
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "6",
    }
    async with watching(https, CONFIGMAPS, **query) as events:
        # A real apiserver sends none while it has seen no change at all.
        item = await create(https, "marked")
        found = [event async for event in events]
    kinds = [event["type"] for event in found]
    assert kinds[0] == "ADDED" and set(kinds[1:]) == {"BOOKMARK"}
    last = found[-1]["object"]
    assert last["kind"] == "ConfigMap"
    assert int(last["metadata"]["resourceVersion"]) >= int(
        item["metadata"]["resourceVersion"]
    )
    await delete(https, "marked")


async def test_initial_events_end_with_a_bookmark(https: aiohttp.ClientSession) -> None:
    query = {
        "sendInitialEvents": "true",
        "allowWatchBookmarks": "true",
        "resourceVersionMatch": "NotOlderThan",
    }
    async with watching(https, CONFIGMAPS, **query) as events, asyncio.timeout(10):
        async for event in events:
            if event["type"] == "BOOKMARK":
                break
            assert event["type"] == "ADDED"
    assert event["object"]["metadata"]["annotations"] == {
        "k8s.io/initial-events-end": "true"
    }


async def test_a_watch_from_too_long_ago_is_expired(
    https: aiohttp.ClientSession, member: Member
) -> None:
    if isinstance(member.plane, ControlPlane):
        # A new apiserver's watch cache begins now.
        member.plane.restart("kube-apiserver")
        await asyncio.to_thread(member.plane.wait_ready)
    else:
        member.plane.store.forget_history()
    async with (
        watching(https, CONFIGMAPS, resourceVersion="1") as events,
        asyncio.timeout(10),
    ):
        event = await anext(events)
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
    assert event["object"]["message"].startswith("too old resource version: 1 (")


# Who asks


async def test_nobody_is_anonymous(
    member: Member, https: aiohttp.ClientSession
) -> None:
    for token in ("", "wrong"):
        headers = {"Authorization": f"Bearer {token}" if token else ""}
        status, answer = await call(https, "GET", "/api", headers=headers)
        assert (status, answer["reason"], answer["message"]) == (
            401,
            "Unauthorized",
            "Unauthorized",
        )


async def test_impersonation_carries_user_groups_uid_and_extra(
    https: aiohttp.ClientSession,
) -> None:
    headers = [
        ("Impersonate-User", "bob"),
        ("Impersonate-Group", "dev"),
        ("Impersonate-Group", "ops"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Extra-Team", "blue"),
    ]
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    body = {"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}
    status, answer = await call(https, "POST", path, body, headers=headers)
    # bob may ask who he is only with system:authenticated, which impersonation adds.
    assert status == 201, answer
    info = answer["status"]["userInfo"]
    assert (info["username"], info["uid"]) == ("bob", "7")
    assert sorted(info["groups"]) == ["dev", "ops", "system:authenticated"]
    assert info["extra"]["team"] == ["blue"]


async def test_groups_without_a_user_are_an_error(https: aiohttp.ClientSession) -> None:
    headers = {"Impersonate-Group": "dev"}
    status, answer = await call(https, "GET", "/api", headers=headers)
    assert (status, answer["reason"]) == (400, "BadRequest")
    assert "without impersonating a user" in answer["message"]


async def test_a_subject_access_review_answers_for_somebody_else(
    https: aiohttp.ClientSession,
) -> None:
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    attributes = {"verb": "impersonate", "resource": "users", "name": "bob"}
    for groups, allowed in ((["system:masters"], True), (["dev"], False)):
        spec = {"user": "somebody", "groups": groups, "resourceAttributes": attributes}
        body = {
            "kind": "SubjectAccessReview",
            "apiVersion": "authorization.k8s.io/v1",
            "spec": spec,
        }
        status, answer = await call(https, "POST", path, body)
        assert (status, answer["status"]["allowed"]) == (201, allowed)


async def test_the_audit_log_names_user_and_impersonated_user(
    https: aiohttp.ClientSession, member: Member
) -> None:
    headers = {"Impersonate-User": "audited", "User-Agent": "conformance"}
    assert (await call(https, "GET", f"{CONFIGMAPS}/absent", headers=headers))[0] == 403
    lines = member.plane.audit_log.read_text().splitlines()
    event = next(
        event
        for event in map(json.loads, reversed(lines))
        if event.get("impersonatedUser", {}).get("username") == "audited"
    )
    assert (event["kind"], event["level"], event["stage"]) == (
        "Event",
        "Metadata",
        "ResponseComplete",
    )
    assert event["user"]["username"] == "admin-token"
    assert (event["verb"], event["userAgent"], event["requestURI"]) == (
        "get",
        "conformance",
        f"{CONFIGMAPS}/absent",
    )
    reference = {
        "resource": "configmaps",
        "namespace": NAMESPACE,
        "name": "absent",
        "apiVersion": "v1",
    }
    assert event["objectRef"] == reference
    assert event["responseStatus"]["code"] == 403
    assert event["annotations"]["authorization.k8s.io/decision"] == "forbid"


# exec


async def run(
    https: aiohttp.ClientSession, protocol: str, command: list[str], stdin: bytes | None
) -> tuple[bytes, Json]:
    """What a command printed, and its last Status."""
    query = [("command", word) for word in command] + [
        ("stdout", "true"),
        ("stderr", "true"),
    ]
    if stdin is not None:
        query.append(("stdin", "true"))
    output, status = b"", {}
    async with (
        asyncio.timeout(20),
        https.ws_connect(
            f"{PODS}/{POD}/exec", params=query, protocols=[protocol]
        ) as socket,
    ):
        assert socket.protocol == protocol
        if stdin is not None:
            await socket.send_bytes(b"\x00" + stdin)
            await socket.send_bytes(b"\xff\x00")  # v5: this channel is closed
        async for message in socket:
            if message.data[:1] == b"\x01":
                output += message.data[1:]
            elif message.data[:1] == b"\x03" and message.data[1:]:
                status = json.loads(message.data[1:])
    return output, status


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v5.channel.k8s.io"])
async def test_exec_ends_with_the_exit_code(
    https: aiohttp.ClientSession, protocol: str
) -> None:
    output, status = await run(
        https, protocol, ["sh", "-c", "echo hello; exit 7"], None
    )
    assert output == b"hello\n"
    assert (status["status"], status["reason"]) == ("Failure", "NonZeroExitCode")
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]
    output, status = await run(https, protocol, ["true"], None)
    assert (output, status["status"]) == (b"", "Success")


async def test_the_newer_exec_protocol_can_end_stdin(
    https: aiohttp.ClientSession,
) -> None:
    output, status = await run(https, "v5.channel.k8s.io", ["cat"], b"some words")
    assert (output, status["status"]) == (b"some words", "Success")


async def test_exec_without_an_upgrade_is_refused(https: aiohttp.ClientSession) -> None:
    status, answer = await call(
        https, "GET", f"{PODS}/{POD}/exec?command=true&stdout=true"
    )
    assert (status, answer["kind"]) == (400, "Status")
    assert answer["message"].startswith("Upgrade request required")
