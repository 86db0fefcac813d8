"""The server's side of a join: nonce, proof, rules, certificate, signed answer.

The order matters. Guesses are slowed down before any work; the proof comes before anything is
said about a token, so that only who holds its secret learns what became of it; the certificate
is issued before the store is asked, whose one transaction then either records everything or
nothing. A certificate whose join was refused there was never sent to anybody.
"""

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509

from certs.authority import Authority
from certs.chains import pem
from certs.joining import (
    BadProof,
    JoinNonces,
    JoinRequest,
    request_digest,
    verify_request,
)
from certs.keys import require_p256, spki_pin
from certs.names import ClusterName
from tower_server.answers import AnswerSigner
from tower_server.membership import (
    JoinRefused,
    Refusal,
    TokenUse,
    refuse_unusable,
    wrong_token,
)
from tower_server.stores import Store, StoreUnavailable
from tower_server.throttle import GuessThrottle
from tower_server.tokens import TokenRecord

__all__ = ["JoinService", "SlowDown"]

logger = logging.getLogger(__name__)

# What anybody can cause without a token. Each counts as a guess, which also bounds what
# strangers can write into our log.
_UNPROVEN = {Refusal.BAD_REQUEST, Refusal.NONCE_EXPIRED, Refusal.TOKEN_WRONG}


# Whoever is slowed down was logged before, and could fill the log otherwise.
_LEVELS = {"joined": logging.INFO, Refusal.SLOW_DOWN: logging.DEBUG}


class SlowDown(JoinRefused):
    """Too many wrong proofs came from there; `wait_seconds` becomes Retry-After."""

    def __init__(self, wait_seconds: float) -> None:
        super().__init__(
            Refusal.SLOW_DOWN,
            "Too many joins with a wrong token came from this address: check the join string, and "
            f"try again in {wait_seconds:.0f} s.",
        )
        self.wait_seconds = wait_seconds


def _utc_now() -> datetime:
    """The default clock."""
    return datetime.now(UTC)


class JoinService:
    """Answers joins. One for each server process; it keeps no state but the throttle's."""

    def __init__(
        self,
        *,
        authority: Authority,
        store: Store,
        signer: AnswerSigner,
        nonce_key: bytes | None = None,
        on_joined: Callable[[ClusterName, str], None] = lambda _cluster, _key_pin: None,
        now: Callable[[], datetime] = _utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build the service.

        Args:
            signer: Of the answers.
            nonce_key: 32 secret bytes that replicas share; None makes some for this process.
            on_joined: Told the cluster and the pin of its agent's new key after each recorded join;
                sessions with an earlier key have to end.
            now: The wall clock, for tokens and certificates.
            monotonic: Seconds, for the throttle.
        """
        self._authority = authority
        self._store = store
        self._signer = signer
        self._nonces = JoinNonces(nonce_key or secrets.token_bytes(32))
        self._on_joined = on_joined
        self._now = now
        self._monotonic = monotonic
        self._throttle = GuessThrottle(monotonic())
        # How many joins ended how: "joined", "store_unavailable" or the value of a Refusal.
        self.outcomes: Counter[str] = Counter()

    @property
    def ca_pem(self) -> bytes:
        """The CA certificates that agents may pin."""
        return self._authority.pem

    def issue_nonce(self) -> str:
        """Return a nonce that a join request has to sign within two minutes."""
        return self._nonces.issue(self._now())

    async def join(self, data: object, source: str) -> str:
        """Answer a join request.

        Args:
            data: The request as JSON carried it.
            source: The address that it came from, for the throttle and the log.

        Returns:
            The signed answer (a JWS). Its payload has `certificate` (PEM), `ca` (PEM bundle),
            `zone`, `cluster` and `audience`.

        Raises:
            JoinRefused: With the sentence for the agent's log; SlowDown is one.
            StoreUnavailable: If the store cannot record it; then nothing was recorded.
        """
        request: JoinRequest | None = None
        try:
            self._refuse_guesser(source)
            request = _parse(data)
            token = await self._prove(request)
            answer = await self._answer(request, token)
        except JoinRefused as refusal:
            if refusal.code in _UNPROVEN:
                self._throttle.guessed(source, self._monotonic())
            self._note(refusal.code, request, source, str(refusal))
            raise
        except StoreUnavailable as error:
            self._note("store_unavailable", request, source, str(error))
            raise
        self._note("joined", request, source, "")
        return answer

    async def _answer(self, request: JoinRequest, token: TokenRecord) -> str:
        now = self._now()
        certificate = self._certify(request, now)
        key_pin = spki_pin(require_p256(certificate.public_key()))
        # Says so before more work is done; `use_token` judges again, in its transaction.
        refuse_unusable(token, now, resend_key_pin=key_pin)
        issued = pem(certificate)
        chain = await self._store.use_token(
            TokenUse(
                token_id=request.token_id,
                cluster=request.cluster,
                member_uid=request.member_uid,
                agent_version=request.agent_version,
                key_pin=key_pin,
                serial=certificate.serial_number,
                certificate=issued,
                at=now,
            )
        )
        if chain == issued:  # else an earlier answer is repeated
            self._on_joined(request.cluster, key_pin)
        return self._signer.sign(
            request.cluster, chain, request_digest=request_digest(request), now=now
        )

    def _refuse_guesser(self, source: str) -> None:
        wait_seconds = self._throttle.wait_seconds(source, self._monotonic())
        if wait_seconds > 0:
            raise SlowDown(wait_seconds)

    async def _prove(self, request: JoinRequest) -> TokenRecord:
        """Return the token whose secret the request proves."""
        try:
            self._nonces.check(request.nonce, self._now())
        except BadProof as error:
            # Also after a restart, when we have another key: the agent gets a new one and goes on.
            raise JoinRefused(
                Refusal.NONCE_EXPIRED,
                "The join took longer than two minutes, or the server was restarted meanwhile: "
                "start the agent again.",
            ) from error
        token = await self._store.get_token(request.token_id)
        if token is None:
            raise wrong_token()
        try:
            verify_request(token.verifier, request)
        except BadProof as error:
            raise wrong_token() from error
        return token

    def _certify(self, request: JoinRequest, now: datetime) -> x509.Certificate:
        try:
            return self._authority.issue_agent(request.csr, request.cluster, now)
        except ValueError as error:
            raise JoinRefused(
                Refusal.BAD_REQUEST,
                f"The server issues no certificate for this agent: {error}.",
            ) from error

    def _note(
        self, outcome: str, request: JoinRequest | None, source: str, sentence: str
    ) -> None:
        """Count and log an attempt. What a request claims has been parsed: it cannot forge lines."""
        self.outcomes[outcome] += 1
        level = _LEVELS.get(outcome, logging.WARNING)
        logger.log(
            level,
            "join of %s with token %s from %s: %s%s",
            request.cluster if request else "?",
            request.token_id if request else "?",
            source,
            outcome,
            f" ({sentence})" if sentence else "",
        )


def _parse(data: object) -> JoinRequest:
    try:
        return JoinRequest.from_dict(data)
    except BadProof as error:
        raise JoinRefused(
            Refusal.BAD_REQUEST, f"The server does not understand the request: {error}."
        ) from error
