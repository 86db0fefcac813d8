"""The audit log: JSON lines with kube-apiserver's field names, level Metadata."""

import datetime
import json
import uuid
from pathlib import Path
from typing import Any

from tests.fakes.apiserver.identity import User
from tests.fakes.apiserver.requests import RequestInfo

__all__ = ["AuditEvent", "AuditLog"]

Json = dict[str, Any]


class AuditEvent:
    """What is known of one request so far; filled on its way through the server."""

    def __init__(self, target: str, user_agent: str, source: str) -> None:
        self.identifier = str(uuid.uuid4())
        self.target = target
        self.user_agent = user_agent
        self.source = source
        self.received = _now()
        self.info: RequestInfo | None = None  # set once the target is parsed
        self.user: User | None = None  # set once authenticated
        self.impersonated: User | None = None  # set once allowed
        self.decision = ""  # allow or forbid, once authorized
        self.stage = "ResponseComplete"

    def line(self, status: Json) -> Json:
        event: Json = {
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": self.identifier,
            "stage": self.stage,
            "requestURI": self.target,
            "verb": self.info.verb if self.info else "",
            "user": self.user.info() if self.user else {},
        }
        if self.impersonated:
            event["impersonatedUser"] = self.impersonated.info()
        event |= {"sourceIPs": [self.source], "userAgent": self.user_agent}
        if self.info and self.info.plural:
            reference = {
                "resource": self.info.plural,
                "namespace": self.info.namespace,
                "name": self.info.name,
                "apiGroup": self.info.group,
                "apiVersion": self.info.version,
                "subresource": self.info.subresource,
            }
            event["objectRef"] = {
                key: value for key, value in reference.items() if value
            }
        event["responseStatus"] = {"metadata": {}, **status}
        event |= {"requestReceivedTimestamp": self.received, "stageTimestamp": _now()}
        if self.decision:
            event["annotations"] = {"authorization.k8s.io/decision": self.decision}
        return event


class AuditLog:
    """Appends to a file; each event is in the file before its method returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", buffering=1)  # by line

    def write(self, event: AuditEvent, status: Json) -> None:
        """Status is the code, and of a failure its reason and message."""
        self._file.write(json.dumps(event.line(status)) + "\n")

    def close(self) -> None:
        self._file.close()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
