"""Health of the agent over plain HTTP, for kubelets: off unless --health names an address.

/healthz   200 while the process serves
/readyz    200 while a tunnel is up that takes new streams, else 503 with the reason
/metrics   numbers for Prometheus
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from shared.metrics import CONTENT_TYPE, Metric, MetricsPage
from shared.probe_port import Page, serve_pages
from shared.settings import HostPort

__all__ = ["serve_health"]


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

    async def metrics() -> Page:
        return Page(text=await page.text(), content_type=CONTENT_TYPE)

    async def healthz() -> Page:
        return Page(text="ok\n")

    async def readyz() -> Page:
        reason = not_ready()
        if reason is None:
            return Page(text="ok: the tunnel is up\n")
        return Page(text=f"not ready: {reason}\n", status=503)

    pages = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    async with serve_pages(address, pages):
        yield
