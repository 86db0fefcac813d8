"""Where an agent keeps its key: one set of tests for the directory and for the Secret.

Covered: nothing yet, round trip, the pending key, damage, redaction; files and their modes;
a Secret that is missing, forbidden, contended, or unreachable.
"""

import asyncio
import base64
import dataclasses
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certs.authority import Authority
from certs.chains import pem
from certs.keys import (
    PrivateBytes,
    certificate_request,
    new_key,
    parse_private_key,
    private_pem,
)
from certs.names import parse_cluster_name
from shared.member.questions import MemberRequest
from tests.fakes.member_api import MemberApi, client, member_api
from tower_agent.credentials import (
    Credentials,
    CredentialStore,
    CredentialsUnavailable,
    DirectoryStore,
    SecretStore,
)

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    directory = tmp_path_factory.mktemp("ca")
    authority = Authority.open_or_create(directory, "clusters.tower.internal", NOW)
    key, alpha = new_key(), parse_cluster_name("alpha")
    return Credentials(
        cluster=alpha,
        zone=authority.zone,
        audience="tower://clusters.tower.internal/server",
        server_host="::1",
        server_port=8443,
        pin=authority.pin,
        token_id="abcd2345",
        ca_pem=authority.pem,
        certificate_pem=pem(
            authority.issue_agent(certificate_request(key), alpha, NOW)
        ),
        key_pem=private_pem(key),
        outer_mode="custom",
        outer_ca_pem=authority.pem,
    )


@dataclasses.dataclass
class Place:
    """A store, and the way behind its back."""

    reopen: Callable[[], CredentialStore]
    overwrite: Callable[[str, bytes], None]
    entries: Callable[[], set[str]]


@pytest.fixture
async def member() -> AsyncIterator[tuple[MemberApi, MemberRequest]]:
    async with member_api() as running:
        yield running


@pytest.fixture(params=["directory", "secret"])
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    member: tuple[MemberApi, MemberRequest],
) -> Place:
    directory, (api, ask) = tmp_path / "agent", member
    if request.param == "directory":

        def overwrite_file(name: str, data: bytes) -> None:
            directory.mkdir(mode=0o700, exist_ok=True)
            (directory / name).write_bytes(data)
            (directory / name).chmod(0o600)

        def files() -> set[str]:
            return {path.name for path in directory.iterdir()}

        return Place(lambda: DirectoryStore(directory), overwrite_file, files)

    def overwrite_entry(name: str, data: bytes) -> None:
        assert api.secret is not None
        api.secret[name] = base64.b64encode(data).decode()

    return Place(
        lambda: SecretStore(ask, namespace="tower-agent", name="x"),
        overwrite_entry,
        lambda: set(api.secret or ()),
    )


async def test_before_the_join_there_is_nothing(place: Place) -> None:
    assert await place.reopen().load() is None


async def test_credentials_come_back_as_they_were_saved(
    place: Place, credentials: Credentials
) -> None:
    await place.reopen().save(credentials)
    assert await place.reopen().load() == credentials
    renewed = dataclasses.replace(credentials, outer_mode="tower", outer_ca_pem=None)
    await place.reopen().save(renewed)
    assert await place.reopen().load() == renewed


async def test_the_pending_key_is_the_same_until_the_join_is_done(
    place: Place, credentials: Credentials
) -> None:
    key = await place.reopen().pending_key("token1")
    parse_private_key(key)
    assert await place.reopen().pending_key("token1") == key
    await place.reopen().save(credentials)
    assert place.entries() == {"credentials.json"}
    assert await place.reopen().pending_key("token1") != key


async def test_another_token_gets_another_key(place: Place) -> None:
    first = await place.reopen().pending_key("token1")
    second = await place.reopen().pending_key("token2")
    assert first != second
    assert await place.reopen().pending_key("token2") == second


async def test_a_pending_key_leaves_the_credentials_alone(
    place: Place, credentials: Credentials
) -> None:
    await place.reopen().save(credentials)
    await place.reopen().pending_key("token2")
    assert await place.reopen().load() == credentials


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"token_id": "token1"}'])
async def test_a_damaged_pending_key_is_replaced(place: Place, data: bytes) -> None:
    place.overwrite("pending.json", data)
    parse_private_key(await place.reopen().pending_key("token1"))


def without(field: str) -> Callable[[dict[str, object]], object]:
    return lambda fields: {k: v for k, v in fields.items() if k != field}


def changed(field: str, value: object) -> Callable[[dict[str, object]], object]:
    return lambda fields: fields | {field: value}


@pytest.mark.parametrize(
    ("damage", "how"),
    [
        (without("zone"), "field is missing"),
        (changed("version", 2), "another version"),
        (changed("key_pem", "-----BEGIN"), "private key is damaged"),
        (
            changed("key_pem", private_pem(new_key()).decode()),
            "not that of the certificate",
        ),
        (changed("certificate_pem", ""), "no certificate"),
        (changed("ca_pem", 7), "field is missing or wrong"),
        (changed("outer_mode", "none"), "mode is unknown"),
        (changed("server_port", None), "field is missing or wrong"),
        (lambda _fields: [], "not a JSON object"),
    ],
)
async def test_damaged_credentials_are_said_with_the_remedy_and_without_content(
    place: Place,
    credentials: Credentials,
    damage: Callable[[dict[str, object]], object],
    how: str,
) -> None:
    place.overwrite(
        "credentials.json",
        json.dumps(damage(json.loads(credentials.to_json()))).encode(),
    )
    with pytest.raises(CredentialsUnavailable, match=how) as caught:
        await place.reopen().load()
    assert "join again" in str(caught.value)
    assert "PRIVATE KEY" not in str(caught.value)


