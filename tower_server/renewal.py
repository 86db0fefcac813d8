"""The server's side of a renewal: proof, is it still welcome, certificate, signed answer.

Nothing is recorded: what makes an agent welcome is its key, which stays. So a renewal whose answer
is lost does no harm, and any replica can answer it.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from cryptography import x509

from certs.assertion import (
    AgentIdentity,
    AssertionVerifier,
    BadAssertion,
    renewal_audience,
)
from certs.authority import Authority
from certs.chains import pem
from certs.joining import BadProof
from certs.keys import require_p256, spki_pin
from certs.renewing import MAX_LATE, RenewalRequest
from tower_server.answers import AnswerSigner
from tower_server.membership import JoinRefused, Refusal, agent_is_current
from tower_server.stores import Store
from tower_server.throttle import GuessThrottle

__all__ = ["RenewalService"]

_log = logging.getLogger(__name__)


def _utc_now() -> datetime:
    """The default clock."""
    return datetime.now(UTC)


class RenewalService:
    """Answers renewals. One for each server process."""

    def __init__(
        self,
        *,
        authority: Authority,
        store: Store,
        signer: AnswerSigner,
        on_renewed: Callable[[AgentIdentity], None] = lambda _identity: None,
        now: Callable[[], datetime] = _utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build the service.

        Args:
            on_renewed: Told the agent with its new certificate.
            The others are those of `join.JoinService`.
        """
        self._on_renewed = on_renewed
        self._authority = authority
        self._store = store
        self._signer = signer
        self._verifier = AssertionVerifier(
            [authority.certificate],
            authority.zone,
            audience=renewal_audience(authority.zone),
            late=MAX_LATE,
        )
        self._now = now
        self._monotonic = monotonic
        self._throttle = GuessThrottle(monotonic())
        # How many ended how: "renewed", or the value of a Refusal.
        self.outcomes: Counter[str] = Counter()

    async def renew(self, data: object, source: str) -> str:
        """Answer a renewal.

        Args:
            data: The request as JSON carried it.
            source: The address that it came from, for the throttle and the log.

        Returns:
            The signed answer (a JWS). Its payload has `certificate`, `ca` (PEM), `zone`, `cluster`
            and `audience`.

        Raises:
            JoinRefused: With the sentence for the agent's log.
            StoreUnavailable: If the store cannot be asked.
        """
        try:
            answer = await self._renew(data, source)
        except JoinRefused as refusal:
            self.outcomes[refusal.code] += 1
            if refusal.code is not Refusal.SLOW_DOWN:
                _log.warning("renewal from %s: %s (%s)", source, refusal.code, refusal)
            raise
        self.outcomes["renewed"] += 1
        return answer

    async def _renew(self, data: object, source: str) -> str:
        now = self._now()
        self._refuse_guesser(source)
        try:
            request = RenewalRequest.from_dict(data)
            identity = self._verifier.verify(request.assertion, now)
        except (BadProof, BadAssertion) as error:
            self._throttle.guessed(source, self._monotonic())
            raise JoinRefused(
                Refusal.BAD_REQUEST, f"The certificate is not renewed: {error}."
            ) from error
        await self._refuse_unwelcome(identity)
        certificate = self._certify(request, identity, now)
        _log.info(
            "%s: renewed the agent's certificate until %s",
            identity.cluster,
            certificate.not_valid_after_utc,
        )
        self._on_renewed(
            replace(
                identity,
                serial=certificate.serial_number,
                not_after=certificate.not_valid_after_utc,
            )
        )
        return self._signer.sign(
            identity.cluster,
            pem(certificate),
            request_digest=request.digest,
            now=now,
        )

    def _refuse_guesser(self, source: str) -> None:
        wait_seconds = self._throttle.wait_seconds(source, self._monotonic())
        if wait_seconds > 0:
            raise JoinRefused(
                Refusal.SLOW_DOWN,
                "Too many bad requests came from this address: check the agent's clock and credentials, "
                f"and try again in {wait_seconds:.0f} s.",
            )

    async def _refuse_unwelcome(self, identity: AgentIdentity) -> None:
        name = identity.cluster
        record = await self._store.get_cluster(name)
        if agent_is_current(record, key_pin=identity.public_key_pin):
            return
        why, code = "has joined again", Refusal.CERTIFICATE_REPLACED
        if record is None:
            why, code = "is not known here (removed?)", Refusal.CLUSTER_REMOVED
        raise JoinRefused(
            code,
            f"The cluster {name!r} {why}, so this agent's certificate is not renewed: join it with a new token "
            f"of `tower token create {name}`, or stop this agent.",
        )

    def _certify(
        self, request: RenewalRequest, identity: AgentIdentity, now: datetime
    ) -> x509.Certificate:
        try:
            certificate = self._authority.issue_agent(
                request.csr, identity.cluster, now
            )
        except ValueError as error:
            raise JoinRefused(
                Refusal.BAD_REQUEST,
                f"The server issues no certificate for this agent: {error}.",
            ) from error
        if spki_pin(require_p256(certificate.public_key())) != identity.public_key_pin:
            # Else a thief of one assertion could have a certificate for a key of his own.
            raise JoinRefused(
                Refusal.BAD_REQUEST,
                "The certificate is not renewed for another key than the one that asks.",
            )
        return certificate
