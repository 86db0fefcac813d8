"""Which paths are the gateway's, and which cluster they mean. Pure.

    /clusters/NAME/...                    what a kubeconfig's `server` begins with
    /api/clusters/NAME/...                forms that KubeSphere's clients use: the segment
    /apis/clusters/NAME/...               is taken out, so that they mean
    /kapis/clusters/NAME/...              /clusters/NAME/kapis/... (and so on)

The name stands there literally: no encoding, no dot, no case is repaired. What follows goes
to the member as it came.
"""

import re
from dataclasses import dataclass

from certs.names import ClusterName, parse_cluster_name
from shared.http.paths import PREFIX, cluster_prefix, strip_prefix
from shared.http.status import Refusal

__all__ = ["Route", "begins_with_route", "route_of"]

_BEGINNING = rb"(/api|/apis|/kapis)?/clusters"
_LINE = re.compile(rb"[!-~]++ " + _BEGINNING + rb"(?=[/? ])")
_TARGET = re.compile(_BEGINNING + rb"(?:/([^/?]*+))?((?:[/?].*+)?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Route:
    """A cluster, and the request's target as its agent knows it: below the cluster's prefix."""

    cluster: ClusterName
    target: bytes


def begins_with_route(head: bytes) -> bool:
    """Whether a head's request line has a path of ours; the same as that `route_of` finds one."""
    return _LINE.match(head) is not None


def route_of(target: bytes) -> Route | None:
    """Which cluster a request's target means; None when it is no path of ours.

    Raises:
        Refusal: 404 if it names no cluster that there could be, 400 if what follows the name
            might be read as another's.
    """
    match = _TARGET.fullmatch(target)
    if match is None:
        return None
    kind, name, rest = match[1] or b"", match[2] or b"", match[3]
    try:
        cluster = parse_cluster_name(name.decode("latin-1"))
    except ValueError as error:
        message = str(error) if name else "the path must begin with /clusters/NAME/"
        raise Refusal(code=404, message=message) from None
    target = PREFIX + name + kind + rest
    strip_prefix(target, cluster_prefix(cluster))  # as the agent will
    return Route(cluster, target)
