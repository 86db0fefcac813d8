"""What a server starts from. Covered: the directory's CA, identity and store, and who may use it when.

The other place is tests/tower_server/test_host_state.py.
"""

from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.program import ProgramFailed
from tower_server.settings import ServeSettings, parse_serve_settings
from tower_server.state import State, open_state

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def settings(directory: Path) -> ServeSettings:
    return parse_serve_settings(state_dir=directory, listen="127.0.0.1:0")


async def opened(
    directory: Path, stack: AsyncExitStack, entrances: AsyncExitStack
) -> State:
    return await open_state(settings(directory), stack, entrances)


async def test_it_is_the_same_at_the_next_start(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        async with AsyncExitStack() as stack:
            state = await opened(tmp_path / "s", stack, stack)
            identity = await state.identity(["127.0.0.1"], datetime.now(UTC))
            seen.append((state.authority.pin, identity.certificate))
            assert await state.store.list_clusters() == [] and state.host is None
    assert seen[0] == seen[1]


async def test_a_successor_may_start_when_the_entrances_are_closed(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack, AsyncExitStack() as after:
        async with AsyncExitStack() as entrances:
            first = await opened(tmp_path / "s", stack, entrances)
            with pytest.raises(ProgramFailed, match="Another tower-server"):
                await opened(tmp_path / "s", stack, stack)
        await opened(tmp_path / "s", after, after)
        # The first one drains: it still knows its clusters.
        assert await first.store.list_clusters() == []


async def test_a_damaged_ca_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "s" / "ca").mkdir(mode=0o700, parents=True)
    (tmp_path / "s").chmod(0o700)
    (tmp_path / "s" / "ca" / "ca.crt").write_text("junk")
    async with AsyncExitStack() as stack:
        with pytest.raises(ProgramFailed, match=r"cannot start: .*ca.key is missing"):
            await opened(tmp_path / "s", stack, stack)
