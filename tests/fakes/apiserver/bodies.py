"""Bodies in and out: what a client sent, and in which form it wants the answer."""

import json
from typing import Any

import yaml
from aiohttp import web

from tests.fakes.apiserver import protobuf
from tests.fakes.apiserver.requests import RequestInfo
from tests.fakes.apiserver.resources import Resource
from tests.fakes.apiserver.status import (
    ApiError,
    bad_request,
    not_acceptable,
    unsupported_media_type,
)
from tests.fakes.apiserver.store import Page
from tests.fakes.apiserver.tables import partial_metadata, table

__all__ = ["MAX_BODY_BYTES", "Form", "json_response", "read_body", "read_object"]

Json = dict[str, Any]

MAX_BODY_BYTES = 3 * 1024 * 1024  # kube-apiserver's own limit
READABLE = ("application/json", "application/yaml", protobuf.CONTENT_TYPE)


async def read_body(request: web.Request) -> Any:
    """The parsed body, None for an empty one. Raises ApiError: 400, 413, 415."""
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        message = f"limit is {MAX_BODY_BYTES}"
        raise ApiError(
            413,
            "RequestEntityTooLarge",
            f"Request entity too large: {message}",
            {},
        ) from None
    if not raw:
        return None
    kind = request.content_type
    if kind == protobuf.CONTENT_TYPE:
        return protobuf.decode(raw)
    if kind.endswith("yaml"):
        try:
            return yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise bad_request(f"error decoding YAML: {error}") from None
    if (
        kind.endswith("json") or kind == "application/octet-stream"
    ):  # the latter: no header
        try:
            return json.loads(raw)
        except ValueError as error:
            raise bad_request(
                f"couldn't get version/kind; json parse error: {error}"
            ) from None
    raise unsupported_media_type(", ".join(READABLE))


async def read_object(request: web.Request) -> Json:
    """A body that is an object."""
    body = await read_body(request)
    if not isinstance(body, dict):
        raise bad_request("the body of the request is not an object")
    return body


def json_response(body: Any, status: int = 200) -> web.Response:
    return web.json_response(body, status=status)


class Form:
    """The form that a client asked for: whole objects, their metadata, or a Table."""

    def __init__(self, request: web.Request, info: RequestInfo) -> None:
        """Raises ApiError 406 if we speak nothing of what the client accepts."""
        self.kind = _negotiate(request.headers.get("Accept", "*/*"))
        self.include = info.first("includeObject") or "Metadata"

    def item(self, resource: Resource, item: Json) -> Json:
        if self.kind == "Table":
            version = {"resourceVersion": item["metadata"].get("resourceVersion", "")}
            return table(resource, [item], version, include=self.include)
        if self.kind.startswith("PartialObjectMetadata"):
            return partial_metadata(item)
        return item

    def listing(self, resource: Resource, page: Page) -> Json:
        metadata: Json = {"resourceVersion": str(page.version)}
        if page.continue_token:
            metadata["continue"] = page.continue_token
            metadata["remainingItemCount"] = page.remaining
        if self.kind == "Table":
            return table(resource, page.items, metadata, include=self.include)
        if self.kind.startswith("PartialObjectMetadata"):
            header = {
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
            }
            items = [partial_metadata(item) for item in page.items]
            return {**header, "metadata": metadata, "items": items}
        # The list says what its items are; they do not repeat it.
        items = [
            {
                key: value
                for key, value in item.items()
                if key not in ("kind", "apiVersion")
            }
            for item in page.items
        ]
        header = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version}
        return {**header, "metadata": metadata, "items": items}

    def event(self, resource: Resource, kind: str, item: Json, *, first: bool) -> Json:
        """One event of a watch."""
        if self.kind != "Table":
            return {"type": kind, "object": self.item(resource, item)}
        version = {"resourceVersion": item["metadata"]["resourceVersion"]}
        rows = [] if kind == "BOOKMARK" else [item]
        body = table(resource, rows, version, include=self.include, headed=first)
        return {"type": kind, "object": body}


def _negotiate(accept: str) -> str:
    """`Object`, `Table`, `PartialObjectMetadata` or `PartialObjectMetadataList`: the first that we speak."""
    for clause in accept.split(","):
        media_type, *parameters = (part.strip() for part in clause.split(";"))
        wanted = dict(part.partition("=")[::2] for part in parameters)
        if media_type not in ("*/*", "application/*", "application/json"):
            continue
        match wanted.get("as"):
            case None:
                return "Object"
            case (
                "Table" | "PartialObjectMetadata" | "PartialObjectMetadataList" as form
            ) if wanted.get("v") == "v1" and wanted.get("g") == "meta.k8s.io":
                return form
    raise not_acceptable()
