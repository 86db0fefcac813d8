"""Who asks: from what a connection has proved (a client certificate).

Whoever proves nothing is refused: there is no anonymous caller.
"""

import ssl
from dataclasses import dataclass
from datetime import datetime

from certs.contexts import proven_user
from certs.names import ClusterName, RoleError
from shared.http.status import Refusal

__all__ = ["GatewayCaller", "certificate_caller"]


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
