"""May this caller impersonate that user? Asked at the member, as Kubernetes would decide it.

One SubjectAccessReview for the user and one for each group, with verb `impersonate`, in
the caller's name: what the apiserver itself would ask if the caller stood before it.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from shared.http.client import JsonCall
from shared.http.identity import Review
from shared.http.status import Refusal, Speaker
from shared.http.upstream import UpstreamPool

__all__ = ["REMEMBERED_SECONDS", "ImpersonationReviews"]

# One `kubectl --as` is some ten requests in a second or two; without a memory each would
# take two round trips more at the member. Only a yes is remembered, and for less time
# than an admin who withdraws the right needs to look whether it works. (The apiserver's
# own webhook authorizers remember a yes for five minutes.)
REMEMBERED_SECONDS = 5.0

# Distinct (caller, target) pairs within those seconds; beyond it nothing is remembered.
MAX_REMEMBERED = 1024

# Every authenticated user is in it, and the apiserver adds it where we cannot see it.
_AUTHENTICATED = "system:authenticated"
_SERVICE_ACCOUNT = "system:serviceaccount:"

_PATH = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class ImpersonationReviews:
    """Asks, and remembers a yes for a moment."""

    def __init__(self, pool: UpstreamPool, *, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        # Reviews that were answered with yes, and until when that holds.
        self._allowed_until: dict[Review, float] = {}

    def ask(self, review: Review, on_answer: Callable[[Refusal | None], None]) -> None:
        """Answer with None (yes) or a Refusal: at once if remembered, else later."""
        now = self._loop.time()
        if self._allowed_until.get(review, 0.0) > now:
            on_answer(None)
            return
        self._ask_next(review, _attributes(review), on_answer)

    def _ask_next(
        self,
        review: Review,
        remaining: list[dict[str, str]],
        on_answer: Callable[[Refusal | None], None],
    ) -> None:
        if not remaining:
            self._remember(review)
            on_answer(None)
            return
        attributes, *later = remaining

        def on_done(answer: tuple[int, dict[str, Any]] | Refusal) -> None:
            speaker = self._pool.apiserver.speaker
            refusal = _refusal(review, attributes, answer, speaker)
            if refusal is not None:
                on_answer(refusal)
            else:
                self._ask_next(review, later, on_answer)

        spec = {
            "user": review.user,
            "groups": [*review.groups, _AUTHENTICATED],
            "resourceAttributes": attributes,
        }
        JsonCall(
            self._pool,
            "POST",
            _PATH,
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": spec,
            },
            on_done=on_done,
            loop=self._loop,
        )

    def _remember(self, review: Review) -> None:
        now = self._loop.time()
        if len(self._allowed_until) >= MAX_REMEMBERED:
            self._allowed_until = {
                known: until
                for known, until in self._allowed_until.items()
                if until > now
            }
        if len(self._allowed_until) < MAX_REMEMBERED:
            self._allowed_until[review] = now + REMEMBERED_SECONDS


def _attributes(review: Review) -> list[dict[str, str]]:
    """What the apiserver's own impersonation filter would ask about."""
    user = {"verb": "impersonate", "resource": "users", "name": review.target_user}
    if review.target_user.startswith(_SERVICE_ACCOUNT):
        namespace, _, name = review.target_user.removeprefix(
            _SERVICE_ACCOUNT
        ).partition(":")
        if namespace and name and ":" not in name:
            user |= {
                "resource": "serviceaccounts",
                "namespace": namespace,
                "name": name,
            }
    return [
        user,
        *(
            {"verb": "impersonate", "resource": "groups", "name": group}
            for group in review.target_groups
        ),
    ]


def _refusal(
    review: Review,
    attributes: dict[str, str],
    answer: tuple[int, dict[str, Any]] | Refusal,
    speaker: Speaker,
) -> Refusal | None:
    """None if the answer is a clear yes."""
    if isinstance(answer, Refusal):
        return answer
    code, body = answer
    if code == 401:
        return Refusal(
            code=502,
            message=f"the apiserver does not accept {speaker.credential} (401); "
            f"{speaker.renewal}",
        )
    if code not in (200, 201):
        return Refusal(
            code=502,
            message=f"{speaker.name} cannot ask the apiserver whether the impersonation is "
            f"allowed ({code}: {body.get('message', 'no message')}); "
            f"{speaker.right_to_review}",
        )
    status = body.get("status")
    if isinstance(status, dict) and status.get("allowed") is True:
        return None
    return Refusal(
        code=403,
        message=f"{attributes['resource']} {attributes['name']!r} is forbidden: User "
        f"{review.user!r} cannot impersonate resource {attributes['resource']!r} in "
        'API group "" at the cluster scope',
    )
