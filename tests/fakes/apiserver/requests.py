"""What a request is about: verb, resource, namespace, name. As kube-apiserver's RequestInfo."""

from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

from tests.fakes.apiserver.resources import Resource, find

__all__ = ["RequestInfo", "parse"]

_VERBS = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}


@dataclass(frozen=True, kw_only=True)
class RequestInfo:
    """A request, taken apart; `plural` is empty for a path that is no resource's."""

    path: str
    verb: str
    query: dict[str, list[str]]
    group: str = ""
    version: str = ""
    plural: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    resource: Resource | None = None  # None also for a resource that we do not have

    def first(self, key: str) -> str:
        """A query parameter, empty if it is not there."""
        return self.query.get(key, [""])[0]

    def is_true(self, key: str) -> bool:
        return self.first(key) in ("true", "1")

    @property
    def full_resource(self) -> str:
        """`pods/exec`, as RBAC names it."""
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural


def parse(method: str, raw_target: str) -> RequestInfo:
    """Take a request target apart; the path is still percent-encoded, segment by segment."""
    raw_path, _, raw_query = raw_target.partition("?")
    query = parse_qs(raw_query, keep_blank_values=True)
    path = unquote(raw_path)
    segments = [unquote(part) for part in raw_path.strip("/").split("/")]
    match segments:
        case ["api", version, *rest] if rest:
            group = ""
        case ["apis", group, version, *rest] if rest:
            pass
        case _:
            return RequestInfo(path=path, verb=method.lower(), query=query)
    namespace = subresource = ""
    match rest:
        case ["namespaces", namespace]:
            plural, name = "namespaces", namespace
        case ["namespaces", namespace, "status" | "finalize" as subresource]:
            plural, name = "namespaces", namespace
        case ["namespaces", namespace, plural, *tail]:
            name, subresource = [*tail, "", ""][:2]
        case [plural, *tail]:
            name, subresource = [*tail, "", ""][:2]
    verb = _VERBS.get(method, method.lower())
    if not name:
        watching = query.get("watch", [""])[0] in ("true", "1")
        collection = {
            "get": "watch" if watching else "list",
            "delete": "deletecollection",
        }
        verb = collection.get(verb, verb)
    return RequestInfo(
        path=path,
        verb=verb,
        query=query,
        group=group,
        version=version,
        plural=plural,
        subresource=subresource,
        namespace=namespace,
        name=name,
        resource=find(group, version, plural),
    )
