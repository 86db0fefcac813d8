"""RBAC over the roles and bindings in the store: the part of it that lets the tests tell yes from no.

Left out: aggregated roles, and the check against granting more than one has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.fakes.apiserver.identity import User
from tests.fakes.apiserver.requests import RequestInfo
from tests.fakes.apiserver.resources import Resource, find
from tests.fakes.apiserver.status import ApiError, forbidden
from tests.fakes.apiserver.store import Store

__all__ = ["Authorizer", "Question"]

Json = dict[str, Any]
GROUP = "rbac.authorization.k8s.io"


@dataclass(frozen=True, kw_only=True)
class Question:
    """May somebody do this? With a path it is about a URL that is no resource's."""

    verb: str
    group: str = ""
    resource: str = ""  # with its subresource: pods/exec
    namespace: str = ""
    name: str = ""
    path: str = ""

    @classmethod
    def of_request(cls, info: RequestInfo) -> "Question":
        if not info.plural:
            return cls(verb=info.verb, path=info.path)
        return cls(
            verb=info.verb,
            group=info.group,
            resource=info.full_resource,
            namespace=info.namespace,
            name=info.name,
        )

    def refusal(self, user: User) -> ApiError:
        """The 403 in kube-apiserver's words."""
        if self.path:
            message = (
                f'forbidden: User "{user.name}" cannot {self.verb} path "{self.path}"'
            )
            return ApiError(403, "Forbidden", message, {})
        where = (
            f'in the namespace "{self.namespace}"'
            if self.namespace
            else "at the cluster scope"
        )
        action = f'{self.verb} resource "{self.resource}" in API group "{self.group}" {where}'
        plural = self.resource.partition("/")[0]
        return forbidden(user.name, action, self.group, plural, self.name)


class Authorizer:
    """Decides from what is in the store now: a new binding counts from the next request on."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def allows(self, user: User, question: Question) -> bool:
        if "system:masters" in user.groups:
            return True
        return any(
            _covers(rule, question) for rule in self.rules(user, question.namespace)
        )

    def demand(self, user: User, question: Question) -> None:
        """Raises ApiError 403."""
        if not self.allows(user, question):
            raise question.refusal(user)

    def rules(self, user: User, namespace: str) -> Iterator[Json]:
        """The rules that hold for a user, cluster-wide and in a namespace."""
        for binding in self._store.items(_resource("clusterrolebindings")):
            if _names(binding, user):
                yield from self._rules_of(binding["roleRef"], "")
        if namespace:
            for binding in self._store.items(_resource("rolebindings"), namespace):
                if _names(binding, user):
                    yield from self._rules_of(binding["roleRef"], namespace)

    def _rules_of(self, reference: Json, namespace: str) -> list[Json]:
        cluster_wide = reference["kind"] == "ClusterRole"
        resource = _resource("clusterroles" if cluster_wide else "roles")
        try:
            role = self._store.get(
                resource, "" if cluster_wide else namespace, reference["name"]
            )
        except ApiError:
            return []  # a binding to a role that is not there grants nothing
        return role.get("rules") or []


def _resource(plural: str) -> Resource:
    found = find(GROUP, "v1", plural)
    assert found is not None
    return found


def _names(binding: Json, user: User) -> bool:
    for subject in binding.get("subjects") or []:
        match subject["kind"]:
            case "User" if subject["name"] == user.name:
                return True
            case "Group" if subject["name"] in user.groups:
                return True
            case "ServiceAccount":
                name = f"system:serviceaccount:{subject.get('namespace', '')}:{subject['name']}"
                if name == user.name:
                    return True
    return False


def _covers(rule: Json, question: Question) -> bool:
    if not _has(rule, "verbs", question.verb):
        return False
    if question.path:
        return any(
            pattern in ("*", question.path)
            or (pattern.endswith("*") and question.path.startswith(pattern[:-1]))
            for pattern in rule.get("nonResourceURLs") or []
        )
    subresource = question.resource.partition("/")[2]
    names = rule.get("resourceNames") or []
    return (
        _has(rule, "apiGroups", question.group)
        and (
            _has(rule, "resources", question.resource)
            or bool(subresource and f"*/{subresource}" in (rule.get("resources") or []))
        )
        and (not names or question.name in names)
    )


def _has(rule: Json, field: str, value: str) -> bool:
    values = rule.get(field) or []
    return "*" in values or value in values
