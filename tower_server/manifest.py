"""What a member's admin gets besides the bare join string: a Kubernetes manifest, or an env file. Pure.

The manifest can be applied again at any time. The agent keeps its key and certificates in the
Secret `tower-agent-credentials`, which we list without `data`: `kubectl apply` owns only the
fields that a manifest has, so what the agent wrote stays. It is there at all so that the agent
needs no right to create Secrets.
"""

import dataclasses
from typing import Any

import yaml

from certs.joining import JoinString
from shared.version import VERSION

__all__ = [
    "ADMIN_GROUP",
    "ADMIN_USER",
    "AGENT_NAMESPACE",
    "CREDENTIALS_SECRET",
    "DEFAULT_IMAGE",
    "JOIN_SECRET",
    "MemberManifest",
    "env_file",
]

AGENT_NAMESPACE = "tower-agent"
CREDENTIALS_SECRET = "tower-agent-credentials"
JOIN_SECRET = "tower-agent-join"
# One image holds agent and server of one release; there is no `latest`, which could be anything.
DEFAULT_IMAGE = f"tower:{VERSION}"

# Who the host is in the member if nobody says otherwise (design 2).
ADMIN_USER = "tower:admin"
ADMIN_GROUP = "tower:cluster-admins"

# Stands for every name that does not begin with `system:`.
ANY_NAME = "*"

HEALTH_PORT = 8090

# An account that no image uses for anything else ("nonroot" of the distroless images).
AGENT_UID = 65532

_NAME = "tower-agent"
_LABELS = {"app.kubernetes.io/name": _NAME, "app.kubernetes.io/part-of": "tower"}
_RBAC = "rbac.authorization.k8s.io"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberManifest:
    """What is installed in a member: the agent, its rights, and what the host may do there."""

    join: JoinString  # its repr is redacted; `to_yaml` contains the secret
    image: str = DEFAULT_IMAGE
    # As whom the host may act. Exact names become the resourceNames of the agent's ClusterRole.
    allow_users: tuple[str, ...] = (ADMIN_USER,)
    allow_groups: tuple[str, ...] = (ADMIN_GROUP,)

    def to_yaml(self) -> str:
        """Return the manifest with comments for whoever reviews it. It contains the join secret."""
        documents = [
            (
                comment,
                yaml.safe_dump(item, sort_keys=False, allow_unicode=True, width=100),
            )
            for comment, item in self._objects()
        ]
        return _heading(self.join) + "".join(
            f"---\n{_comment(comment)}{text}" for comment, text in documents
        )

    def objects(self) -> list[dict[str, Any]]:
        """Return the objects in the order in which they have to be applied."""
        return [item for _, item in self._objects()]

    def _objects(self) -> list[tuple[str, dict[str, Any]]]:
        return [
            ("", self._namespace()),
            ("", _object("v1", "ServiceAccount", _NAME)),
            (
                "What the agent may do in the whole cluster. The names under `impersonate` are as "
                "whom the host can act, and nobody else: shorten the lists, or bind those names to "
                "less than cluster-admin, and the host can do less.",
                self._cluster_role(),
            ),
            ("", _binding(_NAME, cluster_role=_NAME, subject=_service_account())),
            *self._admin_binding(),
            (
                "The agent keeps its key in one Secret and may touch no other.",
                _secret_role(),
            ),
            ("", _secret_role_binding()),
            (
                "Filled by the agent. It has no `data` here on purpose: applying this again then "
                "leaves the agent's key alone.",
                _secret(CREDENTIALS_SECRET),
            ),
            (
                "Used once. After the agent has joined, this Secret may be deleted.",
                _secret(JOIN_SECRET) | {"stringData": {"join": self.join.format()}},
            ),
            ("", self._deployment()),
        ]

    def _namespace(self) -> dict[str, Any]:
        namespace = _object("v1", "Namespace", AGENT_NAMESPACE, namespace=None)
        namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = (
            "restricted"
        )
        return namespace

    def _cluster_role(self) -> dict[str, Any]:
        reviews = ["subjectaccessreviews", "selfsubjectaccessreviews"]
        return _object(f"{_RBAC}/v1", "ClusterRole", _NAME, namespace=None) | {
            "rules": [
                _impersonate("users", self.allow_users),
                _impersonate("groups", self.allow_groups),
                _rule("authorization.k8s.io", reviews, ["create"]),
                # How many there are, for the host's list of clusters.
                _rule("", ["nodes"], ["list"]),
                # Its UID tells this member from every other.
                _rule("", ["namespaces"], ["get"], names=["kube-system"]),
            ]
        }

    def _admin_binding(self) -> list[tuple[str, dict[str, Any]]]:
        if ADMIN_GROUP not in self.allow_groups:
            return []
        subject = {"kind": "Group", "apiGroup": _RBAC, "name": ADMIN_GROUP}
        return [
            (
                f"What the host's default group {ADMIN_GROUP} may do: everything. "
                "Bind it to another ClusterRole if that is too much.",
                _binding(
                    "tower-cluster-admins",
                    cluster_role="cluster-admin",
                    subject=subject,
                ),
            )
        ]

    def _deployment(self) -> dict[str, Any]:
        labels = {"app.kubernetes.io/name": _NAME}
        return _object("apps/v1", "Deployment", _NAME) | {
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": dict(_LABELS)},
                    "spec": {
                        "serviceAccountName": _NAME,
                        "enableServiceLinks": False,
                        "securityContext": {
                            "runAsNonRoot": True,
                            "runAsUser": AGENT_UID,
                            "runAsGroup": AGENT_UID,
                            "seccompProfile": {"type": "RuntimeDefault"},
                        },
                        "containers": [self._container()],
                    },
                },
            }
        }

    def _container(self) -> dict[str, Any]:
        return {
            "name": "agent",
            "image": self.image,
            "command": ["tower-agent", "run"],
            "args": self._arguments(),
            "env": [
                {
                    # Not an argument: those are in the process list and in the pod's spec.
                    "name": "TOWER_JOIN",
                    "valueFrom": {
                        "secretKeyRef": {
                            "name": JOIN_SECRET,
                            "key": "join",
                            "optional": True,
                        }
                    },
                }
            ],
            "ports": [{"name": "health", "containerPort": HEALTH_PORT}],
            "readinessProbe": _probe("/readyz"),
            "livenessProbe": _probe("/healthz"),
            "resources": {
                "requests": {"cpu": "50m", "memory": "64Mi"},
                # No CPU limit: throttling would stall every stream at once.
                "limits": {"memory": "512Mi"},
            },
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }

    def _arguments(self) -> list[str]:
        return [
            f"--state-secret={AGENT_NAMESPACE}/{CREDENTIALS_SECRET}",
            f"--health=0.0.0.0:{HEALTH_PORT}",
            *(f"--allow-user={_literal(user)}" for user in self.allow_users),
            *(f"--allow-group={_literal(group)}" for group in self.allow_groups),
        ]


