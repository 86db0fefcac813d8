"""The kubectl script: what people do with a cluster, in steps, each in a namespace of its own.

A step checks the facts itself and leaves a transcript. The tests run each step directly at
the member and through the tunnel, and compare the two transcripts: nobody who sits behind
kubectl may be able to tell which way the bytes went. Streaming steps are in `streaming.py`.
"""

import dataclasses
import hashlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.kubectl import Kubectl
from tests.e2e.member import Member
from tests.e2e.tower import wait_until

__all__ = ["SCRIPT", "Scene", "Step", "ready_box", "watch_sees_events_at_once"]

# The number: an event is seen within a second of it.
EVENT_WITHIN_SECONDS = 1.0

# etcd takes 1.5 MiB an object and the apiserver 1 MiB of a ConfigMap's data.
BIG_CONFIG_MAPS = 8
BIG_CONFIG_MAP_BYTES = 700_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Where a step plays: the member behind both ways, a folder, and a target to forward to."""

    member: Member
    namespace: str
    directory: Path
    # A port of this machine where `streaming.Target` answers.
    target_port: int


Step = Callable[[Kubectl, Scene], None]

BOX = """
{apiVersion: v1, kind: Pod, metadata: {name: box, labels: {app: box}},
 spec: {containers: [{name: main, image: none/box}]}}
"""

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: none/web, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
"""

SETTINGS = """
{{apiVersion: v1, kind: ConfigMap, metadata: {{name: settings}}, data: {{colour: {colour}}}}}
"""


def ready_box(kubectl: Kubectl) -> None:
    """Start the pod `box`, which the fake kubelet answers for, and wait for it."""
    kubectl.quiet("apply", "-f", "-", stdin=BOX)
    kubectl.quiet("wait", "--for=condition=Ready", "pod/box", "--timeout=30s")


def get_and_describe(kubectl: Kubectl, scene: Scene) -> None:
    kubectl("apply", "-f", "-", stdin=WEB)
    ready_box(kubectl)
    kubectl.quiet("rollout", "status", "deployment/web", "--timeout=30s")
    _settled(kubectl)
    kubectl("get", "nodes", "-o", "name")
    kubectl("get", "pods,deployments,services")
    kubectl("get", "pods", "-o", "wide", "--show-labels", "--sort-by=.metadata.name")
    assert kubectl("get", "pods", "-l", "app=web", "-o", "name").count("pod/") == 2
    kubectl("get", "deployment", "web", "-o", "yaml")
    kubectl("get", "pod", "box", "-o", "jsonpath={.spec.nodeName}")
    kubectl("get", "pods", "--chunk-size=1", "--field-selector=status.phase=Running")
    kubectl("describe", "pod", "box")
    kubectl("describe", "deployment/web", "service/web")
    kubectl("get", "pod", "missing", code=1)
    kubectl("get", "nonsense", code=1)
    # An encoded path goes through byte for byte.
    kubectl("create", "configmap", "dotted.name", "--from-literal=a=b")
    path = f"/api/v1/namespaces/{scene.namespace}/configmaps"
    kubectl("get", "--raw", f"{path}/dotted%2Ename")
    kubectl("get", "--raw", f"{path}?labelSelector=a%20in%20%28b%2Cc%29&limit=500")
    kubectl("get", "--raw", f"{path}/no%2Fslash", code=1)


def _settled(kubectl: Kubectl) -> None:
    """Wait until the controllers and the scheduler have said all that `describe` shows."""

    def told() -> bool:
        reasons = kubectl.quiet("get", "events", "-o", "jsonpath={.items[*].reason}")
        available = kubectl.quiet(
            "get", "deployment/web", "-o", "jsonpath={.status.availableReplicas}"
        )
        return reasons.split().count("Scheduled") == 3 and available == "2"

    wait_until(told, 15, "three pods scheduled, two available")


