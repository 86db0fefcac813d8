"""Keeps the agent's certificate good: renews it after two thirds of its life, over HTTPS.

No tunnel ends for it: the key stays, and new dials, new connections of callers and new control
streams use the new certificate. An agent that was off past its certificate's end renews first
(SPEC 2), for up to 90 days; what is between it and the server can neither read nor forge the answer.
"""

import asyncio
import dataclasses
import json
import logging
import os
import random
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from certs.assertion import make_assertion, renewal_audience
from certs.chains import parse_certificates, pem
from certs.contexts import outer_client
from certs.keys import parse_private_key
from certs.renewing import MAX_LATE, RenewalRequest, open_renewal
from shared.words import quoted
from tower_agent.causes import parse_error
from tower_agent.credentials import (
    Credentials,
    CredentialStore,
    CredentialsUnavailable,
)
from tower_agent.exchange import Answer, Exchange, ExchangeFailed
from tower_agent.proxies import proxy_for

__all__ = ["RenewalFailed", "Renewer", "good_credentials", "renewed"]

_log = logging.getLogger(__name__)

# Clocks are set and machines are suspended: look again after this at the latest.
LOOK_EVERY_SECONDS = 3600.0

# The first pause after a failure, and the longest; a third of the certificate's life, ten days, is left.
FIRST_PAUSE_SECONDS = 30.0
LAST_PAUSE_SECONDS = 3600.0

# The same while the certificate has ended already, and nobody is served.
FIRST_LATE_PAUSE_SECONDS = 1.0
LAST_LATE_PAUSE_SECONDS = 60.0

# Agents that were deployed together shall not come together: up to so much later than due.
SPREAD_SECONDS = 3600.0

# Refusals after which asking again is no use. See the server's membership.Refusal.
_FINAL_CODES = {"cluster_removed", "certificate_replaced"}


class RenewalFailed(Exception):
    """There is no new certificate; the message is one sentence with the remedy."""

    def __init__(self, sentence: str, *, final: bool = False) -> None:
        super().__init__(sentence)
        # Trying again cannot help.
        self.final = final


def _utc_now() -> datetime:
    """The default clock."""
    return datetime.now(UTC)


async def renewed(
    credentials: Credentials,
    environ: Mapping[str, str] = os.environ,
    now: Callable[[], datetime] = _utc_now,
) -> Credentials:
    """Ask the server once for a new certificate, and return the credentials with it.

    Raises:
        RenewalFailed: If it does not give one, or the answer is not to be trusted.
    """
    if now() > credentials.not_after + MAX_LATE:
        raise RenewalFailed(
            f"The agent's certificate ended on {credentials.not_after:%Y-%m-%d}, too long ago to be renewed: join "
            f"again with a new string of `tower token create {credentials.cluster}`.",
            final=True,
        )
    key = parse_private_key(credentials.key_pem)
    assertion = make_assertion(
        key,
        parse_certificates(credentials.certificate_pem),
        renewal_audience(credentials.zone),
        now(),
        secrets.token_hex(16),
    )
    request = RenewalRequest.make(credentials.key_pem, assertion)
    answer = await _ask(credentials, request, environ)
    try:
        got = open_renewal(
            answer,
            request,
            key_pem=credentials.key_pem,
            cluster=credentials.cluster,
            authorities=parse_certificates(credentials.ca_pem),
            now=now(),
        )
    except (ValueError, UnicodeError) as error:
        raise RenewalFailed(
            f"The answer to the renewal is not to be trusted ({quoted(str(error))}): something between here "
            f"and {credentials.server_address} altered it, or another server gave it."
        ) from error
    return dataclasses.replace(
        credentials, certificate_pem=pem(got.certificate), ca_pem=got.ca_pem
    )


async def _ask(
    credentials: Credentials, request: RenewalRequest, environ: Mapping[str, str]
) -> str:
    host, port = credentials.server_host, credentials.server_port
    mode = credentials.outer_mode
    ca_pem = credentials.ca_pem if mode == "tower" else credentials.outer_ca_pem
    address = credentials.server_address
    try:
        async with Exchange(
            host=host,
            port=port,
            context=outer_client(mode, ca_pem),
            proxy=proxy_for(host, port, environ),
        ) as exchange:
            answer = await exchange.request("POST", "/renew", request.to_dict())
    except ExchangeFailed as error:
        raise RenewalFailed(error.explain(address)) from error
    return _signed(answer, address)


