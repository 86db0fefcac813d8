"""Who calls: by client certificate or bearer token, and as whom (impersonation)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from multidict import CIMultiDictProxy

from tests.fakes.apiserver.status import bad_request

__all__ = [
    "Impersonation",
    "User",
    "requested_impersonation",
    "service_account",
    "token_of",
    "user_of_certificate",
]

Json = dict[str, Any]

AUTHENTICATED = "system:authenticated"
ACCOUNT_PREFIX = "system:serviceaccount:"


@dataclass(frozen=True, kw_only=True)
class User:
    """An identity, as authorization and the audit log see it."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, list[str]] = field(default_factory=dict)

    def authenticated(self) -> "User":
        """The same with the group that everybody has who has shown who they are."""
        if AUTHENTICATED in self.groups:
            return self
        groups = (*self.groups, AUTHENTICATED)
        return User(name=self.name, groups=groups, uid=self.uid, extra=self.extra)

    def info(self) -> Json:
        """As `userInfo` in reviews and `user` in the audit log."""
        fields: Json = {"username": self.name, "uid": self.uid}
        fields |= {"groups": list(self.groups), "extra": self.extra}
        return {key: value for key, value in fields.items() if value}


@dataclass(frozen=True, kw_only=True)
class Impersonation:
    """What a caller asks for: the user to be, and what it must be allowed to impersonate for that."""

    user: User
    # (API group, resource or resource/subresource, namespace, name)
    needed: tuple[tuple[str, str, str, str], ...]


def user_of_certificate(subject: Iterable[Iterable[tuple[str, str]]]) -> User | None:
    """From the subject that `ssl` gives for a verified certificate; None without a common name."""
    pairs = [pair for part in subject for pair in part]
    names = [value for key, value in pairs if key == "commonName"]
    groups = tuple(value for key, value in pairs if key == "organizationName")
    return User(name=names[0], groups=groups) if names else None


def service_account(namespace: str, name: str, uid: str = "") -> User:
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
    return User(name=f"{ACCOUNT_PREFIX}{namespace}:{name}", groups=groups, uid=uid)


def token_of(headers: CIMultiDictProxy[str]) -> str | None:
    """The bearer token of a request, None without one."""
    kind, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def requested_impersonation(headers: CIMultiDictProxy[str]) -> Impersonation | None:
    """What the Impersonate-* headers ask for, None without any.

    Raises:
        ApiError: 400, for groups, uid or extra without a user.
    """
    name = headers.get("Impersonate-User", "")
    groups = tuple(headers.getall("Impersonate-Group", ()))
    uid = headers.get("Impersonate-Uid", "")
    extra: dict[str, list[str]] = {}
    for header, value in headers.items():
        if header.lower().startswith("impersonate-extra-"):
            extra.setdefault(
                header.lower().removeprefix("impersonate-extra-"), []
            ).append(value)
    if not name:
        if groups or uid or extra:
            raise bad_request("requested impersonation without impersonating a user")
        return None
    needed: list[tuple[str, str, str, str]] = []
    authentication = "authentication.k8s.io"
    if name.startswith(ACCOUNT_PREFIX) and name.count(":") == 3:
        _, _, namespace, account = name.split(":")
        needed.append(("", "serviceaccounts", namespace, account))
        groups = groups or service_account(namespace, account).groups
    else:
        needed.append(("", "users", "", name))
    needed += [
        ("", "groups", "", group) for group in headers.getall("Impersonate-Group", ())
    ]
    if uid:
        needed.append((authentication, "uids", "", uid))
    needed += [
        (authentication, f"userextras/{key}", "", value)
        for key, values in extra.items()
        for value in values
    ]
    user = User(name=name, groups=groups, uid=uid, extra=extra)
    return Impersonation(user=user.authenticated(), needed=tuple(needed))
