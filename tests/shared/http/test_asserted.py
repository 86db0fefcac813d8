"""The identity that a server of ours vouches for: written and read as one, or refused."""

import pytest

from shared.http.apiserver import ApiServer, Credential
from shared.http.asserted import (
    MAX_ASSERTED_GROUPS,
    AssertedTranslator,
    asserted_lines,
)
from shared.http.identity import Caller, Policy
from shared.http.status import Refusal
from shared.http.translation import Translator

ANYONE = Policy(users=frozenset({"*"}), groups=frozenset({"*"}))
APISERVER = ApiServer(
    host="127.0.0.1",
    port=6443,
    tls=None,
    server_hostname=None,
    credential=Credential(token="agents-own", monotonic=lambda: 0.0),
)
LINE = b"GET /clusters/alpha/api HTTP/1.1\r\nHost: alpha\r\n"


class Found:
    """Translators by caller, and who was asked for."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.refusal: Refusal | None = None
        self.translate = AssertedTranslator("alpha", self.find, lambda: self.refusal)

    def find(self, caller: Caller) -> Translator:
        self.callers.append(caller)
        return Translator(caller, ANYONE, APISERVER)

    def sent(self, lines: bytes) -> bytes:
        return self.translate(LINE + lines + b"\r\n").first_bytes


def code(found: Found, lines: bytes) -> int:
    with pytest.raises(Refusal) as refused:
        found.sent(lines)
    return refused.value.code


@pytest.mark.parametrize("groups", [(), ("devs",), ("a", "b", "ü")])
def test_what_is_asserted_is_who_it_runs_as(groups: tuple[str, ...]) -> None:
    found = Found()
    for _ in range(2):
        sent = found.sent(asserted_lines("jané", groups) + b"A: b\r\n")
        lines = sent.decode().split("\r\n")
        assert lines[0] == "GET /api HTTP/1.1"
        assert "Impersonate-User: jané" in lines and "A: b" in lines
        assert [g for g in groups if f"Impersonate-Group: {g}" in lines] == [*groups]
        assert "X-Remote" not in sent.decode()


def test_the_same_fields_of_another_user_are_another_users() -> None:
    found = Found()
    for user in ("jane", "joe", "jane", "joe"):
        sent = found.sent(asserted_lines(user, ["devs"]))
        assert b"Impersonate-User: %b\r\n" % user.encode() in sent
    assert [caller.user for caller in found.callers] == ["jane", "joe"]


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"X-Remote-Group: devs\r\n",
        b"X-Remote-User:\r\n",
        b"X-Remote-User: jane\r\nX-Remote-User: joe\r\n",
        b"X-Remote-User: jane\r\nx-remote-user: jane\r\n",
        b"X-Remote-User: jane\r\nX-Remote-Group:\r\n",
        b"X-Remote-User: \xff\r\n",
        b"X-Remote-User: " + b"x" * 257 + b"\r\n",
        b"X-Remote-User: jane\r\n"
        + b"X-Remote-Group: g\r\n" * (MAX_ASSERTED_GROUPS + 1),
    ],
)
def test_what_is_not_said_exactly_once_is_refused(lines: bytes) -> None:
    found = Found()
    assert code(found, lines) == 401
    assert not found.callers


def test_secrets_are_not_kept() -> None:
    found = Found()
    for _ in range(2):
        found.sent(asserted_lines("jane", []) + b"Cookie: secret\r\n")
    assert len(found.callers) == 2 and not found.translate._known


def test_what_is_known_has_a_limit_and_is_forgotten() -> None:
    found = Found()
    for number in range(200):
        found.sent(asserted_lines(f"user-{number}", []))
    assert len(found.translate._known) == 64
    found.translate.forget()
    found.sent(asserted_lines("user-199", []))
    assert len(found.callers) == 201


def test_while_the_member_refuses_everybody_so_does_this() -> None:
    found = Found()
    found.sent(asserted_lines("jane", []))
    found.refusal = Refusal(code=502, message="another cluster")
    assert code(found, asserted_lines("jane", [])) == 502
    found.refusal = None
    found.sent(asserted_lines("jane", []))


@pytest.mark.parametrize(
    ("user", "groups"),
    [
        ("", ()),
        ("a\r\nX-Remote-Group: system:masters", ()),
        ("jane", ("",)),
        ("jane", ("a\nb",)),
        (" jane", ()),
        ("jane", tuple(f"g{n}" for n in range(MAX_ASSERTED_GROUPS + 1))),
    ],
)
def test_names_that_cannot_stand_in_a_field_are_not_written(
    user: str, groups: tuple[str, ...]
) -> None:
    with pytest.raises(Refusal) as refused:
        asserted_lines(user, groups)
    assert refused.value.code == 403
