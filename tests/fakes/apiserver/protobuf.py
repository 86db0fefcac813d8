"""Kubernetes' protobuf bodies, read only: `kubectl create` and `kubectl auth` send them without asking first.

A schema of the few messages that kubectl makes, by the field numbers in k8s.io/api. Answers
are always JSON, which every client accepts beside protobuf.
"""

import base64
from collections.abc import Iterator
from typing import Any

from tests.fakes.apiserver.status import bad_request

__all__ = ["CONTENT_TYPE", "decode"]

Json = dict[str, Any]

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"  # before the envelope, runtime.Unknown

# A message a paragraph: field number, name, type. Types: str, int, bool, bytes (base64 in JSON) or a message;
# `*` in front: a list; `{}`: a map from str; skip: read over. Go writes plain fields also when they are empty,
# so empty values are dropped; `int?` is a pointer in Go and keeps its zero.
SCHEMA_TEXT = """
ObjectMeta: 1 name str, 2 generateName str, 3 namespace str, 5 uid str, 6 resourceVersion str,
    7 generation int, 8 creationTimestamp skip, 11 labels {}str, 12 annotations {}str, 14 finalizers *str,
    13 ownerReferences *OwnerReference, 17 managedFields skip
OwnerReference: 1 kind str, 3 name str, 4 uid str, 5 apiVersion str, 6 controller bool,
    7 blockOwnerDeletion bool
ConfigMap: 1 metadata ObjectMeta, 2 data {}str, 3 binaryData {}bytes, 4 immutable bool
Secret: 1 metadata ObjectMeta, 2 data {}bytes, 3 type str, 4 stringData {}str, 5 immutable bool
Namespace: 1 metadata ObjectMeta, 2 spec skip, 3 status skip
ServiceAccount: 1 metadata ObjectMeta, 4 automountServiceAccountToken bool
Deployment: 1 metadata ObjectMeta, 2 spec DeploymentSpec, 3 status skip
DeploymentSpec: 1 replicas int?, 2 selector LabelSelector, 3 template PodTemplate, 4 strategy skip,
    5 minReadySeconds int, 7 paused bool
LabelSelector: 1 matchLabels {}str
PodTemplate: 1 metadata ObjectMeta, 2 spec PodSpec
PodSpec: 2 containers *Container, 3 restartPolicy str, 6 dnsPolicy str, 7 nodeSelector {}str,
    8 serviceAccountName str, 9 serviceAccount str, 10 nodeName str, 11 hostNetwork bool, 12 hostPID bool,
    13 hostIPC bool, 16 hostname str, 17 subdomain str, 19 schedulerName str, 24 priorityClassName str
Container: 1 name str, 2 image str, 3 command *str, 4 args *str, 5 workingDir str, 6 ports *ContainerPort,
    7 env *EnvVar, 8 resources skip, 13 terminationMessagePath str, 14 imagePullPolicy str, 16 stdin bool,
    17 stdinOnce bool, 18 tty bool, 20 terminationMessagePolicy str
ContainerPort: 1 name str, 2 hostPort int, 3 containerPort int, 4 protocol str, 5 hostIP str
EnvVar: 1 name str, 2 value str
ClusterRole: 1 metadata ObjectMeta, 2 rules *PolicyRule
Role: 1 metadata ObjectMeta, 2 rules *PolicyRule
PolicyRule: 1 verbs *str, 2 apiGroups *str, 3 resources *str, 4 resourceNames *str, 5 nonResourceURLs *str
ClusterRoleBinding: 1 metadata ObjectMeta, 2 subjects *Subject, 3 roleRef RoleRef
RoleBinding: 1 metadata ObjectMeta, 2 subjects *Subject, 3 roleRef RoleRef
RoleRef: 1 apiGroup str, 2 kind str, 3 name str
Subject: 1 kind str, 2 apiGroup str, 3 name str, 4 namespace str
SelfSubjectAccessReview: 1 metadata ObjectMeta, 2 spec AccessReviewSpec, 3 status skip
SubjectAccessReview: 1 metadata ObjectMeta, 2 spec AccessReviewSpec, 3 status skip
LocalSubjectAccessReview: 1 metadata ObjectMeta, 2 spec AccessReviewSpec, 3 status skip
AccessReviewSpec: 1 resourceAttributes ResourceAttributes, 2 nonResourceAttributes PathAttributes, 3 user str,
    4 groups *str, 6 uid str
ResourceAttributes: 1 namespace str, 2 verb str, 3 group str, 4 version str, 5 resource str,
    6 subresource str, 7 name str
PathAttributes: 1 path str, 2 verb str
SelfSubjectRulesReview: 1 metadata ObjectMeta, 2 spec RulesReviewSpec, 3 status skip
RulesReviewSpec: 1 namespace str
SelfSubjectReview: 1 metadata ObjectMeta, 2 status skip
TokenRequest: 1 metadata ObjectMeta, 2 spec TokenRequestSpec, 3 status skip
TokenRequestSpec: 1 audiences *str, 4 expirationSeconds int, 3 boundObjectRef skip
Unknown: 1 type TypeMeta, 2 raw bytes, 3 contentEncoding str, 4 contentType str
TypeMeta: 1 apiVersion str, 2 kind str
"""


