"""What only the demo apiserver has to keep: its program, its restarts, its limits.

What it has in common with a real one is in tests/conformance.
"""

import asyncio
import json
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.fakes.apiserver import protobuf
from tests.fakes.apiserver.identity import service_account
from tests.fakes.apiserver.rbac import Question
from tests.fakes.apiserver.resources import find
from tests.fakes.apiserver.server import DemoApiserver
from tests.fakes.apiserver.status import ApiError
from tests.fakes.apiserver.store import Store

CONFIGMAPS = find("", "v1", "configmaps")


def test_the_program_says_when_it_is_ready_and_ends_with_its_parent(
    tmp_path: Path,
) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fakes.apiserver",
        "--dir",
        str(tmp_path),
        "--with-parent",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        word, url = program.stdout.readline().split()
        config = tmp_path / "admin.kubeconfig"
        assert word == "ready"
        assert (
            yaml.safe_load(config.read_text())["clusters"][0]["cluster"]["server"]
            == url
        )
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        program.stdin.close()
        assert program.wait(timeout=20) == 0


async def test_after_a_restart_port_objects_and_tokens_are_the_same(
    tmp_path: Path,
) -> None:
    server = DemoApiserver("alpha", tmp_path)
    await server.start()
    url = server.url
    server.store.create(CONFIGMAPS, "default", {"metadata": {"name": "kept"}})
    await server.stop()
    await server.start()
    try:
        assert server.url == url
        token = (server.service_account_directory / "token").read_text()
        context = ssl.create_default_context(cafile=server.ca.certificate_path)
        headers = {
            "Authorization": f"Bearer {token}",
            "Impersonate-User": "tower:admin",
            "Impersonate-Group": "tower:cluster-admins",
        }
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(
            url, connector=connector, headers=headers
        ) as session:
            path = "/api/v1/namespaces/default/configmaps/kept"
            async with session.get(path, headers={"Connection": "close"}) as response:
                assert response.status == 200
    finally:
        await server.stop()


async def test_the_agents_account_can_do_nothing_in_its_own_name(
    tmp_path: Path,
) -> None:
    async with DemoApiserver("alpha", tmp_path) as server:
        agent = service_account("tower-system", "tower-agent")
        for verb, resource, allowed in (
            ("get", "namespaces", True),
            ("impersonate", "users", True),
            ("list", "pods", False),
            ("get", "secrets", False),
        ):
            question = Question(verb=verb, resource=resource, namespace="", name="x")
            assert server.authorizer.allows(agent, question) is allowed, (
                verb,
                resource,
            )


async def test_a_watch_that_falls_behind_the_history_is_expired() -> None:
    store = Store(history_changes=3)
    watch = store.watch(store.version, lambda: 10.0)
    first = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    for index in range(2):
        store.create(CONFIGMAPS, "default", {"metadata": {"name": f"a-{index}"}})
    assert (await first).item["metadata"]["name"] == "a-0"
    for index in range(4):
        store.create(CONFIGMAPS, "default", {"metadata": {"name": f"b-{index}"}})
    assert (await anext(watch)).item["metadata"]["name"] == "a-1"
    with pytest.raises(ApiError, match="too old resource version"):
        await anext(watch)


async def test_a_silent_watch_wakes_when_it_wants_to() -> None:
    store = Store()
    watch = store.watch(store.version, lambda: 0.0)
    assert await anext(watch) is None


def test_protobuf_bodies_become_what_json_would_be() -> None:
    # ConfigMap {metadata: {name: "a"}, data: {"k": "v"}}, as kubectl sends it.
    item = b"\x0a\x03\x0a\x01a" + b"\x12\x06\x0a\x01k\x12\x01v"
    header = b"\x0a\x0f" + b"\x0a\x02v1" + b"\x12\x09ConfigMap"
    body = b"k8s\x00" + header + b"\x12" + bytes([len(item)]) + item
    assert protobuf.decode(body) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "a"},
        "data": {"k": "v"},
    }


@pytest.mark.parametrize("cut", range(4, 30))
def test_a_cut_protobuf_body_is_a_bad_request_or_a_shorter_object(cut: int) -> None:
    item = b"\x0a\x03\x0a\x01a" + b"\x12\x06\x0a\x01k\x12\x01v"
    body = (
        b"k8s\x00"
        + b"\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12"
        + bytes([len(item)])
        + item
    )
    try:
        assert json.dumps(protobuf.decode(body[:cut]))
    except ApiError as error:
        assert error.code == 400
