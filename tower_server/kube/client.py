"""One request to the host's apiserver, or one watch: deadline, retries, rate, and kinds of errors.

What a request asks for is asked again only when that is harmless: reads after anything, writes
after 429 and 503 (the apiserver did nothing) but not after a lost answer. (aiohttp itself repeats a
PUT once when the connection was closed: a compare-and-swap that was done the first time is a Conflict
then, and whoever reads again finds its own work.)
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient

from tower_server.kube.errors import (
    KubeError,
    Unreachable,
    error_of_status,
)
from tower_server.kube.rate import RequestRate
from tower_server.kube.resources import Object, Resource, name_of

__all__ = ["FIELD_MANAGER", "KubeClient", "WatchEvent"]

# One attempt. An apiserver that works answers in milliseconds; behind a load balancer that fails
# over, in a second or two.
ATTEMPT_SECONDS = 3.0
# All attempts: a join and an admin's order have 10 s, for up to three requests when all is well.
REQUEST_SECONDS = 7.0
ATTEMPTS = 4
# Before the second attempt, doubled before each further one; jittered by half.
FIRST_PAUSE_SECONDS = 0.2
# What an apiserver may ask for in Retry-After; it sends 1.
MAX_RETRY_AFTER_SECONDS = 5.0

# The apiserver ends a watch after this; jittered so that ours do not all begin anew together.
WATCH_SECONDS = (240, 480)
# Bookmarks come at least once a minute. A watch that is silent for longer is dead.
WATCH_SILENCE_SECONDS = 90.0

# Objects in one answer; see access.READ_BUFFER_BYTES.
PAGE_LIMIT = 250

# Who we are in server-side apply: the same for all servers of one Tower, which take turns.
FIELD_MANAGER = "tower-server"

# Of an apiserver's sentence that we repeat.
MAX_MESSAGE_CHARS = 300

WatchEvent = tuple[str, Object]


class KubeClient:
    """Requests for plain JSON objects. One for each server process; close it."""

    def __init__(
        self,
        access: ApiClient,
        *,
        sleep: Callable[[float], Any] = asyncio.sleep,
        randomness: random.Random | None = None,
    ) -> None:
        self._access = access
        self._sleep = sleep
        self._random = randomness or random.Random()
        self._rate = RequestRate(asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Close all connections; requests under way fail. Repeating is harmless."""
        await self._access.close()
        # Connections that were aborted are gone with the loop's next turn.
        await asyncio.sleep(0)

    # Reading

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """Read one object.

        Raises:
            KubeError: One of its kinds; NotFound if there is none of this name.
        """
        return await self._request("GET", resource, namespace, name)

    async def list(
        self, resource: Resource, namespace: str | None, **selectors: str
    ) -> tuple[list[Object], str]:
        """Read all objects, page by page, and the resource version to watch from.

        Args:
            selectors: `labelSelector` and `fieldSelector`.
        """
        items: list[Object] = []
        query: dict[str, str] = {**selectors, "limit": str(PAGE_LIMIT)}
        while True:
            page = await self._request("GET", resource, namespace, query=query)
            metadata = page.get("metadata") or {}
            for item in page.get("items") or ():
                # Items of a list have no type of their own.
                item.setdefault("apiVersion", resource.api_version)
                item.setdefault("kind", resource.kind)
                items.append(item)
            if metadata.get("continue"):
                query["continue"] = metadata["continue"]
            elif "resourceVersion" in metadata:
                return items, str(metadata["resourceVersion"])
            else:
                raise Unreachable(f"GET {resource}", "the answer is no list")

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        since: str,
        **selectors: str,
    ) -> AsyncIterator[WatchEvent]:
        """Yield what changes after `since`, until the apiserver ends it; bookmarks too.

        Raises:
            Expired: If `since` is too old: list again.
            KubeError: If it cannot be watched, or breaks.
        """
        what = f"watch {resource}"
        seconds = self._random.randint(*WATCH_SECONDS)
        query = {
            **selectors,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(seconds),
        }
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=ATTEMPT_SECONDS,
            sock_read=WATCH_SILENCE_SECONDS,
        )
        response = await self._send(
            what, "GET", resource.path(namespace), query, timeout=timeout
        )
        try:
            if response.status != 200:
                raise await _error_of(response, what)
            while line := await response.content.readline():
                yield _event_of(line, what)
        except (OSError, aiohttp.ClientError, ValueError) as error:
            raise Unreachable(what, _text(error)) from error
        finally:
            _hang_up(response)

    # Writing

    async def create(self, resource: Resource, item: Object) -> Object:
        """Make an object.

        Raises:
            Conflict: If there is one of this name.
        """
        namespace = item["metadata"].get("namespace")
        return await self._request("POST", resource, namespace, body=item)

    async def replace(self, resource: Resource, item: Object) -> Object:
        """Write an object that was read before, as a compare-and-swap.

        Raises:
            Conflict: If it was changed since.
        """
        metadata = item["metadata"]
        assert metadata.get("resourceVersion"), "without one it would be no comparison"
        return await self._request(
            "PUT", resource, metadata.get("namespace"), name_of(item), body=item
        )

    async def apply(
        self, resource: Resource, item: Object, *, subresource: str = ""
    ) -> Object:
        """Server-side apply: own exactly the fields of `item`, whoever owned them before."""
        return await self._request(
            "PATCH",
            resource,
            item["metadata"].get("namespace"),
            name_of(item),
            subresource=subresource,
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=item,
            content_type="application/apply-patch+yaml",
        )

    async def merge(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any],
    ) -> Object:
        """A merge patch; with `metadata.resourceVersion` in it a compare-and-swap."""
        return await self._request(
            "PATCH",
            resource,
            namespace,
            name,
            body=patch,
            content_type="application/merge-patch+json",
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        revision: str | None = None,
    ) -> None:
        """Ask for an object's deletion, of this resource version only if one is given.

        Raises:
            NotFound: If there is none.
            Conflict: If it was changed since.
        """
        body: Object = {"propagationPolicy": "Background"}
        if revision is not None:
            body["preconditions"] = {"resourceVersion": revision}
        await self._request("DELETE", resource, namespace, name, body=body)

    # Inside

    async def _request(
        self,
        method: str,
        resource: Resource,
        namespace: str | None,
        name: str | None = None,
        *,
        subresource: str = "",
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        what = f"{method} {resource}{f'/{name}' if name else ''}"
        path = resource.path(namespace, name, subresource)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + REQUEST_SECONDS
        await self._sleep_if(self._rate.wait_seconds(loop.time()))
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            left = min(ATTEMPT_SECONDS, deadline - loop.time())
            wait, error = await self._attempt(
                what, method, path, query, body, content_type, left
            )
            if not isinstance(error, KubeError):
                return error
            wait = pause * self._random.uniform(0.5, 1.5) if wait is None else wait
            pause *= 2
            is_last = attempt == ATTEMPTS or loop.time() + wait >= deadline
            if is_last or not _may_repeat(error, method):
                raise error
            await self._sleep_if(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(
        self,
        what: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        timeout_seconds: float,
    ) -> tuple[float | None, Object | KubeError]:
        """Ask once: what came, and after how many seconds the server wants to be asked again."""
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        try:
            response = await self._send(
                what, method, path, query, body, content_type, timeout=timeout
            )
            async with response:
                if response.status >= 400:
                    error = await _error_of(response, what)
                    return _retry_after(response), error
                answer: Object = json.loads(await response.read())
                return None, answer
        except KubeError as error:
            return None, error
        except (OSError, aiohttp.ClientError, ValueError) as error:
            return None, Unreachable(what, _text(error))

    async def _send(
        self,
        what: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any = None,
        content_type: str = "application/json",
        *,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """Send a request and return as soon as the head of the answer is here."""
        try:
            # Renews a token that is due, and adds it.
            _, url, headers, data, _ = await self._access.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={
                    "Accept": "application/json",
                    "Content-Type": content_type,
                },
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = await self._access.rest_client.request(
                method, url, headers=headers, body=data, _request_timeout=timeout
            )
        except (OSError, aiohttp.ClientError) as error:
            raise Unreachable(what, _text(error)) from error
        response: aiohttp.ClientResponse = answer.response
        return response

    async def _sleep_if(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)


def _hang_up(response: aiohttp.ClientResponse) -> None:
    """End an answer that has no end. Without the goodbyes of TLS, which nobody would wait for."""
    connection = response.connection
    transport = connection.transport if connection is not None else None
    response.close()
    if transport is not None:
        transport.abort()


def _may_repeat(error: KubeError, method: str) -> bool:
    if not isinstance(error, Unreachable):
        return False
    was_not_done = error.reason.startswith(("429", "503"))
    return method == "GET" or was_not_done


async def _error_of(response: aiohttp.ClientResponse, what: str) -> KubeError:
    try:
        message = str(json.loads(await response.read()).get("message", ""))
    except (ValueError, AttributeError, OSError, aiohttp.ClientError):
        message = response.reason or ""
    return error_of_status(response.status, what, message[:MAX_MESSAGE_CHARS])


def _event_of(line: bytes, what: str) -> WatchEvent:
    event = json.loads(line)
    if not isinstance(event, dict) or not {"type", "object"} <= event.keys():
        raise ValueError("the answer is no event of a watch")
    kind, item = str(event["type"]), event["object"]
    if kind == "ERROR":
        code = int(item.get("code", 500))
        raise error_of_status(code, what, str(item.get("message", "")))
    return kind, item


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    text = response.headers.get("Retry-After", "")
    return min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isdigit() else None


def _text(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error)[:MAX_MESSAGE_CHARS] or type(error).__name__
