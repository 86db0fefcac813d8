"""How a cluster's access is handed out: a kubeconfig, an object that a consumer reads, or a plugin's answer. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from tower_server.publication import (
    ClusterAccess,
    Form,
    Place,
    exec_credential,
    published,
)

__all__ = [
    "CREDENTIAL",
    "KUBECONFIG",
    "AccessForm",
    "access_formats",
    "parse_access_form",
]

KUBECONFIG = "kubeconfig"
CREDENTIAL = "credential"

# What kubectl may ask a plugin for; both have the same fields.
_CREDENTIAL_VERSIONS = (
    "client.authentication.k8s.io/v1",
    "client.authentication.k8s.io/v1beta1",
)

MAX_LABELS = 32

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True, kw_only=True)
class AccessForm:
    """One of `access_formats`, with what it needs."""

    format: str
    # Of an object only.
    form: Form | None = None
    place: Place | None = None
    # Of a credential only.
    api_version: str = _CREDENTIAL_VERSIONS[0]

    def fields(self, access: ClusterAccess) -> dict[str, str]:
        """Return the one field of the answer that has it. Its value mostly contains the private key."""
        if self.form is not None and self.place is not None:
            document = published(self.form, access, self.place)
            return {
                "manifest": yaml.safe_dump(
                    document, sort_keys=False, width=float("inf")
                )
            }
        if self.format == CREDENTIAL:
            return {"credential": exec_credential(access, self.api_version)}
        return {"kubeconfig": access.kubeconfig}


def access_formats() -> tuple[str, ...]:
    """What may be asked for."""
    return (KUBECONFIG, *Form, CREDENTIAL)


def parse_access_form(
    format_name: str | None,
    *,
    namespace: str | None = None,
    name: str | None = None,
    labels: Sequence[str] = (),
    api_version: str | None = None,
) -> AccessForm:
    """Check what an admin, or a plugin, asked for, and put defaults where nothing is said.

    Args:
        labels: Each as `key=value`.

    Raises:
        ValueError: One sentence that says what is wrong and what to write instead.
    """
    wanted = KUBECONFIG if format_name is None else format_name
    if wanted not in access_formats():
        raise ValueError(
            f"{wanted!r} is not a form of a cluster's access: use {', '.join(access_formats())}"
        )
    if wanted in (KUBECONFIG, CREDENTIAL):
        if namespace is not None or name is not None or labels:
            raise ValueError(
                f"a {wanted} is no object of Kubernetes and has no namespace, name or labels: ask for the "
                f"format {', '.join(Form)}"
            )
        return AccessForm(format=wanted, api_version=_version(api_version))
    form = Form(wanted)
    return AccessForm(
        format=wanted,
        form=form,
        place=Place(
            namespace=_matching(
                namespace or form.default_namespace, _DNS_LABEL, "a namespace"
            ),
            name=None if name is None else _matching(name, _DNS_NAME, "a name"),
            labels=_labels(labels),
        ),
    )


def _labels(texts: Sequence[str]) -> dict[str, str]:
    if len(texts) > MAX_LABELS:
        raise ValueError(f"{len(texts)} labels are more than {MAX_LABELS}")
    labels = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"{text[:80]!r} is not a label: write key=value")
        _matching(key, _LABEL_KEY, "the key of a label")
        labels[key] = _matching(value, _LABEL_VALUE, "the value of a label")
    return labels


def _matching(text: str, pattern: re.Pattern[str], what: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{text[:80]!r} cannot be {what} in Kubernetes")
    return text


def _version(text: str | None) -> str:
    version = _CREDENTIAL_VERSIONS[0] if text is None else text
    if version not in _CREDENTIAL_VERSIONS:
        raise ValueError(
            f"{version[:80]!r} is not a version of ExecCredential that we know: use "
            f"{' or '.join(_CREDENTIAL_VERSIONS)}"
        )
    return version
