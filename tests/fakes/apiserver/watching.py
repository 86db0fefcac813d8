"""Watches: the changes of a resource as a stream of JSON lines, with bookmarks."""

import json
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.fakes.apiserver.bodies import Form
from tests.fakes.apiserver.requests import RequestInfo
from tests.fakes.apiserver.resources import Resource
from tests.fakes.apiserver.selectors import Predicate
from tests.fakes.apiserver.status import ApiError, bad_request
from tests.fakes.apiserver.store import Change, Store

__all__ = ["serve_watch"]

Json = dict[str, Any]

DEFAULT_TIMEOUT_SECONDS = 1800.0  # kube-apiserver's --min-request-timeout
# As kube-apiserver's watch cache: about one a minute, and one shortly before the end.
BOOKMARK_INTERVAL_SECONDS = 60.0
LAST_BOOKMARK_SECONDS = 2.0
INITIAL_EVENTS_END = {"k8s.io/initial-events-end": "true"}


async def serve_watch(
    request: web.Request,
    info: RequestInfo,
    resource: Resource,
    store: Store,
    predicate: Predicate,
    clock: Callable[[], float] = time.monotonic,
) -> web.StreamResponse:
    """Stream until the watch's timeout or until the client goes."""
    text = info.first("resourceVersion")
    if text and not text.isdigit():
        raise bad_request(f'resourceVersion: Invalid value: "{text}"')
    form = Form(request, info)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    watch = _Watch(response, info, resource, store, predicate, form, clock)
    try:
        await watch.run(int(text or 0))
    except ApiError as error:
        # The head is out: the failure is an event, as kube-apiserver has it.
        await watch.send({"type": "ERROR", "object": error.status()})
    await response.write_eof()
    return response


class _Watch:
    def __init__(
        self,
        response: web.StreamResponse,
        info: RequestInfo,
        resource: Resource,
        store: Store,
        predicate: Predicate,
        form: Form,
        clock: Callable[[], float],
    ) -> None:
        self.response = response
        self.resource = resource
        self.store = store
        self.form = form
        self.clock = clock
        namespace = info.namespace if resource.namespaced else ""
        self.matches: Predicate = lambda item: (
            namespace in ("", item["metadata"].get("namespace")) and predicate(item)
        )
        self.namespace = namespace
        self.first = True  # column definitions go with the first event only
        timeout = info.first("timeoutSeconds")
        self.deadline = clock() + float(timeout or DEFAULT_TIMEOUT_SECONDS)
        self.bookmarks = info.is_true("allowWatchBookmarks")
        self.initial_events_end = info.is_true("sendInitialEvents")
        self.next_bookmark = self._bookmark_time()

    async def run(self, version: int) -> None:
        """Send what is there, if the watch begins at "now", then all changes."""
        if version == 0 or self.initial_events_end:
            version = self.store.version
            for item in self.store.items(self.resource, self.namespace):
                if self.matches(item):
                    await self.send_event("ADDED", item)
            if self.initial_events_end and self.bookmarks:
                await self.send_bookmark(version, INITIAL_EVENTS_END)
        async for change in self.store.watch(version, self._next_wait):
            if change is not None:
                version = change.version
                await self._send_change(change)
            if self.clock() >= self.deadline:
                return
            if self.bookmarks and self.clock() >= self.next_bookmark:
                await self.send_bookmark(
                    max(version, self.store.version if change is None else 0)
                )
                self.next_bookmark = self._bookmark_time()

    def _bookmark_time(self) -> float:
        now = self.clock()
        last = self.deadline - LAST_BOOKMARK_SECONDS
        regular = now + BOOKMARK_INTERVAL_SECONDS
        return min(regular, last) if now < last else regular

    def _next_wait(self) -> float:
        until = (
            min(self.deadline, self.next_bookmark) if self.bookmarks else self.deadline
        )
        return max(0.0, until - self.clock())

    async def _send_change(self, change: Change) -> None:
        """Seen through a selector, a change of labels may be an arrival or a departure."""
        if change.resource is not self.resource:
            return
        now = change.kind != "DELETED" and self.matches(change.item)
        before = change.previous is not None and self.matches(change.previous)
        if now:
            await self.send_event("MODIFIED" if before else "ADDED", change.item)
        elif before:
            await self.send_event("DELETED", change.item)

    async def send_event(self, kind: str, item: Json) -> None:
        await self.send(self.form.event(self.resource, kind, item, first=self.first))
        self.first = False

    async def send_bookmark(
        self, version: int, annotations: Json | None = None
    ) -> None:
        metadata: Json = {"resourceVersion": str(version), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        header = {"kind": self.resource.kind, "apiVersion": self.resource.api_version}
        await self.send_event("BOOKMARK", {**header, "metadata": metadata})

    async def send(self, event: Json) -> None:
        await self.response.write(json.dumps(event).encode() + b"\n")
