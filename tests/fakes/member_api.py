"""As much of a kube-apiserver as joining and direct connections need: its UID, reviews, one Secret, nodes.

Served over real HTTP; `client` is a `shared.member.questions.MemberRequest` for any address.
"""

import asyncio
import base64
import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from aiohttp import web

from shared.member.questions import MemberAnswer, MemberRequest

__all__ = ["MemberApi", "client", "member_api"]


_ENDED = web.AppKey("ended", asyncio.Event)


@dataclasses.dataclass
class MemberApi:
    """The member as a test sees it; change the fields at any time."""

    uid: str = "11111111-2222-3333-4444-555555555555"
    # What the agent may not do, as `verb resource` or `verb resource/name`.
    denied: set[str] = dataclasses.field(default_factory=set)
    # None: there is no such Secret.
    secret: dict[str, str] | None = dataclasses.field(default_factory=dict)
    version: int = 1
    # What requests for /version?slow have arrived, and what they wait for.
    slow_requests: int = 0
    may_answer: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    # An answer for every request instead of the real one.
    answer_with: int | None = None
    address: str = ""
    # The Authorization that it accepts; None: whatever comes.
    authorization: str | None = None
    # Requests that were let in, by path, with what they were sent with.
    requests: list[tuple[str, Mapping[str, str]]] = dataclasses.field(
        default_factory=list
    )

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app[_ENDED] = asyncio.Event()
        app.router.add_get("/version", self._version)
        app.router.add_get("/api/v1/namespaces/kube-system", self._namespace)
        reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        app.router.add_post(reviews, self._review)
        app.router.add_get("/api/v1/namespaces/{ns}/secrets/{name}", self._get_secret)
        app.router.add_patch(
            "/api/v1/namespaces/{ns}/secrets/{name}", self._patch_secret
        )
        app.router.add_get("/api/v1/nodes", self._nodes)
        app.router.add_get("/echo", self._echo)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.app[_ENDED].is_set():
            # A connection whose TLS came about while the server ended is nobody's, and lives on.
            if request.transport is not None:
                request.transport.abort()
            raise asyncio.CancelledError
        if self.answer_with is not None:
            return _status(self.answer_with, "told to")
        given = request.headers.get("Authorization")
        if self.authorization is not None and given != self.authorization:
            return _status(401, "Unauthorized")
        self.requests.append((request.path, dict(request.headers)))
        return await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        if "slow" in request.query:
            self.slow_requests += 1
            await self.may_answer.wait()
        return web.json_response({"gitVersion": "v1.34.1"})

    async def _namespace(self, _request: web.Request) -> web.Response:
        if "get namespaces" in self.denied:
            return _status(403, "namespaces is forbidden")
        return web.json_response({"metadata": {"name": "kube-system", "uid": self.uid}})

    async def _nodes(self, _request: web.Request) -> web.Response:
        metadata = {"remainingItemCount": 2}
        return web.json_response({"items": [{}], "metadata": metadata})

    async def _echo(self, request: web.Request) -> web.Response:
        """What the request was sent with."""
        return web.json_response(dict(request.headers))

    async def _review(self, request: web.Request) -> web.Response:
        body = await request.json()
        asked = body["spec"]["resourceAttributes"]
        right = f"{asked['verb']} {asked['resource']}"
        denied = {right, f"{right}/{asked['name']}"} & self.denied
        return web.json_response(body | {"status": {"allowed": not denied}}, status=201)

    async def _get_secret(self, _request: web.Request) -> web.Response:
        if "get secrets" in self.denied:
            return _status(403, 'secrets "x" is forbidden')
        return self._secret()

    async def _patch_secret(self, request: web.Request) -> web.Response:
        if "patch secrets" in self.denied:
            return _status(403, 'secrets "x" is forbidden')
        assert request.content_type == "application/merge-patch+json"
        patch = await request.json()
        expected = patch.get("metadata", {}).get("resourceVersion")
        if expected is not None and expected != str(self.version):
            return _status(409, "the object has been modified")
        if self.secret is not None:
            for key, value in patch["data"].items():
                if value is None:
                    self.secret.pop(key, None)
                else:
                    base64.b64decode(value, validate=True)
                    self.secret[key] = value
            self.version += 1
        return self._secret()

    def _secret(self) -> web.Response:
        if self.secret is None:
            return _status(404, 'secrets "x" not found')
        secret: dict[str, Any] = {"metadata": {"resourceVersion": str(self.version)}}
        if self.secret:  # an apiserver leaves an empty `data` out
            secret["data"] = dict(self.secret)
        return web.json_response(secret)


def _status(code: int, message: str) -> web.Response:
    return web.json_response(
        {"kind": "Status", "message": message, "code": code}, status=code
    )


@contextlib.asynccontextmanager
async def member_api(
    member: MemberApi | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    port: int = 0,
) -> AsyncIterator[tuple[MemberApi, MemberRequest]]:
    """Run a member on loopback; yields it and a client of it (for plain HTTP)."""
    member = member or MemberApi()
    app = member.app()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(
            runner, "127.0.0.1", port, ssl_context=tls, reuse_address=True
        ).start()
        member.address = f"127.0.0.1:{runner.addresses[0][1]}"
        yield member, client(member.address)
    finally:
        app[_ENDED].set()
        await runner.cleanup()


def client(address: str) -> MemberRequest:
    """A client for an apiserver at HOST:PORT, or for where none is."""

    async def request(
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> MemberAnswer:
        headers = {"Content-Type": content_type}
        try:
            async with (
                aiohttp.ClientSession(json_serialize=_json) as session,
                session.request(
                    method, f"http://{address}{path}", json=body, headers=headers
                ) as response,
            ):
                return MemberAnswer(status=response.status, body=await response.json())
        except aiohttp.ClientConnectorError as error:
            raise error.os_error from error

    return request


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
