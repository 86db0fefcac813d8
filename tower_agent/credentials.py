"""What an agent has after its join, and where it keeps that.

A store keeps two things, each written whole or not at all:

    the pending key    made before the token is sent, so that an agent which dies between the
                       server's answer and its own `save` asks again with the same key, and gets
                       the same certificate instead of "already used"
    the credentials    the result; saving them removes the pending key

Keeping the key first also shows that the store can be written before a token is spent on it.
"""

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from certs.chains import parse_certificates, renewal_due_at
from certs.contexts import OuterMode
from certs.keys import (
    PrivateBytes,
    new_key,
    parse_private_key,
    private_directory,
    private_pem,
    read_private,
    write_private,
)
from certs.names import ClusterName, parse_cluster_name, parse_zone
from shared.member.questions import MERGE_PATCH, MemberRequest

__all__ = [
    "CredentialStore",
    "Credentials",
    "CredentialsUnavailable",
    "DirectoryStore",
    "SecretStore",
]

# 1 (2026-11): the fields of Credentials, PEM as text.
FORMAT_VERSION = 1

CREDENTIALS_NAME = "credentials.json"
PENDING_NAME = "pending.json"

# How often two agents that start at once may get in each other's way while they write the one
# pending key. Each attempt that loses means that another has won, so the second settles it.
MAX_SECRET_ATTEMPTS = 5


