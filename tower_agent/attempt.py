"""One try to join, over a network that we do not trust.

1. GET /join/ca from whoever answers; the pin of the join string says whether that is our CA.
2. A new connection that trusts only this CA and verifies the name. If something else ends TLS
   there (a load balancer, an inspecting proxy), one that trusts the public roots or a given CA.
3. A nonce, then the request: a proof of the token's secret over our CSR. The secret is never sent.
4. The answer, signed by a server whose certificate leads to the pinned CA: in every mode that
   signature, not the TLS around it, is what we believe.
"""

import dataclasses
import json
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from certs.chains import parse_certificate, parse_certificates, pem, pinned_authority
from certs.contexts import OuterMode, outer_client, unverified
from certs.joining import (
    BadProof,
    JoinRequest,
    JoinString,
    check_issued_agent,
    check_server_clock,
    open_answer,
    request_digest,
    sign_request,
)
from certs.keys import PrivateBytes, certificate_request, parse_private_key
from shared.member.preflight import MemberFacts
from shared.outbound import Proxy
from shared.words import quoted
from tower_agent.causes import (
    clock_difference,
    explain_clock,
    explain_no_connection,
    parse_error,
)
from tower_agent.credentials import Credentials
from tower_agent.exchange import Answer, Exchange, ExchangeFailed

__all__ = ["Attempt", "JoinFailed", "JoinSettings"]

# X509_V_ERR_*: the certificate is of the right CA, and something else about it is wrong.
_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED = 9, 10
_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH = 62, 64
_OF_THE_RIGHT_CA = {
    _CERT_NOT_YET_VALID,
    _CERT_HAS_EXPIRED,
    _HOSTNAME_MISMATCH,
    _IP_ADDRESS_MISMATCH,
}

# Error codes of the server after which the same request may succeed.
_PASSING_CODES = {"nonce_expired", "slow_down", "store_unavailable"}
# Statuses of something before a server that is away at the moment.
_PASSING_STATUSES = {429, 500, 502, 503, 504}


class JoinFailed(Exception):
    """The agent could not join; the message is one sentence that names cause and remedy."""

    def __init__(
        self, sentence: str, *, permanent: bool = True, pause_seconds: float = 0.0
    ) -> None:
        super().__init__(sentence)
        # False if trying again later may help, without anybody doing anything.
        self.permanent = permanent
        # The server asked not to be asked again before.
        self.pause_seconds = pause_seconds


