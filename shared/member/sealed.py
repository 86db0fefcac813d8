"""The member's end of the sealed face: ends the caller's TLS, checks its role, serves requests.

The front door relays ciphertext only; here a control plane's connection becomes plain HTTP,
and its certificate an identity. A caller is let in with a user certificate of the Tower
CA that is good for this cluster, and with nothing else.
"""

import asyncio
import ssl

from certs.contexts import peer_user
from certs.names import ClusterName, RoleError
from shared.errors import Code
from shared.http.apiserver import ApiServer
from shared.http.identity import Caller, Policy
from shared.http.relay import AnswerCounts
from shared.http.service import RequestService
from shared.http.status import Refusal
from shared.http.upstream import UpstreamPool
from shared.mux.stream import Stream
from shared.streams import ByteStream, StreamHandler
from shared.tunnel.tls import HandshakeGate, TlsEnd

__all__ = ["SealedFace"]


class SealedFace:
    """Serves streams that are opened to `sealed`. Create it inside the running loop."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        cluster: ClusterName,
        zone: str,
        policy: Policy,
        pool: UpstreamPool,
    ) -> None:
        """Use a context of `certs.contexts.sealed_server`, with the cluster's certificate."""
        self._loop = asyncio.get_running_loop()
        self._cluster = cluster
        self._zone = zone
        # Of new connections: may be replaced when the certificate is renewed.
        self.context = context
        self._service = RequestService(pool=pool, policy=policy, loop=self._loop)
        self._on_handshake = self._service.accept(self._identify)
        self._gate = HandshakeGate()
        # Set by `refuse`: nobody is served.
        self._refusal: Refusal | None = None

    @property
    def service(self) -> RequestService:
        """What serves requests, for other faces of the same member."""
        return self._service

    @property
    def refusal(self) -> Refusal | None:
        """What every request is answered with, if that is so; see `refuse`."""
        return self._refusal

    @property
    def answers(self) -> AnswerCounts:
        """What requests were answered with so far."""
        return self._service.answers

    @property
    def open_connections(self) -> int:
        return self._service.open_connections

    def open(self, stream: Stream) -> None:
        """Give the stream its handler."""

        def secured(plain: ByteStream, connection: ssl.SSLObject) -> StreamHandler:
            handler = self._on_handshake(plain, connection)
            # The front door may stop counting this one as a stranger.
            stream.accept()
            return handler

        end = TlsEnd(
            self.context,
            server_side=True,
            on_handshake=secured,
            call_later=self._loop.call_later,
            gate=self._gate,
        )
        stream.handler = end
        end.start(stream)

    def renew(self, apiserver: ApiServer) -> None:
        """The apiserver has another address or credential; no connection ends."""
        self._service.renew(apiserver)

    def allow(self, policy: Policy) -> None:
        """As whom the host may act from now on; who is here has to come again."""
        if policy != self._service.policy:
            self._service.policy = policy
            self.close("as whom the host may act here has changed")

    def refuse(self, refusal: Refusal | None) -> None:
        """Answer everything with this, or (None) serve again; who is here has to come again."""
        if (refusal is None) != (self._refusal is None):
            self.close("the member is looked at again")
        self._refusal = refusal

    def close(self, reason: str) -> None:
        """End all connections."""
        self._service.end_all(Code.GOING_AWAY, reason)

    def _identify(self, connection: ssl.SSLObject) -> Caller:
        """Who the caller is, by its certificate.

        Raises:
            Refusal: Which the caller gets as the answer to its request, if the certificate
                is ours but no user's, or not for this cluster.
            ValueError: If there is no certificate at all.
        """
        try:
            identity = peer_user(connection, self._zone)
        except RoleError as error:
            raise Refusal(code=401, message=str(error)) from None
        if not identity.may_use(self._cluster):
            raise Refusal(
                code=403,
                message=f"this certificate is not for cluster {self._cluster}: make a kubeconfig "
                f"for it with `tower kubeconfig {self._cluster}`",
            )
        if self._refusal is not None:
            raise self._refusal
        return Caller(
            user=identity.user,
            groups=identity.groups,
            cluster=self._cluster,
            not_after=identity.not_after,
            serial=identity.serial,
        )