def apply_patch_delete(kubectl: Kubectl, scene: Scene) -> None:
    for colour in ("red", "red", "blue"):  # created, unchanged, configured
        kubectl("apply", "-f", "-", stdin=SETTINGS.format(colour=colour))
    kubectl("patch", "configmap/settings", "-p", '{"data": {"shape": "round"}}')
    kubectl(
        *("patch", "configmap/settings", "--type=json"),
        *("-p", '[{"op": "replace", "path": "/data/shape", "value": "square"}]'),
    )
    kubectl(
        "patch", "configmap/settings", "--type=merge", "-p", '{"data": {"x": null}}'
    )
    kubectl("label", "configmap/settings", "tier=front")
    kubectl("annotate", "configmap/settings", "note=with spaces, commas and ü")
    kubectl("get", "configmap/settings", "-o", "yaml")
    kubectl("replace", "-f", "-", stdin=SETTINGS.format(colour="green"))
    shown = kubectl("get", "configmap/settings", "-o", "jsonpath={.data}")
    assert json.loads(shown) == {"colour": "green"}
    kubectl("patch", "configmap/settings", "-p", "{broken", code=1)
    kubectl("create", "configmap", "settings", code=1)
    kubectl("delete", "configmap/settings")
    kubectl("get", "configmap/settings", code=1)
    kubectl("apply", "-f", "-", stdin=WEB)
    kubectl("scale", "deployment/web", "--replicas=3")
    kubectl.quiet("rollout", "status", "deployment/web", "--timeout=30s")
    kubectl("delete", "-f", "-", "--wait=false", stdin=WEB)


def server_side_apply(kubectl: Kubectl, scene: Scene) -> None:
    red, blue = (SETTINGS.format(colour=colour) for colour in ("red", "blue"))
    apply = ("apply", "--server-side", "-f", "-")
    kubectl(*apply, "--field-manager=first", stdin=red)
    kubectl(*apply, "--field-manager=second", stdin=blue, code=1)
    kubectl(*apply, "--field-manager=second", "--force-conflicts", stdin=blue)
    kubectl("get", "configmap/settings", "-o", "yaml", "--show-managed-fields")
    kubectl(*apply, "--dry-run=server", stdin=red, code=1)


def watch_sees_events_at_once(kubectl: Kubectl, scene: Scene) -> None:
    path = f"/api/v1/namespaces/{scene.namespace}/configmaps"
    kubectl("create", "configmap", "first")
    with kubectl.start("get", "configmaps", "-w", "--output-watch-events") as watch:
        watch.next_line("first")

        def see(event: str, name: str, method: str, path: str, body: Any) -> None:
            began = time.monotonic()
            scene.member.request(method, path, body)
            line = watch.next_line(name)
            delay = line.at - began
            assert delay < EVENT_WITHIN_SECONDS, f"{event} {name} after {delay:.3f} s"
            assert line.text.startswith(event)
            kubectl.note(line.text)

        for number in range(5):
            name = f"event-{number}"
            see("ADDED", name, "POST", path, {"metadata": {"name": name}})
        see("DELETED", "event-0", "DELETE", f"{path}/event-0", None)


def logs_follow(kubectl: Kubectl, scene: Scene) -> None:
    ready_box(kubectl)
    kubectl("logs", "box")
    assert kubectl("logs", "box", "--tail=1") == "third line\n"
    with kubectl.start("logs", "--follow", "box") as logs:
        logs.next_line("third line")
        for number in range(3):
            began = time.monotonic()
            kubectl("exec", "box", "--", "sh", "-c", f"echo followed {number} >>$LOG")
            line = logs.next_line(f"followed {number}")
            # Not a number of the issue; a buffered line would come with the next one.
            assert line.at - began < EVENT_WITHIN_SECONDS + 2
            kubectl.note(line.text)
    kubectl("logs", "box", "--container=missing", code=1)
    kubectl("logs", "missing", code=1)


