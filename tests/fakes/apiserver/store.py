"""Objects in memory, with what Kubernetes promises of them: versions, optimistic locking, lists in pages, watches.

One counter gives every change its resourceVersion, as etcd's revision does. Objects in here
are never changed in place: a reader may keep what it got.
"""

import asyncio
import base64
import datetime
import json
import secrets
import uuid
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.fakes.apiserver.resources import Resource
from tests.fakes.apiserver.selectors import Predicate
from tests.fakes.apiserver.status import (
    already_exists,
    bad_request,
    conflict,
    expired,
    invalid,
    not_found,
)

__all__ = ["Change", "Page", "Store", "now_text"]

Json = dict[str, Any]
Key = tuple[str, str]  # namespace ("" for cluster-wide), name

# What a watch may lag behind, and how old a resourceVersion may be: a test run makes fewer changes.
HISTORY_CHANGES = 20_000
# Lists that are being paged through at a time; the oldest answers 410, as after etcd's compaction.
MAX_SNAPSHOTS = 32


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of one object."""

    version: int
    resource: Resource
    kind: str  # ADDED, MODIFIED, DELETED
    item: Json
    previous: Json | None


@dataclass(frozen=True, kw_only=True)
class Page:
    """A part of a list."""

    items: list[Json]
    version: int
    continue_token: str = ""
    remaining: int = 0


class Store:
    """All objects of one demo cluster. For one event loop; no method but `watch` awaits."""

    def __init__(self, history_changes: int = HISTORY_CHANGES) -> None:
        self.version = 1
        self._items: dict[Resource, dict[Key, Json]] = {}
        self._history: deque[Change] = deque(maxlen=history_changes)
        self._forgotten_version = 0  # version of the newest change that history dropped
        self._wakeups: set[asyncio.Event] = set()  # one a running watch
        self._snapshots: OrderedDict[str, Page] = OrderedDict()

    # Reading

    def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Raises ApiError 404."""
        try:
            return self._items[resource][namespace, name]
        except KeyError:
            raise not_found(resource.group, resource.plural, name) from None

    def items(self, resource: Resource, namespace: str = "") -> list[Json]:
        """All objects, or those of one namespace, in the order of their keys."""
        found = sorted(self._items.get(resource, {}).items())
        return [item for (space, _), item in found if namespace in ("", space)]

    def list(
        self,
        resource: Resource,
        namespace: str,
        predicate: Predicate,
        *,
        limit: int = 0,
        continue_token: str = "",
    ) -> Page:
        """A list as it is now; with a limit, the rest comes from the same moment.

        Raises:
            ApiError: 410 if the rest is no longer kept, 400 for a token that is not ours.
        """
        if continue_token:
            whole, offset = self._resume(continue_token)
        else:
            items = [
                item for item in self.items(resource, namespace) if predicate(item)
            ]
            whole, offset = Page(items=items, version=self.version), 0
        end = offset + limit if limit else len(whole.items)
        items = whole.items[offset:end]
        remaining = len(whole.items) - offset - len(items)
        if not remaining:
            return Page(items=items, version=whole.version)
        return Page(
            items=items,
            version=whole.version,
            continue_token=self._keep(whole, end, continue_token),
            remaining=remaining,
        )

    def _keep(self, whole: Page, offset: int, previous: str) -> str:
        identifier = _decode_token(previous)[0] if previous else secrets.token_hex(8)
        self._snapshots[identifier] = whole
        while len(self._snapshots) > MAX_SNAPSHOTS:
            self._snapshots.popitem(last=False)
        return base64.urlsafe_b64encode(
            json.dumps([identifier, offset]).encode()
        ).decode()

    def _resume(self, token: str) -> tuple[Page, int]:
        identifier, offset = _decode_token(token)
        if identifier not in self._snapshots:
            raise expired(
                "The provided continue parameter is too old to display a consistent list result."
                " You must start a new list without the continue parameter."
            )
        return self._snapshots[identifier], offset

    # Writing

    def create(
        self, resource: Resource, namespace: str, item: Json, *, dry_run: bool = False
    ) -> Json:
        """Store a new object. Raises ApiError: 409 if its name is taken, 422 without a name."""
        metadata = dict(item.get("metadata") or {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        name = metadata.get("name")
        if not name:
            problem = "Required value: name or generateName is required"
            raise invalid(resource.kind, resource.group, "", "metadata.name", problem)
        if (namespace, name) in self._items.get(resource, {}):
            raise already_exists(resource.group, resource.plural, name)
        if resource.namespaced:
            metadata["namespace"] = namespace
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = now_text()
        header = {"kind": resource.kind, "apiVersion": resource.api_version}
        created = {**header, **item, **header, "metadata": metadata}
        return self._commit(resource, "ADDED", created, None, dry_run=dry_run)

    def update(self, resource: Resource, item: Json, *, dry_run: bool = False) -> Json:
        """Replace an object.

        Raises:
            ApiError: 409 if the item carries a resourceVersion or UID that is not the current one.
        """
        metadata = dict(item["metadata"])
        name = metadata["name"]
        previous = self.get(resource, metadata.get("namespace", ""), name)
        old = previous["metadata"]
        for field in ("resourceVersion", "uid"):
            wanted = metadata.get(field)
            if wanted and wanted != old[field]:
                raise conflict(resource.group, resource.plural, name)
        for field in ("uid", "creationTimestamp", "resourceVersion"):
            metadata[field] = old[field]
        header = {"kind": resource.kind, "apiVersion": resource.api_version}
        changed = {**header, **item, **header, "metadata": metadata}
        if changed == previous:
            return previous  # nothing changed: no new version, no event
        return self._commit(resource, "MODIFIED", changed, previous, dry_run=dry_run)

    def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        dry_run: bool = False,
    ) -> Json:
        """Remove an object and return it as it was last. Raises ApiError: 404, 409 for another's UID."""
        previous = self.get(resource, namespace, name)
        found = previous["metadata"]["uid"]
        if uid and uid != found:
            reason = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {found}"
            raise conflict(resource.group, resource.plural, name, reason)
        return self._commit(resource, "DELETED", previous, previous, dry_run=dry_run)

    def _commit(
        self,
        resource: Resource,
        kind: str,
        item: Json,
        previous: Json | None,
        *,
        dry_run: bool,
    ) -> Json:
        if dry_run:
            return item
        self.version += 1
        metadata = {**item["metadata"], "resourceVersion": str(self.version)}
        item = {**item, "metadata": metadata}
        items = self._items.setdefault(resource, {})
        key = metadata.get("namespace", ""), metadata["name"]
        if kind == "DELETED":
            del items[key]
        else:
            items[key] = item
        if len(self._history) == self._history.maxlen:
            self._forgotten_version = self._history[0].version
        self._history.append(
            Change(
                version=self.version,
                resource=resource,
                kind=kind,
                item=item,
                previous=previous,
            )
        )
        for wakeup in self._wakeups:
            wakeup.set()
        return item

    # Watching

    def changes_since(self, version: int) -> Iterator[Change]:
        """All changes after a version, oldest first. Raises ApiError 410 if some are forgotten."""
        if version < self._forgotten_version:
            raise expired(
                f"too old resource version: {version} ({self._forgotten_version + 1})"
            )
        newer: list[Change] = []
        for change in reversed(self._history):
            if change.version <= version:
                break
            newer.append(change)
        return reversed(newer)

    async def watch(
        self, version: int, next_wait: Callable[[], float | None]
    ) -> AsyncIterator[Change | None]:
        """Yield all changes after a version, for ever; None when next_wait() seconds passed without one.

        Raises:
            ApiError: 410 if the reader is too slow, or started too far back.
        """
        with self._wakeup() as wakeup:
            while True:
                wakeup.clear()
                for change in self.changes_since(version):
                    version = change.version
                    yield change
                if self.version > version:
                    continue  # more has come while the reader was busy
                try:
                    async with asyncio.timeout(next_wait()):
                        await wakeup.wait()
                except TimeoutError:
                    yield None

    def forget_history(self) -> None:
        """As etcd's compaction does: watches from before now answer 410, running ones go on."""
        self._history.clear()
        self._forgotten_version = self.version
        self._snapshots.clear()

    @contextmanager
    def _wakeup(self) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._wakeups.add(event)
        try:
            yield event
        finally:
            self._wakeups.discard(event)


def now_text() -> str:
    """The time as metadata carries it: RFC 3339, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _decode_token(token: str) -> tuple[str, int]:
    try:
        identifier, offset = json.loads(base64.urlsafe_b64decode(token))
        return str(identifier), int(offset)
    except ValueError:
        raise bad_request("continue key is not valid: encoding is not valid") from None
