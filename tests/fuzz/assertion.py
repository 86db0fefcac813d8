"""The signed assertion in a tunnel's upgrade: the first thing that a stranger's request meets.

The input is a header and a payload as text; the harness encodes both and may sign them with a
real agent's key, so that what lies behind the signature is reached. `@CERT@` in the header stands
for that agent's certificate. Keys are new in each process: a signature is never the same twice,
what is found with one is.
"""

import base64
import functools
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from certs.assertion import AssertionVerifier, BadAssertion, assertion_audience
from certs.authority import Authority
from certs.keys import certificate_request, new_key
from certs.names import parse_cluster_name
from tests.fuzz.target import Source, Target

__all__ = ["TARGETS"]

_ZONE = "fuzz.tower.internal"
_NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class _Agent:
    """A joined agent, and the server that knows it."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory(prefix="tower-fuzz-") as directory:
            authority = Authority.open_or_create(Path(directory) / "ca", _ZONE, _NOW)
        self.key = new_key()
        certificate = authority.issue_agent(
            certificate_request(self.key), parse_cluster_name("alpha"), _NOW
        )
        self.der = base64.b64encode(certificate.public_bytes(Encoding.DER))
        self.ca = authority.certificate

    def sign(self, message: bytes) -> bytes:
        signature = self.key.sign(message, ec.ECDSA(hashes.SHA256()))
        return b"".join(part.to_bytes(32) for part in decode_dss_signature(signature))


@functools.cache
def _agent() -> _Agent:
    return _Agent()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _run(data: bytes) -> None:
    source, agent = Source(data), _agent()
    how = source.number()
    header = source.take(source.number(2)).replace(b"@CERT@", agent.der)
    payload = source.rest()
    message = _base64url(header) + b"." + _base64url(payload)
    signature = agent.sign(message) if how & 1 else payload[:64]
    token = message + b"." + _base64url(signature)
    if how & 2:
        token = token.replace(b".", b"..", 1)
    verifier = AssertionVerifier([agent.ca], _ZONE)
    try:
        identity = verifier.verify(token.decode("latin-1"), _NOW)
    except BadAssertion as error:
        assert str(error)
        return
    assert how & 1 and identity.cluster == "alpha"
    try:
        verifier.verify(token.decode("latin-1"), _NOW)
    except BadAssertion as error:
        assert error.reason == "replayed"
        return
    raise AssertionError("an assertion was good twice")


def _seeds() -> list[bytes]:
    header = b'{"alg":"ES256","typ":"tower-assertion+jwt","x5c":["@CERT@"]}'
    issued = int(_NOW.timestamp())
    claims = {"aud": assertion_audience(_ZONE), "iat": issued, "exp": issued + 60}
    payload = json.dumps({**claims, "jti": "0123456789abcdef"}).encode()
    return [
        bytes((how,)) + len(head).to_bytes(2) + head + body
        for how in (0, 1)
        for head in (header, header.replace(b"]", b',"@CERT@"]'), b"{}")
        for body in (payload, b"[]")
    ]


TARGETS = (
    Target(
        name="assertion",
        run=_run,
        seeds=_seeds,
        words=(
            *(b'"alg":"none"', b'"alg":"HS256"', b'"x5c":', b'"@CERT@"', b'"crit":[]'),
            *(
                b'"b64":false',
                b'"exp":',
                b'"iat":',
                b"1e308",
                b"true",
                b"null",
                b"[" * 999,
            ),
        ),
        runs=3_000,
    ),
)
