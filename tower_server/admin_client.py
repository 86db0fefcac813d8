"""The admin API's client, over the unix socket: what the `tower` command line speaks through.

Plain `http.client`, because a command that prints one line should not load an event loop, and
shell completion calls this at every press of the tab key.
"""

import grp
import http.client
import json
import pwd
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shared.program import (
    EXIT_FAILED,
    EXIT_NOT_FOUND,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
)

__all__ = ["AdminClient", "CommandFailed"]

# The server answers every order within 10 s, with an error if it must; a little more for the way.
TIMEOUT_SECONDS = 15.0

# Ten thousand clusters with all their fields are about 6 MB. What sends more is not our server.
MAX_ANSWER_BYTES = 64 * 1024 * 1024

_EXIT_CODES = {
    "bad_request": EXIT_USAGE,
    "not_found": EXIT_NOT_FOUND,
    "refused": EXIT_REFUSED,
}


class CommandFailed(Exception):
    """A command cannot be carried out: the sentence for the admin, and the exit status."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence, exit_code)
        self.sentence = sentence
        self.exit_code = exit_code

    def __str__(self) -> str:
        return self.sentence


class AdminClient:
    """Gives orders to the server behind the admin socket. One connection an order.

    Raises:
        CommandFailed: From every method, if the server cannot be reached or says no.
    """

    def __init__(self, path: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._path = path
        self._timeout_seconds = timeout_seconds

    def get(self, *parts: str) -> dict[str, Any]:
        """Read a resource, such as `get("clusters", "alpha")`."""
        return self._request("GET", parts)

    def post(self, *parts: str, order: Mapping[str, Any]) -> dict[str, Any]:
        """Give an order; fields that are None are left out."""
        return self._order("POST", parts, order)

    def put(self, *parts: str, order: Mapping[str, Any]) -> dict[str, Any]:
        """Replace something; fields that are None are left out."""
        return self._order("PUT", parts, order)

    def delete(self, *parts: str) -> dict[str, Any]:
        """Remove a resource, and return what it was."""
        return self._request("DELETE", parts)

    def _order(
        self, method: str, parts: tuple[str, ...], order: Mapping[str, Any]
    ) -> dict[str, Any]:
        fields = {name: value for name, value in order.items() if value is not None}
        return self._request(method, parts, json.dumps(fields).encode())

    def _request(
        self, method: str, parts: tuple[str, ...], body: bytes | None = None
    ) -> dict[str, Any]:
        target = "/admin/v1/" + "/".join(quote(part, safe="") for part in parts)
        connection = _UnixConnection(self._path, self._timeout_seconds)
        try:
            connection.request(
                method,
                target,
                body,
                {"Content-Type": "application/json"} if body else {},
            )
            response = connection.getresponse()
            data = response.read(MAX_ANSWER_BYTES)
        except TimeoutError as error:
            raise CommandFailed(
                f"The server does not answer on {self._path} within {self._timeout_seconds:.0f} s: see its log.",
                EXIT_UNREACHABLE,
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _explain(error, self._path) from error
        finally:
            connection.close()
        return self._read_answer(response.status, data)

    def _read_answer(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise CommandFailed(
                f"What answers on {self._path} is not a Tower server: check --socket.",
                EXIT_UNREACHABLE,
            )
        if status < 400:
            return answer
        raise CommandFailed(
            str(answer.get("message", f"The server answered with status {status}.")),
            _EXIT_CODES.get(str(answer.get("error")), EXIT_FAILED),
        )


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket; the host is only a word for the Host header."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__("tower", timeout=timeout_seconds)
        self._path = path
        self._timeout_seconds = timeout_seconds

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_seconds)
        self.sock.connect(str(self._path))


def _explain(error: Exception, path: Path) -> CommandFailed:
    """Say what stands between us and the server, and what to do about it."""
    if isinstance(error, PermissionError):
        return CommandFailed(
            f"This user may not open the admin socket {path}; {_owner(path)}: "
            "run the command as that user (sudo -u), or as root.",
            EXIT_REFUSED,
        )
    if isinstance(error, FileNotFoundError):
        sentence = (
            f"There is no admin socket {path}: is the server running on this machine, and is --socket "
            "(or TOWER_ADMIN_SOCKET, or TOWER_STATE_DIR) the same as the server's?"
        )
    elif isinstance(error, ConnectionRefusedError):
        sentence = f"Nobody serves the admin socket {path} any more: the server was killed; start it again."
    elif isinstance(error, ConnectionError | http.client.HTTPException):
        sentence = f"The server ended the connection on {path} before it answered: is it stopping? See its log."
    else:
        reason = getattr(error, "strerror", None) or str(error)
        sentence = f"The admin socket {path} cannot be used ({reason}): check --socket."
    return CommandFailed(sentence, EXIT_UNREACHABLE)


def _owner(path: Path) -> str:
    """Whose the socket is, or the nearest directory above it that we may look at."""
    for place in (path, *path.parents):
        try:
            status = place.stat()
        except OSError:
            continue
        mode = stat.S_IMODE(status.st_mode)
        return f"{place} belongs to {_user(status.st_uid)}, group {_group(status.st_gid)} (mode {mode:04o})"
    return "it belongs to another user"


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
