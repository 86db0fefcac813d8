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

__all__ = ["Outgoing", "Translate", "Translator", "refuse_all"]


# Not frozen: it is made for every request, and a frozen one takes three times as long.
@dataclass(kw_only=True, slots=True)
class Outgoing:
    """A judged request, ready to be sent when its review (if any) says yes."""

    method: bytes
    # As the apiserver gets it.
    target: bytes
    # The whole head; the relay adds what has come of the body with it.
    first_bytes: bytes
    # Where the body ends; None when there is none.
    body: Body | None
    # Lower-case protocol of an upgrade.
    upgrade: bytes | None
    # The client's connection stays open after the answer.
    keeps_alive: bool
    # What the client's paths begin with and the apiserver's do not.
    prefix: bytes
    review: Review | None


Translate = Callable[[bytes], Outgoing]

# The request line of what can be known already: no other method's fields depend on it.
_KNOWN_LINE = re.compile(
    rb"(GET|HEAD|OPTIONS) (/[\x21\x22\x24-\x5b\x5d-\x7e]*+) HTTP/1\.1\r\n"
)
# Refusals of understood requests. Who sends malformed ones is not talked to further.
_HARMLESS = (403, 404)


class Translator:
    """Translates the heads of one caller's connection.

    Clients repeat their fields to the byte, only paths differ. So the fields of the last
    plain request (no body, no upgrade, no --as) are kept with what became of them, and
    the next head that has the same is done after one comparison. The verdict depends on
    the fields, the caller and the policy, none of which can have changed.
    """

    __slots__ = (
        "_apiserver",
        "_caller",
        "_host_line",
        "_known_fields",
        "_known_lines",
        "_policy",
        "_prefix",
    )

    def __init__(self, caller: Caller, policy: Policy, apiserver: ApiServer) -> None:
        self._caller = caller
        self._policy = policy
        self.use(apiserver)
        self._prefix = cluster_prefix(caller.cluster)
        # From behind the request line to the empty line; empty: none known.
        self._known_fields = b""
        # The lines that are sent for them, identity included.
        self._known_lines = b""

    def use(self, apiserver: ApiServer) -> None:
        """Go on with another address or credential, from the next request on."""
        self._apiserver = apiserver
        self._host_line = b"Host: %b\r\n" % apiserver.authority

    def __call__(self, raw: bytes) -> Outgoing:
        """Translate one head, complete with its empty line.

        Raises:
            Refusal: If it must not be sent. `keeps_alive` tells whether the connection
                can go on: the head was understood, and there is no body to skip.
        """
        line_end = raw.find(b"\r\n") + 2
        if raw[line_end:] == self._known_fields:
            match = _KNOWN_LINE.fullmatch(raw, 0, line_end)
            if match is not None:
                target = self._strip(match[2], keeps_alive=True)
                return self._outgoing(match[1], target, 1, self._known_lines)
        head = parse_request_head(raw)
        keeps_alive = head.keeps_alive and not head.has_body and not head.upgrade
        target = self._strip(head.target, keeps_alive=keeps_alive)
        try:
            forward = judge(head, self._caller, self._policy)
        except Refusal as refusal:
            refusal.keeps_alive = keeps_alive and refusal.code in _HARMLESS
            raise
        lines = forward.lines + forward.identity
        if keeps_alive and self._is_plain(head, forward):
            self._known_fields = raw[line_end:]
            self._known_lines = lines
        outgoing = self._outgoing(head.method, target, head.minor, lines)
        outgoing.body = request_body(head)
        outgoing.upgrade = head.upgrade
        outgoing.keeps_alive = head.keeps_alive
        outgoing.review = forward.review
        return outgoing

    def _strip(self, target: bytes, *, keeps_alive: bool) -> bytes:
        try:
            return self._apiserver.base_path + strip_prefix(target, self._prefix)
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
        )

    def _outgoing(
        self, method: bytes, target: bytes, minor: int, lines: bytes
    ) -> Outgoing:
        return Outgoing(
            method=method,
            target=target,
            first_bytes=b"%b %b HTTP/1.%d\r\n%b%b%b\r\n"
            % (
                method,
                target,
                minor,
                self._host_line,
                lines,
                self._apiserver.credential.line(),
            ),
            body=None,
            upgrade=None,
            keeps_alive=True,
            prefix=self._prefix,
            review=None,
        )


def refuse_all(refusal: Refusal) -> Translate:
    """For a connection whose caller may not be here: each request gets this answer."""

    def translate(raw: bytes) -> Outgoing:
        raise Refusal(code=refusal.code, message=refusal.message)

    return translate
