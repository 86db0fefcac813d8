"""Bearer tokens from a file, as kube-apiserver's --token-auth-file has it: for a host without a cluster.

One caller a line, as CSV: `token,user,uid,"group1,group2"` (the uid is not used). The file is
looked at again when it has changed. In memory there are digests only.
"""

import csv
import hashlib
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

from certs.names import MAX_GROUPS, parse_principal
from tower_server.gateway.callers import GatewayCaller

__all__ = ["BadTokenFile", "TokenFile"]

_log = logging.getLogger(__name__)

# 128 bits in hexadecimal have 32 characters, in base64 22: what is shorter can be guessed.
MIN_TOKEN_CHARACTERS = 16
# Callers, not requests: each costs some 500 bytes.
MAX_TOKENS = 10_000
MAX_FILE_BYTES = 4 * 1024 * 1024
# So soon at the latest is a token gone that was taken out.
LOOK_AGAIN_SECONDS = 1.0


class BadTokenFile(Exception):
    """The file cannot be used; the message says why, and shows no token."""


class TokenFile:
    """Who has which token."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Read the file.

        Raises:
            BadTokenFile: If it cannot be used.
        """
        self._path = path
        self._clock = clock
        self._version = _version(path)
        self._callers = _read(path)
        self._look_at = clock() + LOOK_AGAIN_SECONDS

    def caller(self, token: bytes) -> GatewayCaller | None:
        """Whose token it is; None if it is nobody's."""
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + LOOK_AGAIN_SECONDS
            self._look()
        return self._callers.get(hashlib.sha256(token).digest())

    def _look(self) -> None:
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._callers = _read(self._path)
        except BadTokenFile as error:
            # Perhaps a token was to be taken out: better nobody than one too many.
            self._callers = {}
            _log.error("nobody gets in by a token until it is repaired: %s", error)
        else:
            _log.info("read %s again: %d tokens", self._path, len(self._callers))


def _version(path: Path) -> object:
    """What changes when somebody writes to the file, or puts another in its place."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> dict[bytes, GatewayCaller]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadTokenFile(f"{path} cannot be read: {error.strerror}") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadTokenFile(
            f"{path} can be written by others, who could make themselves anybody: chmod 600 it"
        )
    if len(data) > MAX_FILE_BYTES:
        raise BadTokenFile(f"{path} has more than {MAX_FILE_BYTES} bytes")
    callers: dict[bytes, GatewayCaller] = {}
    try:
        rows = csv.reader(data.decode().splitlines(), strict=True)
        for row in rows:
            if row and not row[0].startswith("#"):
                digest, caller = _caller(row)
                if digest in callers:
                    raise ValueError("a token stands there twice")
                callers[digest] = caller
                if len(callers) > MAX_TOKENS:
                    raise ValueError(f"there are more than {MAX_TOKENS} tokens")
    except UnicodeDecodeError:
        raise BadTokenFile(f"{path} is not UTF-8") from None
    except (ValueError, csv.Error) as error:
        raise BadTokenFile(f"{path}, line {rows.line_num}: {error}") from None
    return callers


def _caller(row: list[str]) -> tuple[bytes, GatewayCaller]:
    if len(row) not in (3, 4):
        raise ValueError('it is not token,user,uid or token,user,uid,"group1,group2"')
    token, user, _, *groups = (column.strip() for column in row)
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ValueError(
            f"a token has at least {MIN_TOKEN_CHARACTERS} characters; make one with "
            "`openssl rand -hex 32`"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("a token has visible ASCII characters only")
    names = tuple(filter(None, groups[0].split(","))) if groups else ()
    if len(names) > MAX_GROUPS:
        raise ValueError(f"more than {MAX_GROUPS} groups")
    caller = GatewayCaller(
        user=parse_principal(user),
        groups=tuple(parse_principal(name.strip()) for name in names),
        clusters=None,
    )
    return hashlib.sha256(token.encode()).digest(), caller