def _literal(text: str) -> str:
    # The kubelet replaces $(NAME) in arguments by a variable's value; $$ is its $.
    return text.replace("$", "$$")


def env_file(join: JoinString) -> str:
    """Return a file for an agent outside Kubernetes, as systemd and `docker --env-file` read it.

    It contains the join secret. No quotes: docker would take them for part of the value.
    """
    return (
        f"# Joins the cluster {join.cluster} to the Tower server at {join.host}:{join.port}.\n"
        "# Keep this file for its owner only (chmod 600). The join string is good for one join; once\n"
        "# the agent has joined, its line may be removed.\n"
        "#\n"
        "# TOWER_AGENT_KUBECONFIG is how the agent reaches its cluster. The identity in it needs the\n"
        "# rights of the ClusterRole in `tower token create ... --format manifest`.\n"
        f"TOWER_JOIN={join.format()}\n"
        "TOWER_AGENT_STATE_DIR=/var/lib/tower-agent\n"
        "TOWER_AGENT_KUBECONFIG=/etc/tower-agent/kubeconfig\n"
    )


def _heading(join: JoinString) -> str:
    return (
        f"# The Tower agent of the cluster {join.cluster}: `kubectl apply -f` this in that cluster.\n"
        "# It contains a secret that is good for one join: keep it to yourself until it was used.\n"
    )


def _comment(text: str) -> str:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + len(word) < 98:
            lines[-1] += f" {word}"
        else:
            lines.append(f"# {word}")
    return "".join(f"{line}\n" for line in lines)


def _object(
    api_version: str, kind: str, name: str, *, namespace: str | None = AGENT_NAMESPACE
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if namespace is not None:
        metadata["namespace"] = namespace
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": metadata | {"labels": dict(_LABELS)},
    }


def _secret(name: str) -> dict[str, Any]:
    return _object("v1", "Secret", name) | {"type": "Opaque"}


def _rule(
    group: str,
    resources: list[str],
    verbs: list[str],
    *,
    names: list[str] | None = None,
) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "apiGroups": [group],
        "resources": resources,
        "verbs": verbs,
    }
    return rule if names is None else rule | {"resourceNames": names}


def _impersonate(resource: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    # A rule without resourceNames is for every name, also when the list is empty.
    assert allowed, f"no {resource} to act as: the host could do nothing"
    names = None if ANY_NAME in allowed else list(allowed)
    return _rule("", [resource], ["impersonate"], names=names)


def _service_account() -> dict[str, str]:
    return {"kind": "ServiceAccount", "name": _NAME, "namespace": AGENT_NAMESPACE}


def _binding(
    name: str, *, cluster_role: str, subject: dict[str, str]
) -> dict[str, Any]:
    return _object(f"{_RBAC}/v1", "ClusterRoleBinding", name, namespace=None) | {
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": cluster_role},
        "subjects": [subject],
    }


def _secret_role() -> dict[str, Any]:
    return _object(f"{_RBAC}/v1", "Role", _NAME) | {
        "rules": [_rule("", ["secrets"], ["get", "patch"], names=[CREDENTIALS_SECRET])]
    }


def _secret_role_binding() -> dict[str, Any]:
    return _object(f"{_RBAC}/v1", "RoleBinding", _NAME) | {
        "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": _NAME},
        "subjects": [_service_account()],
    }


def _probe(path: str) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "health"},
        "periodSeconds": 5,
        "timeoutSeconds": 3,
    }
