"""What all client connections of one cluster's request path share, and who makes them."""

import asyncio
import ssl
from collections.abc import Callable
from datetime import UTC, datetime

from shared.errors import Code
from shared.http.apiserver import ApiServer
from shared.http.asserted import AssertedTranslator
from shared.http.identity import Caller, Policy, Review
from shared.http.relay import AnswerCounts, Limits, RequestRelay
from shared.http.reviews import ImpersonationReviews
from shared.http.status import Refusal
from shared.http.translation import Translator, refuse_all
from shared.http.upstream import UpstreamPool
from shared.streams import ByteStream, StreamHandler

__all__ = ["MAX_KNOWN_CALLERS", "Identify", "RequestService"]

# Certificates in use at one cluster: control planes and people, not requests. What is
# kept of a caller is some KiB (see Translator).
MAX_KNOWN_CALLERS = 256

Identify = Callable[[ssl.SSLObject], Caller]


def _wall_clock() -> datetime:
    return datetime.now(UTC)


class RequestService:
    """Serves requests to one apiserver; the agent has one, and so has a direct cluster.

    It does not own the pool: close that after `end_all`.
    """

    def __init__(
        self,
        *,
        pool: UpstreamPool,
        policy: Policy,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], datetime] = _wall_clock,
        limits: Limits | None = None,
    ) -> None:
        self.pool = pool
        self.policy = policy
        self.loop = loop
        self.now = now
        self.limits = limits or Limits()
        # For people who look; relays count into it.
        self.answers = AnswerCounts()
        self._reviews = ImpersonationReviews(pool, loop=loop)
        # What is known of the callers that came lately, for all their connections. The
        # first one in is the first one out.
        self._translators: dict[Caller, Translator] = {}
        # Every relay whose stream is not over, and who translates for it (None: refuses all).
        self._relays: dict[RequestRelay, Translator | AssertedTranslator | None] = {}

    @property
    def open_connections(self) -> int:
        return len(self._relays)

    def serve(self, stream: ByteStream, caller: Caller) -> RequestRelay:
        """The handler of a plaintext stream whose caller has been authenticated."""
        translator = self._translator(caller)
        relay = RequestRelay(
            stream,
            translate=translator,
            owner=self,
            not_after=caller.not_after,
            serial=caller.serial,
        )
        self._relays[relay] = translator
        return relay

    def serve_asserted(
        self,
        stream: ByteStream,
        cluster: str,
        refusal: Callable[[], Refusal | None],
    ) -> RequestRelay:
        """The handler of a plaintext stream from a server of ours, who says with each request
        whose it is. `refusal` tells what all of them get instead, if that is so."""
        translator = AssertedTranslator(cluster, self._translator, refusal)
        relay = RequestRelay(
            stream, translate=translator, owner=self, not_after=None, serial=None
        )
        self._relays[relay] = translator
        return relay

    def accept(
        self, identify: Identify
    ) -> Callable[[ByteStream, ssl.SSLObject], StreamHandler]:
        """What a TLS end calls after its handshake: the caller is who `identify` says.

        `identify` may raise a Refusal: the client then gets that as an answer to its
        first request, which a person can read. What else it raises (StreamReset,
        ValueError) goes to the TLS end, which ends the stream without a word of HTTP.
        """

        def on_handshake(
            stream: ByteStream, ssl_object: ssl.SSLObject
        ) -> StreamHandler:
            try:
                caller = identify(ssl_object)
            except Refusal as refusal:
                relay = RequestRelay(
                    stream,
                    translate=refuse_all(refusal),
                    owner=self,
                    not_after=None,
                    serial=None,
                )
                self._relays[relay] = None
                return relay
            return self.serve(stream, caller)

        return on_handshake

    def _translator(self, caller: Caller) -> Translator:
        known = self._translators.get(caller)
        if known is None:
            known = Translator(caller, self.policy, self.pool.apiserver)
            if len(self._translators) >= MAX_KNOWN_CALLERS:
                del self._translators[next(iter(self._translators))]
            self._translators[caller] = known
        return known

    def renew(self, apiserver: ApiServer) -> None:
        """The apiserver has another address or credential; no connection of a client ends."""
        self.pool.renew(apiserver)
        self._translators.clear()
        for translator in self._relays.values():
            if isinstance(translator, AssertedTranslator):
                translator.forget()
            elif translator is not None:
                translator.use(apiserver)

    def end_serials(self, serials: frozenset[int], reason: str) -> int:
        """End the connections of revoked certificates; returns how many."""
        doomed = [relay for relay in self._relays if relay.serial in serials]
        for relay in doomed:
            relay.end(Code.REVOKED, reason)
        return len(doomed)

    def end_all(self, code: Code, reason: str) -> None:
        """End all connections, whatever they are doing."""
        for relay in list(self._relays):
            relay.end(code, reason)

    # -- relay.RelayOwner ---------------------------------------------------------------

    def ask(self, review: Review, on_answer: Callable[[Refusal | None], None]) -> None:
        self._reviews.ask(review, on_answer)

    def relay_closed(self, relay: RequestRelay) -> None:
        self._relays.pop(relay, None)
