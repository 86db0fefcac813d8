"""Request and response heads: what is a well-formed one, and what of it frames the body.

Requests come from outside, so they are read twice. First a grammar of our own, one
regular expression over the whole head, which leaves nothing to interpretation: CRLF
only, no obs-fold, no blank before a colon, no control character, origin-form, HTTP/1.0
or 1.1. Then httptools (llhttp), whose opinion on the framing fields must agree. What
either refuses is refused.

Nothing here decides who may do what, and nothing is dropped: see identity.py.
"""

import re
from dataclasses import dataclass

import httptools

from shared.http.status import Refusal

__all__ = [
    "MAX_HEAD_BYTES",
    "UPGRADE_PROTOCOLS",
    "BadResponse",
    "RequestHead",
    "ResponseHead",
    "list_entries",
    "parse_request_head",
    "parse_response_head",
    "plain_answer_end",
]

# Go's default limit is 1 MiB, nginx' 32 KiB, llhttp has none. A long field selector
# together with a token is some 10 KiB.
MAX_HEAD_BYTES = 64 * 1024

# Field lines in one head. Go has no such limit; 64 KiB of empty fields would be 16,000.
MAX_FIELDS = 256

# Protocols that kubectl and client-go upgrade to. Everything else, h2c foremost, would
# start a second protocol on a connection whose identity we have vouched for.
UPGRADE_PROTOCOLS = frozenset({b"spdy/3.1", b"websocket"})

# Possessive quantifiers throughout: nothing to go back to, so no input makes them slow.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# obs-text (0x80 and up) is allowed in values, as Go allows it: names in UTF-8.
_FIELDS = rb"((?:" + _TOKEN + rb":[\t \x21-\x7e\x80-\xff]*+\r\n)*+)\r\n"
_REQUEST = re.compile(
    rb"(" + _TOKEN + rb") ([\x21-\x7e]++) HTTP/([0-9])\.([0-9])\r\n" + _FIELDS
)
_RESPONSE = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t \x21-\x7e\x80-\xff]*+)?\r\n" + _FIELDS
)
# The fields of a response that frame it or belong to one hop. It begins with a literal,
# for which `re` searches three times as fast as for the beginning of a line.
_RESPONSE_HOP = re.compile(
    rb"\r\n(connection|proxy-connection|keep-alive|transfer-encoding|content-length"
    rb"|upgrade):([^\r]*+)",
    re.IGNORECASE,
)
# The commonest answer, of which nothing else need be known. A line whose name begins with
# another letter than all of the hop's is none of them.
_PLAIN_LINES = (
    rb"(?:(?![CKPTUckptu])" + _TOKEN + rb":[\t \x21-\x7e\x80-\xff]*+\r\n"
    rb"|(?!(?i:connection|content-length|keep-alive|proxy-connection|transfer-encoding"
    rb"|upgrade):)" + _TOKEN + rb":[\t \x21-\x7e\x80-\xff]*+\r\n)*+"
)
_PLAIN_ANSWER = re.compile(
    rb"HTTP/1\.1 200(?: [\t \x21-\x7e\x80-\xff]*+)?\r\n"
    + _PLAIN_LINES
    + rb"(?i:content-length):[\t ]*+([0-9]{1,18})[\t ]*+\r\n"
    + _PLAIN_LINES
    + rb"\r\n"
)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