def _parse_schema(text: str) -> dict[str, dict[int, tuple[str, str]]]:
    schema: dict[str, dict[int, tuple[str, str]]] = {}
    for paragraph in text.strip().replace("\n   ", "").splitlines():
        message, _, fields = paragraph.partition(":")
        triples = [field.split() for field in fields.split(",")]
        schema[message] = {int(number): (name, kind) for number, name, kind in triples}
    return schema


SCHEMA = _parse_schema(SCHEMA_TEXT)


def decode(body: bytes) -> Json:
    """The object in a protobuf body, as JSON has it. Raises ApiError 400."""
    if not body.startswith(MAGIC):
        raise bad_request("the protobuf body has no magic number")
    try:
        envelope = _message("Unknown", body[len(MAGIC) :])
        header = envelope["type"]
        if header["kind"] not in SCHEMA:
            raise bad_request(
                f"this demo apiserver reads no {header['kind']} in protobuf; send JSON"
            )
        raw = base64.b64decode(envelope.get("raw", ""))
        return {**header, **_message(header["kind"], raw)}
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise bad_request(f"malformed protobuf: {error!r}") from error


def _message(kind: str, data: bytes) -> Json:
    schema = SCHEMA[kind]
    result: Json = {}
    for number, value in _fields(data):
        if number not in schema:
            if value in (b"", 0):
                continue
            raise bad_request(
                f"this demo apiserver does not know field {number} of {kind} in protobuf; send JSON"
            )
        name, field_kind = schema[number]
        if field_kind == "skip":
            continue
        if field_kind.startswith("*"):
            result.setdefault(name, []).append(_value(field_kind[1:], value))
        elif field_kind.startswith("{}"):
            entry = dict(_fields(value))
            key = entry.get(1, b"").decode()
            result.setdefault(name, {})[key] = _value(field_kind[2:], entry.get(2, b""))
        else:
            parsed = _value(field_kind, value)
            if field_kind == "int?" or parsed not in ("", 0, False, {}):
                result[name] = parsed
    return result


def _value(kind: str, value: Any) -> Any:
    match kind:
        case "str":
            return value.decode()
        case "bytes":
            return base64.b64encode(value).decode()
        case "int" | "int?":
            return value
        case "bool":
            return bool(value)
        case _:
            return _message(kind, value)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values: int for a varint, bytes for what has a length."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        match tag & 7:
            case 0:
                value, position = _varint(data, position)
                yield tag >> 3, value
            case 2:
                length, position = _varint(data, position)
                if position + length > len(data):
                    raise IndexError("field beyond the end")
                yield tag >> 3, data[position : position + length]
                position += length
            case other:
                raise IndexError(f"wire type {other}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if not byte & 0x80:
            return value, position
        shift += 7
