"""Answers to questions about access and identity: nothing is stored."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.fakes.apiserver.identity import User
from tests.fakes.apiserver.rbac import Authorizer, Question
from tests.fakes.apiserver.store import now_text

__all__ = ["REVIEWS", "token_request"]

Json = dict[str, Any]
# What a token lives where the request does not say; the apiserver's own default.
TOKEN_LIFETIME_SECONDS = 3600


def self_access_review(authorizer: Authorizer, user: User, body: Json) -> Json:
    """May I?"""
    return _answer(authorizer, user, body)


def access_review(authorizer: Authorizer, _: User, body: Json) -> Json:
    """May somebody else?"""
    spec = body.get("spec") or {}
    groups = tuple(spec.get("groups") or ())
    subject = User(name=spec.get("user", ""), groups=groups, uid=spec.get("uid", ""))
    return _answer(authorizer, subject, body)


def _answer(authorizer: Authorizer, subject: User, body: Json) -> Json:
    question = _question(body.get("spec") or {})
    allowed = authorizer.allows(subject, question)
    metadata = {"creationTimestamp": None}
    return {**body, "metadata": metadata, "status": {"allowed": allowed}}


def _question(spec: Json) -> Question:
    if path := spec.get("nonResourceAttributes"):
        return Question(verb=path.get("verb", ""), path=path.get("path", ""))
    attributes = spec.get("resourceAttributes") or {}
    resource = attributes.get("resource", "")
    if attributes.get("subresource"):
        resource += f"/{attributes['subresource']}"
    return Question(
        verb=attributes.get("verb", ""),
        group=attributes.get("group", ""),
        resource=resource,
        namespace=attributes.get("namespace", ""),
        name=attributes.get("name", ""),
    )


def rules_review(authorizer: Authorizer, user: User, body: Json) -> Json:
    """What may I do in a namespace?"""
    namespace = (body.get("spec") or {}).get("namespace", "")
    rules = list(authorizer.rules(user, namespace))
    if "system:masters" in user.groups:
        rules.append({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
        rules.append({"verbs": ["*"], "nonResourceURLs": ["*"]})
    status = {
        "resourceRules": [rule for rule in rules if rule.get("resources")],
        "nonResourceRules": [rule for rule in rules if rule.get("nonResourceURLs")],
        "incomplete": False,
    }
    return {**body, "metadata": {"creationTimestamp": None}, "status": status}


def self_review(_: Authorizer, user: User, body: Json) -> Json:
    """Who am I?"""
    metadata = {"creationTimestamp": now_text()}
    return {**body, "metadata": metadata, "status": {"userInfo": user.info()}}


REVIEWS: dict[str, Callable[[Authorizer, User, Json], Json]] = {
    "selfsubjectreviews": self_review,
    "selfsubjectaccessreviews": self_access_review,
    "selfsubjectrulesreviews": rules_review,
    "subjectaccessreviews": access_review,
    "localsubjectaccessreviews": access_review,
}


def token_request(body: Json) -> tuple[Json, str]:
    """A new token: the answer to a TokenRequest, and the token in it."""
    spec = body.get("spec") or {}
    seconds = spec.get("expirationSeconds") or TOKEN_LIFETIME_SECONDS
    expires = datetime.now(UTC) + timedelta(seconds=seconds)
    token = secrets.token_urlsafe(32)
    status = {
        "token": token,
        "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    answer = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1"}
    return {**answer, "metadata": {}, "spec": spec, "status": status}, token
