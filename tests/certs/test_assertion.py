"""Assertions: what lets an agent in when no TLS of its own reaches the server.

Covers the good case, each check by itself (algorithms, type, audience, lifetime, clock, issuer,
role, dates, signature, single use), the bounds of what is remembered, and junk (property).
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from certs import assertion as module
from certs.assertion import (
    ASSERTION_LIFETIME,
    AssertionVerifier,
    BadAssertion,
    assertion_audience,
    make_assertion,
)
from certs.keys import new_key, spki_pin
from certs.signatures import sign_statement
from tests.certs.zone import ALPHA, BETA, NOW, ZONE, Holder, Zone

KIND = "tower-assertion+jwt"
AUDIENCE = assertion_audience(ZONE)
JTI = "0123456789abcdef"


@pytest.fixture(scope="module")
def agent(zone: Zone) -> Holder:
    return zone.agent()


@pytest.fixture
def verifier(zone: Zone) -> AssertionVerifier:
    return AssertionVerifier([zone.ca], ZONE)


def assertion_of(holder: Holder, now: datetime = NOW, jti: str = JTI) -> str:
    return make_assertion(holder.key, [holder.certificate], AUDIENCE, now, jti)


def claims_of(now: datetime = NOW, **changes: Any) -> dict[str, Any]:
    issued = int(now.timestamp())
    claims = {"aud": AUDIENCE, "iat": issued, "exp": issued + 60, "jti": JTI}
    return {**claims, **changes}


def signed(holder: Holder, **changes: Any) -> str:
    """An assertion of a joined agent that lies."""
    return sign_statement(
        holder.key, [holder.certificate], kind=KIND, claims=claims_of(**changes)
    )


def refused(
    verifier: AssertionVerifier, token: str, now: datetime = NOW
) -> tuple[str, str]:
    """Reason and text with which an assertion is refused."""
    with pytest.raises(BadAssertion) as caught:
        verifier.verify(token, now)
    return caught.value.reason, str(caught.value)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def envelope(header: dict[str, Any], claims: dict[str, Any]) -> str:
    return b64(json.dumps(header).encode()) + "." + b64(json.dumps(claims).encode())


def header_of(holder: Holder, **changes: Any) -> dict[str, Any]:
    der = holder.certificate.public_bytes(Encoding.DER)
    return {
        "alg": "ES256",
        "typ": KIND,
        "x5c": [base64.b64encode(der).decode()],
        **changes,
    }


# -- The good case -------------------------------------------------------------------------


def test_a_joined_agent_is_known_by_its_assertion(
    verifier: AssertionVerifier, agent: Holder
) -> None:
    identity = verifier.verify(assertion_of(agent), NOW)
    assert identity.cluster == ALPHA
    assert identity.serial == agent.certificate.serial_number
    assert identity.public_key_pin == spki_pin(agent.key.public_key())
    assert identity.not_after == agent.certificate.not_valid_after_utc


def test_an_assertion_addresses_the_zones_server_for_a_minute(agent: Holder) -> None:
    payload = assertion_of(agent).split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert claims == claims_of()
    assert AUDIENCE == f"tower://{ZONE}/server"
    assert timedelta(seconds=60) == ASSERTION_LIFETIME


def test_agents_of_the_old_and_of_the_new_ca_are_welcome_while_it_is_replaced(
    zone: Zone, other_zone: Zone
) -> None:
    both = AssertionVerifier([zone.ca, other_zone.ca], ZONE)
    assert both.verify(assertion_of(zone.agent()), NOW).cluster == ALPHA
    assert both.verify(assertion_of(other_zone.agent(BETA)), NOW).cluster == BETA


# -- Who signed, and how -------------------------------------------------------------------


def test_an_unsigned_assertion_is_refused(
    verifier: AssertionVerifier, agent: Holder
) -> None:
    for name in ("none", "None", "NONE", ""):
        token = envelope(header_of(agent, alg=name), claims_of()) + "."
        assert refused(verifier, token)[0] == "algorithm"
    token = envelope(header_of(agent), claims_of()) + "."
    assert refused(verifier, token)[0] == "signature"


@pytest.mark.parametrize(
    ("encoding", "form"),
    [
        (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.X962, PublicFormat.UncompressedPoint),
    ],
)
def test_a_public_key_is_not_taken_for_a_shared_secret(
    verifier: AssertionVerifier, agent: Holder, encoding: Encoding, form: PublicFormat
) -> None:
    """The HS256 confusion: everybody has the public key, and could "sign" with it."""
    secret = agent.key.public_key().public_bytes(encoding, form)
    for name, digest in (("HS256", hashlib.sha256), ("HS512", hashlib.sha512)):
        body = envelope(header_of(agent, alg=name), claims_of())
        token = f"{body}.{b64(hmac.digest(secret, body.encode(), digest))}"
        assert refused(verifier, token)[0] == "algorithm"


@pytest.mark.parametrize("alg", ["ES384", "ES256K", "RS256", "PS256", "EdDSA", None, 1])
def test_other_algorithms_are_refused(
    verifier: AssertionVerifier, agent: Holder, alg: object
) -> None:
    token = envelope(header_of(agent, alg=alg), claims_of()) + "." + b64(b"x" * 64)
    assert refused(verifier, token)[0] in {"algorithm", "malformed"}


@pytest.mark.parametrize(
    "field", ["jwk", "jku", "kid", "x5u", "crit", "b64", "zip", "cty"]
)
def test_a_header_that_asks_for_other_keys_or_rules_is_refused(
    verifier: AssertionVerifier, agent: Holder, field: str
) -> None:
    token = (
        envelope(header_of(agent, **{field: "x"}), claims_of()) + "." + b64(b"x" * 64)
    )
    assert refused(verifier, token)[0] == "malformed"


def test_a_statement_for_another_purpose_is_refused(
    verifier: AssertionVerifier, agent: Holder
) -> None:
    for kind in ("JWT", "tower-join-answer+jwt", KIND.upper()):
        token = sign_statement(
            agent.key, [agent.certificate], kind=kind, claims=claims_of()
        )
        assert refused(verifier, token)[0] == "type"


def test_an_agent_of_another_ca_is_refused(
    verifier: AssertionVerifier, other_zone: Zone
) -> None:
    reason, text = refused(verifier, assertion_of(other_zone.agent()))
    assert reason == "issuer"
    assert "join the agent again" in text


def test_the_real_ca_beside_a_strangers_certificate_does_not_help_him(
    verifier: AssertionVerifier, zone: Zone, other_zone: Zone
) -> None:
    stranger = other_zone.agent()
    chain = [stranger.certificate, zone.ca]
    token = sign_statement(stranger.key, chain, kind=KIND, claims=claims_of())
    assert refused(verifier, token)[0] == "issuer"
    chain = [zone.ca, stranger.certificate]
    token = sign_statement(stranger.key, chain, kind=KIND, claims=claims_of())
    assert refused(verifier, token)[0] in {"issuer", "role"}


@pytest.mark.parametrize("role", ["user", "server"])
def test_another_role_is_no_agent(
    verifier: AssertionVerifier, zone: Zone, role: str
) -> None:
    reason, text = refused(verifier, assertion_of(getattr(zone, role)()))
    assert reason == "role"
    assert f"/{role}" in text


def test_an_agent_of_another_zone_is_refused(zone: Zone, agent: Holder) -> None:
    elsewhere = AssertionVerifier([zone.ca], "other.zone")
    assert refused(elsewhere, assertion_of(agent))[0] == "role"


def test_a_certificate_without_its_key_is_worth_nothing(
    verifier: AssertionVerifier, agent: Holder
) -> None:
    """Certificates are public: they go over the wire in each upgrade."""
    thief = Holder(new_key(), agent.certificate)
    assert refused(verifier, assertion_of(thief))[0] == "signature"


def test_an_altered_assertion_is_refused(
    verifier: AssertionVerifier, agent: Holder
) -> None:
    header, _, signature = assertion_of(agent).split(".")
    later = b64(json.dumps(claims_of(jti="f" * 16)).encode())
    assert refused(verifier, f"{header}.{later}.{signature}")[0] == "signature"


def test_an_expired_certificate_is_refused_with_the_amount(old_zone: Zone) -> None:
    verifier = AssertionVerifier([old_zone.ca], ZONE)
    agent = old_zone.agent(now=NOW - timedelta(days=33))
    reason, text = refused(verifier, assertion_of(agent))
    assert reason == "expired"
    assert "expired 3 d ago; join the agent again" in text


# -- What is claimed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "audience", ["tower://other.zone/server", [AUDIENCE], "", None, AUDIENCE + "/"]
)
def test_an_assertion_for_somebody_else_is_refused(
    verifier: AssertionVerifier, agent: Holder, audience: object
) -> None:
    assert refused(verifier, signed(agent, aud=audience))[0] == "audience"


@pytest.mark.parametrize("lifetime", [61, 3600, 10**9, 0, -1])
def test_an_assertion_good_for_too_long_or_never_is_refused(
    verifier: AssertionVerifier, agent: Holder, lifetime: int
) -> None:
    expires = int(NOW.timestamp()) + lifetime
    assert refused(verifier, signed(agent, exp=expires))[0] == "lifetime"


@pytest.mark.parametrize(
    "changes",
    [
        {"iat": None},
        {"exp": None},
        {"iat": "1"},
        {"exp": 1.5},
        {"iat": True},
        {"iat": -(10**4000), "exp": 10**4000},
        {"iat": 10**12, "exp": 10**12 + 60},
        {"jti": None},
        {"jti": 1},
        {"jti": "short"},
        {"jti": "x" * 65},
    ],
)
def test_an_assertion_that_lacks_something_is_refused(
    verifier: AssertionVerifier, agent: Holder, changes: dict[str, object]
) -> None:
    assert refused(verifier, signed(agent, **changes))[0] == "malformed"


@pytest.mark.parametrize(
    ("skew", "text"),
    [
        (timedelta(seconds=61), "the clock of the agent is 1 min 1 s ahead of this"),
        (timedelta(days=1, hours=2), "the clock of the agent is 1 d 2 h ahead of this"),
        (timedelta(minutes=-10), "the clock of the agent is 10 min behind this"),
        (timedelta(days=-40), "the clock of the agent is 40 d behind this"),
    ],
)
def test_a_clock_that_is_off_is_named_with_the_amount(
    verifier: AssertionVerifier, agent: Holder, skew: timedelta, text: str
) -> None:
    reason, said = refused(verifier, assertion_of(agent, now=NOW + skew))
    assert reason == "clock"
    assert text in said and "NTP" in said


@pytest.mark.parametrize("seconds", [-60, -1, 0, 1, 60])
def test_a_clock_that_is_a_little_off_does_no_harm(
    verifier: AssertionVerifier, agent: Holder, seconds: int
) -> None:
    verifier.verify(assertion_of(agent, now=NOW + timedelta(seconds=seconds)), NOW)


# -- Single use ----------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-60, 0, 60])
def test_an_assertion_is_never_good_twice(
    verifier: AssertionVerifier, agent: Holder, skew: int
) -> None:
    """Whatever the clocks say: at no second until long after it is refused."""
    token = assertion_of(agent, now=NOW + timedelta(seconds=skew))
    verifier.verify(token, NOW)
    reasons = {
        refused(verifier, token, NOW + timedelta(seconds=second))[0]
        for second in range(200)
    }
    assert reasons == {"replayed", "clock"}


def test_two_agents_may_use_the_same_jti(
    verifier: AssertionVerifier, zone: Zone, agent: Holder
) -> None:
    verifier.verify(assertion_of(agent), NOW)
    assert verifier.verify(assertion_of(zone.agent(BETA)), NOW).cluster == BETA


def test_a_refused_assertion_is_not_used_up(
    verifier: AssertionVerifier, agent: Holder
) -> None:
    token = assertion_of(agent, now=NOW)
    assert refused(verifier, token, NOW - timedelta(minutes=5))[0] == "clock"
    verifier.verify(token, NOW)


def test_one_agent_cannot_fill_the_memory_for_the_others(
    verifier: AssertionVerifier,
    zone: Zone,
    agent: Holder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED_PER_AGENT", 3)
    for number in range(3):
        verifier.verify(assertion_of(agent, jti=f"{number:016}"), NOW)
    reason, text = refused(verifier, assertion_of(agent))
    assert (reason, "wait a minute" in text) == ("busy", True)
    verifier.verify(assertion_of(zone.agent(BETA)), NOW)
    later = NOW + timedelta(seconds=61)
    verifier.verify(assertion_of(agent, now=later), later)


def test_what_is_remembered_is_bounded_and_forgotten(
    verifier: AssertionVerifier,
    zone: Zone,
    agent: Holder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    for number in range(3):
        verifier.verify(assertion_of(agent, jti=f"{number:016}"), NOW)
    assert refused(verifier, assertion_of(zone.agent(BETA)))[0] == "busy"
    later = NOW + timedelta(seconds=61)
    verifier.verify(assertion_of(agent, now=later), later)
    used = verifier._used
    assert len(used._by_time) == sum(map(len, used._by_agent.values())) == 1


# -- Junk ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b.c", "x" * 100_000, "ä.b.c", "null..", b64(b"[]") + ".e30.AA"],
)
def test_what_is_no_assertion_is_refused(
    verifier: AssertionVerifier, token: str
) -> None:
    assert refused(verifier, token)[0] in {"malformed", "algorithm"}


@pytest.mark.parametrize(
    "x5c",
    [None, "x", {}, [], [1], ["***"], ["AAAA"], ["AAAA"] * 3, [None], [["AAAA"]]],
)
def test_a_damaged_certificate_is_refused(
    verifier: AssertionVerifier, agent: Holder, x5c: object
) -> None:
    token = envelope(header_of(agent, x5c=x5c), claims_of()) + "." + b64(b"x" * 64)
    assert refused(verifier, token)[0] == "malformed"


def deep(opening: str) -> str:
    return b64((opening * 20_000).encode())


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json_is_refused(verifier: AssertionVerifier, opening: str) -> None:
    assert refused(verifier, f"{deep(opening)}.e30.AA")[0] == "malformed"


BREAKS: st.SearchStrategy[Callable[[str], str]] = st.one_of(
    st.builds(
        lambda at, char: (
            lambda token: token[: at % len(token)] + char + token[at % len(token) + 1 :]
        ),
        st.integers(0, 5000),
        st.sampled_from("AZaz09-_.=+/\n ä"),
    ),
    st.builds(lambda end: lambda token: token[:end], st.integers(0, 1000)),
    st.builds(lambda text: lambda token: text, st.text(max_size=100)),
)


@given(BREAKS)
def test_whatever_comes_nothing_undeclared_is_raised(
    zone_and_token: tuple[Zone, str], broken: Callable[[str], str]
) -> None:
    zone, token = zone_and_token
    fresh = AssertionVerifier([zone.ca], ZONE)
    changed = broken(token)
    try:
        fresh.verify(changed, NOW)
    except BadAssertion:
        return
    # Base64 has spare bits at its ends: another spelling of the very same bytes.
    assert changed.split(".")[1] == token.split(".")[1]


@pytest.fixture(scope="module")
def zone_and_token(zone: Zone, agent: Holder) -> tuple[Zone, str]:
    return zone, assertion_of(agent)
