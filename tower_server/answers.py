"""What an agent is answered when it gets a certificate, at its join or later, and whose word that is."""

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.assertion import assertion_audience
from certs.authority import Authority
from certs.joining import sign_answer
from certs.names import ClusterName

__all__ = ["AnswerSigner"]


class AnswerSigner:
    """Signs with the server's certificate, which is replaced now and then."""

    def __init__(
        self,
        authority: Authority,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
    ) -> None:
        """The certificate has the server's role and is signed by `authority`."""
        self._authority = authority
        # Replaced together by `renew`.
        self._signer = (key, certificate)

    def renew(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:
        """Sign further answers with a new server certificate."""
        self._signer = (key, certificate)

    def sign(
        self, cluster: ClusterName, chain: bytes, *, request_digest: str, now: datetime
    ) -> str:
        """The answer (a JWS) to the request of this digest.

        Its payload has `certificate` (the chain, PEM), `ca` (PEM bundle), `zone`, `cluster` and
        `audience`.
        """
        key, certificate = self._signer
        payload = {
            "certificate": chain.decode("ascii"),
            "ca": self._authority.pem.decode("ascii"),
            "zone": self._authority.zone,
            "cluster": cluster,
            "audience": assertion_audience(self._authority.zone),
        }
        return sign_answer(
            key,
            [certificate, self._authority.certificate],
            payload,
            request_digest=request_digest,
            now=now,
        )
