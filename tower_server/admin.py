"""The admin API: tokens, clusters, kubeconfigs and the server's status, as JSON.

    GET    /admin/v1/status            GET    /admin/v1/top           what goes through the tunnels
    GET    /admin/v1/tokens            POST   /admin/v1/tokens        {cluster, ttl_seconds, format,
                                              allow_users, allow_groups, image: of a manifest}
    DELETE /admin/v1/tokens/ID         takes a token back
    GET    /admin/v1/clusters          GET    /admin/v1/clusters/NAME     (more: admin_direct)
    DELETE /admin/v1/clusters/NAME     forgets it, frees its UID, ends its sessions
    POST   /admin/v1/kubeconfig        {cluster, user, groups, ttl_seconds}

An error is `{"error": code, "message": sentence}`; the codes are those of `ErrorCode`. Nobody is
authenticated here: whoever may open the socket (`admin_socket`) is an admin.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol

from aiohttp import web

from certs.authority import Authority
from certs.joining import JoinString, new_token, verifier_of
from certs.names import ClusterName
from shared.durations import rfc3339
from shared.errors import Code
from shared.mux.readings import MemoryReading, TunnelReading
from shared.settings import HostPort
from shared.version import VERSION
from tower_server.admin_access import AccessOrders, read_access_order
from tower_server.admin_direct import Connections, DirectOrders
from tower_server.admin_documents import (
    cluster_document,
    token_document,
    traffic_document,
    waiting_clusters,
)
from tower_server.admin_orders import (
    MAX_BODY_BYTES,
    AdminError,
    ErrorCode,
    Order,
    audit,
    bad_request,
    check_span,
    errors_as_json,
    no_cluster,
    parse_name,
    read_order,
)
from tower_server.issuer import AccessIssuer
from tower_server.registry import ClusterStatus
from tower_server.skew import version_skew
from tower_server.stores import ClusterRecord, Store, TokenId, TokenRecord
from tower_server.token_form import TokenForm, parse_token_form
from tower_server.tokens import TokenState, state_of

__all__ = ["AdminApi", "Sessions"]

# A day to hand it over, as kubeadm's tokens have.
DEFAULT_TOKEN_TTL = timedelta(hours=24)
# Long enough to paste it; short enough that one forgotten in a chat is worthless next month.
MIN_TOKEN_TTL = timedelta(minutes=1)
MAX_TOKEN_TTL = timedelta(days=30)


class Sessions(Protocol):
    """What we need of `registry.Registry`."""

    def status(self, name: ClusterName) -> ClusterStatus | None:
        """What is known of a cluster's sessions; None for an unknown cluster."""
        ...

    def readings(self) -> Mapping[str, TunnelReading]:
        """What goes through the tunnels of every known cluster, by name."""
        ...

    async def cut(self, name: ClusterName, code: Code, reason: str) -> None:
        """End all of a cluster's sessions."""
        ...

    def forget(self, name: ClusterName) -> None:
        """No longer take in sessions of a cluster."""
        ...


