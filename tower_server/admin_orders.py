"""How the admin API reads an order, and how it says no.

Whoever may open the admin socket is trusted to give orders, not to give sensible ones: every
field has a type and limits, and a wrong one is answered with a sentence.
"""

import asyncio
import difflib
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any

from aiohttp import web

from certs.names import ClusterName, parse_cluster_name
from shared.durations import format_duration
from tower_server.stores import StoreUnavailable, TokenLimitReached

__all__ = [
    "MAX_BODY_BYTES",
    "REQUEST_TIMEOUT_SECONDS",
    "AdminError",
    "ErrorCode",
    "Order",
    "audit",
    "bad_request",
    "check_span",
    "errors_as_json",
    "no_cluster",
    "parse_name",
    "read_order",
]

# Orders are a name, a number and a few groups of at most 256 bytes.
MAX_BODY_BYTES = 64 * 1024

# Everything here is a few reads of a local store and one signature.
REQUEST_TIMEOUT_SECONDS = 10.0

# How many names a "did you mean" offers.
MAX_SUGGESTIONS = 3

_log = logging.getLogger(__name__)


class ErrorCode(StrEnum):
    """The `error` field of an answer."""

    BAD_REQUEST = "bad_request"  # 400: the order makes no sense as it is
    NOT_FOUND = "not_found"  # 404: no such cluster, token or path
    REFUSED = "refused"  # 409: it makes sense, and the answer is no
    UNAVAILABLE = "unavailable"  # 503: the store cannot do it now
    INTERNAL = "internal"  # 500: our fault; the server's log has more


_STATUS = {
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.REFUSED: 409,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}


class AdminError(Exception):
    """An order that is answered with an error."""

    def __init__(self, code: ErrorCode, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class Order:
    """The fields of a request's JSON object; each is asked for by its type.

    Raises:
        AdminError: From every method, for a field of another type.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def text(self, name: str) -> str | None:
        value = self._fields.get(name)
        if value is not None and not isinstance(value, str):
            raise _bad(f"The field {name!r} has to be a string.")
        return value

    def texts(self, name: str) -> Sequence[str]:
        value = self._fields.get(name) or []
        if not isinstance(value, list) or not all(
            isinstance(item, str) for item in value
        ):
            raise _bad(f"The field {name!r} has to be a list of strings.")
        return value

    def flag(self, name: str) -> bool:
        value = self._fields.get(name)
        if value is not None and not isinstance(value, bool):
            raise _bad(f"The field {name!r} has to be true or false.")
        return bool(value)

    def span(self, name: str, default: timedelta) -> timedelta:
        value = self._fields.get(name)
        if value is None:
            return default
        # bool is an int to Python, and no number of seconds to anybody.
        if not isinstance(value, int) or isinstance(value, bool):
            raise _bad(f"The field {name!r} has to be a whole number of seconds.")
        try:
            return timedelta(seconds=value)
        except OverflowError as error:
            raise _bad(
                f"The field {name!r} is larger than any span of time."
            ) from error

    def cluster(self) -> ClusterName:
        return parse_name(self.text("cluster") or "")


def bad_request(error: ValueError) -> AdminError:
    """What a rule said about a field, as the answer to the order."""
    text = str(error)
    return _bad(f"{text[:1].upper()}{text[1:]}.")


async def read_order(request: web.Request, known: frozenset[str]) -> Order:
    """Read the request's JSON object; a field that is not `known` is a typing error, not noise.

    Raises:
        AdminError: If the body is no such object.
    """
    try:
        fields = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise _bad("The body has to be a JSON object.") from error
    if not isinstance(fields, dict):
        raise _bad("The body has to be a JSON object.")
    if unknown := sorted(fields.keys() - known):
        raise _bad(
            f"The field {unknown[0]!r} is unknown: use {', '.join(sorted(known))}."
        )
    return Order(fields)


def parse_name(text: str) -> ClusterName:
    """The name of a cluster out of a body or a path.

    Raises:
        AdminError: If it cannot be one.
    """
    try:
        return parse_cluster_name(text)
    except ValueError as error:
        raise _bad(f"{error}.") from error


def check_span(
    what: str, span: timedelta, *, minimum: timedelta, maximum: timedelta
) -> timedelta:
    """Return `span`, or say what its limits are.

    Raises:
        AdminError: If it lies outside of them.
    """
    if not minimum <= span <= maximum:
        raise _bad(
            f"{what} is good for {format_duration(minimum)} to {format_duration(maximum)}, "
            f"not for {format_duration(span)}: choose a span between."
        )
    return span


def no_cluster(name: str, known: Sequence[str]) -> AdminError:
    """Say that there is no such cluster, and which ones are spelled alike."""
    alike = difflib.get_close_matches(name, known, MAX_SUGGESTIONS)
    hint = (
        f"did you mean {' or '.join(alike)}?"
        if alike
        else "see `tower cluster list`."
        if known
        else f"there are none yet; begin with `tower token create {name}`."
    )
    return AdminError(ErrorCode.NOT_FOUND, f"There is no cluster {name!r}: {hint}")


def audit(request: web.Request, message: str, *details: object) -> None:
    """Log what an admin did, with the local user who did it."""
    _log.info(message, *details, extra={"admin_uid": _peer_uid(request)})


@web.middleware
async def errors_as_json(
    request: web.Request,
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> web.StreamResponse:
    """Answer within the time, and answer every error in the one form that clients read."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
            return await handler(request)
    except AdminError as error:
        return _answer(error.code, error.sentence)
    except TokenLimitReached as error:
        return _answer(ErrorCode.REFUSED, str(error))
    except StoreUnavailable as error:
        _log.error("the store is not available: %s", error)
        return _answer(ErrorCode.UNAVAILABLE, str(error))
    except TimeoutError:
        _log.error("%s %s took too long", request.method, request.path)
        return _answer(
            ErrorCode.UNAVAILABLE,
            f"The server could not do it within {REQUEST_TIMEOUT_SECONDS:.0f} s: see its log, and try again.",
        )
    except web.HTTPRequestEntityTooLarge:
        return _answer(
            ErrorCode.BAD_REQUEST, f"The body is larger than {MAX_BODY_BYTES} bytes."
        )
    except web.HTTPException as error:
        code = (
            ErrorCode.NOT_FOUND if error.status in (404, 405) else ErrorCode.BAD_REQUEST
        )
        return _answer(
            code,
            f"The admin API has no {request.method} {request.path}: "
            "is this `tower` of another version than the server?",
        )
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        return _answer(
            ErrorCode.INTERNAL,
            "The server made a mistake: its log has more. Please report it.",
        )


def _answer(code: ErrorCode, sentence: str) -> web.Response:
    return web.json_response(
        {"error": code.value, "message": sentence}, status=_STATUS[code]
    )


def _bad(sentence: str) -> AdminError:
    return AdminError(ErrorCode.BAD_REQUEST, sentence)


def _peer_uid(request: web.Request) -> int | None:
    """Who is at the other end of the socket, where the system tells (Linux)."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport else None
    if connection is None or not hasattr(socket, "SO_PEERCRED"):
        return None
    layout = "3i"  # struct ucred: pid, uid, gid
    try:
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(layout)
        )
    except OSError:
        return None
    return int(struct.unpack(layout, credentials)[1])
