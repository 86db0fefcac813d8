"""What can go wrong at the host's apiserver.

KubeError
├── NotFound       no such object, or no such kind (is the CRD installed?)
├── Conflict       somebody else wrote in between, or the name is taken: read again
├── Expired        the resource version is too old to watch from: list again
├── Rejected       the answer is no and will stay no: rights, schema, credentials
└── Unreachable    no usable answer within the time: it is down, overloaded, or away
"""

__all__ = [
    "Conflict",
    "Expired",
    "KubeError",
    "NotFound",
    "Rejected",
    "Unreachable",
    "error_of_status",
]


class KubeError(Exception):
    """A request that the host's apiserver did not carry out, as far as we know."""

    def __init__(self, request: str, reason: str) -> None:
        super().__init__(request, reason)
        self.request = request  # "PUT secrets/tower-ca"
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.request}: {self.reason}"


class NotFound(KubeError):
    """404."""


class Conflict(KubeError):
    """409."""


class Expired(KubeError):
    """410."""


class Rejected(KubeError):
    """Any other 4xx."""


class Unreachable(KubeError):
    """Nobody answered, or with 429 or 5xx for longer than we wait. It may have been done."""


_KINDS: dict[int, type[KubeError]] = {
    404: NotFound,
    409: Conflict,
    410: Expired,
    429: Unreachable,
}


def error_of_status(status: int, request: str, message: str) -> KubeError:
    """The error that an HTTP status stands for."""
    kind = _KINDS.get(status, Unreachable if status >= 500 else Rejected)
    return kind(request, f"{status} {message}" if message else str(status))