class AdminApi:
    """The handlers, and what they work on. `application()` makes the aiohttp application."""

    def __init__(
        self,
        *,
        store: Store,
        sessions: Sessions,
        direct: Connections,
        authority: Authority,
        public_address: HostPort,
        clock: Callable[[], datetime],
        memory: Callable[[], MemoryReading],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._authority = authority
        self._public_address = public_address
        # What all tunnels hold, now.
        self._memory = memory
        # A time with a time zone; the wall clock in the real program.
        self._clock = clock
        self._access = AccessOrders(
            AccessIssuer(
                authority=authority, public_address=public_address, clock=clock
            )
        )
        self._started_at = clock()
        self._direct_orders = DirectOrders(store, direct, clock)

    def application(self) -> web.Application:
        """Build the application; serve it with `admin_socket.serve_on_socket`."""
        application = web.Application(
            middlewares=[errors_as_json], client_max_size=MAX_BODY_BYTES
        )
        application.add_routes(
            [
                web.get("/admin/v1/status", self._status),
                web.get("/admin/v1/top", self._top),
                web.get("/admin/v1/tokens", self._list_tokens),
                web.post("/admin/v1/tokens", self._create_token),
                web.delete("/admin/v1/tokens/{id}", self._revoke_token),
                web.get("/admin/v1/clusters", self._list_clusters),
                web.get("/admin/v1/clusters/{name}", self._show_cluster),
                web.delete("/admin/v1/clusters/{name}", self._remove_cluster),
                web.post("/admin/v1/kubeconfig", self._kubeconfig),
                *self._direct_orders.routes(),
            ]
        )
        return application

    # -- the server --------------------------------------------------------------------------

    async def _status(self, request: web.Request) -> web.Response:
        documents = await self._cluster_documents()
        tokens = await self._store.list_tokens()
        now = self._clock()
        states = [document["state"] for document in documents]
        skew = version_skew(
            VERSION,
            {
                document["name"]: version
                for document in documents
                if (version := document["agent_version"])
            },
        )
        return web.json_response(
            {
                "version": VERSION,
                "started_at": rfc3339(self._started_at),
                "skew": dataclasses.asdict(skew),
                "warnings": [
                    *skew.sentences(),
                    *(
                        f"{document['name']}: {warning}"
                        for document in documents
                        for warning in document["warnings"]
                    ),
                ],
                "public_address": str(self._public_address),
                "zone": self._authority.zone,
                "ca_pin": self._authority.pin,
                "clusters": {
                    state: states.count(state)
                    for state in ("connected", "away", "never")
                },
                "open_streams": sum(document["open_streams"] for document in documents),
                "tokens_ready": sum(
                    state_of(t, now) is TokenState.READY for t in tokens
                ),
            }
        )

    async def _top(self, request: web.Request) -> web.Response:
        # The store is not asked: this comes every second from everybody who looks.
        clusters = [
            traffic_document(status, reading)
            for name, reading in self._sessions.readings().items()
            if (status := self._sessions.status(ClusterName(name))) is not None
        ]
        return web.json_response(
            {
                "clock_seconds": round(asyncio.get_running_loop().time(), 6),
                "window_memory": {
                    "used_bytes": (memory := self._memory()).used_bytes,
                    "ceiling_bytes": memory.ceiling_bytes,
                },
                "clusters": clusters,
            }
        )

    # -- tokens ------------------------------------------------------------------------------

    async def _list_tokens(self, request: web.Request) -> web.Response:
        now = self._clock()
        tokens = await self._store.list_tokens()
        return web.json_response(
            {"tokens": [token_document(token, now) for token in tokens]}
        )

    async def _create_token(self, request: web.Request) -> web.Response:
        order = await read_order(request, _TOKEN_FIELDS)
        cluster = order.cluster()
        ttl = check_span(
            "A token",
            order.span("ttl_seconds", DEFAULT_TOKEN_TTL),
            minimum=MIN_TOKEN_TTL,
            maximum=MAX_TOKEN_TTL,
        )
        form = _token_form(order)
        now = self._clock()
        token_id, secret = new_token()
        token = TokenRecord(
            id=TokenId(token_id),
            cluster=cluster,
            verifier=verifier_of(secret),
            created_at=now,
            expires_at=now + ttl,
        )
        await self._store.add_token(token, now)
        join_string = JoinString(
            cluster=cluster,
            host=self._public_address.host,
            port=self._public_address.port,
            token_id=token_id,
            secret=secret,
            pin=self._authority.pin,
        )
        audit(request, "created token %s for %s", token.id, cluster)
        return web.json_response(
            token_document(token, now) | form.fields(join_string), status=201
        )

    async def _revoke_token(self, request: web.Request) -> web.Response:
        token_id = TokenId(request.match_info["id"])
        now = self._clock()
        token = await self._store.revoke_token(token_id, now)
        if token is None:
            raise AdminError(
                ErrorCode.NOT_FOUND,
                f"There is no token {token_id!r}: see `tower token list`.",
            )
        audit(request, "revoked token %s of %s", token.id, token.cluster)
        return web.json_response(token_document(token, now))

    # -- clusters ----------------------------------------------------------------------------

    async def _list_clusters(self, request: web.Request) -> web.Response:
        return web.json_response({"clusters": await self._cluster_documents()})

    async def _show_cluster(self, request: web.Request) -> web.Response:
        name = parse_name(request.match_info["name"])
        documents = await self._cluster_documents()
        for document in documents:
            if document["name"] == name:
                return web.json_response(document)
        raise no_cluster(name, [document["name"] for document in documents])

    async def _remove_cluster(self, request: web.Request) -> web.Response:
        name = parse_name(request.match_info["name"])
        now = self._clock()
        waiting = await self._ready_tokens(name, now)
        # The store first: from here on the agent's certificate is no longer good, so that it
        # cannot come back between the two.
        record = await self._store.remove_cluster(name, now)
        if record is None and not waiting:
            raise no_cluster(name, await self._known_names())
        if record is None:
            # Invited only. Taking the invitation back is what the admin means.
            for token in waiting:
                await self._store.revoke_token(token.id, now)
        await self._sessions.cut(name, Code.REVOKED, "an admin removed the cluster")
        self._sessions.forget(name)
        audit(request, "removed cluster %s", name)
        return web.json_response(
            {
                "name": name,
                "joined": record is not None,
                "member_uid": record.member_uid if record else None,
                "revoked_tokens": [token.id for token in waiting],
            }
        )

    async def _kubeconfig(self, request: web.Request) -> web.Response:
        wanted = await read_access_order(request)
        name = wanted.cluster
        await self._require_joined(name, self._clock())
        status = self._sessions.status(name)
        version = status.apiserver_version if status else None
        return web.json_response(
            self._access.answer(request, wanted, version), status=201
        )

    # -- what several need -------------------------------------------------------------------

    async def _cluster_documents(self) -> list[dict[str, Any]]:
        """Every cluster that has joined or is invited, by name."""
        now = self._clock()
        records = await self._store.list_clusters()
        tokens = await self._store.list_tokens()
        known: dict[ClusterName, ClusterRecord | None] = {r.name: r for r in records}
        known |= dict.fromkeys(waiting_clusters(tokens, records, now))
        return [
            cluster_document(
                name,
                record=record,
                status=self._sessions.status(name) if record else None,
                server_started_at=self._started_at,
                zone=self._authority.zone,
                public_address=self._public_address,
                now=now,
            )
            for name, record in sorted(known.items())
        ]

    async def _require_joined(self, name: ClusterName, now: datetime) -> None:
        if await self._store.get_cluster(name) is not None:
            return
        waiting = await self._ready_tokens(name, now)
        if waiting:
            raise AdminError(
                ErrorCode.NOT_FOUND,
                f"The cluster {name!r} has not joined yet: start its agent with the join string of token "
                f"{waiting[-1].id}, then ask again.",
            )
        raise no_cluster(name, await self._known_names())

    async def _ready_tokens(
        self, name: ClusterName, now: datetime
    ) -> list[TokenRecord]:
        return [
            token
            for token in await self._store.list_tokens()
            if token.cluster == name and state_of(token, now) is TokenState.READY
        ]

    async def _known_names(self) -> list[str]:
        return [document["name"] for document in await self._cluster_documents()]


_ALLOWED = {"allow_users", "allow_groups"}
_TOKEN_FIELDS = frozenset({"cluster", "ttl_seconds", "format", "image"} | _ALLOWED)


def _token_form(order: Order) -> TokenForm:
    try:
        return parse_token_form(
            order.text("format"),
            allow_users=order.texts("allow_users"),
            allow_groups=order.texts("allow_groups"),
            image=order.text("image"),
        )
    except ValueError as error:
        raise bad_request(error) from error
