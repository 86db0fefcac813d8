"""How the admin API hands out a cluster's access: reads the order, has it signed, says what was given."""

from dataclasses import dataclass
from datetime import timedelta

from aiohttp import web

from certs.names import ClusterName
from shared.durations import format_duration, rfc3339
from tower_server.access_form import AccessForm, parse_access_form
from tower_server.admin_orders import (
    AdminError,
    ErrorCode,
    audit,
    check_span,
    read_order,
)
from tower_server.issuer import AccessIssuer
from tower_server.kubeconfig import (
    DEFAULT_TTL,
    MAX_TTL,
    MIN_TTL,
    Face,
    KubeconfigUser,
    check_user,
)

__all__ = ["AccessOrder", "AccessOrders", "read_access_order"]

_FIELDS = frozenset(
    {
        *("cluster", "user", "groups", "ttl_seconds"),
        *("format", "namespace", "name", "labels", "api_version", "plugin", "face"),
    }
)


@dataclass(frozen=True, kw_only=True)
class AccessOrder:
    """Who shall have access to what, for how long, in which form."""

    cluster: ClusterName
    identity: KubeconfigUser
    ttl: timedelta
    form: AccessForm
    # By which way it leads there.
    face: Face
    # Not empty: nothing is signed; the kubeconfig runs `tower` with these arguments.
    plugin: tuple[str, ...]


async def read_access_order(request: web.Request) -> AccessOrder:
    """Read and check the order.

    Raises:
        AdminError: If it makes no sense, or no agent would accept what it asks for.
    """
    order = await read_order(request, _FIELDS)
    cluster = order.cluster()
    ttl = check_span(
        "A kubeconfig",
        order.span("ttl_seconds", DEFAULT_TTL),
        minimum=MIN_TTL,
        maximum=MAX_TTL,
    )
    try:
        face = _face(order.text("face"))
        return AccessOrder(
            cluster=cluster,
            identity=check_user(order.text("user"), order.texts("groups")),
            ttl=ttl,
            form=parse_access_form(
                order.text("format"),
                namespace=order.text("namespace"),
                name=order.text("name"),
                labels=order.texts("labels"),
                api_version=order.text("api_version"),
            ),
            face=face,
            plugin=tuple(order.texts("plugin")),
        )
    except ValueError as error:
        sentence = str(error)
        if not sentence.endswith("."):
            sentence = f"{sentence[0].upper()}{sentence[1:]}."
        raise AdminError(ErrorCode.REFUSED, sentence) from error


def _face(name: str | None) -> Face:
    try:
        return Face(name or Face.SEALED)
    except ValueError:
        raise ValueError(
            f"There is no face {name!r}: it is one of {', '.join(Face)}."
        ) from None


class AccessOrders:
    """Carries out orders for clusters that have joined."""

    def __init__(self, issuer: AccessIssuer) -> None:
        self._issuer = issuer

    def answer(
        self, request: web.Request, wanted: AccessOrder, version: str | None
    ) -> dict[str, object]:
        """Return the answer's fields; one of them contains a private key unless a plugin is wanted."""
        if wanted.plugin:
            text = self._issuer.plugin_kubeconfig(
                wanted.cluster, wanted.face, wanted.plugin
            )
            return {"cluster": wanted.cluster, "kubeconfig": text}
        identity = wanted.identity
        issued = self._issuer.issue(
            wanted.cluster,
            identity,
            wanted.ttl,
            face=wanted.face,
            version=version,
        )
        audit(
            request,
            "issued a %s for %s: user %r, groups %r, serial %x, good for %s",
            wanted.form.format,
            wanted.cluster,
            identity.user,
            identity.groups,
            issued.serial,
            format_duration(wanted.ttl),
        )
        return {
            "cluster": wanted.cluster,
            "user": identity.user,
            "groups": list(identity.groups),
            "serial": f"{issued.serial:x}",
            "expires_at": rfc3339(issued.access.not_after),
            **wanted.form.fields(issued.access),
        }
