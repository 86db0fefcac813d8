"""Which resources the demo apiserver has, and the discovery documents that say so."""

from dataclasses import dataclass
from typing import Any

__all__ = ["RESOURCES", "Resource", "discovery", "find"]

Json = dict[str, Any]

ALL_VERBS = (
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
)


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One resource of one group and version."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    short: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    categories: tuple[str, ...] = ()
    subresources: tuple[
        tuple[str, str, tuple[str, ...]], ...
    ] = ()  # (name, kind, verbs)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def has_subresource(self, name: str) -> bool:
        return any(name == known for known, _, _ in self.subresources)

    @property
    def stored(self) -> bool:
        """Whether there are objects of it; reviews are only answered."""
        return "list" in self.verbs


def _core(plural: str, kind: str, *, namespaced: bool = True, **more: Any) -> Resource:
    return Resource(
        group="", version="v1", plural=plural, kind=kind, namespaced=namespaced, **more
    )


def _rbac(plural: str, kind: str, *, namespaced: bool) -> Resource:
    return Resource(
        group="rbac.authorization.k8s.io",
        version="v1",
        plural=plural,
        kind=kind,
        namespaced=namespaced,
    )


def _review(area: str, plural: str, kind: str, *, namespaced: bool = False) -> Resource:
    return Resource(
        group=f"{area}.k8s.io",
        version="v1",
        plural=plural,
        kind=kind,
        namespaced=namespaced,
        verbs=("create",),
    )


_STATUS = ("get", "patch", "update")
_STREAM = ("create", "get")

RESOURCES = (
    _core("configmaps", "ConfigMap", short=("cm",)),
    _core("events", "Event", short=("ev",)),
    _core(
        "namespaces",
        "Namespace",
        namespaced=False,
        short=("ns",),
        subresources=(("status", "Namespace", _STATUS),),
    ),
    _core(
        "nodes",
        "Node",
        namespaced=False,
        short=("no",),
        subresources=(("status", "Node", _STATUS),),
    ),
    _core(
        "pods",
        "Pod",
        short=("po",),
        categories=("all",),
        subresources=(
            ("exec", "PodExecOptions", _STREAM),
            ("log", "Pod", ("get",)),
            ("status", "Pod", _STATUS),
        ),
    ),
    _core("secrets", "Secret"),
    _core(
        "serviceaccounts",
        "ServiceAccount",
        short=("sa",),
        subresources=(("token", "TokenRequest", ("create",)),),
    ),
    _core("services", "Service", short=("svc",), categories=("all",)),
    Resource(
        group="apps",
        version="v1",
        plural="deployments",
        kind="Deployment",
        namespaced=True,
        short=("deploy",),
        categories=("all",),
        subresources=(("status", "Deployment", _STATUS),),
    ),
    _review("authentication", "selfsubjectreviews", "SelfSubjectReview"),
    _review("authorization", "localsubjectaccessreviews", "LocalSubjectAccessReview", namespaced=True),
    _review("authorization", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    _review("authorization", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    _review("authorization", "subjectaccessreviews", "SubjectAccessReview"),
    _rbac("clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    _rbac("clusterroles", "ClusterRole", namespaced=False),
    _rbac("rolebindings", "RoleBinding", namespaced=True),
    _rbac("roles", "Role", namespaced=True),
)  # fmt: skip

_BY_NAME = {(item.group, item.version, item.plural): item for item in RESOURCES}
GROUPS = sorted({(item.group, item.version) for item in RESOURCES if item.group})


def find(group: str, version: str, plural: str) -> Resource | None:
    """The resource of this name, None if there is none."""
    return _BY_NAME.get((group, version, plural))


def discovery(path: str) -> Json | None:
    """The discovery document at a path without a trailing slash, None if there is none."""
    match path.strip("/").split("/"):
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            groups = [_group(*item) for item in GROUPS]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        case ["apis", name]:
            for group, version in GROUPS:
                if group == name:
                    document = _group(group, version)
                    return {"kind": "APIGroup", "apiVersion": "v1", **document}
        case ["api", "v1"]:
            return _resource_list("", "v1")
        case ["apis", group, version] if (group, version) in GROUPS:
            return _resource_list(group, version)
    return None


def _group(group: str, version: str) -> Json:
    preferred = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [preferred], "preferredVersion": preferred}


def _resource_list(group: str, version: str) -> Json:
    entries: list[Json] = []
    for item in RESOURCES:
        if (item.group, item.version) == (group, version):
            entries += _entries(item)
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": entries,
    }


def _entries(item: Resource) -> list[Json]:
    entry: Json = {
        "name": item.plural,
        "singularName": item.kind.lower(),
        "namespaced": item.namespaced,
        "kind": item.kind,
        "verbs": list(item.verbs),
    }
    if item.short:
        entry["shortNames"] = list(item.short)
    if item.categories:
        entry["categories"] = list(item.categories)
    entries = [entry]
    for name, kind, verbs in item.subresources:
        entries.append(
            {
                "name": f"{item.plural}/{name}",
                "singularName": "",
                "namespaced": item.namespaced,
                "kind": kind,
                "verbs": list(verbs),
            }
        )
    return entries
