"""What we read and write on the host, by its API paths. Objects are plain JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

__all__ = [
    "CLUSTERS",
    "GROUP",
    "LEASES",
    "SECRETS",
    "Object",
    "Resource",
    "name_of",
    "revision_of",
]

Object = dict[str, Any]

GROUP = "tower.dev"


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A kind of object, as the API names it."""

    api_version: str  # "v1", "tower.dev/v1alpha1"
    kind: str
    plural: str
    is_namespaced: bool

    def path(
        self, namespace: str | None, name: str | None = None, subresource: str = ""
    ) -> str:
        """The path of one object, or of all of them without a `name`."""
        root = "/apis" if "/" in self.api_version else "/api"
        parts = [root, self.api_version]
        if self.is_namespaced:
            assert namespace is not None, f"{self.plural} lie in a namespace"
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def object(self, namespace: str | None, name: str, **fields: Any) -> Object:
        """A new object with its type and name; `fields` are its other top-level ones."""
        metadata: dict[str, Any] = {"name": name, **fields.pop("metadata", {})}
        if self.is_namespaced:
            metadata["namespace"] = namespace
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "metadata": metadata,
            **fields,
        }

    def __str__(self) -> str:
        return self.plural


SECRETS = Resource(
    api_version="v1", kind="Secret", plural="secrets", is_namespaced=True
)
LEASES = Resource(
    api_version="coordination.k8s.io/v1",
    kind="Lease",
    plural="leases",
    is_namespaced=True,
)
CLUSTERS = Resource(
    api_version=f"{GROUP}/v1alpha1",
    kind="Cluster",
    plural="clusters",
    is_namespaced=False,
)


def name_of(item: Mapping[str, Any]) -> str:
    """An object's name."""
    return str(item["metadata"]["name"])


def revision_of(item: Mapping[str, Any]) -> int:
    """How new an object (or a list) is, for comparison with others of its kind.

    Kubernetes defines resource versions as comparable numbers since 1.35, and they always were.
    """
    return int(item["metadata"]["resourceVersion"])
