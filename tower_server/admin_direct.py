"""Orders about direct connections: add a cluster by its kubeconfig, or give it another one.

    POST /admin/v1/clusters                  {cluster, kubeconfig, allow_users, allow_groups, insecure}
    PUT  /admin/v1/clusters/NAME/kubeconfig  {kubeconfig, allow_users, allow_groups, insecure}

A kubeconfig is tried before it is recorded. Nothing that is left out of the second is changed, but
for `insecure`, which goes with the kubeconfig.
"""

import dataclasses
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from aiohttp import web

from certs.keys import PrivateBytes
from certs.names import ClusterName, parse_principal
from shared.durations import rfc3339
from shared.http.identity import DEFAULT_GROUPS, DEFAULT_USERS
from shared.http.kubeconfig import BadKubeconfig
from shared.member.preflight import MemberFacts, PreflightFailed
from tower_server.admin_orders import (
    AdminError,
    ErrorCode,
    Order,
    audit,
    bad_request,
    parse_name,
    read_order,
)
from tower_server.membership import DirectMember, JoinRefused
from tower_server.stores import Store

__all__ = ["Connections", "DirectOrders"]

_UPDATE_FIELDS = frozenset({"kubeconfig", "allow_users", "allow_groups", "insecure"})
_ADD_FIELDS = _UPDATE_FIELDS | {"cluster"}


class Connections(Protocol):
    """What we need of `direct.DirectConnections`."""

    def apply(self, member: DirectMember) -> None:
        """Serve a member, or go on by another kubeconfig."""
        ...

    async def check(self, member: DirectMember) -> MemberFacts:
        """Ask a member who it is, and whether its kubeconfig is good for what we do."""
        ...


class DirectOrders:
    """The handlers of these orders."""

    def __init__(
        self,
        store: Store,
        connections: Connections,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._connections = connections
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """What of the admin API is answered here."""
        return [
            web.post("/admin/v1/clusters", self._add),
            web.put("/admin/v1/clusters/{name}/kubeconfig", self._replace),
        ]

    async def _add(self, request: web.Request) -> web.Response:
        order = await read_order(request, _ADD_FIELDS)
        now = self._clock()
        member = DirectMember(
            cluster=order.cluster(),
            member_uid="",
            kubeconfig=_kubeconfig(order),
            allow_users=_principals(order, "allow_users") or DEFAULT_USERS,
            allow_groups=_principals(order, "allow_groups") or DEFAULT_GROUPS,
            is_insecure_allowed=order.flag("insecure"),
            added_at=now,
            updated_at=now,
        )
        member, facts = await self._checked(member)
        try:
            await self._store.add_direct(member)
        except JoinRefused as refused:
            raise AdminError(ErrorCode.REFUSED, str(refused)) from refused
        self._connections.apply(member)
        audit(
            request,
            "added cluster %s with a direct connection, UID %s",
            member.cluster,
            member.member_uid,
        )
        return web.json_response(_document(member, facts), status=201)

    async def _replace(self, request: web.Request) -> web.Response:
        name = parse_name(request.match_info["name"])
        order = await read_order(request, _UPDATE_FIELDS)
        known = await self._store.get_direct(name)
        if known is None:
            raise await self._no_direct(name)
        member = dataclasses.replace(
            known,
            kubeconfig=_kubeconfig(order),
            allow_users=_principals(order, "allow_users") or known.allow_users,
            allow_groups=_principals(order, "allow_groups") or known.allow_groups,
            is_insecure_allowed=order.flag("insecure"),
            updated_at=self._clock(),
        )
        member, facts = await self._checked(member)
        try:
            updated = await self._store.update_direct(member)
        except JoinRefused as refused:
            raise AdminError(ErrorCode.REFUSED, str(refused)) from refused
        if updated is None:
            raise await self._no_direct(name)
        self._connections.apply(updated)
        audit(request, "replaced the kubeconfig of %s", name)
        return web.json_response(_document(updated, facts))

    async def _checked(self, member: DirectMember) -> tuple[DirectMember, MemberFacts]:
        try:
            facts = await self._connections.check(member)
        except BadKubeconfig as error:
            raise bad_request(error) from error
        except PreflightFailed as error:
            raise AdminError(ErrorCode.REFUSED, str(error)) from error
        return dataclasses.replace(member, member_uid=facts.uid), facts

    async def _no_direct(self, name: ClusterName) -> AdminError:
        if await self._store.get_cluster(name) is None:
            return AdminError(
                ErrorCode.NOT_FOUND,
                f"There is no cluster {name!r}: add it with `tower cluster add {name} --kubeconfig FILE`.",
            )
        return AdminError(
            ErrorCode.REFUSED,
            f"{name!r} is connected through its agent and needs no kubeconfig: leave it so, or end "
            f"that with `tower cluster remove {name}` and add it again.",
        )


def _kubeconfig(order: Order) -> PrivateBytes:
    text = order.text("kubeconfig")
    if not text:
        raise AdminError(
            ErrorCode.BAD_REQUEST,
            "The field 'kubeconfig' has to be a kubeconfig's text.",
        )
    return PrivateBytes(text.encode())


def _principals(order: Order, field: str) -> frozenset[str]:
    names = order.texts(field)
    try:
        for name in names:
            parse_principal(name)
    except ValueError as error:
        raise bad_request(error) from error
    return frozenset(names)


def _document(member: DirectMember, facts: MemberFacts) -> dict[str, Any]:
    """What was added or changed; the kubeconfig is not in it."""
    return {
        "name": member.cluster,
        "connection": "direct",
        "member_uid": member.member_uid,
        "apiserver_version": facts.apiserver_version,
        "allow_users": sorted(member.allow_users),
        "allow_groups": sorted(member.allow_groups),
        "added_at": rfc3339(member.added_at),
        "updated_at": rfc3339(member.updated_at),
    }
