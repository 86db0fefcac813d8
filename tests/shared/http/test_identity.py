"""Who a request runs as: the rules on heads, without a connection. Attacks: tests/attacks."""

import pytest

from shared.http.heads import parse_request_head
from shared.http.identity import (
    Forward,
    Policy,
    Review,
    check_name,
    identity_lines,
    judge,
)
from shared.http.status import Refusal
from tests.fakes.relaying import make_caller

ANYONE = Policy(users=frozenset({"*"}), groups=frozenset({"*"}))


def judged(
    fields: bytes, *, policy: Policy = ANYONE, method: bytes = b"GET"
) -> Forward:
    head = parse_request_head(
        b"%b /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n%b\r\n" % (method, fields)
    )
    return judge(head, make_caller(), policy)


def test_the_callers_own_fields_pass_in_order_and_spelling() -> None:
    forward = judged(b"User-agent: kubectl\r\nACCEPT:a\r\nAccept: b\r\nX-Custom:\r\n")
    assert forward.lines == (
        b"User-agent: kubectl\r\nACCEPT: a\r\nAccept: b\r\nX-Custom: \r\n"
    )
    assert forward.identity == (
        b"Impersonate-User: tower:admin\r\nImpersonate-Group: tower:cluster-admins\r\n"
    )
    assert forward.review is None


def test_fields_of_the_hop_stay_behind_and_the_framing_is_written_anew() -> None:
    hop = b"Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n"
    assert judged(hop).lines == b""
    assert judged(hop + b"Content-Length: 05\r\n").lines == b"Content-Length: 5\r\n"
    chunked = b"Transfer-Encoding:  Chunked\r\n"
    assert judged(chunked).lines == b"Transfer-Encoding: chunked\r\n"
    assert judged(b"", method=b"POST").lines == b"Content-Length: 0\r\n"
    assert judged(b"", method=b"DELETE").lines == b""


def test_an_upgrade_is_written_anew_for_the_next_hop() -> None:
    assert judged(b"Connection: a, upgrade\r\nUpgrade: spdy/3.1\r\n").lines == (
        b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    )


def test_impersonation_becomes_a_review_and_is_not_passed_on_as_it_came() -> None:
    forward = judged(
        b"impersonate-user: jane\r\nImpersonate-Group: a\r\nImpersonate-Group: b\r\n"
        b"impersonate-group: a\r\nA: b\r\n"
    )
    assert forward.lines == b"A: b\r\n"
    assert forward.identity == (
        b"Impersonate-User: jane\r\nImpersonate-Group: a\r\nImpersonate-Group: b\r\n"
    )
    assert forward.review == Review(
        "tower:admin", ("tower:cluster-admins",), "jane", ("a", "b")
    )


def test_names_in_utf_8_pass() -> None:
    forward = judged("Impersonate-User: jané\r\n".encode())
    assert forward.identity == "Impersonate-User: jané\r\n".encode()


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        (b"Impersonate-Group: a\r\n", 400, "exactly one Impersonate-User"),
        (b"Impersonate-User: a\r\nImpersonate-User: a\r\n", 400, "exactly one"),
        (b"Impersonate-User:\r\n", 400, "empty"),
        (b"Impersonate-Uid: 1\r\n", 403, "impersonate-uid"),
        (b"Impersonate-Extra-X: 1\r\n", 403, "impersonate-extra-x"),
        (b"Impersonate-User: system:admin\r\n", 403, "system:admin"),
        (b"Connection: impersonate-user\r\n", 400, "impersonate-user"),
        (
            b"Impersonate-User: a\r\n"
            + b"".join(b"Impersonate-Group: %d\r\n" % number for number in range(33)),
            400,
            "more than 32",
        ),
    ],
)
def test_refusals_name_what_they_refuse(fields: bytes, code: int, words: str) -> None:
    with pytest.raises(Refusal, match=words) as caught:
        judged(fields)
    assert caught.value.code == code


def test_the_target_of_an_impersonation_must_be_listed_too() -> None:
    with pytest.raises(Refusal, match="jane"):
        judged(b"Impersonate-User: jane\r\n", policy=Policy())


@pytest.mark.parametrize(
    ("listed", "name", "is_allowed"),
    [
        ({"a"}, "a", True),
        ({"a"}, "A", False),
        ({"a"}, "ab", False),
        ({"*"}, "anyone", True),
        ({"*"}, "system:admin", False),
        ({"*", "system:admin"}, "system:admin", True),
        ({"system:admin"}, "system:admin", True),
        (set(), "a", False),
    ],
)
def test_a_policy_lists_exact_names_or_all_that_are_not_the_systems(
    listed: set[str], name: str, is_allowed: bool
) -> None:
    for policy, user, groups in (
        (Policy(users=frozenset(listed)), name, ()),
        (Policy(users=frozenset({"u"}), groups=frozenset(listed)), "u", (name,)),
    ):
        if is_allowed:
            policy.check(user, groups)
        else:
            with pytest.raises(Refusal) as caught:
                policy.check(user, groups)
            assert caught.value.code == 403 and name in caught.value.message


def test_names_are_checked_for_what_could_be_read_as_another() -> None:
    for name in ("tower:admin", "jané", "a b", "x" * 256):
        check_name(name)
    for name in ("", " a", "a ", "a\tb", "a\nb", "a\x7f", "x" * 257, "é" * 129):
        with pytest.raises(ValueError):
            check_name(name)


def test_no_identity_has_an_empty_user() -> None:
    with pytest.raises(Refusal):
        identity_lines("", ("group",))
