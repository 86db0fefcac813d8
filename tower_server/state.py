"""What a server starts from, wherever that is kept: the CA, its own identity, the store.

In a directory (the default), or in Kubernetes (`host_state`), whose client library is loaded only then:
it takes 22 MB and a third of a second.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from certs.authority import Authority
from shared.program import ProgramFailed
from tower_server.identity import ServerIdentity, server_identity
from tower_server.settings import ServeSettings
from tower_server.state_directory import (
    AUTHORITY_NAME,
    STORE_NAME,
    locked_state_directory,
)
from tower_server.stores import Store
from tower_server.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from tower_server.host_state import HostState

__all__ = ["State", "open_state"]


@dataclass(frozen=True, kw_only=True)
class State:
    """What was opened."""

    authority: Authority
    store: Store
    # Reads the server's identity, or makes one that fits these host names at this time.
    # Raises ValueError, OSError or StoreUnavailable.
    identity: Callable[[Sequence[str], datetime], Awaitable[ServerIdentity]]
    # Where the state is kept in Kubernetes.
    host: "HostState | None" = None


async def open_state(
    settings: ServeSettings, stack: AsyncExitStack, entrances: AsyncExitStack
) -> State:
    """Open what is there and make what is not. `stack` closes it, last of all; `entrances` lets
    a successor in.

    Raises:
        ProgramFailed: If something is damaged, or not ours alone.
        StoreUnavailable: If the store cannot be opened.
    """
    now = datetime.now(UTC)
    if settings.host is not None:
        from tower_server.host_state import open_host_state

        host = await open_host_state(settings.host, settings.zone, now, stack)
        return State(
            authority=host.authority,
            store=host.store,
            identity=host.identity,
            host=host,
        )
    assert settings.state_dir is not None, "one of the two is in the settings"
    return await _open_directory(
        settings.state_dir, settings.zone, now, stack, entrances
    )


async def _open_directory(
    directory: Path,
    zone: str,
    now: datetime,
    stack: AsyncExitStack,
    entrances: AsyncExitStack,
) -> State:
    entrances.enter_context(locked_state_directory(directory))
    try:
        authority = Authority.open_or_create(directory / AUTHORITY_NAME, zone, now)
    except (ValueError, OSError) as error:
        raise ProgramFailed(f"The server cannot start: {error}.") from error
    store = await SqliteStore.open(directory / STORE_NAME)
    stack.push_async_callback(store.close)

    async def identity(host_names: Sequence[str], at: datetime) -> ServerIdentity:
        return server_identity(directory, authority, host_names, at)

    return State(authority=authority, store=store, identity=identity)
