"""The OpenAPI documents: just enough for kubectl to leave validation to the server.

`kubectl create` and `apply` look into OpenAPI v3 whether a PATCH of the kind takes
`fieldValidation`; if so they do not validate themselves. Schemas are open objects, so
`kubectl explain` has nothing to tell.
"""

from typing import Any

from tests.fakes.apiserver.resources import GROUPS, RESOURCES, Resource

__all__ = ["openapi"]

Json = dict[str, Any]


def openapi(path: str) -> Json | None:
    """The document at a path, None if there is none."""
    match path.strip("/").split("/"):
        case ["openapi", "v2"]:
            return {"swagger": "2.0", "info": _INFO, "paths": {}, "definitions": {}}
        case ["openapi", "v3"]:
            versions = [
                "api/v1",
                *(f"apis/{group}/{version}" for group, version in GROUPS),
            ]
            return {
                "paths": {
                    name: {"serverRelativeURL": f"/openapi/v3/{name}"}
                    for name in versions
                }
            }
        case ["openapi", "v3", "api", "v1"]:
            return _document("", "v1")
        case ["openapi", "v3", "apis", group, version] if (group, version) in GROUPS:
            return _document(group, version)
    return None


_INFO = {"title": "Kubernetes (demo)", "version": "v1"}


def _document(group: str, version: str) -> Json:
    paths: Json = {}
    schemas: Json = {}
    for item in RESOURCES:
        if (item.group, item.version) == (group, version):
            paths |= _paths(item)
            schemas[f"demo.{item.version}.{item.kind}"] = {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": True,
                "x-kubernetes-group-version-kind": [_kind(item)],
            }
    document = {"openapi": "3.0.0", "info": _INFO, "paths": paths}
    return {**document, "components": {"schemas": schemas}}


def _paths(item: Resource) -> Json:
    base = (
        f"/apis/{item.group}/{item.version}" if item.group else f"/api/{item.version}"
    )
    if item.namespaced:
        base += "/namespaces/{namespace}"
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}

    def operation(action: str) -> Json:
        return {
            "operationId": f"{action}{item.kind}",
            "parameters": [parameter],
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": _kind(item),
        }

    paths: Json = {f"{base}/{item.plural}": {"post": operation("post")}}
    if "patch" in item.verbs:
        paths[f"{base}/{item.plural}/{{name}}"] = {
            "put": operation("put"),
            "patch": operation("patch"),
        }
    return paths


def _kind(item: Resource) -> Json:
    return {"group": item.group, "version": item.version, "kind": item.kind}
