"""Signed statements, apart from what assertions and answers make of them.

Covers the round trip, that reading signers proves nothing by itself, key confusion between the
certificates of one chain, and the comparison of clocks. The rest is in test_assertion.
"""

import json
from datetime import timedelta

import jwt
import pytest

from certs.signatures import (
    CLOCK_LEEWAY,
    BadAssertion,
    BadStatement,
    check_clock,
    open_statement,
    read_signers,
    sign_statement,
)
from tests.certs.zone import NOW, Zone

KIND = "test+jwt"


def test_a_statement_survives_being_signed_and_opened(zone: Zone) -> None:
    server = zone.server()
    token = sign_statement(
        server.key, [server.certificate, zone.ca], kind=KIND, claims={"a": [1, "ä"]}
    )
    assert read_signers(token, kind=KIND) == (server.certificate, zone.ca)
    assert open_statement(token, server.certificate) == {"a": [1, "ä"]}


def test_only_the_signers_own_certificate_opens_a_statement(zone: Zone) -> None:
    server = zone.server()
    chain = [server.certificate, zone.ca]
    token = sign_statement(server.key, chain, kind=KIND, claims={})
    for other in (zone.ca, zone.server().certificate):
        with pytest.raises(BadStatement) as caught:
            open_statement(token, other)
        assert caught.value.reason == "signature"


def test_a_statement_is_a_json_object(zone: Zone) -> None:
    server = zone.server()
    for payload in (b"[]", b'"x"', b"1", b"null"):
        token = jwt.PyJWS().encode(payload, server.key, "ES256")
        with pytest.raises(BadStatement, match="not a JSON object"):
            open_statement(token, server.certificate)


def test_reading_who_signed_proves_nothing(zone: Zone) -> None:
    """The caller has to open the statement with whom it trusts."""
    server, thief = zone.server(), zone.user()
    token = sign_statement(thief.key, [server.certificate], kind=KIND, claims={})
    (claimed,) = read_signers(token, kind=KIND)
    with pytest.raises(BadStatement):
        open_statement(token, claimed)


def test_more_certificates_than_a_signer_and_its_ca_are_refused(zone: Zone) -> None:
    token = sign_statement(zone.server().key, [zone.ca] * 3, kind=KIND, claims={})
    with pytest.raises(BadStatement, match="1 to 2 certificates"):
        read_signers(token, kind=KIND)


def test_clocks_may_differ_by_the_leeway_and_no_more() -> None:
    second = timedelta(seconds=1)
    check_clock(NOW + CLOCK_LEEWAY, NOW, whose="the agent")
    check_clock(NOW - CLOCK_LEEWAY, NOW, whose="the agent")
    for claimed in (NOW + CLOCK_LEEWAY + second, NOW - CLOCK_LEEWAY - second):
        with pytest.raises(BadAssertion) as caught:
            check_clock(claimed, NOW, whose="the agent", refusal=BadAssertion)
        assert caught.value.reason == "clock"


def test_an_error_says_its_sentence_and_keeps_its_reason() -> None:
    error = BadStatement("clock", "it is late")
    assert str(error) == "it is late"
    assert json.dumps([error.reason, error.detail]) == '["clock", "it is late"]'
