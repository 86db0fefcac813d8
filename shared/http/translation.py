"""From the head that the client sent to the head that the apiserver gets: pure, and cached.

Everything that decides about a request comes together here: its grammar (heads.py), its
path (paths.py), who it runs as (identity.py), and our own credential.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from shared.http.apiserver import ApiServer
from shared.http.framing import Body, request_body
from shared.http.heads import RequestHead, parse_request_head
from shared.http.identity import Caller, Forward, Policy, Review, judge
from shared.http.paths import cluster_prefix, strip_prefix
from shared.http.status import Refusal
from shared.http.upstream import Upstreams

__all__ = [
    "SECRET_FIELDS",
    "AnotherRoute",
    "Outgoing",
    "Translate",
    "Translator",
    "refuse_all",
]


# Not frozen: it is made for every request, and a frozen one takes three times as long.
@dataclass(kw_only=True, slots=True)
class Outgoing:
    """A judged request, ready to be sent when its review (if any) says yes."""

    method: bytes
    # As the apiserver gets it.
    target: bytes
    # The whole head; the relay adds what has come of the body with it.
    first_bytes: bytes
    # What the client's paths begin with and the apiserver's do not.
    prefix: bytes
    # Where the body ends; None when there is none.
    body: Body | None = None
    # Lower-case protocol of an upgrade.
    upgrade: bytes | None = None
    # The client's connection stays open after the answer.
    keeps_alive: bool = True
    review: Review | None = None
    # Where it goes, if not where all requests of the relay go.
    upstreams: Upstreams | None = None


class AnotherRoute(Exception):
    """A request that somebody else serves, who takes over the connection with all its bytes."""

    def __init__(self, take_over: Callable[[bytes], None]) -> None:
        super().__init__()
        # Called with the head and what has come behind it. The relay is over by then.
        self.take_over = take_over


Translate = Callable[[bytes], Outgoing]

# The request line of what can be known already: no other method's fields depend on it.
_KNOWN_LINE = (
    rb"(GET|HEAD|OPTIONS) %b(/(?!/)[\x21\x22\x24-\x5b\x5d-\x7e]*+) HTTP/1\.1\r\n"
)
# Different clients of one caller (kubectl, a controller) each repeat their own fields.
_MAX_KNOWN = 8
# Longer fields are not worth their memory: kubectl's have 150 bytes, client-go's 300.
_MAX_KNOWN_BYTES = 2048
# Heads with these are not kept in memory beyond their request.
SECRET_FIELDS = frozenset({b"authorization", b"cookie", b"proxy-authorization"})
# Refusals of understood requests. Who sends malformed ones is not talked to further.
_HARMLESS = (403, 404)


class Translator:
    """Translates the heads of one caller, on all its connections.

    Clients repeat their fields to the byte, only paths differ. So the fields of plain
    requests (no body, no upgrade, no --as) are kept with what became of them, and the
    next head that has the same is done after one comparison. The verdict depends on
    the fields, the caller and the policy, none of which can have changed.
    """

    __slots__ = (
        "_apiserver",
        "_base",
        "_caller",
        "_host_line",
        "_known",
        "_known_fields",
        "_known_line",
        "_known_lines",
        "_policy",
        "_prefix",
    )

    def __init__(self, caller: Caller, policy: Policy, apiserver: ApiServer) -> None:
        self._caller = caller
        self._policy = policy
        self._prefix = cluster_prefix(caller.cluster)
        self._known_line = re.compile(_KNOWN_LINE % re.escape(self._prefix))
        # The fields of the last known head, from behind the request line to the empty
        # line (no head ends with NUL), and the lines that are sent for them, host and
        # identity included. Set by `use`, too.
        self._known_fields = b"\0"
        self._known_lines = b""
        # Those of other heads that this caller has sent.
        self._known: dict[bytes, bytes] = {}
        self.use(apiserver)

    def use(self, apiserver: ApiServer) -> None:
        """Go on with another address or credential, from the next request on."""
        self._apiserver = apiserver
        self._base = apiserver.base_path
        self._host_line = b"Host: %b\r\n" % apiserver.authority
        # They are known with the host line of the last one.
        self._known_fields, self._known_lines = b"\0", b""
        self._known.clear()

    def __call__(self, raw: bytes) -> Outgoing:
        """Translate one head, complete with its empty line.

        Raises:
            Refusal: If it must not be sent. `keeps_alive` tells whether the connection
                can go on: the head was understood, and there is no body to skip.
        """
        if raw.endswith(self._known_fields):
            outgoing = self._known_request(raw, len(raw) - len(self._known_fields))
            if outgoing is not None:
                return outgoing
        line_end = raw.find(b"\r\n") + 2
        if (lines := self._known.get(raw[line_end:])) is not None:
            self._known_fields, self._known_lines = raw[line_end:], lines
            outgoing = self._known_request(raw, line_end)
            if outgoing is not None:
                return outgoing
        return self._unknown_request(raw, line_end)

    def _known_request(self, raw: bytes, line_end: int) -> Outgoing | None:
        """A request whose fields are the known ones, if its line has no surprises either."""
        match = self._known_line.fullmatch(raw, 0, line_end)
        if match is None:
            return None
        method, path = match.groups()
        # A path without these holds no dot segment, however that is spelled.
        if b"/." in path or b"%" in path:
            return None
        return self._outgoing(method, self._base + path, b"1", self._known_lines)

    def _unknown_request(self, raw: bytes, line_end: int) -> Outgoing:
        head = parse_request_head(raw)
        keeps_alive = head.keeps_alive and not head.has_body and not head.upgrade
        target = self._strip(head.target, keeps_alive=keeps_alive)
        try:
            forward = judge(head, self._caller, self._policy)
        except Refusal as refusal:
            refusal.keeps_alive = keeps_alive and refusal.code in _HARMLESS
            raise
        lines = b"%b%b%b" % (self._host_line, forward.lines, forward.identity)
        if keeps_alive and self._is_plain(head, forward):
            self._remember(raw[line_end:], lines)
        outgoing = self._outgoing(head.method, target, b"%d" % head.minor, lines)
        outgoing.body = request_body(head)
        outgoing.upgrade = head.upgrade
        outgoing.keeps_alive = head.keeps_alive
        outgoing.review = forward.review
        return outgoing

    def _strip(self, target: bytes, *, keeps_alive: bool) -> bytes:
        try:
            return self._base + strip_prefix(target, self._prefix)
        except Refusal as refusal:
            refusal.keeps_alive = keeps_alive and refusal.code in _HARMLESS
            raise

    @staticmethod
    def _is_plain(head: RequestHead, forward: Forward) -> bool:
        return (
            forward.review is None
            and not head.expects_continue
            and head.minor == 1
            and head.method in (b"GET", b"HEAD", b"OPTIONS")
            and not any(name.lower() in SECRET_FIELDS for name, _ in head.fields)
        )

    def _remember(self, fields: bytes, lines: bytes) -> None:
        if len(fields) > _MAX_KNOWN_BYTES:
            return
        if len(self._known) >= _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[fields] = self._known_lines = lines
        self._known_fields = fields

    def _outgoing(
        self, method: bytes, target: bytes, minor: bytes, lines: bytes
    ) -> Outgoing:
        return Outgoing(
            method=method,
            target=target,
            first_bytes=b"%b %b HTTP/1.%b\r\n%b%b\r\n"
            % (method, target, minor, lines, self._apiserver.credential.line()),
            prefix=self._prefix,
        )


def refuse_all(refusal: Refusal) -> Translate:
    """For a connection whose caller may not be here: each request gets this answer."""

    def translate(raw: bytes) -> Outgoing:
        raise Refusal(code=refusal.code, message=refusal.message)

    return translate
