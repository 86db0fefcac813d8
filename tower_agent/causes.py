"""Why a connection did not come about, in one sentence with a remedy. Words only: no network here.

explain_no_connection   a TCP, proxy or TLS connection
explain_proxy_refusal   a proxy that did not let a CONNECT through
explain_clock           clocks that differ too much
explain_dial_failure    the tunnel's WebSocket upgrade, with all of the above behind it
"""

import dataclasses
import json
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from certs.chains import spoken
from certs.signatures import CLOCK_LEEWAY
from shared.words import quoted, short

__all__ = [
    "ServerError",
    "UpgradeAnswer",
    "clock_difference",
    "explain_clock",
    "explain_dial_failure",
    "explain_no_connection",
    "explain_proxy_refusal",
    "parse_error",
]


def clock_difference(date_header: str | None, now: datetime) -> timedelta | None:
    """Return how far our clock is ahead of the one that wrote the header; None if unknown."""
    if not date_header:
        return None
    try:
        theirs = parsedate_to_datetime(date_header)
    except ValueError:
        return None
    if theirs.tzinfo is None:
        theirs = theirs.replace(tzinfo=UTC)
    return now - theirs


def explain_clock(ahead: timedelta, now: datetime) -> str | None:
    """Say that the clocks differ, by how much and which way; None if little enough.

    Beyond the leeway the server refuses our assertions, however good they are.
    """
    if abs(ahead) <= CLOCK_LEEWAY:
        return None
    side = "ahead of" if ahead > timedelta(0) else "behind"
    return (
        f"This machine's clock is {spoken(abs(ahead))} {side} the server's (here it is "
        f"{now:%Y-%m-%d %H:%M:%S} UTC): set the one that is wrong, best by NTP, and start the "
        "agent again."
    )


def explain_no_connection(
    error: BaseException, *, address: str, proxy: str | None = None
) -> str:
    """Say why no TCP, proxy or TLS connection to `address` came about.

    Args:
        address: HOST:PORT of the server.
        proxy: HOST:PORT of the proxy if there is one between (never with credentials).
    """
    if proxy is not None:
        return _explain_proxied(error, address, proxy)
    match error:
        case socket.gaierror():
            return (
                f"The name of the server in {address} cannot be resolved ({short(error)}): check "
                "the address in the join string and this machine's DNS."
            )
        case ConnectionRefusedError():
            return (
                f"Nothing listens on {address} (connection refused): check that the server runs, "
                "and its --public-address."
            )
        case TimeoutError():
            return (
                f"{address} does not answer in time: check that the server runs and that no "
                "firewall drops the way there."
            )
        case ssl.SSLCertVerificationError():
            return _explain_certificate(error, address)
        case ssl.SSLError():
            return (
                f"{address} does not speak TLS as a Tower server does ({short(error)}): check "
                "host and port in the join string."
            )
        case ValueError():
            return (
                f"What listens on {address} is not a Tower server ({short(error)}): check host "
                "and port in the join string."
            )
        case ConnectionError() | EOFError():
            return (
                f"{address} closed the connection without an answer: it is not a Tower server, "
                "or a firewall between cuts connections; check host and port."
            )
        case _:
            return f"{address} cannot be reached ({short(error)}): check the network on the way."


def _explain_proxied(error: BaseException, address: str, proxy: str) -> str:
    match error:
        case socket.gaierror() | ConnectionRefusedError():
            return (
                f"The HTTP proxy {proxy} cannot be reached ({short(error)}): check HTTPS_PROXY, "
                "or name the server in NO_PROXY if it is reached without."
            )
        case TimeoutError():
            return (
                f"{address} does not answer in time through the HTTP proxy {proxy}: check that the "
                "proxy lets this machine through to it, or name the server in NO_PROXY."
            )
        case _:
            direct = explain_no_connection(error, address=address)
            return f"Through the HTTP proxy {proxy}: {direct}"


