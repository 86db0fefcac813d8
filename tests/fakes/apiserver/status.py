"""Errors of the demo apiserver: `Status` objects with kube-apiserver's own reasons and words."""

from typing import Any

__all__ = [
    "ApiError",
    "already_exists",
    "bad_request",
    "conflict",
    "expired",
    "forbidden",
    "invalid",
    "method_not_allowed",
    "not_acceptable",
    "not_found",
    "success",
    "unauthorized",
    "unknown_path",
    "unsupported_media_type",
]

Json = dict[str, Any]


class ApiError(Exception):
    """An answer that is a failure."""

    def __init__(
        self, code: int, reason: str, message: str, details: Json | None = None
    ) -> None:
        super().__init__(code, reason, message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return f"{self.code} {self.message}"

    def status(self) -> Json:
        """The Status object that the client gets."""
        body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details:
            body["details"] = self.details
        return {**body, "code": self.code}


def success(details: Json | None = None) -> Json:
    """What a delete answers."""
    body: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}}
    body["status"] = "Success"
    return {**body, "details": details} if details else body


def _details(group: str, resource: str, name: str = "") -> Json:
    fields = {"name": name, "group": group, "kind": resource}
    return {key: value for key, value in fields.items() if value}


def qualified(group: str, resource: str) -> str:
    """`pods`, `deployments.apps`: as errors name a resource."""
    return f"{resource}.{group}" if group else resource


def not_found(group: str, resource: str, name: str) -> ApiError:
    message = f'{qualified(group, resource)} "{name}" not found'
    return ApiError(404, "NotFound", message, _details(group, resource, name))


def unknown_path() -> ApiError:
    message = "the server could not find the requested resource"
    return ApiError(404, "NotFound", message, {})


def already_exists(group: str, resource: str, name: str) -> ApiError:
    message = f'{qualified(group, resource)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(group, resource, name))


def conflict(group: str, resource: str, name: str, reason: str = "") -> ApiError:
    reason = reason or (
        "the object has been modified; please apply your changes to the latest version and try again"
    )
    message = f'Operation cannot be fulfilled on {qualified(group, resource)} "{name}": {reason}'
    return ApiError(409, "Conflict", message, _details(group, resource, name))


def forbidden(user: str, action: str, group: str, resource: str, name: str) -> ApiError:
    """RBAC's refusal; action is all from the verb on."""
    subject = (
        f"{qualified(group, resource)}{f' {chr(34)}{name}{chr(34)}' if name else ''}"
    )
    message = f'{subject} is forbidden: User "{user}" cannot {action}'
    return ApiError(403, "Forbidden", message, _details(group, resource, name))


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def invalid(kind: str, group: str, name: str, field: str, problem: str) -> ApiError:
    """A field whose value cannot be; problem begins with its kind, such as `Required value: …`."""
    qualified_kind = f"{kind}.{group}" if group else kind
    message = f'{qualified_kind} "{name}" is invalid: {field}: {problem}'
    cause = {"reason": "FieldValueInvalid", "message": problem, "field": field}
    details = {**_details(group, kind, name), "causes": [cause]}
    return ApiError(422, "Invalid", message, details)


def expired(message: str) -> ApiError:
    return ApiError(410, "Expired", message)


def method_not_allowed() -> ApiError:
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, {})


def not_acceptable() -> ApiError:
    message = "only the following media types are accepted: application/json"
    return ApiError(406, "NotAcceptable", message)


def unsupported_media_type(accepted: str) -> ApiError:
    message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
    return ApiError(415, "UnsupportedMediaType", message)
