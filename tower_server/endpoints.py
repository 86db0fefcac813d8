"""The routes of the server's own HTTPS that need no login: joining, and whether it is alive.

Every error is JSON, {"error": CODE, "message": SENTENCE}, with a code from `membership.Refusal`
or one of ours, and a sentence fit for the agent's log.

    GET  /join/ca      the CA certificates (PEM); the agent compares them with its pin
    POST /join/nonce   {"nonce": TEXT}
    POST /join         a join request -> {"answer": JWS}
    POST /renew        an agent's proof of its key -> {"answer": JWS} with a new certificate
    GET  /healthz      200 while the process serves
"""

import json
import math
from collections.abc import Awaitable, Callable

from aiohttp import web

from tower_server.join import JoinService, SlowDown
from tower_server.membership import JoinRefused, Refusal
from tower_server.renewal import RenewalService
from tower_server.stores import StoreUnavailable

__all__ = ["MAX_BODY_BYTES", "add_routes", "error_response"]

# A join request has about 1 KiB (the CSR is half of it); the CSR may have 4 KiB.
MAX_BODY_BYTES = 16 * 1024

# After which a joining agent asks again when the store cannot write.
STORE_RETRY_SECONDS = 2

_STATUS = {
    Refusal.BAD_REQUEST: 400,
    Refusal.NONCE_EXPIRED: 400,
    Refusal.SLOW_DOWN: 429,
    Refusal.NAME_TAKEN: 409,
    Refusal.MEMBER_JOINED_ELSEWHERE: 409,
}
_DEFAULT_STATUS = 403  # every reason that lies in the token

# Nothing here may be kept by a cache on the way: answers are for one agent, the CA can change.
_NO_STORE = {"Cache-Control": "no-store"}


def error_response(
    status: int, code: str, message: str, *, retry_after_seconds: float | None = None
) -> web.Response:
    """Build the server's error answer."""
    headers = dict(_NO_STORE)
    if retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_seconds)))
    return web.json_response(
        {"error": code, "message": message}, status=status, headers=headers
    )


def add_routes(
    app: web.Application, join: JoinService, renewal: RenewalService
) -> None:
    """Add the routes to the application of the server's own HTTPS."""
    routes = _Endpoints(join, renewal)
    app.router.add_get("/join/ca", routes.ca)
    app.router.add_post("/join/nonce", routes.nonce)
    app.router.add_post("/join", routes.join)
    app.router.add_post("/renew", routes.renew)
    app.router.add_get("/healthz", routes.healthz)


class _Endpoints:
    def __init__(self, join: JoinService, renewal: RenewalService) -> None:
        self._join = join
        self._renewal = renewal

    async def ca(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=self._join.ca_pem,
            content_type="application/x-pem-file",
            headers=_NO_STORE,
        )

    async def nonce(self, _request: web.Request) -> web.Response:
        return web.json_response({"nonce": self._join.issue_nonce()}, headers=_NO_STORE)

    async def join(self, request: web.Request) -> web.Response:
        return await self._answer(request, self._join.join)

    async def renew(self, request: web.Request) -> web.Response:
        return await self._answer(request, self._renewal.renew)

    async def _answer(
        self,
        request: web.Request,
        service: Callable[[object, str], Awaitable[str]],
    ) -> web.Response:
        # The TCP peer, not X-Forwarded-For: anybody can write that. Behind a load balancer all
        # agents are one source then, which is why only wrong proofs count against it.
        source = request.remote or "unknown"
        try:
            answer = await service(await _read_json(request), source)
        except SlowDown as error:
            return error_response(
                429, error.code, str(error), retry_after_seconds=error.wait_seconds
            )
        except JoinRefused as error:
            return error_response(
                _STATUS.get(error.code, _DEFAULT_STATUS), error.code, str(error)
            )
        except StoreUnavailable as error:
            # What is wrong with our disk is for our log; the agent only has to wait.
            return error_response(
                503,
                "store_unavailable",
                f"The server cannot record the join at the moment ({error.public or 'its log says why'}): "
                "try again later; nothing was used up.",
                retry_after_seconds=STORE_RETRY_SECONDS,
            )
        return web.json_response({"answer": answer}, headers=_NO_STORE)

    async def healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=_NO_STORE)


async def _read_json(request: web.Request) -> object:
    """Read a small JSON body.

    Raises:
        JoinRefused: If it is too large or no JSON.
    """
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise JoinRefused(
                Refusal.BAD_REQUEST,
                f"The request has more than {MAX_BODY_BYTES} bytes.",
            )
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise JoinRefused(Refusal.BAD_REQUEST, "The request is not JSON.") from error