def _signed(answer: Answer, address: str) -> str:
    if error := parse_error(answer.body):
        raise RenewalFailed(error.message, final=error.code in _FINAL_CODES)
    try:
        fields: Any = json.loads(answer.body)
        signed = fields["answer"]
    except (ValueError, RecursionError, KeyError, TypeError):
        signed = None
    if answer.status != 200 or not isinstance(signed, str):
        raise RenewalFailed(
            f"{address} answered {answer.status} to a renewal, and not as a Tower server does: it may be an older one, "
            "or something before it answered."
        )
    return signed


async def good_credentials(
    credentials: Credentials,
    store: CredentialStore,
    now: Callable[[], datetime] = _utc_now,
) -> Credentials:
    """Renew a certificate that has ended, for as long as it takes; a good one is returned as it is.

    Raises:
        RenewalFailed: If it will never be renewed.
    """
    if now() < credentials.not_after:
        return credentials
    ended = credentials.not_after
    _log.warning("the agent's certificate ended on %s: renewing it", ended)
    ceiling = FIRST_LATE_PAUSE_SECONDS
    while True:
        try:
            fresh = await renewed(credentials, now=now)
            await _keep(fresh, store)
        except (RenewalFailed, CredentialsUnavailable) as error:
            if isinstance(error, RenewalFailed) and error.final:
                raise
            pause = random.SystemRandom().uniform(ceiling / 2, ceiling)
            ceiling = min(ceiling * 2, LAST_LATE_PAUSE_SECONDS)
            _log.warning("no new certificate yet, next try in %.0f s: %s", pause, error)
            await asyncio.sleep(pause)
        else:
            _log.info("renewed the agent's certificate until %s", fresh.not_after)
            return fresh


async def _keep(fresh: Credentials, store: CredentialStore) -> None:
    """Keep what is new about credentials; how this start reaches the server is no part of that."""
    stored = await store.load() or fresh
    await store.save(
        dataclasses.replace(
            stored, certificate_pem=fresh.certificate_pem, ca_pem=fresh.ca_pem
        )
    )


class Renewer:
    """Renews when it is time, keeps what it got, and tells who uses it."""

    def __init__(
        self,
        credentials: Credentials,
        store: CredentialStore,
        apply: Callable[[Credentials], None],
        *,
        now: Callable[[], datetime] = _utc_now,
        rng: random.Random | None = None,
    ) -> None:
        self._credentials = credentials
        self._store = store
        self._apply = apply
        self._now = now
        self._rng = rng or random.SystemRandom()

    async def run(self) -> None:
        """Renew for ever, until cancelled or the server says that it never will again."""
        pause = FIRST_PAUSE_SECONDS
        late = self._rng.uniform(0, SPREAD_SECONDS)
        while True:
            left = (self._credentials.renewal_due_at - self._now()).total_seconds()
            if left + late > 0:
                await asyncio.sleep(min(left + late, LOOK_EVERY_SECONDS))
                continue
            try:
                await self.renew()
                pause, late = FIRST_PAUSE_SECONDS, self._rng.uniform(0, SPREAD_SECONDS)
            except (RenewalFailed, CredentialsUnavailable) as error:
                if isinstance(error, RenewalFailed) and error.final:
                    # The next dial is told the same, and ends the agent with the reason.
                    _log.error("the agent's certificate is not renewed: %s", error)
                    return
                wait = self._rng.uniform(pause / 2, pause)
                _log.warning(
                    "the agent's certificate ends on %s and cannot be renewed, next try in %.0f s: %s",
                    self._credentials.not_after,
                    wait,
                    error,
                )
                await asyncio.sleep(wait)
                pause = min(pause * 2, LAST_PAUSE_SECONDS)

    async def renew(self) -> None:
        """Renew now.

        Raises:
            RenewalFailed, CredentialsUnavailable: If that is not possible; what was good stays.
        """
        fresh = await renewed(self._credentials, now=self._now)
        # Kept first: a certificate that is lost with the process would do no harm, one that is
        # used and not kept would surprise at the next start.
        await _keep(fresh, self._store)
        self._credentials = fresh
        self._apply(fresh)
        _log.info("renewed the agent's certificate until %s", fresh.not_after)