def acts_as_others(kubectl: Kubectl, scene: Scene) -> None:
    whoami = ("auth", "whoami", "-o", "json")
    # Without --as: a client certificate also leaves its fingerprint in `extra`.
    for field in ("username", "groups"):
        kubectl("auth", "whoami", "-o", f"jsonpath={{.status.userInfo.{field}}}")
    kubectl(*whoami, "--as=bob", "--as-group=dev")
    kubectl("get", "pods", "--as=bob", code=1)
    kubectl("create", "rolebinding", "bob", "--clusterrole=view", "--user=bob")
    _allowed_soon(kubectl, "auth", "can-i", "list", "pods", "--as=bob")
    kubectl("get", "pods", "--as=bob")
    kubectl("delete", "configmap/kube-root-ca.crt", "--as=bob", code=1)
    kubectl("auth", "can-i", "--list", "--as=bob")


def _allowed_soon(kubectl: Kubectl, *arguments: str) -> None:
    """The apiserver's authoriser learns of a new binding through its own watch."""
    wait_until(
        lambda: kubectl.run(*arguments).out == "yes\n", 10, "the new binding counts"
    )


def asks_what_it_may(kubectl: Kubectl, scene: Scene) -> None:
    kubectl("auth", "can-i", "--list")
    assert kubectl("auth", "can-i", "delete", "nodes") == "yes\n"
    kubectl("auth", "can-i", "get", "pods", "--as=nobody", code=1)


def discovery_and_explain(kubectl: Kubectl, scene: Scene) -> None:
    kubectl("api-resources", "-o", "wide", "--sort-by=name")
    kubectl("api-versions")
    kubectl("explain", "deployment.spec.strategy.rollingUpdate")
    kubectl("explain", "pods", "--recursive")
    kubectl("version", "-o", "json")
    assert kubectl("get", "--raw", "/readyz") == "ok"
    # Nine megabytes, compressed or chunked on their way: only the sum is kept.
    openapi = kubectl.quiet("get", "--raw", "/openapi/v2")
    kubectl.note(_digest(openapi))
    assert openapi.endswith("}")


def five_megabytes_of_config_maps(kubectl: Kubectl, scene: Scene) -> None:
    # The same for every run, and nothing that compression could make small.
    source = random.Random(5)
    objects = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"big-{number}", "labels": {"size": "big"}},
            "data": {"blob": source.randbytes(BIG_CONFIG_MAP_BYTES // 2).hex()},
        }
        for number in range(BIG_CONFIG_MAPS)
    ]
    listing = {"apiVersion": "v1", "kind": "List", "items": objects}
    kubectl("create", "-f", "-", stdin=json.dumps(listing))
    selected = ("get", "configmaps", "-l", "size=big")
    kubectl(*selected)
    text = kubectl.quiet(*selected, "-o", "json")
    assert len(text) > 5_000_000
    got = {item["metadata"]["name"]: item["data"] for item in json.loads(text)["items"]}
    assert got == {f"big-{n}": objects[n]["data"] for n in range(BIG_CONFIG_MAPS)}
    kubectl.note(_digest(json.dumps(got, sort_keys=True)))
    kubectl("delete", "configmaps", "-l", "size=big")


def waits(kubectl: Kubectl, scene: Scene) -> None:
    kubectl.quiet("apply", "-f", "-", stdin=BOX)
    kubectl("wait", "--for=condition=Ready", "pod/box", "--timeout=30s")
    kubectl("wait", "--for=jsonpath={.status.phase}=Running", "pod/box")
    kubectl("wait", "--for=condition=Never", "pod/box", "--timeout=1s", code=1)
    with kubectl.start("wait", "--for=delete", "pod/box", "--timeout=30s") as waiting:
        kubectl.quiet("delete", "pod/box", "--wait=false")
        # Silent if the pod was gone when it began to look: only the end is compared.
        assert waiting.process.wait(30) == 0


def _digest(text: str) -> str:
    return f"{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}"


SCRIPT: tuple[Step, ...] = (
    get_and_describe,
    apply_patch_delete,
    server_side_apply,
    watch_sees_events_at_once,
    logs_follow,
    acts_as_others,
    asks_what_it_may,
    discovery_and_explain,
    five_megabytes_of_config_maps,
    waits,
)
