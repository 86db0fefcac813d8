"""The disasters in small, with real processes: each gives every number that the table names.

The aspects: readers that stall, and others beside them; a link that freezes under a stream; a
link that is cut again and again under streams whose every byte is checked; and that a stream
which breaks, or says something else, is counted.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import disasters, known
from bench.disasters import measure_disaster
from bench.generator import find_generator
from bench.processes import Processes
from bench.site import Site, clean_environment, open_site
from bench.workloads import DISASTER_UNITS, Kind, Workload


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("disasters")
    generator, _ = find_generator("python", clean_environment())
    with Processes(directory, clean_environment()) as processes:
        yield open_site(directory, processes, generator)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BESIDE_SECONDS": 0.3,
        "STEADY_SECONDS": 0.3,
        "FREEZES": 1,
        "FROZEN_SECONDS": 5.5,
        "DROPS": 4,
        "ECHOES": 5,
    }.items():
        monkeypatch.setattr(disasters, name, value)


def measured(site: Site, kind: Kind, workers: int = 1) -> dict[str, float]:
    workload = Workload(name=f"x-{kind.value}", kind=kind, workers=workers)
    told = measure_disaster(site, workload)
    assert set(told) <= set(DISASTER_UNITS)
    return told


def test_stalled_readers_cost_memory_and_leave_the_others_be(site: Site) -> None:
    told = measured(site, Kind.STALLED, 30)
    assert told["memory both"] == told["memory server"] + told["memory agent"]
    assert told["p99 without them"] > 0 and told["p99 beside them"] > 0


def test_a_frozen_link_is_noticed_and_its_stream_goes_on(site: Site) -> None:
    told = measured(site, Kind.FROZEN)
    assert told["noticed by agent"] > 1 and told["noticed by server"] > 1
    assert told["resumed"] > 0 and told["broken streams"] == 0


def test_drops_break_no_stream(site: Site) -> None:
    told = measured(site, Kind.DROPS)
    assert told["drops"] == 4 and told["echoes"] > 5 and told["downloaded"] > 0
    assert told["broken streams"] == told["streams with wrong bytes"] == 0
    assert 0 < told["back after p50"] <= told["back after max"]


async def test_a_stream_that_ends_or_says_something_else_is_counted() -> None:
    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if await reader.readexactly(1) == known.ECHO:
            writer.write(b"x" * known.MESSAGE_BYTES)
        else:
            writer.write(known.bulk_bytes(1, 100))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        tally, never = known.Tally(), asyncio.Event()
        await known.echo(port, never, tally)
        await known.download(port, never, tally, 0)
        assert (tally.wrong, tally.broken) == (2, 0)
    async with known.serve() as port:
        tally = known.Tally()
        async with asyncio.TaskGroup() as group:
            group.create_task(known.download(port, never, tally, 0))
            while not tally.bytes:
                await asyncio.sleep(0.01)
            never.set()
        assert (tally.wrong, tally.broken) == (0, 0)


async def test_a_stream_that_is_cut_is_broken() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.close()

    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        tally = known.Tally()
        await known.echo(port, asyncio.Event(), tally)
        await known.download(port, asyncio.Event(), tally, 0)
    assert (tally.wrong, tally.broken, len(tally.reasons)) == (0, 2, 2)


def test_the_bulk_tells_its_place() -> None:
    whole = known.bulk_bytes(0, 300_000)
    assert known.bulk_bytes(70_000, 5_000) == whole[70_000:75_000]
    assert known.bulk_bytes(0, 100) != known.bulk_bytes(1, 100)
    assert len(known.bulk_bytes(123_456, 0)) == 0


def test_the_clients_that_stall_are_held_until_told(site: Site, tmp_path: Path) -> None:
    process = disasters._stall(site, 3, site.raw_address)
    assert process.alive()
    site.processes.stop(process)
    assert not process.alive()
