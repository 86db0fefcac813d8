"""Join proofs: nothing between agent and server can be altered, replaced or replayed.

Covers requests (JSON round trip, each field altered, other token), answers (other CA, other
role, other request, altered, clock, expired), and the certificate that comes with them.
"""

import base64
import dataclasses
import json
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from certs.chains import pem
from certs.joining import (
    BadProof,
    JoinRequest,
    check_issued_agent,
    new_token,
    open_answer,
    request_digest,
    sign_answer,
    sign_request,
    verifier_of,
    verify_request,
)
from certs.keys import certificate_request, new_key
from certs.names import AgentRole, RoleError
from certs.nonces import JoinNonces
from certs.signatures import sign_statement
from certs.tokens import parse_token_id
from tests.certs.zone import ALPHA, BETA, NOW, ZONE, Zone

KEY = new_key()
TOKEN_ID, SECRET = new_token()
NONCE = JoinNonces(b"k" * 32).issue(NOW)
REQUEST = sign_request(
    SECRET,
    token_id=TOKEN_ID,
    cluster=ALPHA,
    csr=certificate_request(KEY),
    nonce=NONCE,
    member_uid="2f1c5f0e-9d7b-4a55-9f0e-0c6f3b8b7f11",
    agent_version="0.1.0",
)
PAYLOAD = {"certificate": "…", "zone": ZONE}


# -- Requests ------------------------------------------------------------------------------


def test_who_has_the_secret_can_prove_it_without_sending_it() -> None:
    verify_request(verifier_of(SECRET), REQUEST)
    assert SECRET.reveal() not in json.dumps(REQUEST.to_dict())


def test_a_request_survives_json() -> None:
    again = JoinRequest.from_dict(json.loads(json.dumps(REQUEST.to_dict())))
    assert again == REQUEST
    verify_request(verifier_of(SECRET), again)


def test_the_same_request_can_be_made_again() -> None:
    """An agent that lost the answer asks again, and the server may compare."""
    again = sign_request(
        SECRET,
        token_id=REQUEST.token_id,
        cluster=REQUEST.cluster,
        csr=REQUEST.csr,
        nonce=REQUEST.nonce,
        member_uid=REQUEST.member_uid,
        agent_version=REQUEST.agent_version,
    )
    assert request_digest(again) == request_digest(REQUEST)


def test_fields_of_newer_agents_are_ignored() -> None:
    assert JoinRequest.from_dict({**REQUEST.to_dict(), "mood": "good"}) == REQUEST


@pytest.mark.parametrize(
    "change",
    [
        {"csr": certificate_request(new_key())},
        {"nonce": JoinNonces(b"k" * 32).issue(NOW)},
        {"cluster": BETA},
        {"token_id": parse_token_id("other")},
        {"member_uid": ""},
        {"agent_version": "0.1.1"},
        {"signature": b"\0" * 64},
        {"signature": b""},
        # The same bytes, cut at another place.
        {"member_uid": REQUEST.member_uid + "0", "agent_version": ".1.0"},
    ],
)
def test_a_request_altered_in_any_field_is_refused(change: dict[str, object]) -> None:
    altered = dataclasses.replace(REQUEST, **change)
    with pytest.raises(BadProof, match="not signed with the secret") as caught:
        verify_request(verifier_of(SECRET), altered)
    assert caught.value.reason == "signature"
    assert request_digest(altered) != request_digest(REQUEST)


def test_another_tokens_secret_is_refused() -> None:
    with pytest.raises(BadProof):
        verify_request(verifier_of(new_token()[1]), REQUEST)


def test_what_the_server_stores_cannot_make_a_request() -> None:
    """A thief of the store could at best use the verifier as if it were a secret's key."""
    thief = Ed25519PrivateKey.from_private_bytes(verifier_of(SECRET))
    forged = dataclasses.replace(REQUEST, signature=thief.sign(REQUEST._signed_bytes()))
    with pytest.raises(BadProof):
        verify_request(verifier_of(SECRET), forged)


