"""The patch formats: JSON merge patch (RFC 7386), JSON patch (RFC 6902) and Kubernetes' strategic merge.

All are pure: the original stays as it is.
"""

import copy
from typing import Any

from tests.fakes.apiserver.status import ApiError, bad_request

__all__ = ["json_patch", "merge_patch", "strategic_patch"]

# Lists that a strategic merge joins by a key of their items, by field name; the real keys are in the Go
# types, and these are the ones that people patch. A list that is not here is replaced.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "conditions": "type",
    "imagePullSecrets": "name",
    "secrets": "name",
    "ownerReferences": "uid",
    "hostAliases": "ip",
}


def merge_patch(original: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects are joined, all else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(original) if isinstance(original, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def strategic_patch(original: Any, patch: Any) -> Any:
    """Like a merge patch, with lists joined by key and the `$patch` and `$retainKeys` directives."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(original) if isinstance(original, dict) else {}
    if patch.get("$patch") == "replace":
        return _without_directives(patch)
    if "$retainKeys" in patch:
        keep = set(patch["$retainKeys"])
        result = {key: value for key, value in result.items() if key in keep}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            result[field] = [
                item for item in result.get(field, []) if item not in value
            ]
        elif key.startswith("$"):
            continue
        elif value is None or (
            isinstance(value, dict) and value.get("$patch") == "delete"
        ):
            result.pop(key, None)
        elif isinstance(value, list) and _joinable(key, value):
            result[key] = _join_lists(result.get(key) or [], value, MERGE_KEYS[key])
        else:
            result[key] = strategic_patch(result.get(key), value)
    return result


def _joinable(field: str, items: list[Any]) -> bool:
    return field in MERGE_KEYS and all(isinstance(item, dict) for item in items)


def _join_lists(original: list[Any], patch: list[Any], key: str) -> list[Any]:
    if any(item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if "$patch" not in item]
    result = list(original)
    for item in patch:
        # Service ports have `port` where containers have `containerPort`.
        used = key if key in item else "port"
        index = next(
            (i for i, old in enumerate(result) if old.get(used) == item.get(used)), None
        )
        if item.get("$patch") == "delete":
            if index is not None:
                del result[index]
        elif index is None:
            result.append(_without_directives(item))
        else:
            result[index] = strategic_patch(result[index], item)
    return result


def _without_directives(value: dict[str, Any]) -> dict[str, Any]:
    kept = {key: item for key, item in value.items() if not key.startswith("$")}
    return copy.deepcopy(kept)


def json_patch(original: Any, operations: Any) -> Any:
    """RFC 6902. Raises ApiError: 400 for a malformed patch, 422 for one that does not apply."""
    if not isinstance(operations, list):
        raise bad_request("a JSON patch is a list of operations")
    document = {"": copy.deepcopy(original)}
    for operation in operations:
        try:
            _apply_operation(document, operation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            message = f"the server rejected our request due to an error in our request: {error}"
            raise ApiError(422, "Invalid", message, {}) from error
    return document[""]


def _apply_operation(document: dict[str, Any], operation: dict[str, Any]) -> None:
    path = _pointer(operation["path"])
    match operation["op"]:
        case "add":
            _add(document, path, operation["value"])
        case "remove":
            _remove(document, path)
        case "replace":
            _remove(document, path)
            _add(document, path, operation["value"])
        case "move":
            _add(document, path, _remove(document, _pointer(operation["from"])))
        case "copy":
            value = _resolve(document, _pointer(operation["from"]))
            _add(document, path, copy.deepcopy(value))
        case "test":
            if _resolve(document, path) != operation["value"]:
                raise ValueError(f"test of {operation['path']} failed")
        case other:
            raise ValueError(f"unknown operation {other!r}")


def _pointer(text: str) -> list[str]:
    # The document lies under the key "", so that the root needs no rule of its own.
    return [key.replace("~1", "/").replace("~0", "~") for key in text.split("/")]


def _resolve(container: Any, path: list[str]) -> Any:
    for key in path:
        container = container[int(key) if isinstance(container, list) else key]
    return container


def _add(document: dict[str, Any], path: list[str], value: Any) -> None:
    container = _resolve(document, path[:-1])
    if isinstance(container, list):
        index = len(container) if path[-1] == "-" else int(path[-1])
        if index > len(container):
            raise IndexError(f"no index {index}")
        container.insert(index, value)
    else:
        container[path[-1]] = value


def _remove(document: dict[str, Any], path: list[str]) -> Any:
    container = _resolve(document, path[:-1])
    return container.pop(int(path[-1]) if isinstance(container, list) else path[-1])