# A grammar error's cause is found by asking for each in turn: only the message needs it.
_CAUSES = (
    (re.compile(rb"\x00"), "it holds a NUL byte"),
    (re.compile(rb"(?<!\r)\n"), "a line ends without CR"),
    (re.compile(rb"\r(?!\n)"), "it holds a CR that ends no line"),
    (re.compile(rb"\r\n[ \t]"), "a field is folded over two lines"),
    (re.compile(rb"\r\n[^:\r\n]*+(?<=[ \t]):"), "a field name is followed by a blank"),
    (re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"), "it holds a control character"),
    (re.compile(rb"\A[^ \r\n]*+ [^ \r\n]*+\r\n"), "HTTP/0.9 is not spoken here"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestHead:
    """A request's head, well-formed, with what its own framing fields say."""

    method: bytes
    # Origin-form, byte for byte as it came: starts with "/".
    target: bytes
    # Minor version of HTTP/1.x.
    minor: int
    # Name as it came, value without outer blanks; in order.
    fields: tuple[tuple[bytes, bytes], ...]
    # Exactly one of: a length, or chunked (None with 0 fields: no body, length 0).
    content_length: int
    is_chunked: bool
    # Lower-case entries of all Connection fields.
    connection: frozenset[bytes]
    # Lower-case protocol when this is an upgrade that we know.
    upgrade: bytes | None
    expects_continue: bool

    @property
    def has_body(self) -> bool:
        return self.is_chunked or self.content_length > 0

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to go on on this connection afterwards."""
        return self.minor == 1 and b"close" not in self.connection


class BadResponse(Exception):
    """The upstream's answer is not HTTP/1.x as we accept it."""


# Not frozen: it is made for every answer, and a frozen one takes three times as long.
@dataclass(kw_only=True, slots=True)
class ResponseHead:
    """A response's head, well-formed, with what its own framing fields say."""

    status: int
    minor: int
    # The field lines as they came, each with its CRLF, without those of the hop.
    lines: bytes
    # The status line as it came, with its CRLF.
    status_line: bytes
    # None: the head gives no length.
    content_length: int | None
    is_chunked: bool
    closes: bool
    # Lower-case value of Upgrade.
    upgrade: bytes | None
    # The head can be passed on as it came: it has no field of the hop but the framing.
    is_plain: bool


def list_entries(value: bytes) -> list[bytes]:
    """The entries of a comma-separated value, without blanks; empty ones dropped."""
    return [entry for part in value.split(b",") if (entry := part.strip(b" \t"))]


def _refuse(message: str, code: int = 400) -> Refusal:
    return Refusal(code=code, message=f"malformed request: {message}")


class _FieldCollector:
    """httptools' callbacks, which only collect."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.is_complete = True


def parse_request_head(head: bytes) -> RequestHead:
    """Read one head, from the method to the empty line, which must be its end.

    Raises:
        Refusal: If it is malformed, ambiguous, or of a kind that we do not serve.
    """
    match = _REQUEST.fullmatch(head)
    if match is None:
        causes = (text for pattern, text in _CAUSES if pattern.search(head))
        raise _refuse(next(causes, "the head does not follow RFC 9112"))
    method, target = match[1], match[2]
    if match[3] != b"1" or match[4] not in (b"0", b"1"):
        raise _refuse("only HTTP/1.0 and HTTP/1.1 are spoken here", 505)
    _check_target(method, target)
    fields = _second_opinion(head, method)
    if len(fields) > MAX_FIELDS:
        raise _refuse(f"more than {MAX_FIELDS} header fields", 431)
    return _interpret(method, target, int(match[4]), fields)


def _check_target(method: bytes, target: bytes) -> None:
    if method in (b"CONNECT", b"TRACE"):
        raise Refusal(code=405, message=f"{method.decode()} is not allowed here")
    if not target.startswith(b"/"):
        raise _refuse("the request target must be a path")
    if b"#" in target or b"\\" in target:
        raise _refuse("the request target holds a character that must be encoded")


def _second_opinion(head: bytes, method: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The fields as llhttp sees them, which must be all there are."""
    collector = _FieldCollector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # it stops behind the head, where we stop too
    except httptools.HttpParserError as error:
        raise _refuse(str(error)) from None
    lines = head.count(b"\r\n") - 2
    if (
        not collector.is_complete
        or len(collector.fields) != lines
        or parser.get_method() != method
    ):
        raise _refuse("the head can be read in two ways")
    return tuple((name, value.strip(b" \t")) for name, value in collector.fields)


def _interpret(
    method: bytes, target: bytes, minor: int, fields: tuple[tuple[bytes, bytes], ...]
) -> RequestHead:
    values: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        values.setdefault(name.lower(), []).append(value)
    hosts = values.get(b"host", [])
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise _refuse("there must be exactly one Host field, with a host and a port")
    length, is_chunked = _body_framing(values, minor)
    connection = frozenset(
        entry.lower()
        for value in values.get(b"connection", ())
        for entry in list_entries(value)
    )
    upgrade = _upgrade(values, connection, minor)
    if upgrade and (is_chunked or length):
        raise _refuse("an upgrade request must not have a body")
    expects = values.get(b"expect", [])
    if expects and [value.lower() for value in expects] != [b"100-continue"]:
        raise _refuse("the only expectation that can be met is 100-continue", 417)
    return RequestHead(
        method=method,
        target=target,
        minor=minor,
        fields=fields,
        content_length=length,
        is_chunked=is_chunked,
        connection=connection,
        upgrade=upgrade,
        expects_continue=bool(expects),
    )


def _body_framing(values: dict[bytes, list[bytes]], minor: int) -> tuple[int, bool]:
    lengths = values.get(b"content-length", [])
    codings = values.get(b"transfer-encoding", [])
    # Proxies exist that read an underscore as a dash: no such spelling may pass by.
    if any(
        name.replace(b"_", b"-") in (b"content-length", b"transfer-encoding")
        for name in values
        if b"_" in name
    ):
        raise _refuse("a framing field is spelled with an underscore")
    if codings:
        if lengths:
            raise _refuse("it has both Content-Length and Transfer-Encoding")
        if minor == 0:
            raise _refuse("HTTP/1.0 has no Transfer-Encoding")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise _refuse("the only Transfer-Encoding accepted is chunked", 501)
        return 0, True
    if not lengths:
        return 0, False
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise _refuse("Content-Length must be one decimal number")
    return int(lengths[0]), False


def _upgrade(
    values: dict[bytes, list[bytes]], connection: frozenset[bytes], minor: int
) -> bytes | None:
    protocols = values.get(b"upgrade", [])
    if not protocols and b"upgrade" not in connection:
        return None
    if len(protocols) != 1 or b"upgrade" not in connection or minor == 0:
        raise _refuse("an upgrade needs one Upgrade field and Connection: Upgrade")
    protocol = protocols[0].lower()
    if protocol not in UPGRADE_PROTOCOLS:
        raise _refuse("the only upgrades accepted are SPDY/3.1 and websocket")
    return protocol


def plain_answer_end(data: bytes) -> int:
    """Where an answer ends that is passed on as it came; -1 if it is not of the plain kind.

    That is: HTTP/1.1, 200, one Content-Length, no other field of the hop. For such a head
    `parse_response_head` says the same; for all others it must be asked.
    """
    match = _PLAIN_ANSWER.match(data)
    if match is None or match.end() > MAX_HEAD_BYTES:
        return -1
    return match.end() + int(match[1])


def parse_response_head(head: bytes) -> ResponseHead:
    """Read one response head, from the version to the empty line.

    Raises:
        BadResponse: If it is malformed or its framing is ambiguous.
    """
    match = _RESPONSE.fullmatch(head)
    if match is None:
        raise BadResponse("the head does not follow RFC 9112")
    lines = match[3]
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    connection: set[bytes] = set()
    upgrade: bytes | None = None
    is_plain = True
    for name, value in _RESPONSE_HOP.findall(head, match.start(3) - 2):
        name, value = name.lower(), value.strip(b" \t")
        if name == b"content-length":
            lengths.add(value)
        elif name == b"transfer-encoding":
            codings.append(value.lower())
        else:
            is_plain = False
            if name == b"connection":
                connection.update(entry.lower() for entry in list_entries(value))
            elif name == b"upgrade":
                upgrade = value.lower()
    if codings and (lengths or codings != [b"chunked"]):
        raise BadResponse("Transfer-Encoding is ambiguous or unknown")
    length = lengths.pop() if lengths else None
    if lengths or (length is not None and not _LENGTH.fullmatch(length)):
        raise BadResponse("Content-Length is not one decimal number")
    return ResponseHead(
        status=int(match[2]),
        minor=int(match[1]),
        lines=lines if is_plain else _without_hop_fields(lines, connection),
        status_line=head[: match.start(3)],
        content_length=None if length is None else int(length),
        is_chunked=bool(codings),
        closes=b"close" in connection or match[1] == b"0",
        upgrade=upgrade,
        is_plain=is_plain,
    )


# Framing stays although it is of the hop: bodies are passed on as they are framed.
_HOP_NAMES = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"upgrade"})
_FRAMING_NAMES = frozenset({b"transfer-encoding", b"content-length"})


def _without_hop_fields(lines: bytes, connection: set[bytes]) -> bytes:
    kept = []
    for line in lines.splitlines(keepends=True):
        name = line.partition(b":")[0].lower()
        if name in _FRAMING_NAMES or (
            name not in _HOP_NAMES and name not in connection
        ):
            kept.append(line)
    return b"".join(kept)
