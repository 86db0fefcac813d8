"""Errors as Kubernetes clients expect them: `Status` objects, and the answers that carry them."""

import json
from dataclasses import dataclass
from http import HTTPStatus

__all__ = ["AGENT", "Refusal", "Speaker", "status_body"]

# The reason field that client-go's errors package looks at, by HTTP code; a code that is
# not here gets none, as the apiserver does it.
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "Timeout",
    413: "RequestEntityTooLarge",
    429: "TooManyRequests",
    500: "InternalError",
    502: "BadGateway",
    503: "ServiceUnavailable",
    504: "Timeout",
}


def status_body(code: int, message: str, *, retry_after_seconds: int = 0) -> bytes:
    """A failure `Status` as JSON; kubectl prints its message."""
    status: dict[str, object] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": _REASONS.get(code, ""),
        "code": code,
    }
    if retry_after_seconds:
        status["details"] = {"retryAfterSeconds": retry_after_seconds}
    return json.dumps(status, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """Who stands before the apiserver and answers in its place: for sentences only."""

    name: str
    # What it proves itself with to the apiserver, and how that is put right.
    credential: str
    renewal: str
    # How its right to ask for reviews is put right.
    right_to_review: str
    # How a user or group is allowed, before `--allow-user NAME`.
    allowing: str


AGENT = Speaker(
    name="the agent",
    credential="the agent's own credential",
    renewal="renew the agent's token or kubeconfig in the member",
    right_to_review="its ClusterRole needs create on subjectaccessreviews",
    allowing="the cluster's admin can allow it there with",
)


class Refusal(Exception):
    """A request that gets an answer from us instead of from the apiserver.

    The message is for the person at the client: one sentence, no secrets.
    """

    def __init__(
        self, *, code: int, message: str, retry_after_seconds: int = 0
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        # The client's connection can go on behind the answer. Set by who knows that the
        # request was understood and nothing of it is still to come.
        self.keeps_alive = False

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"

    def answer(self, *, close: bool, without_body: bool = False) -> bytes:
        """The whole HTTP/1.1 response; `without_body` when it answers a HEAD."""
        body = status_body(
            self.code, self.message, retry_after_seconds=self.retry_after_seconds
        )
        head = (
            f"HTTP/1.1 {self.code} {HTTPStatus(self.code).phrase}\r\n"
            "Content-Type: application/json\r\n"
            "Cache-Control: no-cache, private\r\n"
            f"Content-Length: {len(body)}\r\n"
        )
        if self.retry_after_seconds:
            head += f"Retry-After: {self.retry_after_seconds}\r\n"
        if close:
            head += "Connection: close\r\n"
        return head.encode() + b"\r\n" + (b"" if without_body else body)
