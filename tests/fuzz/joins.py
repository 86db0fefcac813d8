"""What people and strangers hand over on the way in: join strings, join requests, addresses."""

import json
import random
from collections.abc import Callable

from certs.joining import BadProof, JoinRequest, sign_request
from certs.names import parse_cluster_name, parse_host, parse_principal, parse_role
from certs.tokens import JoinSecret, JoinString, parse_token_id
from shared.durations import parse_duration
from shared.settings import SettingsError, parse_host_port
from tests.fuzz.target import Source, Target
from tower_agent.proxies import proxy_for
from tower_server.settings import parse_tcp_entry

__all__ = ["TARGETS"]

_PIN = "sha256:" + "ab" * 32
_SECRET = "c2VlZCBvZiBhIGZ1enogdGVzdCEh"


def _text(data: bytes) -> str:
    """As Python reads it from files, arguments and the environment: stray bytes and all."""
    return data.decode(errors="surrogateescape")


def _run_join_string(data: bytes) -> None:
    try:
        joined = JoinString.parse(_text(data))
    except ValueError as error:
        str(
            error
        ).encode()  # no stray byte of the text is in it, or it could not be printed
        return
    assert JoinString.parse(joined.format()) == joined
    assert joined.secret.reveal() not in repr(joined)


def _run_join_request(data: bytes) -> None:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return  # refused by who reads the body
    try:
        request = JoinRequest.from_dict(fields)
    except BadProof as error:
        str(error).encode(errors="backslashreplace")
        return
    assert JoinRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


# A reader, and the error that it declares.
_READERS: tuple[tuple[Callable[[str], object], type[Exception]], ...] = (
    (lambda text: parse_host_port(text, setting="--listen"), SettingsError),
    (parse_tcp_entry, SettingsError),
    (parse_duration, ValueError),
    (parse_cluster_name, ValueError),
    (parse_host, ValueError),
    (parse_principal, ValueError),
    (parse_role, ValueError),
    (lambda text: proxy_for("h.example", 443, {"HTTPS_PROXY": text}), ValueError),
    (
        lambda text: proxy_for("10.1.2.3", 443, {"HTTPS_PROXY": "p", "NO_PROXY": text}),
        ValueError,
    ),
)


def _run_addresses(data: bytes) -> None:
    source = Source(data)
    read, declared = _READERS[source.number() % len(_READERS)]
    text = _text(source.rest())
    try:
        found = read(text)
    except declared as error:
        assert str(error)
        return
    assert read(text) == found


def _join_strings() -> list[bytes]:
    texts = [
        f"tower+join://alpha:abcd2345efgh.{_SECRET}@{address}?pin={_PIN}"
        for address in ("tower.example.com:443", "127.0.0.1:8443", "[::1]:8443")
    ]
    return [text.encode() for text in texts]


def _join_requests() -> list[bytes]:
    request = sign_request(
        JoinSecret(_SECRET),
        token_id=parse_token_id("abcd2345efgh"),
        cluster=parse_cluster_name("alpha"),
        csr=random.Random(4).randbytes(40),
        nonce="n" * 54,
        member_uid="0f0f0f0f-0000-4000-8000-000000000000",
        agent_version="0.1.0",
    )
    return [json.dumps(request.to_dict()).encode(), b"[]", b'{"version": 1}']


def _addresses() -> list[bytes]:
    texts = (
        *(b"127.0.0.1:8443", b"127.0.0.1:9000=alpha/web", b"1h30m", b"alpha"),
        *(b"tower.example.com", b"system:masters", b"tower://z.example/agent/alpha"),
        *(b"http://user:p%40ss@[::1]:3128", b"10.0.0.0/8,.example.com:443,*"),
    )
    return [bytes((number,)) + text for number, text in enumerate(texts)]


TARGETS = (
    Target(
        name="join-string",
        run=_run_join_string,
        seeds=_join_strings,
        words=(b"tower+join://", b"?pin=sha256:", b"@[", b"]:", b"%00", b"\xff", b"."),
    ),
    Target(
        name="join-request",
        run=_run_join_request,
        seeds=_join_requests,
        words=(
            *(b'"version":1', b'"csr":', b'"token_id":', b'"nonce":', b"null", b"[["),
            *(b'"\\ud800"', b"1e999", b"NaN", b"-0", b"=", b'"signature":""'),
        ),
    ),
    Target(
        name="addresses",
        run=_run_addresses,
        seeds=_addresses,
        words=(
            *(b"http://", b"@", b"[::1]", b"[::ffff:1.2.3.4%25eth0]", b":", b"/33"),
            *(
                b"tower://",
                b"/user?clusters=*",
                b"\xd9\xa3",
                b"\xc2\xb2",
                b"%",
                b"\xff",
            ),
            *("١٢".encode(), "²".encode(), "ß".encode(), b"9" * 5000),
        ),
    ),
)
