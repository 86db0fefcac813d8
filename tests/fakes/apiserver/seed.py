"""What is in a demo cluster from its first moment: namespaces, RBAC, three nodes, three pods."""

from typing import Any

from tests.fakes.apiserver.pods import running_status
from tests.fakes.apiserver.resources import Resource, find
from tests.fakes.apiserver.store import Store, now_text

__all__ = [
    "AGENT_ACCOUNT",
    "AGENT_NAMESPACE",
    "VERSION",
    "complete_namespace",
    "run_pod",
    "seed",
]

Json = dict[str, Any]

VERSION = "v1.37.2+demo"
AGENT_NAMESPACE = "tower-system"
AGENT_ACCOUNT = "tower-agent"
RBAC = "rbac.authorization.k8s.io"


def seed(store: Store, name: str) -> None:
    """Fill an empty store."""
    for namespace in (
        "default",
        "kube-node-lease",
        "kube-public",
        "kube-system",
        AGENT_NAMESPACE,
    ):
        complete_namespace(
            store, store.create(_of("namespaces"), "", _named(namespace))
        )
    store.create(_of("serviceaccounts"), AGENT_NAMESPACE, _named(AGENT_ACCOUNT))
    _seed_rbac(store)
    for index in range(3):
        store.create(_of("nodes"), "", _node(f"{name}-node-{index}", index))
    for index, (namespace, pod, image) in enumerate(_PODS):
        item = _named(pod, labels={"app": pod.partition("-")[0]})
        item["spec"] = {
            "nodeName": f"{name}-node-{index % 3}",
            "containers": [{"name": pod.partition("-")[0], "image": image}],
        }
        run_pod(store, store.create(_of("pods"), namespace, item))


_PODS = (
    ("default", "web-0", "example.com/web:1"),
    ("default", "web-1", "example.com/web:1"),
    ("kube-system", "coredns-0", "example.com/coredns:1"),
)


def complete_namespace(store: Store, namespace: Json) -> Json:
    """What the controllers do for a new namespace: status, default ServiceAccount, CA ConfigMap."""
    status = {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
    name = namespace["metadata"]["name"]
    metadata = dict(namespace["metadata"])
    metadata["labels"] = {
        **metadata.get("labels", {}),
        "kubernetes.io/metadata.name": name,
    }
    completed = store.update(
        _of("namespaces"), {**namespace, "metadata": metadata, **status}
    )
    store.create(_of("serviceaccounts"), name, _named("default"))
    store.create(
        _of("configmaps"), name, {**_named("kube-root-ca.crt"), "data": {"ca.crt": ""}}
    )
    return completed


def run_pod(store: Store, pod: Json) -> None:
    """What scheduler and kubelet do for a new pod: a node, and it runs."""
    spec = dict(pod["spec"])
    nodes = store.items(_of("nodes"))
    if nodes:
        spec.setdefault(
            "nodeName", nodes[store.version % len(nodes)]["metadata"]["name"]
        )
    address = f"10.88.{store.version // 250 % 250}.{store.version % 250 + 1}"
    store.update(
        _of("pods"), {**pod, "spec": spec, "status": running_status(pod, address)}
    )


def _seed_rbac(store: Store) -> None:
    everything = [_rule("*", "*", "*"), {"nonResourceURLs": ["*"], "verbs": ["*"]}]
    basic = [
        _rule("authorization.k8s.io", "selfsubjectaccessreviews", "create"),
        _rule("authorization.k8s.io", "selfsubjectrulesreviews", "create"),
        _rule("authentication.k8s.io", "selfsubjectreviews", "create"),
    ]
    urls = ["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"]
    urls += ["/healthz", "/livez", "/readyz", "/version", "/version/"]
    agent = [
        _rule("", "users", "impersonate"),
        _rule("", "groups", "impersonate"),
        _rule("", "serviceaccounts", "impersonate"),
        _rule("", "namespaces", "get"),
        _rule("authorization.k8s.io", "subjectaccessreviews", "create"),
    ]
    authenticated = _group("system:authenticated")
    for role, rules, subject in (
        ("cluster-admin", everything, _group("system:masters")),
        ("system:basic-user", basic, authenticated),
        (
            "system:discovery",
            [{"nonResourceURLs": urls, "verbs": ["get"]}],
            authenticated,
        ),
        ("tower-agent", agent, _account(AGENT_NAMESPACE, AGENT_ACCOUNT)),
    ):
        store.create(_of("clusterroles", RBAC), "", {**_named(role), "rules": rules})
        _bind(store, role, role, subject)
    _bind(
        store, "tower:cluster-admins", "cluster-admin", _group("tower:cluster-admins")
    )


def _rule(group: str, resource: str, verb: str) -> Json:
    return {"apiGroups": [group], "resources": [resource], "verbs": [verb]}


def _bind(store: Store, name: str, role: str, subject: Json) -> None:
    reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}
    binding = {**_named(name), "subjects": [subject], "roleRef": reference}
    store.create(_of("clusterrolebindings", RBAC), "", binding)


def _group(name: str) -> Json:
    return {"apiGroup": RBAC, "kind": "Group", "name": name}


def _account(namespace: str, name: str) -> Json:
    return {"kind": "ServiceAccount", "namespace": namespace, "name": name}


def _node(name: str, index: int) -> Json:
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    resources = {"cpu": "8", "memory": "32Gi", "pods": "110"}
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "DemoNode",
        "message": "this node is made up",
        "lastHeartbeatTime": now_text(),
        "lastTransitionTime": now_text(),
    }
    return {
        **_named(name, labels=labels),
        "spec": {},
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [condition],
            "addresses": [{"type": "InternalIP", "address": f"10.0.0.{index + 10}"}],
            # All of these: real apiservers never leave one out, and typed clients insist.
            "nodeInfo": {
                "machineID": name,
                "systemUUID": name,
                "bootID": name,
                "kubeletVersion": VERSION,
                "kubeProxyVersion": "",
                "osImage": "Demo",
                "kernelVersion": "demo",
                "containerRuntimeVersion": "demo://1",
                "architecture": "amd64",
                "operatingSystem": "linux",
            },
        },
    }


def _named(name: str, labels: dict[str, str] | None = None) -> Json:
    metadata: Json = {"name": name}
    if labels:
        metadata["labels"] = labels
    return {"metadata": metadata}


def _of(plural: str, group: str = "") -> Resource:
    found = find(group, "v1", plural)
    assert found is not None, plural
    return found