def _utc_now() -> datetime:
    """The default clock."""
    return datetime.now(UTC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinSettings:
    """How to join, apart from what the join string says."""

    agent_version: str
    # Of --ca-file: the only CAs for the outer TLS where something else than Tower ends it.
    outer_ca_pem: bytes | None = None
    # For HTTPS_PROXY and NO_PROXY.
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    now: Callable[[], datetime] = _utc_now


class Attempt:
    """One try of all steps. `run` may be called again."""

    def __init__(
        self,
        join: JoinString,
        member: MemberFacts,
        key_pem: PrivateBytes,
        settings: JoinSettings,
        proxy: Proxy | None,
    ) -> None:
        self._join = join
        self._member = member
        self._key_pem = key_pem
        self._settings = settings
        self._proxy = proxy
        host = f"[{join.host}]" if ":" in join.host else join.host
        self.address = f"{host}:{join.port}"

    async def run(self) -> Credentials:
        authority = await self._pinned_authority()
        mode, exchange, nonce = await self._open_verified(authority)
        async with exchange:
            return await self._join_over(exchange, authority, mode, nonce)

    async def _pinned_authority(self) -> x509.Certificate:
        """Step 1: fetch the CA from whoever answers, and check it against the pin."""
        async with self._exchange(unverified()) as exchange:
            try:
                answer = await exchange.request("GET", "/join/ca")
            except ExchangeFailed as error:
                raise self._connection_failure(error) from error
        self._refuse_passing(answer)
        if answer.status != 200 or b"-----BEGIN CERTIFICATE-----" not in answer.body:
            raise self._not_a_tower(f"it answered {answer.status} to GET /join/ca")
        try:
            authority = pinned_authority(answer.body, self._join.pin)
        except ValueError as error:
            raise JoinFailed(f"{self.address} is not trusted: {error}.") from error
        # Before TLS verifies dates, whose errors would not say that it is the clock.
        now = self._settings.now()
        ahead = clock_difference(answer.header("Date"), now)
        if ahead is not None and (sentence := explain_clock(ahead, now)):
            raise JoinFailed(sentence)
        return authority

    async def _open_verified(
        self, authority: x509.Certificate
    ) -> tuple[OuterMode, Exchange, str]:
        """Step 2: find out who ends the outer TLS, by fetching the nonce in each mode."""
        other: OuterMode = "system" if self._settings.outer_ca_pem is None else "custom"
        modes: list[tuple[OuterMode, bytes | None]] = [
            ("tower", pem(authority)),
            (other, self._settings.outer_ca_pem),
        ]
        for mode, ca_pem in modes:
            try:
                exchange = self._exchange(outer_client(mode, ca_pem))
            except ValueError as error:
                raise JoinFailed(
                    f"The file of --ca-file cannot be used: {error}."
                ) from error
            try:
                return mode, exchange, await self._nonce(exchange)
            except ExchangeFailed as error:
                await exchange.close()
                if mode == "tower" and _ends_tls_elsewhere(error.cause):
                    continue
                raise self._connection_failure(error) from error
            except BaseException:
                await exchange.close()
                raise
        raise AssertionError("the last mode returns or raises")

    async def _nonce(self, exchange: Exchange) -> str:
        answer = await exchange.request("POST", "/join/nonce")
        nonce = self._read(answer).get("nonce")
        if not isinstance(nonce, str):
            raise self._not_a_tower("it gave no nonce")
        try:
            check_server_clock(nonce, self._settings.now())
        except BadProof as error:
            raise JoinFailed(f"The join cannot go on: {error}.") from error
        return nonce

    async def _join_over(
        self,
        exchange: Exchange,
        authority: x509.Certificate,
        mode: OuterMode,
        nonce: str,
    ) -> Credentials:
        """Steps 3 and 4: prove the secret, and believe only a signed answer."""
        key = parse_private_key(self._key_pem)
        request = sign_request(
            self._join.secret,
            token_id=self._join.token_id,
            cluster=self._join.cluster,
            csr=certificate_request(key),
            nonce=nonce,
            member_uid=self._member.uid,
            agent_version=self._settings.agent_version,
        )
        try:
            answer = await exchange.request("POST", "/join", request.to_dict())
        except ExchangeFailed as error:
            raise self._connection_failure(error) from error
        signed = str(self._read(answer).get("answer"))
        try:
            return self._credentials(signed, request, authority, mode)
        except (ValueError, KeyError, AttributeError) as error:
            raise JoinFailed(
                f"The answer to the join is not to be trusted ({quoted(str(error))}): something "
                f"between here and {self.address} altered it, or another server gave it."
            ) from error

    def _credentials(
        self,
        signed: str,
        request: JoinRequest,
        authority: x509.Certificate,
        mode: OuterMode,
    ) -> Credentials:
        """Open the signed answer, and check that it has what we asked for.

        Raises:
            ValueError, KeyError, AttributeError: If it has not, or somebody else signed it.
        """
        now = self._settings.now()
        digest = request_digest(request)
        payload = open_answer(signed, request_digest=digest, now=now, ca=authority)
        certificate = parse_certificate(payload["certificate"].encode("ascii"))
        role = check_issued_agent(
            certificate,
            public_key=parse_private_key(self._key_pem).public_key(),
            cluster=self._join.cluster,
            ca=authority,
            now=now,
        )
        ca_pem = payload["ca"].encode("ascii")
        parse_certificates(ca_pem)
        return Credentials(
            cluster=role.cluster,
            zone=role.zone,
            audience=str(payload["audience"]),
            server_host=self._join.host,
            server_port=self._join.port,
            pin=self._join.pin,
            token_id=self._join.token_id,
            ca_pem=ca_pem,
            certificate_pem=pem(certificate),
            key_pem=self._key_pem,
            outer_mode=mode,
            outer_ca_pem=self._settings.outer_ca_pem if mode == "custom" else None,
        )

    def _read(self, answer: Answer) -> dict[str, Any]:
        """Return the JSON of a success.

        Raises:
            JoinFailed: With the server's sentence, or with our own if something else answered.
        """
        self._refuse_passing(answer)
        if error := parse_error(answer.body):
            raise JoinFailed(error.message)
        if answer.status != 200:
            raise self._not_a_tower(f"it answered {answer.status} to a join")
        try:
            fields = json.loads(answer.body)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise self._not_a_tower("its answer is no JSON object")
        return fields

    def _exchange(self, context: ssl.SSLContext) -> Exchange:
        return Exchange(
            host=self._join.host,
            port=self._join.port,
            context=context,
            proxy=self._proxy,
        )

    def _refuse_passing(self, answer: Answer) -> None:
        """Raise if the server, or what stands before it, asks for patience."""
        error = parse_error(answer.body)
        if error and error.code in _PASSING_CODES:
            sentence = error.message
        elif answer.status in _PASSING_STATUSES:
            sentence = (
                f"{self.address} answered {answer.status}: the server is away or starting, or a "
                "proxy before it cannot reach it; try again when it is back."
            )
        else:
            return
        pause_seconds = answer.retry_after_seconds
        raise JoinFailed(sentence, permanent=False, pause_seconds=pause_seconds)

    def _not_a_tower(self, observed: str) -> JoinFailed:
        return JoinFailed(
            f"What listens on {self.address} is not a Tower server ({observed}): check host and "
            "port in the join string."
        )

    def timed_out(self) -> JoinFailed:
        """Build the failure of an attempt that did not end in time."""
        proxy = str(self._proxy) if self._proxy else None
        return JoinFailed(
            explain_no_connection(TimeoutError(), address=self.address, proxy=proxy),
            permanent=False,
        )

    def _connection_failure(self, error: ExchangeFailed) -> JoinFailed:
        return JoinFailed(error.explain(self.address), permanent=error.permanent)


def _ends_tls_elsewhere(error: BaseException) -> bool:
    """Say whether TLS failed because whoever ended it is not of the Tower CA.

    Whoever knows no TLS 1.3 is not the server either; that is another SSLError.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_code not in _OF_THE_RIGHT_CA
    return isinstance(error, ssl.SSLError)
