"""The cluster's prefix: `/clusters/alpha/api/v1/...` → `/api/v1/...`, byte for byte.

The prefix must stand there literally. Everything that another reader might resolve to
a different cluster (dot segments, a doubled slash, percent-encoded dots or slashes) is
refused. Behind the prefix, encoding is the apiserver's business and stays as it came.
"""

import re

from shared.http.status import Refusal

__all__ = ["PREFIX", "cluster_prefix", "strip_prefix"]

PREFIX = b"/clusters/"

_SLASH = re.compile(rb"/|%2f|\\|%5c", re.IGNORECASE)
_DOT = re.compile(rb"%2e", re.IGNORECASE)


def cluster_prefix(cluster: str) -> bytes:
    """What every path of this cluster begins with; no slash at its end."""
    return PREFIX + cluster.encode("ascii")


def strip_prefix(target: bytes, prefix: bytes) -> bytes:
    """The request target as the member's apiserver knows it.

    Raises:
        Refusal: 404 if the target is not below the prefix, 400 if it only looks so.
    """
    rest = target[len(prefix) :]
    if not target.startswith(prefix) or (rest and rest[:1] not in (b"/", b"?")):
        raise Refusal(
            code=404,
            message=f"the paths of this cluster begin with {prefix.decode()}/ exactly; "
            "check the server URL in the kubeconfig",
        )
    if rest[:1] != b"/":
        rest = b"/" + rest
    # A dot segment follows a slash, and an encoded one has "%2": most paths have neither.
    if b"/." in rest or b"%2" in rest or b"%5" in rest or rest.startswith(b"//"):
        _refuse_tricks(rest.partition(b"?")[0])
    return rest


def _refuse_tricks(path: bytes) -> None:
    if path.startswith(b"//"):
        raise Refusal(code=400, message="the path must not begin with two slashes")
    for segment in _SLASH.split(path):
        if _DOT.sub(b".", segment) in (b".", b".."):
            raise Refusal(
                code=400, message="the path must not hold `.` or `..` segments"
            )