@pytest.mark.parametrize("verifier", [b"", b"short", b"\xff" * 32])
def test_a_damaged_verifier_verifies_nothing(verifier: bytes) -> None:
    with pytest.raises(BadProof):
        verify_request(verifier, REQUEST)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 2}, "not of version 1.*same release"),
        ({"version": None}, "not of version 1"),
        ({"token_id": "A"}, "token_id: a token's id"),
        ({"cluster": "Alpha"}, "cluster: 'Alpha' cannot name"),
        ({"csr": None}, "csr: it is missing"),
        ({"csr": "***"}, "csr: "),
        (
            {"csr": base64.b64encode(b"x" * 10_000).decode()},
            "csr: it is longer than 4096",
        ),
        ({"nonce": 1}, "nonce: it is missing, or no text"),
        ({"nonce": "x" * 129}, "nonce: it is not up to 128"),
        ({"member_uid": "a\nb"}, "member_uid: it is not up to 128 printable"),
        ({"agent_version": "\u202e"}, "agent_version: "),
        ({"signature": "x" * 200}, "signature: it is longer than 64"),
    ],
)
def test_a_malformed_request_names_its_field(
    change: dict[str, object], fault: str
) -> None:
    with pytest.raises(BadProof, match=fault) as caught:
        JoinRequest.from_dict({**REQUEST.to_dict(), **change})
    assert caught.value.reason == "malformed"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(sorted(REQUEST.to_dict())), inner)
    ),
    max_leaves=10,
)


@given(JSON, JSON)
def test_whatever_json_brings_nothing_undeclared_is_raised(
    data: object, value: object
) -> None:
    candidates = [data] + [
        {**REQUEST.to_dict(), name: value} for name in REQUEST.to_dict()
    ]
    for candidate in candidates:
        try:
            JoinRequest.from_dict(candidate)
        except BadProof as error:
            assert error.reason == "malformed"


# -- Answers -------------------------------------------------------------------------------


def answer_of(zone: Zone, request: JoinRequest = REQUEST) -> str:
    server = zone.server()
    return sign_answer(
        server.key,
        [server.certificate, zone.ca],
        PAYLOAD,
        request_digest=request_digest(request),
        now=NOW,
    )


def test_the_pinned_server_is_believed(zone: Zone) -> None:
    answer, digest = answer_of(zone), request_digest(REQUEST)
    by_pin = open_answer(answer, request_digest=digest, now=NOW, pin=zone.authority.pin)
    by_ca = open_answer(answer, request_digest=digest, now=NOW, ca=zone.ca)
    assert by_pin == by_ca == PAYLOAD


def refused(zone: Zone, answer: str, now=NOW) -> tuple[str, str]:
    """Reason and text with which the agent refuses: by pin and by CA alike."""
    digest = request_digest(REQUEST)
    with pytest.raises(BadProof) as by_pin:
        open_answer(answer, request_digest=digest, now=now, pin=zone.authority.pin)
    with pytest.raises(BadProof) as by_ca:
        open_answer(answer, request_digest=digest, now=now, ca=zone.ca)
    assert by_pin.value.reason == by_ca.value.reason
    return by_pin.value.reason, str(by_pin.value)


def test_a_server_of_another_ca_is_not_believed(zone: Zone, other_zone: Zone) -> None:
    reason, text = refused(zone, answer_of(other_zone))
    assert reason == "issuer"
    assert "not the one that the join string pins" in text


def test_the_pinned_ca_beside_a_strangers_certificate_does_not_help_him(
    zone: Zone, other_zone: Zone
) -> None:
    """The man in the middle has the real CA's certificate, as everybody does."""
    server = other_zone.server()
    chain = [server.certificate, zone.ca]
    answer = sign_answer(
        server.key, chain, PAYLOAD, request_digest=request_digest(REQUEST), now=NOW
    )
    reason, text = refused(zone, answer)
    assert (reason, "another CA" in text) == ("issuer", True)


@pytest.mark.parametrize("role", ["agent", "user"])
def test_another_role_of_the_same_ca_is_not_believed(zone: Zone, role: str) -> None:
    holder = getattr(zone, role)()
    answer = sign_answer(
        holder.key,
        [holder.certificate, zone.ca],
        PAYLOAD,
        request_digest=request_digest(REQUEST),
        now=NOW,
    )
    assert refused(zone, answer)[0] == "role"


def test_the_ca_itself_is_no_server(zone: Zone) -> None:
    answer = sign_answer(
        zone.authority._key,
        [zone.ca, zone.ca],
        PAYLOAD,
        request_digest=request_digest(REQUEST),
        now=NOW,
    )
    assert refused(zone, answer)[0] == "role"


def test_the_answer_to_another_request_is_not_believed(zone: Zone) -> None:
    other = dataclasses.replace(REQUEST, csr=certificate_request(new_key()))
    assert refused(zone, answer_of(zone, other))[0] == "audience"


