"""Before a member is taken in: who it is, and whether we have the rights that we will need there.

A right that is missing would otherwise show as a 403 in somebody's first kubectl.
"""

import asyncio
import dataclasses
from collections.abc import Iterable

from shared.member.questions import MemberAnswer, MemberRequest
from shared.words import quoted, short

__all__ = ["AGENT_ASKS", "Asker", "MemberFacts", "PreflightFailed", "check_member"]

# All questions to the apiserver together. It is next door and answers in milliseconds; of the 10 s
# in which a join has to end, the larger part is left for the way to the server.
PREFLIGHT_TIMEOUT_SECONDS = 4.0


class PreflightFailed(Exception):
    """The member is not ready for us; the message is one sentence with the remedy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asker:
    """Whose rights they are: for sentences, which have to name a remedy."""

    lacks_rights: str  # begins a sentence
    credential: str
    kubeconfig: str  # where the address stands
    renewal: str  # of a credential that is refused
    rights: str  # how missing ones are granted


AGENT_ASKS = Asker(
    lacks_rights="The agent lacks rights in the member",
    credential="the agent's own credential",
    kubeconfig="--kubeconfig",
    renewal="check the ServiceAccount's token, or the user in --kubeconfig",
    rights="apply the manifest of `tower token create CLUSTER --format manifest` there, or grant "
    "its ClusterRole to the identity that the agent uses",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberFacts:
    """Who the member is."""

    uid: str  # of the kube-system namespace: the customary identity of a cluster
    apiserver_version: str


async def check_member(
    request: MemberRequest,
    *,
    apiserver: str,
    allow_users: Iterable[str],
    allow_groups: Iterable[str],
    asker: Asker = AGENT_ASKS,
) -> MemberFacts:
    """Find out who the member is, and whether we may do there what we will have to.

    Args:
        apiserver: The apiserver's address, for the sentences.
        allow_users, allow_groups: As whom the host may act; `*` stands for every name.

    Raises:
        PreflightFailed: If the apiserver does not answer, refuses our credential, or if
            rights are missing (all that are missing are named).
    """
    try:
        async with asyncio.timeout(PREFLIGHT_TIMEOUT_SECONDS):
            version = await request("GET", "/version")
            namespace = await request("GET", "/api/v1/namespaces/kube-system")
            _refuse_failed_answer(namespace, apiserver, asker)
            missing = [
                right
                for right in _needed_rights(allow_users, allow_groups)
                if not await _is_allowed(request, right, apiserver, asker)
            ]
    except OSError as error:  # TimeoutError is one
        reason = short(error)
        where = "" if apiserver in reason else f" at {apiserver}"
        raise PreflightFailed(
            f"The member's apiserver{where} does not answer ({reason}): check that it runs, and "
            f"the address in {asker.kubeconfig}."
        ) from error
    _refuse_missing_rights(missing, namespace, asker)
    uid = (namespace.body.get("metadata") or {}).get("uid")
    if not isinstance(uid, str) or not uid:
        raise PreflightFailed(
            f"The apiserver at {apiserver} told no UID of its namespace kube-system, so it is not "
            f"a Kubernetes apiserver: check the address in {asker.kubeconfig}."
        )
    return MemberFacts(
        uid=uid, apiserver_version=str(version.body.get("gitVersion", "unknown"))
    )


@dataclasses.dataclass(frozen=True)
class _Right:
    """One thing that we must be allowed; `name` empty: on every object."""

    verb: str
    group: str
    resource: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f" {self.name!r}" if self.name else "")


def _needed_rights(users: Iterable[str], groups: Iterable[str]) -> list[_Right]:
    every = {"*": ""}  # impersonating everybody is a right without a name
    return [
        *(_Right("impersonate", "", "users", every.get(u, u)) for u in sorted(users)),
        *(_Right("impersonate", "", "groups", every.get(g, g)) for g in sorted(groups)),
        # Decides whether a caller's own impersonation (kubectl --as) is allowed.
        _Right("create", "authorization.k8s.io", "subjectaccessreviews"),
    ]


async def _is_allowed(
    request: MemberRequest, right: _Right, apiserver: str, asker: Asker
) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {
            "resourceAttributes": {
                "verb": right.verb,
                "group": right.group,
                "resource": right.resource,
                "name": right.name,
            }
        },
    }
    answer = await request(
        "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review
    )
    _refuse_failed_answer(answer, apiserver, asker)
    return bool((answer.body.get("status") or {}).get("allowed", False))


def _refuse_missing_rights(
    missing: list[_Right], namespace: MemberAnswer, asker: Asker
) -> None:
    """Raise if there are any, all named at once; `namespace` is the answer about kube-system."""
    if namespace.status == 403:
        missing = [*missing, _Right("get", "", "namespaces", "kube-system")]
    if missing:
        raise PreflightFailed(
            f"{asker.lacks_rights} ({'; '.join(map(str, missing))}): {asker.rights}."
        )


def _refuse_failed_answer(answer: MemberAnswer, apiserver: str, asker: Asker) -> None:
    """Raise for anything but success or 403, which the callers judge."""
    if answer.status == 401:
        raise PreflightFailed(
            f"The member's apiserver at {apiserver} refuses {asker.credential} "
            f"(401 Unauthorized): {asker.renewal}."
        )
    if answer.status >= 400 and answer.status != 403:
        raise PreflightFailed(
            f"The member's apiserver at {apiserver} answered {answer.status} "
            f"({quoted(answer.message)}): check that it is healthy and that the address in "
            f"{asker.kubeconfig} is a Kubernetes apiserver's."
        )
