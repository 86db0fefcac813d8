"""Credentials of a fleet: what the server's own parts make of them."""

import asyncio
import base64
import json
import stat
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from bench.credentials import write_identities
from certs.assertion import AssertionVerifier, assertion_audience, make_assertion
from certs.authority import Authority
from certs.names import DEFAULT_ZONE
from tower_server.membership import agent_is_current
from tower_server.state_directory import AUTHORITY_NAME, STORE_NAME
from tower_server.stores.sqlite import SqliteStore


def test_every_identity_proves_a_cluster_that_the_store_knows(tmp_path: Path) -> None:
    state, identities = tmp_path / "server", tmp_path / "identities.json"
    write_identities(state, identities, 3)
    assert stat.S_IMODE(identities.stat().st_mode) == 0o600
    now = datetime.now(UTC)
    authority = Authority.open_or_create(state / AUTHORITY_NAME, DEFAULT_ZONE, now)
    verifier = AssertionVerifier([authority.certificate], DEFAULT_ZONE)
    known = json.loads(identities.read_text())
    assert len({each["cluster"] for each in known}) == 3

    async def check() -> None:
        store = await SqliteStore.open(state / STORE_NAME)
        for number, each in enumerate(known):
            key = load_der_private_key(base64.b64decode(each["key"]), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            certificate = x509.load_der_x509_certificate(
                base64.b64decode(each["certificate"])
            )
            audience = assertion_audience(DEFAULT_ZONE)
            token = make_assertion(key, [certificate], audience, now, f"{number:032d}")
            identity = verifier.verify(token, now)
            assert identity.cluster == each["cluster"]
            assert agent_is_current(
                await store.get_cluster(identity.cluster),
                key_pin=identity.public_key_pin,
            )
        await store.close()

    asyncio.run(check())
