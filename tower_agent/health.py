"""Health of the agent over plain HTTP, for kubelets: off unless --health names an address.

/healthz   200 while the process serves
/readyz    200 while a tunnel is up that takes new streams, else 503 with the reason
/metrics   numbers for Prometheus
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from aiohttp import web

from shared.metrics import CONTENT_TYPE, Metric, MetricsPage
from shared.settings import HostPort

__all__ = ["serve_health"]

# For probes that are being answered when the agent stops; aiohttp would wait a minute.
SHUTDOWN_SECONDS = 1.0


@asynccontextmanager
async def serve_health(
    address: HostPort,
    not_ready: Callable[[], str | None],
    read_metrics: Callable[[], Iterable[Metric]],
) -> AsyncIterator[None]:
    """Serve the three paths while the context lasts; `not_ready` says why there is no way in,
    if that is so.

    Raises:
        OSError: If the address cannot be bound.
    """

    page = MetricsPage(read_metrics)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(
            body=await page.text(), headers={"Content-Type": CONTENT_TYPE}
        )

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        reason = not_ready()
        if reason is None:
            return web.Response(text="ok: the tunnel is up\n")
        return web.Response(status=503, text=f"not ready: {reason}\n")

    application = web.Application()
    application.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
        ]
    )
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, address.host, address.port).start()
        yield
    finally:
        await runner.cleanup()