async def test_a_file_cut_short_is_damage(
    place: Place, credentials: Credentials
) -> None:
    place.overwrite("credentials.json", credentials.to_json()[:-40])
    with pytest.raises(CredentialsUnavailable, match="cut short"):
        await place.reopen().load()


def test_no_repr_shows_the_key(credentials: Credentials) -> None:
    secret = bytes(credentials.key_pem).splitlines()[1].decode()
    for shown in (repr(credentials), str(credentials), repr(credentials.to_json())):
        assert secret not in shown
    assert "alpha" in repr(credentials)


def test_what_the_dialer_needs_to_know(credentials: Credentials) -> None:
    assert credentials.server_address == "[::1]:8443"
    assert NOW < credentials.renewal_due_at < credentials.not_after


# -- The directory -------------------------------------------------------------------------


async def test_directory_and_files_are_for_the_owner_only(
    tmp_path: Path, credentials: Credentials
) -> None:
    directory = tmp_path / "deep" / "agent"
    store = DirectoryStore(directory)
    await store.save(credentials)
    await store.pending_key("token2")
    assert directory.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes == {"credentials.json": 0o600, "pending.json": 0o600}


async def test_a_file_that_others_can_read_is_refused(
    tmp_path: Path, credentials: Credentials
) -> None:
    store = DirectoryStore(tmp_path / "agent")
    await store.save(credentials)
    (tmp_path / "agent" / "credentials.json").chmod(0o644)
    with pytest.raises(CredentialsUnavailable, match="chmod 600"):
        await store.load()


async def test_a_directory_that_others_can_write_is_refused(
    tmp_path: Path, credentials: Credentials
) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(CredentialsUnavailable, match="chmod 700"):
        await DirectoryStore(directory).save(credentials)


async def test_a_place_that_cannot_be_written_is_said_before_a_token_is_spent(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CredentialsUnavailable, match="--state-dir"):
        await DirectoryStore(tmp_path / "file" / "agent").pending_key("token1")


async def test_a_write_that_fails_keeps_the_old_credentials(
    tmp_path: Path, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path / "agent")
    await store.save(credentials)

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(CredentialsUnavailable, match="No space left .*free space"):
            await store.save(dataclasses.replace(credentials, token_id="other"))
    assert await store.load() == credentials
    assert [path.name for path in (tmp_path / "agent").iterdir()] == [
        "credentials.json"
    ]


# -- The Secret ----------------------------------------------------------------------------


def secret_store(ask: MemberRequest) -> SecretStore:
    return SecretStore(ask, namespace="tower-agent", name="x")


async def test_agents_that_start_at_once_agree_on_one_pending_key(
    member: tuple[MemberApi, MemberRequest],
) -> None:
    _, ask = member
    keys = await asyncio.gather(
        *(secret_store(ask).pending_key("token1") for _ in range(4))
    )
    assert len({bytes(key) for key in keys}) == 1


async def test_a_secret_that_never_stops_changing_is_given_up(
    member: tuple[MemberApi, MemberRequest],
) -> None:
    api, ask = member

    async def always_late(method: str, path: str, **content: object) -> object:
        answer = await ask(method, path, **content)  # type: ignore[arg-type]
        api.version += 1
        return answer

    with pytest.raises(CredentialsUnavailable, match="changes under the agent's hands"):
        await secret_store(always_late).pending_key("token1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("denied", "call", "what"),
    [
        ("get secrets", lambda store: store.load(), "read"),
        ("patch secrets", lambda store: store.pending_key("token1"), "written"),
    ],
)
async def test_missing_rights_to_the_secret_name_the_manifest(
    member: tuple[MemberApi, MemberRequest],
    denied: str,
    call: Callable[[SecretStore], Awaitable[object]],
    what: str,
) -> None:
    api, ask = member
    api.denied = {denied}
    with pytest.raises(
        CredentialsUnavailable, match=f"cannot be {what}.*forbidden.*manifest"
    ):
        await call(secret_store(ask))


async def test_a_secret_that_is_not_there_names_the_manifest(
    member: tuple[MemberApi, MemberRequest],
) -> None:
    api, ask = member
    api.secret = None
    with pytest.raises(CredentialsUnavailable, match="not found.*manifest"):
        await secret_store(ask).load()


async def test_an_apiserver_that_is_away_is_said() -> None:
    with pytest.raises(CredentialsUnavailable, match="apiserver does not answer"):
        await secret_store(client("127.0.0.1:9")).load()


async def test_data_that_is_not_base64_is_damage(
    member: tuple[MemberApi, MemberRequest],
) -> None:
    api, ask = member
    api.secret = {"credentials.json": "***"}
    with pytest.raises(CredentialsUnavailable, match="not base64"):
        await secret_store(ask).load()


def test_private_bytes_stay_private() -> None:
    assert "not shown" in repr(PrivateBytes(b"key"))