def test_an_altered_answer_is_not_believed(zone: Zone) -> None:
    header, payload, signature = answer_of(zone).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims["answer"]["zone"] = "evil.zone"
    data = json.dumps(claims).encode()
    altered = base64.urlsafe_b64encode(data).decode().rstrip("=")
    assert refused(zone, f"{header}.{altered}.{signature}")[0] == "signature"


def test_an_answer_signed_with_another_key_than_its_certificates_is_not_believed(
    zone: Zone,
) -> None:
    chain = [zone.server().certificate, zone.ca]
    answer = sign_answer(
        new_key(), chain, PAYLOAD, request_digest=request_digest(REQUEST), now=NOW
    )
    assert refused(zone, answer)[0] == "signature"


def test_an_agent_whose_clock_is_off_learns_by_how_much(zone: Zone) -> None:
    reason, text = refused(zone, answer_of(zone), now=NOW - timedelta(days=1))
    assert reason == "clock"
    assert "the clock of the server is 1 d ahead of this one's: set both by NTP" in text


def test_an_expired_server_is_told_from_a_wrong_clock(old_zone: Zone) -> None:
    server = old_zone.server(now=NOW - timedelta(days=92))
    answer = sign_answer(
        server.key,
        [server.certificate, old_zone.ca],
        PAYLOAD,
        request_digest=request_digest(REQUEST),
        now=NOW,
    )
    reason, text = refused(old_zone, answer)
    assert reason == "expired"
    assert "expired 2 d ago" in text


def test_a_statement_of_another_kind_is_no_answer(zone: Zone) -> None:
    server = zone.server()
    claims = {"answer": PAYLOAD, "request": request_digest(REQUEST), "iat": 0}
    chain = [server.certificate, zone.ca]
    other = sign_statement(server.key, chain, kind="JWT", claims=claims)
    assert refused(zone, other)[0] == "type"


@pytest.mark.parametrize(
    "claims",
    [
        {"answer": PAYLOAD},
        {"iat": 1},
        {"iat": "1", "answer": PAYLOAD},
        {"iat": True, "answer": PAYLOAD},
        {"iat": 10**30, "answer": PAYLOAD},
        {"iat": 1, "answer": []},
    ],
)
def test_an_answer_that_lacks_something_is_refused(
    zone: Zone, claims: dict[str, object]
) -> None:
    server = zone.server()
    answer = sign_statement(
        server.key,
        [server.certificate, zone.ca],
        kind="tower-join-answer+jwt",
        claims={**claims, "request": request_digest(REQUEST)},
    )
    assert refused(zone, answer)[0] == "malformed"


@pytest.mark.parametrize("answer", ["", "a.b.c", "x" * 100_000, "ä.ä.ä"])
def test_what_is_no_answer_at_all_is_refused(zone: Zone, answer: str) -> None:
    assert refused(zone, answer)[0] == "malformed"


def test_our_own_misuse_is_an_assertion(zone: Zone) -> None:
    with pytest.raises(AssertionError):
        open_answer("", request_digest="", now=NOW)
    with pytest.raises(AssertionError):
        open_answer("", request_digest="", now=NOW, pin=zone.authority.pin, ca=zone.ca)
    server = zone.server()
    with pytest.raises(AssertionError):
        sign_answer(server.key, [server.certificate], {}, request_digest="", now=NOW)


# -- The certificate -----------------------------------------------------------------------


def test_the_certificate_that_was_asked_for_is_accepted(zone: Zone) -> None:
    agent = zone.agent()
    role = check_issued_agent(
        agent.certificate,
        public_key=agent.key.public_key(),
        cluster=ALPHA,
        ca=zone.ca,
        now=NOW,
    )
    assert role == AgentRole(zone=ZONE, cluster=ALPHA)


def test_any_other_certificate_is_refused(zone: Zone, other_zone: Zone) -> None:
    agent = zone.agent()
    mine = agent.key.public_key()

    def check(certificate, public_key=mine, now=NOW) -> None:
        check_issued_agent(
            certificate, public_key=public_key, cluster=ALPHA, ca=zone.ca, now=now
        )

    with pytest.raises(ValueError, match="another key"):
        check(zone.agent().certificate)
    with pytest.raises(RoleError, match="not for an agent of alpha"):
        check(zone.agent(BETA).certificate)
    with pytest.raises(RoleError, match="not for an agent of alpha"):
        check(zone.user().certificate)
    with pytest.raises(ValueError, match="another CA"):
        check(other_zone.agent().certificate)
    with pytest.raises(ValueError, match="expired"):
        check(agent.certificate, now=NOW + timedelta(days=31))
    assert pem(agent.certificate)
