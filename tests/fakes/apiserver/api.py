"""The verbs on resources: get, list, create, update, patch, delete, and the subresources of pods."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.fakes.apiserver import seed, status
from tests.fakes.apiserver.admission import admit, check_name
from tests.fakes.apiserver.bodies import Form, json_response, read_body, read_object
from tests.fakes.apiserver.exec import serve_exec
from tests.fakes.apiserver.identity import User, service_account
from tests.fakes.apiserver.patches import json_patch, merge_patch, strategic_patch
from tests.fakes.apiserver.pods import PodFiles, container_of
from tests.fakes.apiserver.rbac import Authorizer
from tests.fakes.apiserver.requests import RequestInfo
from tests.fakes.apiserver.resources import RESOURCES, Resource, find
from tests.fakes.apiserver.reviews import REVIEWS, token_request
from tests.fakes.apiserver.selectors import Predicate, field_selector, label_selector
from tests.fakes.apiserver.store import Store, now_text
from tests.fakes.apiserver.watching import serve_watch

__all__ = ["Api"]

Json = dict[str, Any]

PATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "application/json-patch+json": json_patch,
    "application/merge-patch+json": merge_patch,
    "application/strategic-merge-patch+json": strategic_patch,
}


class Api:
    """Everything below /api/v1 and /apis/GROUP/VERSION, for a caller who may do it."""

    def __init__(
        self,
        store: Store,
        authorizer: Authorizer,
        pods: PodFiles,
        add_token: Callable[[str, User], None],
    ) -> None:
        self._store = store
        self._authorizer = authorizer
        self._pods = pods
        self._add_token = add_token

    async def serve(
        self, request: web.Request, info: RequestInfo, user: User
    ) -> web.StreamResponse:
        """Answer a request. Raises ApiError."""
        resource = info.resource
        if resource is None or (
            info.namespace
            and not resource.namespaced
            and resource.plural != "namespaces"
        ):
            raise status.unknown_path()
        if info.subresource:
            return await self._subresource(request, info, resource)
        nameless = info.verb in ("update", "patch") and not info.name
        if nameless or info.verb not in resource.verbs:
            raise status.method_not_allowed()
        if not resource.stored:
            return await self._review(request, info, resource, user)
        match info.verb:
            case "watch":
                return await serve_watch(
                    request, info, resource, self._store, _predicate(info)
                )
            case "list":
                return self._list(request, info, resource)
            case "get":
                item = self._get(info, resource)
                return json_response(Form(request, info).item(resource, item))
            case "create":
                item = await self._create(request, info, resource)
                return json_response(Form(request, info).item(resource, item), 201)
            case "update" | "patch":
                item = await self._change(request, info, resource)
                return json_response(Form(request, info).item(resource, item))
            case "deletecollection":
                return await self._delete_collection(request, info, resource)
            case _:
                return json_response(await self._delete(request, info, resource))

    # Reading

    def _get(self, info: RequestInfo, resource: Resource) -> Json:
        return self._store.get(resource, _space(info, resource), info.name)

    def _list(
        self, request: web.Request, info: RequestInfo, resource: Resource
    ) -> web.Response:
        limit = info.first("limit")
        page = self._store.list(
            resource,
            _space(info, resource),
            _predicate(info),
            limit=int(limit) if limit.isdigit() else 0,
            continue_token=info.first("continue"),
        )
        return json_response(Form(request, info).listing(resource, page))

    # Writing

    async def _create(
        self, request: web.Request, info: RequestInfo, resource: Resource
    ) -> Json:
        item = await read_object(request)
        if info.name:
            raise status.method_not_allowed()
        space = _space(info, resource)
        if resource.namespaced:
            if not space:
                raise status.method_not_allowed()
            self._store.get(_NAMESPACES, "", space)  # 404 if it is not there
        check_name(resource, item, "", space)
        dry_run = _is_dry_run(info)
        created = self._store.create(
            resource, space, admit(resource, item), dry_run=dry_run
        )
        if not dry_run and resource.plural == "pods":
            seed.run_pod(self._store, created)
        if not dry_run and resource.plural == "namespaces":
            return seed.complete_namespace(self._store, created)
        return created

    async def _change(
        self, request: web.Request, info: RequestInfo, resource: Resource
    ) -> Json:
        """PUT and PATCH, of an object or of its status."""
        if info.verb == "patch":
            apply = PATCHES.get(request.content_type)
            if apply is None:
                raise status.unsupported_media_type(", ".join(PATCHES))
            patch = await read_body(request)
            current = self._get(info, resource)
            wanted = apply(current, patch)
        else:
            wanted = await read_object(request)
            current = self._get(info, resource)
        check_name(resource, wanted, info.name, _space(info, resource))
        wanted["metadata"] = {**(wanted.get("metadata") or {}), "name": info.name}
        if resource.namespaced:
            wanted["metadata"]["namespace"] = info.namespace
        if info.subresource == "status":
            # Only the status, from an object that is as new as the caller says.
            metadata = {**current["metadata"]}
            metadata["resourceVersion"] = wanted["metadata"].get("resourceVersion")
            wanted = {**current, "metadata": metadata, "status": wanted.get("status")}
        else:
            if resource.has_subresource("status") and "status" in current:
                wanted = {**wanted, "status": current["status"]}
            wanted = admit(resource, wanted)
        return self._store.update(resource, wanted, dry_run=_is_dry_run(info))

    async def _delete(
        self, request: web.Request, info: RequestInfo, resource: Resource
    ) -> Json:
        options = await read_body(request) or {}
        uid = (options.get("preconditions") or {}).get("uid", "")
        dry_run = _is_dry_run(info) or bool(options.get("dryRun"))
        space = _space(info, resource)
        if resource.plural == "namespaces" and not dry_run:
            self._empty_namespace(info.name)
        deleted = self._remove(resource, space, info.name, uid=uid, dry_run=dry_run)
        if resource.plural in ("pods", "namespaces"):
            metadata = {**deleted["metadata"], "deletionTimestamp": now_text()}
            return {**deleted, "metadata": metadata}
        details = {
            "name": info.name,
            "kind": resource.plural,
            "uid": deleted["metadata"]["uid"],
        }
        return status.success(
            {**details, "group": resource.group} if resource.group else details
        )

    async def _delete_collection(
        self, request: web.Request, info: RequestInfo, resource: Resource
    ) -> web.Response:
        await read_body(request)
        page = self._store.list(resource, _space(info, resource), _predicate(info))
        for item in page.items:
            metadata = item["metadata"]
            self._remove(resource, metadata.get("namespace", ""), metadata["name"])
        return json_response(Form(request, info).listing(resource, page))

    def _empty_namespace(self, namespace: str) -> None:
        """At once, where the real one takes its time."""
        self._store.get(_NAMESPACES, "", namespace)
        for resource in RESOURCES:
            if resource.namespaced and resource.stored:
                for item in self._store.items(resource, namespace):
                    self._remove(resource, namespace, item["metadata"]["name"])

    def _remove(
        self,
        resource: Resource,
        space: str,
        name: str,
        *,
        uid: str = "",
        dry_run: bool = False,
    ) -> Json:
        """Delete an object, and a pod's files with it."""
        deleted = self._store.delete(resource, space, name, uid=uid, dry_run=dry_run)
        if resource.plural == "pods" and not dry_run:
            self._pods.remove(deleted)
        return deleted

    # What is no object of its own

    async def _review(
        self, request: web.Request, info: RequestInfo, resource: Resource, user: User
    ) -> web.Response:
        body = await read_object(request)
        header = {"kind": resource.kind, "apiVersion": resource.api_version}
        answer = REVIEWS[resource.plural](self._authorizer, user, {**body, **header})
        return json_response(Form(request, info).item(resource, answer), 201)

    async def _subresource(
        self, request: web.Request, info: RequestInfo, resource: Resource
    ) -> web.StreamResponse:
        verbs = next(
            (
                verbs
                for name, _, verbs in resource.subresources
                if name == info.subresource
            ),
            (),
        )
        if not verbs:
            raise status.unknown_path()
        if info.verb not in verbs:
            raise status.method_not_allowed()
        if info.subresource == "status":
            item = (
                self._get(info, resource)
                if info.verb == "get"
                else await self._change(request, info, resource)
            )
            return json_response(Form(request, info).item(resource, item))
        item = self._get(info, resource)
        if info.subresource == "token":
            answer, token = token_request(await read_body(request) or {})
            account = service_account(
                info.namespace, info.name, item["metadata"]["uid"]
            )
            self._add_token(token, account)
            return json_response(answer, 201)
        container = container_of(item, info.first("container"))
        if info.subresource == "exec":
            folder = str(self._pods.folder(item))
            return await serve_exec(
                request, info, folder, self._pods.environment(item, container)
            )
        return await self._log(request, info, item, container)

    async def _log(
        self, request: web.Request, info: RequestInfo, pod: Json, container: str
    ) -> web.StreamResponse:
        def number(name: str) -> int | None:
            text = info.first(name)
            return int(text) if text.isdigit() else None

        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for line in self._pods.read_log(
            pod,
            container,
            tail_lines=number("tailLines"),
            limit_bytes=number("limitBytes"),
            follow=info.is_true("follow"),
            timestamps=info.is_true("timestamps"),
        ):
            await response.write(line)
        await response.write_eof()
        return response


def _namespaces() -> Resource:
    found = find("", "v1", "namespaces")
    assert found is not None
    return found


_NAMESPACES = _namespaces()


def _space(info: RequestInfo, resource: Resource) -> str:
    """The namespace under which objects are kept: none for cluster-wide ones."""
    return info.namespace if resource.namespaced else ""


def _predicate(info: RequestInfo) -> Predicate:
    labels = label_selector(info.first("labelSelector"))
    fields = field_selector(info.first("fieldSelector"))
    return lambda item: labels(item) and fields(item)


def _is_dry_run(info: RequestInfo) -> bool:
    return "All" in info.query.get("dryRun", [])
