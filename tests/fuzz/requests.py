"""Requests from outside, up to what is sent on: head, path, identity. What passes is unambiguous."""

import re
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes

from shared.http.heads import MAX_FIELDS, RequestHead, parse_request_head
from shared.http.identity import Caller, Forward, Policy, judge
from shared.http.paths import cluster_prefix, strip_prefix
from shared.http.status import Refusal
from tests.fuzz.target import Target

__all__ = ["TARGETS"]

_CALLER = Caller(
    user="tower:admin",
    groups=("tower:cluster-admins",),
    cluster="alpha",
    not_after=datetime(2100, 1, 1, tzinfo=UTC),
    serial=1,
)
_POLICY = Policy(users=frozenset({"tower:admin", "bob"}))
_PREFIX = cluster_prefix("alpha")
# Fields that the agent speaks with its own voice only. An underscore is read as a dash by some.
_OURS = re.compile(
    rb"^(impersonate[-_]|x[-_]remote[-_]|(proxy[-_])?authorization:|host:)",
    re.IGNORECASE | re.MULTILINE,
)


def _run(head: bytes) -> None:
    try:
        request = parse_request_head(head)
    except Refusal as refusal:
        assert 400 <= refusal.code < 600
        return
    names = [name.lower() for name, _ in request.fields]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert request.content_length >= 0 and not (
        request.is_chunked and request.content_length
    )
    assert len(names) == head.count(b"\n") - 2
    target = _stripped(request)
    try:
        forward = judge(request, _CALLER, _POLICY)
    except Refusal as refusal:
        assert 400 <= refusal.code < 600
        return
    _check_forward(request, target or b"/", forward)


def _stripped(request: RequestHead) -> bytes | None:
    try:
        target = strip_prefix(request.target, _PREFIX)
    except Refusal as refusal:
        assert refusal.code in (400, 404)
        return None
    assert target.startswith(b"/") and not target.startswith(b"//")
    path = unquote_to_bytes(target.partition(b"?")[0]).replace(b"\\", b"/")
    assert not {b".", b".."} & set(path.split(b"/"))
    return target


def _check_forward(request: RequestHead, target: bytes, forward: Forward) -> None:
    assert not _OURS.search(forward.lines)
    users = re.findall(rb"(?m)^Impersonate-User: ([^\r\n]+)\r$", forward.identity)
    assert len(users) == 1 and users[0].decode() in _POLICY.users
    assert (forward.review is None) == (
        users == [b"tower:admin"] and not _asks(request)
    )
    again = b"%b %b HTTP/1.1\r\nHost: member:443\r\n%b%b\r\n" % (
        *(request.method, target),
        *(forward.identity, forward.lines),
    )
    if len(request.fields) > MAX_FIELDS - 8:
        return
    # The next reader understands what we understood.
    sent = parse_request_head(again)
    assert sent.is_chunked == request.is_chunked
    assert sent.content_length == request.content_length
    assert sent.upgrade == request.upgrade


def _asks(request: RequestHead) -> bool:
    return any(name.lower().startswith(b"impersonate-") for name, _ in request.fields)


def _seeds() -> list[bytes]:
    def head(line: bytes, *fields: bytes) -> bytes:
        return b"\r\n".join((line, b"Host: h:8443", *fields, b"", b""))

    get = b"GET /clusters/alpha/api/v1/pods?limit=500 HTTP/1.1"
    post = b"POST /clusters/alpha/api/v1/namespaces/a%2Fb/pods HTTP/1.1"
    upgrade = b"Connection: Upgrade"
    return [
        head(get, b"Accept: application/json", b"User-Agent: kubectl/v1.33.0"),
        head(post, b"Content-Type: application/json", b"Content-Length: 12"),
        head(post, b"Transfer-Encoding: chunked", b"Expect: 100-continue"),
        head(get, b"Impersonate-User: bob", b"Impersonate-Group: dev"),
        head(get, b"Authorization: Bearer x", b"X-Remote-User: root"),
        head(get, upgrade, b"Upgrade: SPDY/3.1", b"X-Stream-Protocol-Version: v4"),
        head(
            get,
            upgrade,
            b"Upgrade: websocket",
            b"Sec-WebSocket-Protocol: v5.channel.k8s.io, "
            b"base64url.bearer.authorization.k8s.io.eA",
        ),
        head(b"GET /clusters/alpha/%2e%2e/beta HTTP/1.0", b"Connection: close, X-A"),
    ]


TARGETS = (
    Target(
        name="request-head",
        run=_run,
        seeds=_seeds,
        words=(
            *(b"Impersonate-User: bob\r\n", b"Impersonate_User: root\r\n"),
            b"X_Remote-User: root\r\n",
            *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"),
            *(b"Connection: ", b"X-Remote-Group: system:masters\r\n", b"Host: x\r\n"),
            *(b"\r\n ", b"\x00", b"%2e%2e", b"%2F", b"\\", b"/..", b"HTTP/1.0", b"\n"),
            *(b"content_length: 5\r\n", b"\t:", b"Expect: 100-continue\r\n"),
        ),
        runs=40_000,
    ),
)