class CredentialsUnavailable(Exception):
    """Credentials cannot be read or kept; the message is one sentence with the remedy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Credentials:
    """Everything that an agent needs to dial the server and to serve its name. No repr of the key."""

    cluster: ClusterName
    zone: str
    audience: str  # the server's role URI, for assertions
    server_host: str
    server_port: int
    pin: str  # of the CA that this agent joined under
    token_id: str  # of the join; public
    ca_pem: bytes = dataclasses.field(
        repr=False
    )  # bundle: old and new CA during a rotation
    certificate_pem: bytes = dataclasses.field(
        repr=False
    )  # chain, the agent's own first
    key_pem: PrivateBytes = dataclasses.field(repr=False)
    outer_mode: OuterMode  # whose certificate the outer TLS shows
    outer_ca_pem: bytes | None = dataclasses.field(
        default=None, repr=False
    )  # for mode custom

    @property
    def not_after(self) -> datetime:
        """When the agent's certificate ends."""
        return parse_certificates(self.certificate_pem)[0].not_valid_after_utc

    @property
    def renewal_due_at(self) -> datetime:
        """When the agent's certificate should be renewed."""
        return renewal_due_at(parse_certificates(self.certificate_pem)[0])

    @property
    def server_address(self) -> str:
        """HOST:PORT, for people."""
        host = f"[{self.server_host}]" if ":" in self.server_host else self.server_host
        return f"{host}:{self.server_port}"

    def to_json(self) -> PrivateBytes:
        """Serialise, the private key included."""
        fields = dataclasses.asdict(self)
        for name, value in fields.items():
            if isinstance(value, bytes):
                fields[name] = bytes(value).decode("ascii")
        return PrivateBytes(
            json.dumps({"version": FORMAT_VERSION} | fields, indent=1).encode()
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Credentials":
        """Read what `to_json` wrote, and check that the key is the certificate's.

        Raises:
            ValueError: If it is damaged. The message shows nothing of the content.
        """
        fields = _read_object(data)
        if fields.pop("version", None) != FORMAT_VERSION:
            raise ValueError("they are of another version of the agent")
        try:
            credentials = cls(
                cluster=parse_cluster_name(fields["cluster"]),
                zone=parse_zone(fields["zone"]),
                audience=str(fields["audience"]),
                server_host=str(fields["server_host"]),
                server_port=int(fields["server_port"]),
                pin=str(fields["pin"]),
                token_id=str(fields["token_id"]),
                ca_pem=fields["ca_pem"].encode("ascii"),
                certificate_pem=fields["certificate_pem"].encode("ascii"),
                key_pem=PrivateBytes(fields["key_pem"].encode("ascii")),
                outer_mode=_outer_mode(fields["outer_mode"]),
                outer_ca_pem=fields["outer_ca_pem"].encode("ascii")
                if fields["outer_ca_pem"] is not None
                else None,
            )
            parse_certificates(credentials.ca_pem)
            own = parse_certificates(credentials.certificate_pem)[0].public_key()
            key = parse_private_key(credentials.key_pem).public_key()
        except (KeyError, TypeError, AttributeError, UnicodeError) as error:
            # Not the error's own text: it could quote a value.
            raise ValueError(
                f"a field is missing or wrong ({type(error).__name__})"
            ) from None
        if own != key:
            raise ValueError("the private key is not that of the certificate")
        return credentials


class CredentialStore(Protocol):
    """Where one agent keeps its key and certificates. Every verb may raise CredentialsUnavailable."""

    async def load(self) -> Credentials | None:
        """Return what `save` kept last; None if the agent has not joined yet."""
        ...

    async def pending_key(self, token_id: str) -> PrivateBytes:
        """Return the key (PEM) to join with by this token: the kept one, or a new one, kept first."""
        ...

    async def save(self, credentials: Credentials) -> None:
        """Replace the credentials, and forget the pending key."""
        ...


class DirectoryStore:
    """Two files (0600) in a directory that belongs to the agent (0700)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __str__(self) -> str:
        return f"the directory {self.directory}"

    async def load(self) -> Credentials | None:
        data = await asyncio.to_thread(self._read, CREDENTIALS_NAME)
        return (
            None
            if data is None
            else _credentials(data, f"{self.directory / CREDENTIALS_NAME}")
        )

    async def pending_key(self, token_id: str) -> PrivateBytes:
        return await asyncio.to_thread(self._pending_key, token_id)

    async def save(self, credentials: Credentials) -> None:
        await asyncio.to_thread(self._save, credentials)

    def _pending_key(self, token_id: str) -> PrivateBytes:
        kept = _key_for_token(self._read(PENDING_NAME), token_id)
        if kept is not None:
            return kept
        key, data = _new_pending(token_id)
        self._write(PENDING_NAME, data)
        return key

    def _save(self, credentials: Credentials) -> None:
        self._write(CREDENTIALS_NAME, credentials.to_json())
        # Should this fail, a key stays behind that no token leads to any more.
        with contextlib.suppress(OSError):
            (self.directory / PENDING_NAME).unlink(missing_ok=True)

    def _read(self, name: str) -> PrivateBytes | None:
        try:
            return read_private(self.directory / name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._unavailable(error) from error

    def _write(self, name: str, data: bytes) -> None:
        try:
            private_directory(self.directory)
            write_private(self.directory / name, data)
        except (OSError, ValueError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: OSError | ValueError) -> CredentialsUnavailable:
        if isinstance(error, ValueError):  # says what to do by itself
            return CredentialsUnavailable(
                f"The agent's credentials cannot be used or kept: {error}."
            )
        return CredentialsUnavailable(
            f"The agent's credentials in {self.directory} cannot be read or written "
            f"({error.strerror}): check the directory's owner, mode and free space, or choose "
            "another one with --state-dir."
        )


class SecretStore:
    """A Secret of the member, read and patched through the member's own apiserver.

    The manifest creates it empty, so that the agent needs no right to create Secrets. Agents
    that start at the same time (a rolling update) agree on one pending key by its resourceVersion.
    """

    def __init__(self, request: MemberRequest, *, namespace: str, name: str) -> None:
        self._request = request
        self._where = f"{namespace}/{name}"
        self._path = f"/api/v1/namespaces/{namespace}/secrets/{name}"

    def __str__(self) -> str:
        return f"the Secret {self._where}"

    async def load(self) -> Credentials | None:
        _, data = await self._get()
        kept = data.get(CREDENTIALS_NAME)
        return None if kept is None else _credentials(kept, f"the Secret {self._where}")

    async def pending_key(self, token_id: str) -> PrivateBytes:
        for _ in range(MAX_SECRET_ATTEMPTS):
            version, data = await self._get()
            kept = _key_for_token(data.get(PENDING_NAME), token_id)
            if kept is not None:
                return kept
            key, pending = _new_pending(token_id)
            if await self._patch({PENDING_NAME: pending}, version):
                return key
        raise CredentialsUnavailable(
            f"The Secret {self._where} changes under the agent's hands: check that only the agents "
            "of one cluster use it."
        )

    async def save(self, credentials: Credentials) -> None:
        await self._patch(
            {CREDENTIALS_NAME: credentials.to_json(), PENDING_NAME: None}, None
        )

    async def _get(self) -> tuple[str, dict[str, PrivateBytes]]:
        body = await self._ask("GET")
        assert body is not None  # only a patch can conflict
        version = str((body.get("metadata") or {}).get("resourceVersion", ""))
        try:
            return version, {
                key: PrivateBytes(base64.b64decode(value, validate=True))
                for key, value in (body.get("data") or {}).items()
            }
        except (TypeError, binascii.Error):
            raise _damaged(
                f"the Secret {self._where}", "its data is not base64"
            ) from None

    async def _patch(
        self, entries: dict[str, bytes | None], version: str | None
    ) -> bool:
        """Set or remove (None) entries; False if somebody changed the Secret since `version`."""
        encoded = {
            key: None if value is None else base64.b64encode(value).decode()
            for key, value in entries.items()
        }
        body: dict[str, Any] = {"data": encoded}
        if version is not None:
            body["metadata"] = {"resourceVersion": version}
        return await self._ask("PATCH", body) is not None

    async def _ask(
        self, method: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Send one request and return the Secret; None on a conflict."""
        content_type = MERGE_PATCH if body is not None else "application/json"
        try:
            answer = await self._request(
                method, self._path, body=body, content_type=content_type
            )
        except OSError as error:
            raise CredentialsUnavailable(
                f"The member's apiserver does not answer, which keeps the agent's credentials in the "
                f"Secret {self._where} ({error or type(error).__name__}): check that it runs."
            ) from error
        if answer.status == 409:
            return None
        if answer.status >= 400:
            raise CredentialsUnavailable(
                f"The Secret {self._where}, where the agent keeps its credentials, cannot be "
                f"{'read' if method == 'GET' else 'written'} ({answer.message}): apply the manifest "
                "of `tower token create CLUSTER --format manifest`, which creates it and the rights to it."
            )
        return dict(answer.body)


def _new_pending(token_id: str) -> tuple[PrivateBytes, PrivateBytes]:
    """Make a key, and the entry that keeps it for this token."""
    key = private_pem(new_key())
    entry = {
        "version": FORMAT_VERSION,
        "token_id": token_id,
        "key_pem": bytes(key).decode(),
    }
    return key, PrivateBytes(json.dumps(entry).encode())


def _key_for_token(data: bytes | None, token_id: str) -> PrivateBytes | None:
    """Return the kept key if it is for this token. A damaged entry counts as none: it has no worth."""
    if data is None:
        return None
    try:
        entry = _read_object(data)
        if entry.get("token_id") != token_id:
            return None
        key = PrivateBytes(str(entry.get("key_pem")).encode())
        parse_private_key(key)
    except ValueError:
        return None
    return key


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("they are cut short or no JSON") from None
    if not isinstance(value, dict):
        raise ValueError("they are not a JSON object")
    return value


def _outer_mode(text: object) -> OuterMode:
    match text:
        case "tower" | "system" | "custom":
            return text
    raise ValueError("their outer TLS mode is unknown")


def _credentials(data: bytes, where: str) -> Credentials:
    try:
        return Credentials.from_json(data)
    except ValueError as error:
        raise _damaged(where, str(error)) from None


def _damaged(where: str, how: str) -> CredentialsUnavailable:
    return CredentialsUnavailable(
        f"The agent's credentials in {where} are damaged ({how}): remove them there and join again "
        "with a new string of `tower token create CLUSTER`."
    )
