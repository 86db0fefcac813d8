"""Table output: what `kubectl get` prints, which the server makes and kubectl only shows."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tests.fakes.apiserver.resources import Resource

__all__ = ["human_age", "partial_metadata", "table"]

Json = dict[str, Any]
Cell = Callable[[Json, datetime], Any]


def table(
    resource: Resource,
    items: list[Json],
    metadata: Json,
    *,
    include: str,
    headed: bool = True,
) -> Json:
    """A Table of some objects.

    Args:
        include: What of the object goes with its row: Object, Metadata or None.
        headed: With column definitions; a watch sends them with its first event only.
    """
    now = datetime.now(UTC)
    columns = COLUMNS.get(resource.plural, _DEFAULT)
    rows = [
        {
            "cells": [cell(item, now) for _, _, _, cell in columns],
            **_row_object(item, include),
        }
        for item in items
    ]
    definitions = [
        {
            "name": name,
            "type": kind,
            "format": "name" if name == "Name" else "",
            "description": "",
            "priority": priority,
        }
        for name, kind, priority, _ in columns
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions if headed else None,
        "rows": rows,
    }


def _row_object(item: Json, include: str) -> Json:
    match include:
        case "Object":
            return {"object": item}
        case "None":
            return {"object": None}
        case _:
            return {"object": partial_metadata(item)}


def partial_metadata(item: Json) -> Json:
    header = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    return {**header, "metadata": item["metadata"]}


def human_age(seconds: float) -> str:
    """`5s`, `3m20s`, `17h`, `12d`: as kubectl's HumanDuration."""
    seconds = max(0, int(seconds))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    return f"{days}d" if days < 730 else f"{days // 365}y"


# Cells


def _at(*path: str, default: Any = "<none>") -> Cell:
    def cell(item: Json, _: datetime) -> Any:
        value: Any = item
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return default if value in (None, "") else value

    return cell


def _age(item: Json, now: datetime) -> str:
    created = datetime.fromisoformat(item["metadata"]["creationTimestamp"])
    return human_age((now - created).total_seconds())


def _count(*fields: str) -> Cell:
    return lambda item, _: sum(len(item.get(field) or ()) for field in fields)


def _ready_containers(item: Json, _: datetime) -> str:
    statuses = item.get("status", {}).get("containerStatuses") or []
    ready = sum(1 for status in statuses if status.get("ready"))
    return f"{ready}/{len(item.get('spec', {}).get('containers') or [])}"


def _restarts(item: Json, _: datetime) -> str:
    statuses = item.get("status", {}).get("containerStatuses") or []
    return str(sum(status.get("restartCount", 0) for status in statuses))


def _node_status(item: Json, _: datetime) -> str:
    conditions = item.get("status", {}).get("conditions") or []
    ready = any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in conditions
    )
    disabled = (
        ",SchedulingDisabled" if item.get("spec", {}).get("unschedulable") else ""
    )
    return ("Ready" if ready else "NotReady") + disabled


def _internal_address(item: Json, _: datetime) -> str:
    for address in item.get("status", {}).get("addresses") or []:
        if address["type"] == "InternalIP":
            return str(address["address"])
    return "<none>"


def _deployment_ready(item: Json, _: datetime) -> str:
    ready = item.get("status", {}).get("readyReplicas", 0)
    return f"{ready}/{item.get('spec', {}).get('replicas', 1)}"


_NAME = ("Name", "string", 0, _at("metadata", "name"))
_AGE = ("Age", "string", 0, _age)
_DEFAULT = [_NAME, ("Created At", "date", 0, _at("metadata", "creationTimestamp"))]
# (name, type, priority, cell); priority 1 is for `-o wide` only.
COLUMNS: dict[str, list[tuple[str, str, int, Cell]]] = {
    "nodes": [
        _NAME,
        ("Status", "string", 0, _node_status),
        ("Roles", "string", 0, lambda *_: "<none>"),
        _AGE,
        ("Version", "string", 0, _at("status", "nodeInfo", "kubeletVersion", default="")),
        ("Internal-IP", "string", 1, _internal_address),
        ("External-IP", "string", 1, lambda *_: "<none>"),
        ("OS-Image", "string", 1, _at("status", "nodeInfo", "osImage", default="<unknown>")),
        ("Kernel-Version", "string", 1, _at("status", "nodeInfo", "kernelVersion", default="<unknown>")),
        ("Container-Runtime", "string", 1, _at("status", "nodeInfo", "containerRuntimeVersion", default="<unknown>")),
    ],
    "pods": [
        _NAME,
        ("Ready", "string", 0, _ready_containers),
        ("Status", "string", 0, _at("status", "phase", default="Pending")),
        ("Restarts", "string", 0, _restarts),
        _AGE,
        ("IP", "string", 1, _at("status", "podIP")),
        ("Node", "string", 1, _at("spec", "nodeName")),
        ("Nominated Node", "string", 1, lambda *_: "<none>"),
        ("Readiness Gates", "string", 1, lambda *_: "<none>"),
    ],
    "namespaces": [_NAME, ("Status", "string", 0, _at("status", "phase", default="Active")), _AGE],
    "configmaps": [_NAME, ("Data", "string", 0, _count("data", "binaryData")), _AGE],
    "secrets": [
        _NAME,
        ("Type", "string", 0, _at("type", default="Opaque")),
        ("Data", "string", 0, _count("data")),
        _AGE,
    ],
    "serviceaccounts": [_NAME, _AGE],
    "services": [
        _NAME,
        ("Type", "string", 0, _at("spec", "type", default="ClusterIP")),
        ("Cluster-IP", "string", 0, _at("spec", "clusterIP")),
        ("External-IP", "string", 0, lambda *_: "<none>"),
        ("Port(s)", "string", 0, lambda item, _: ",".join(
            f"{port['port']}/{port.get('protocol', 'TCP')}" for port in item.get("spec", {}).get("ports") or []
        )),
        _AGE,
    ],
    "deployments": [
        _NAME,
        ("Ready", "string", 0, _deployment_ready),
        ("Up-to-date", "string", 0, _at("status", "updatedReplicas", default=0)),
        ("Available", "string", 0, _at("status", "availableReplicas", default=0)),
        _AGE,
    ],
}  # fmt: skip
