"""The server's real join routes over real TLS on loopback, with nothing of the tunnel."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from certs.authority import Authority
from certs.chains import pem
from certs.contexts import own_https
from certs.joining import JoinString, TokenId, new_token, verifier_of
from certs.keys import new_key, private_pem
from certs.names import parse_cluster_name
from tower_server.answers import AnswerSigner
from tower_server.endpoints import add_routes
from tower_server.join import JoinService
from tower_server.renewal import RenewalService
from tower_server.stores import Store, TokenRecord
from tower_server.stores.memory import MemoryStore

__all__ = ["JoinServer", "join_server", "serve_https"]


@dataclasses.dataclass
class JoinServer:
    """A running server, and what an admin would do with it."""

    authority: Authority
    store: Store
    service: JoinService
    port: int
    # Runs before each request; a response that it returns is sent instead of the real one.
    intercept: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = (
        None
    )
    requests: list[str] = dataclasses.field(default_factory=list)

    async def invite(
        self,
        cluster: str = "alpha",
        *,
        ttl: timedelta = timedelta(hours=24),
        host: str = "127.0.0.1",
        port: int | None = None,
    ) -> JoinString:
        """Create a token and return the join string for it."""
        token_id, secret = new_token()
        now = datetime.now(UTC)
        record = TokenRecord(
            id=TokenId(token_id),
            cluster=parse_cluster_name(cluster),
            verifier=verifier_of(secret),
            created_at=now,
            expires_at=now + ttl,
        )
        await self.store.add_token(record, now)
        return JoinString(
            cluster=record.cluster,
            host=host,
            port=self.port if port is None else port,
            token_id=token_id,
            secret=secret,
            pin=self.authority.pin,
        )


@contextlib.asynccontextmanager
async def join_server(
    directory: Path,
    *,
    store: Store | None = None,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "tower.test"),
    zone: str = "clusters.tower.internal",
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncIterator[JoinServer]:
    """Run a server with a CA in `directory` until the block ends."""
    authority = Authority.open_or_create(directory, zone, datetime.now(UTC))
    key = new_key()
    certificate = authority.issue_server(
        key.public_key(), list(hosts), datetime.now(UTC)
    )
    kept = store or MemoryStore()
    signer = AnswerSigner(authority, key, certificate)
    service = JoinService(
        authority=authority,
        store=kept,
        signer=signer,
        now=clock,
    )
    renewal = RenewalService(
        authority=authority,
        store=kept,
        signer=signer,
        now=clock,
    )
    server = JoinServer(authority, kept, service, 0)

    @web.middleware
    async def intercepted(request: web.Request, handler: Handler) -> web.StreamResponse:
        server.requests.append(f"{request.method} {request.path}")
        if server.intercept is not None:
            response = await server.intercept(request)
            if response is not None:
                return response
        return await handler(request)

    app = web.Application(middlewares=[intercepted])
    add_routes(app, service, renewal)
    context = own_https(pem(certificate), private_pem(key))
    async with serve_https(app, context) as port:
        server.port = port
        yield server


@contextlib.asynccontextmanager
async def serve_https(
    app: web.Application, context: object | None
) -> AsyncIterator[int]:
    """Serve an aiohttp application on a free loopback port, over TLS if there is a context."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
