"""An apiserver that answers by script: for what the real one does rarely (429, 410, silence, cut answers).

What it does normally is tested with the real one.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from tower_server.kube.access import open_access
from tower_server.kube.client import KubeClient

__all__ = ["KubeApi", "kube_client", "status"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def status(
    code: int, message: str = "no", headers: dict[str, str] | None = None
) -> Handler:
    """A handler that answers with a Status."""

    async def answer(_: web.Request) -> web.StreamResponse:
        body = {"kind": "Status", "code": code, "message": message}
        return web.json_response(body, status=code, headers=headers)

    return answer


class KubeApi:
    """Handlers in the order in which requests come; the last one stays."""

    def __init__(self, *handlers: Handler | dict[str, Any]) -> None:
        self.handlers = list(handlers)
        # "METHOD path?query", and the bodies.
        self.requests: list[str] = []
        self.bodies: list[Any] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.requests.append(f"{request.method} {request.path_qs}")
        self.bodies.append(json.loads(text) if text else None)
        handler = self.handlers.pop(0) if len(self.handlers) > 1 else self.handlers[0]
        if isinstance(handler, dict):
            return web.json_response(handler)
        return await handler(request)


@asynccontextmanager
async def kube_client(api: KubeApi, directory: Path) -> AsyncIterator[KubeClient]:
    """A client of `api`, over a socket, whose pauses take no time."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    kubeconfig = directory / "kubeconfig.yaml"
    kubeconfig.write_text(json.dumps(_kubeconfig(f"http://127.0.0.1:{port}")))
    client = KubeClient(await open_access(kubeconfig), sleep=lambda _: asyncio.sleep(0))
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


def _kubeconfig(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t0ken"}}],
    }
