"""Defaults and checks of new and changed objects: the few that clients rely on."""

import base64
import re
from typing import Any

from tests.fakes.apiserver.resources import Resource
from tests.fakes.apiserver.status import bad_request, invalid

__all__ = ["admit", "check_name"]

Json = dict[str, Any]

# RFC 1123 subdomain. RBAC names may hold anything that a path segment can.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
MAX_NAME_CHARACTERS = 253


def check_name(resource: Resource, item: Json, name: str, namespace: str) -> None:
    """What an object says of itself must fit the URL.

    Raises:
        ApiError: 400 if it does not, 422 for a name that cannot be.
    """
    metadata = item.get("metadata") or {}
    if kind := item.get("kind"):
        if kind != resource.kind:
            version = item.get("apiVersion", "")
            raise bad_request(
                f"{kind} in version {version!r} cannot be handled as a {resource.kind}"
            )
    own = metadata.get("name", "")
    if name and own and own != name:
        message = f"the name of the object ({own}) does not match the name on the URL ({name})"
        raise bad_request(message)
    if resource.namespaced and metadata.get("namespace", namespace) != namespace:
        raise bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    anything = resource.group == "rbac.authorization.k8s.io"
    if (
        own
        and not anything
        and (len(own) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(own))
    ):
        problem = (
            f'Invalid value: "{own}": a lowercase RFC 1123 subdomain must consist'
            " of lower case alphanumeric characters, '-' or '.'"
        )
        raise invalid(resource.kind, resource.group, own, "metadata.name", problem)


def admit(resource: Resource, item: Json) -> Json:
    """The object with defaults. Raises ApiError 422."""
    name = (item.get("metadata") or {}).get("name", "")
    match resource.plural:
        case "pods":
            if not (item.get("spec") or {}).get("containers"):
                raise invalid("Pod", "", name, "spec.containers", "Required value")
            defaults = {"restartPolicy": "Always", "serviceAccountName": "default"}
            spec = {**defaults, **item["spec"]}
            return {
                **item,
                "spec": spec,
                "status": item.get("status") or {"phase": "Pending"},
            }
        case "secrets":
            data = dict(item.get("data") or {})
            for key, text in (item.get("stringData") or {}).items():
                data[key] = base64.b64encode(text.encode()).decode()
            kept = {key: value for key, value in item.items() if key != "stringData"}
            return {"type": "Opaque", **kept, "data": data}
        case "deployments":
            return {**item, "spec": {"replicas": 1, **(item.get("spec") or {})}}
    return item
