"""The official Python client, both halves, through the tunnel: no event lost, none doubled.

Two thousand objects come and go while a watch is open, and are listed in pages in between.
Writers and watchers all go through the tunnel. Also exec by the synchronous half (the
asynchronous half's exec ignores `tls-server-name`; the README says so).
"""

import asyncio
import collections
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import kubernetes.aio.client
import kubernetes.aio.config
import kubernetes.aio.watch
import kubernetes.client
import kubernetes.config
import kubernetes.stream
import kubernetes.watch
import pytest

from tests.e2e.kinds import BOTH_KINDS
from tests.e2e.kubectl import Kubectl
from tests.e2e.member import Member
from tests.e2e.raw_client import Access, RawClient
from tests.e2e.script import ready_box
from tests.e2e.tower import Tower

pytestmark = BOTH_KINDS

OBJECTS = 2_000
PAGE_SIZE = 300
WRITERS = 8

# The watch ends by itself when events are lost; far above what is needed.
WATCH_TIMEOUT_SECONDS = 90

SELECTOR = "load=two-thousand"

_numbers = itertools.count()

# What a watch must have seen at the end: each object come once and go once.
EXPECTED = {
    (event, f"object-{number:04}"): 1
    for event in ("ADDED", "DELETED")
    for number in range(OBJECTS)
}


@pytest.fixture
def kubeconfig(tower: Tower) -> Path:
    return tower.kubeconfig("alpha")


@pytest.fixture
def namespace(alpha: Member) -> Iterator[str]:
    name = f"python-client-{next(_numbers)}"
    alpha.admin.quiet("create", "namespace", name)
    yield name
    alpha.admin.quiet("delete", "namespace", name, "--wait=false")


async def write_load(kubeconfig: Path, namespace: str) -> None:
    """Create every object."""
    access = Access(kubeconfig)
    path = f"/api/v1/namespaces/{namespace}/configmaps"

    async def write(start: int) -> None:
        async with RawClient(access) as client:
            for number in range(start, OBJECTS, WRITERS):
                name = f"object-{number:04}"
                labels = dict([SELECTOR.split("=")])
                body = {"metadata": {"name": name, "labels": labels}}
                answer = await client.request("POST", path, body)
                assert answer.status == 201, answer

    await asyncio.gather(*(write(start) for start in range(WRITERS)))


async def delete_load(kubeconfig: Path, namespace: str) -> None:
    async with RawClient(Access(kubeconfig)) as client:
        answer = await client.request(
            "DELETE",
            f"/api/v1/namespaces/{namespace}/configmaps?labelSelector={SELECTOR}",
        )
        assert answer.status == 200, answer


@contextlib.contextmanager
def synchronous_client(kubeconfig: Path) -> Iterator[kubernetes.client.ApiClient]:
    """A client whose connections end with it; its own `with` leaves them to the collector."""
    with kubernetes.config.new_client_from_config(str(kubeconfig)) as api_client:
        try:
            yield api_client
        finally:
            api_client.rest_client.pool_manager.clear()


@pytest.mark.timeout(180)
def test_the_synchronous_half_sees_every_event_once(
    kubeconfig: Path, namespace: str
) -> None:
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    with synchronous_client(kubeconfig) as api_client:
        core = kubernetes.client.CoreV1Api(api_client)
        first = core.list_namespaced_config_map(namespace, label_selector=SELECTOR)
        assert first.items == []
        writer = threading.Thread(
            target=lambda: asyncio.run(write_load(kubeconfig, namespace))
        )
        writer.start()
        watch = kubernetes.watch.Watch()
        for event in watch.stream(
            core.list_namespaced_config_map,
            namespace,
            label_selector=SELECTOR,
            resource_version=first.metadata.resource_version,
            timeout_seconds=WATCH_TIMEOUT_SECONDS,
        ):
            seen[event["type"], event["object"].metadata.name] += 1
            if seen.total() == OBJECTS:
                writer.join()
                assert listed_in_pages(core, namespace) == OBJECTS
                asyncio.run(delete_load(kubeconfig, namespace))
            if seen.total() == 2 * OBJECTS:
                watch.stop()
        writer.join()
    assert seen == EXPECTED


def listed_in_pages(core: kubernetes.client.CoreV1Api, namespace: str) -> int:
    """How many different objects the pages hold together."""
    names: list[str] = []
    continued = None
    while continued != "":
        page = core.list_namespaced_config_map(
            namespace, label_selector=SELECTOR, limit=PAGE_SIZE, _continue=continued
        )
        names += [item.metadata.name for item in page.items]
        continued = page.metadata._continue or ""
    assert len(names) == len(set(names))
    return len(names)


@pytest.fixture
async def aio_core(
    kubeconfig: Path,
) -> AsyncIterator["kubernetes.aio.client.CoreV1Api"]:
    api_client = await kubernetes.aio.config.new_client_from_config(str(kubeconfig))
    async with api_client:
        yield kubernetes.aio.client.CoreV1Api(api_client)


@pytest.mark.timeout(180)
async def test_the_asynchronous_half_sees_every_event_once(
    aio_core: "kubernetes.aio.client.CoreV1Api", kubeconfig: Path, namespace: str
) -> None:
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    first = await aio_core.list_namespaced_config_map(
        namespace, label_selector=SELECTOR
    )
    async with asyncio.TaskGroup() as tasks, kubernetes.aio.watch.Watch() as watch:
        tasks.create_task(write_load(kubeconfig, namespace))
        async for event in watch.stream(
            aio_core.list_namespaced_config_map,
            namespace,
            label_selector=SELECTOR,
            resource_version=first.metadata.resource_version,
            timeout_seconds=WATCH_TIMEOUT_SECONDS,
        ):
            seen[event["type"], event["object"].metadata.name] += 1
            if seen.total() == OBJECTS:
                tasks.create_task(delete_load(kubeconfig, namespace))
            if seen.total() == 2 * OBJECTS:
                watch.stop()
    assert seen == EXPECTED


def test_exec_by_the_synchronous_half(
    kubeconfig: Path, tunnelled: Kubectl, namespace: str
) -> None:
    kubectl = tunnelled.variant(namespace=namespace)
    kubectl.quiet("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    ready_box(kubectl)
    with synchronous_client(kubeconfig) as api_client:
        channel = kubernetes.stream.stream(
            kubernetes.client.CoreV1Api(api_client).connect_get_namespaced_pod_exec,
            "box",
            namespace,
            command=["sh", "-c", "read line; echo got $line; exit 7"],
            stdin=True,
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
        channel.write_stdin("hello\n")
        channel.run_forever(timeout=20)
        assert channel.read_stdout() == "got hello\n"
        assert channel.returncode == 7
        channel.close()
        # close() leaves the socket to the collector once the peer has ended the session.
        channel.sock.shutdown()
