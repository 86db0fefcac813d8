"""The member's end of the gateway face: requests of callers whom the server has authenticated.

The server opens streams to `gateway` and speaks HTTP in them inside mutual TLS, one request
after the other, each with the identity that it vouches for. Whatever ends the outer TLS
(an ingress, a load balancer) can therefore neither read nor forge a request. As whom the
host may act, and what becomes of a request, is decided exactly as on the sealed face.
"""

import asyncio
import ssl

from certs.contexts import INNER_PROTOCOL, peer_certificate
from certs.names import ClusterName, ServerRole, require_role
from shared.member.sealed import SealedFace
from shared.mux.stream import Stream
from shared.streams import ByteStream, StreamHandler
from shared.tunnel.tls import HandshakeGate, TlsEnd

__all__ = ["GATEWAY_TARGET", "GatewayFace"]

# What the server opens its streams to.
GATEWAY_TARGET = "gateway"


class GatewayFace:
    """Serves streams that are opened to `gateway`, beside the sealed face of the same member."""

    def __init__(
        self,
        sealed: SealedFace,
        *,
        cluster: ClusterName,
        zone: str,
        context: ssl.SSLContext | None,
    ) -> None:
        """Prepare.

        Args:
            sealed: Whose policy, pool and refusal are used.
            context: Of `certs.contexts.inner_server`, with the cluster's certificate. None where
                the server is this very process, which then need not prove it.
        """
        self._loop = asyncio.get_running_loop()
        self._sealed = sealed
        self._cluster = cluster
        self._zone = zone
        # Of new streams: may be replaced when the certificate is renewed.
        self.context = context
        self._gate = HandshakeGate()

    def open(self, stream: Stream) -> None:
        """Give the stream its handler."""
        if self.context is None:
            stream.handler = self._serve(stream)
            return
        end = TlsEnd(
            self.context,
            server_side=True,
            on_handshake=self._secured,
            call_later=self._loop.call_later,
            gate=self._gate,
        )
        stream.handler = end
        end.start(stream)

    def _secured(self, plain: ByteStream, connection: ssl.SSLObject) -> StreamHandler:
        """Demand that it is a server of our zone (else RoleError, a ValueError)."""
        certificate = peer_certificate(connection, protocol=INNER_PROTOCOL)
        require_role(certificate, ServerRole(zone=self._zone))
        return self._serve(plain)

    def _serve(self, plain: ByteStream) -> StreamHandler:
        return self._sealed.service.serve_asserted(
            plain, self._cluster, lambda: self._sealed.refusal
        )
