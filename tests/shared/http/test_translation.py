"""Heads in, heads out; and that knowing a client's fields changes speed, not verdicts."""

import dataclasses
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.http.apiserver import ApiServer, Credential
from shared.http.identity import Policy
from shared.http.status import Refusal
from shared.http.translation import Translator, refuse_all
from tests.fakes.relaying import make_caller


def make_translator(credential: Credential | None = None) -> Translator:
    apiserver = ApiServer(
        host="::1",
        port=6443,
        tls=None,
        server_hostname=None,
        base_path=b"/base",
        credential=credential or Credential(token="t", monotonic=lambda: 0.0),
    )
    return Translator(make_caller(), Policy(), apiserver)


HEADS = [
    b"GET /clusters/alpha/a%2Fb?c HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n",
    b"GET /clusters/alpha HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n",
    b"HEAD /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n",
    b"POST /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n",
    b"PUT /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n",
    b"GET /clusters/alpha/x HTTP/1.0\r\nHost: h\r\nA: b\r\n\r\n",
    b"GET /clusters/alpha/x HTTP/2.0\r\nHost: h\r\nA: b\r\n\r\n",
    b"TRACE /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n",
    b"GET /clusters/beta/x HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n",
    b"GET /clusters/alpha/../x HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n",
    b"GET /clusters/alpha/x#y HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n",
    b"GET /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"GET /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nImpersonate-User: j\r\n\r\n",
    b"GET /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n",
    b"GET /clusters/alpha/x HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\n\r\n",
]


def outcome(translator: Translator, head: bytes) -> object:
    try:
        out = translator(head)
    except Refusal as refusal:
        return refusal.code, refusal.message, refusal.keeps_alive
    return (out.first_bytes, out.upgrade, out.keeps_alive, out.review, type(out.body))


def test_a_head_is_rebuilt_for_the_apiserver() -> None:
    out = make_translator()(HEADS[0])
    assert out.target == b"/base/a%2Fb?c"
    assert out.first_bytes == (
        b"GET /base/a%2Fb?c HTTP/1.1\r\nHost: [::1]:6443\r\nA: b\r\n"
        b"Impersonate-User: tower:admin\r\nImpersonate-Group: tower:cluster-admins\r\n"
        b"Authorization: Bearer t\r\n\r\n"
    )


HEADS += [
    line + fields
    for line in (
        b"GET /clusters/alpha/x HTTP/1.1\r\n",
        b"OPTIONS /clusters/alpha/%2e%2e/x HTTP/1.1\r\n",
        b"GET /clusters/alpha//x HTTP/1.1\r\n",
        b"GET /clusters/alphax/x HTTP/1.1\r\n",
        b"GET /clusters/alpha/x\\y HTTP/1.1\r\n",
        b"GET /clusters/alpha/x HTTP/1.1\r\nX-",
        b"GET /clusters/alpha/x HTTP/1.1\r\nImpersonate-User: j\r\n",
    )
    for fields in (
        b"Host: h\r\nA: b\r\n\r\n",
        b"Host: h\r\nA: c\r\nAuthorization: Basic a\r\n\r\n",
        b"Host: h\r\nConnection: keep-alive, X\r\nX: y\r\n\r\n",
    )
]


@given(st.lists(st.sampled_from(HEADS), max_size=12))
def test_what_was_asked_before_changes_nothing(heads: list[bytes]) -> None:
    translator = make_translator()
    for head in heads:
        assert outcome(translator, head) == outcome(make_translator(), head)


def test_knowing_one_head_changes_no_other() -> None:
    for first, second in product(HEADS, HEADS):
        translator = make_translator()
        outcome(translator, first)
        assert outcome(translator, second) == outcome(make_translator(), second)


def test_many_kinds_of_fields_are_known_and_the_oldest_forgotten() -> None:
    translator = make_translator()
    heads = [HEADS[0].replace(b"A: b", b"A: %d" % number) for number in range(20)]
    for head in heads + heads[::-1]:
        assert outcome(translator, head) == outcome(make_translator(), head)


def known_bytes(translator: Translator) -> bytes:
    """All that it keeps of the heads that it has seen."""
    return b"".join(
        [translator._known_fields, translator._known_lines, *translator._known]
    )


def test_another_apiserver_is_used_for_known_fields_too() -> None:
    translator, other = make_translator(), make_translator()
    head = HEADS[0].replace(b"%2F", b"/")
    translator(head)
    elsewhere = dataclasses.replace(
        translator._apiserver, host="::2", base_path=b"/other"
    )
    translator.use(elsewhere)
    other.use(elsewhere)
    for _ in range(2):
        out = translator(head)
        assert out.first_bytes == other(head).first_bytes
        assert b" /other/a/b?c HTTP" in out.first_bytes
        assert b"Host: [::2]:6443\r\n" in out.first_bytes


def test_neither_long_fields_nor_credentials_are_kept() -> None:
    translator = make_translator()
    for field in (b"A: " + b"x" * 3000, b"authorization: Bearer x", b"Cookie: x"):
        translator(HEADS[0].replace(b"A: b", field))
        assert b"x" not in known_bytes(translator)
    translator(HEADS[0])
    assert b"A: b" in known_bytes(translator)


def test_a_renewed_token_is_used_by_known_fields_too(tmp_path: Path) -> None:
    token, time = tmp_path / "token", [0.0]
    token.write_text("old\n")
    translator = make_translator(
        Credential(token_file=token, monotonic=lambda: time[0])
    )
    head = HEADS[0].replace(b"%2F", b"/")
    assert b"Bearer old\r\n" in translator(head).first_bytes
    token.write_text("new\n")
    time[0] = 31.0
    assert b"Bearer new\r\n" in translator(head).first_bytes


@pytest.mark.parametrize(("head", "keeps"), [(HEADS[8], True), (HEADS[9], False)])
def test_who_asks_for_another_cluster_may_ask_again(head: bytes, keeps: bool) -> None:
    with pytest.raises(Refusal) as caught:
        make_translator()(head)
    assert caught.value.keeps_alive is keeps


def test_a_refused_caller_gets_the_refusal_for_everything() -> None:
    translate = refuse_all(Refusal(code=403, message="not here"))
    for head in HEADS:
        with pytest.raises(Refusal, match="not here"):
            translate(head)
