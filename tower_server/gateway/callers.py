"""Who asks: from what a connection has proved (a client certificate), or a request (a bearer token).

As at kube-apiserver, a certificate comes first. Whoever proves nothing is refused: there is
no anonymous caller.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from certs.contexts import proven_user
from certs.names import ClusterName, RoleError
from shared.http.heads import RequestHead
from shared.http.status import Refusal

__all__ = ["FindByToken", "GatewayCaller", "certificate_caller", "token_caller"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayCaller:
    """Who asks, what for at most, and until when that is believed."""

    user: str
    groups: tuple[str, ...]
    # None: all.
    clusters: frozenset[ClusterName] | None
    # Of a certificate.
    not_after: datetime | None = None
    serial: int | None = None

    def check(self, cluster: ClusterName) -> None:
        """Raise a Refusal (403) if this credential is not for the cluster."""
        if self.clusters is not None and cluster not in self.clusters:
            raise Refusal(
                code=403,
                message=f"this credential is not for cluster {cluster}: make a kubeconfig for it "
                f"with `tower kubeconfig {cluster} --face gateway`",
            )


def certificate_caller(connection: ssl.SSLObject, zone: str) -> GatewayCaller | None:
    """Who holds the certificate that was shown; None if none was.

    Raises:
        Refusal: 401, if it is no user's.
    """
    try:
        identity = proven_user(connection, zone)
    except RoleError as error:
        raise Refusal(code=401, message=str(error)) from None
    except ValueError as error:
        raise Refusal(code=401, message=f"{error}: use a newer client") from None
    if identity is None:
        return None
    return GatewayCaller(
        user=identity.user,
        groups=identity.groups,
        clusters=identity.clusters,
        not_after=identity.not_after,
        serial=identity.serial,
    )


# Whose a token is; None if it is nobody's.
FindByToken = Callable[[bytes], GatewayCaller | None]


def token_caller(head: RequestHead, find: FindByToken | None) -> GatewayCaller:
    """Who says so by a bearer token; `find` None where no tokens are accepted.

    Raises:
        Refusal: 401, if there is none, or it is nobody's.
    """
    values = [v for name, v in head.fields if name.lower() == b"authorization"]
    if not values:
        raise Refusal(
            code=401,
            message="the gateway wants to know who you are: use a kubeconfig of `tower "
            "kubeconfig NAME --face gateway`, which holds a client certificate",
        )
    if find is None:
        raise Refusal(
            code=401,
            message="this server accepts no tokens: use a client certificate, or start it with "
            "--gateway-token-file",
        )
    scheme, _, token = values[0].partition(b" ")
    caller = None
    if len(values) == 1 and scheme.lower() == b"bearer":
        caller = find(token.strip())
    if caller is None:
        raise Refusal(code=401, message="the bearer token is nobody's here")
    return caller