def _explain_certificate(error: ssl.SSLCertVerificationError, address: str) -> str:
    # OpenSSL's own words; set only where it was OpenSSL that raised.
    reason = getattr(error, "verify_message", "") or short(error)
    if "not yet valid" in reason or "expired" in reason:
        return (
            f"The certificate of {address} is not valid now ({reason}): check this machine's clock "
            "first, then the server's certificate."
        )
    if "mismatch" in reason or "not valid for" in reason:
        return (
            f"The certificate of {address} is for another name ({reason}): use the name that the "
            "server has as --public-address, or restart the server with this one."
        )
    return (
        f"The certificate of {address} is of no authority that the agent trusts ({reason}): if "
        "a proxy or load balancer of yours ends TLS there, give its CA with --ca-file."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpgradeAnswer:
    """What came instead of the tunnel's `101 Switching Protocols`.

    A 101 without our subprotocol belongs here too. `headers` are looked up without regard to case.
    """

    status: int
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""

    def header(self, name: str) -> str | None:
        return next(
            (v for k, v in self.headers.items() if k.lower() == name.lower()), None
        )


def explain_proxy_refusal(status: int, *, address: str, proxy: str) -> str:
    """Say why a proxy did not let a CONNECT through."""
    if status == 407:
        return (
            f"The HTTP proxy {proxy} demands a login (407): put it into HTTPS_PROXY as "
            "http://USER:PASSWORD@HOST:PORT, or name the server in NO_PROXY."
        )
    return (
        f"The HTTP proxy {proxy} refuses to connect to {address} (status {status}): have the "
        "address allowed there, or name the server in NO_PROXY."
    )


def explain_dial_failure(
    failure: BaseException | UpgradeAnswer,
    *,
    address: str,
    proxy: str | None = None,
    now: datetime | None = None,
) -> str:
    """Say why a tunnel did not come about, in one sentence with the remedy.

    Args:
        failure: The exception of connecting or of waiting for the answer, or the answer.
        address: HOST:PORT of the server.
        proxy: HOST:PORT of the proxy on the way, never with credentials.
        now: Our time, to be compared with the answer's Date.
    """
    if isinstance(failure, BaseException):
        if isinstance(failure, ConnectionError | EOFError) and not isinstance(
            failure, ConnectionRefusedError
        ):
            return _blocked(
                address, "the connection was cut during the WebSocket upgrade"
            )
        return explain_no_connection(failure, address=address, proxy=proxy)
    if failure.status == 407:
        return explain_proxy_refusal(407, address=address, proxy=proxy or "on the way")
    if now is not None and failure.status in (400, 401, 403):
        ahead = clock_difference(failure.header("Date"), now)
        if ahead is not None and (sentence := explain_clock(ahead, now)):
            return sentence
    if told := _server_sentence(failure):
        return told
    if failure.status == 101:
        return _blocked(address, "its answer 101 is not one to a Tower agent")
    if failure.status in (429, 500, 502, 503, 504):
        return (
            f"{address} answered {failure.status}: the server is away or starting, or a proxy "
            "before it cannot reach it; the agent goes on trying."
        )
    if failure.status in (401, 403):
        return _blocked(
            address, f"something before the server answered {failure.status}"
        )
    return _blocked(address, f"it answered {failure.status} instead of 101")


def _server_sentence(answer: UpgradeAnswer) -> str | None:
    """Return the sentence of a refusal by the server itself; None if these are somebody else's words."""
    # Without an Upgrade the server answers 426: the cause is whoever removed it.
    if answer.status == 426 or (error := parse_error(answer.body)) is None:
        return None
    return error.message


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerError:
    """The JSON of every error answer of the server."""

    code: str
    message: str


def parse_error(body: bytes) -> ServerError | None:
    """Read `{"error": CODE, "message": SENTENCE}`; None if it is anything else."""
    try:
        fields: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    code, message = fields.get("error"), fields.get("message")
    if not isinstance(code, str) or not isinstance(message, str) or not message:
        return None
    return ServerError(code=quoted(code), message=quoted(message))


def _blocked(address: str, observed: str) -> str:
    return (
        f"The WebSocket to {address} is blocked ({observed}): let the proxy, load balancer or "
        "firewall on the way pass WebSocket upgrades for the path /tunnel."
    )
