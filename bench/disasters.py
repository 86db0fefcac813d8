"""What others notice when things go wrong: readers that stall, a link that freezes, one that drops.

Each has a tunnel of its own, with fresh processes, and is bounded in time. The link is the one
that the tests use (tests/fakes/faults.py), because it can freeze and cut; it runs in the harness,
which has nothing else to do.
"""

import asyncio
import json
import random
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from bench.columns import tunnel
from bench.columns.column import Column
from bench.figures import percentile
from bench.generator import MeasurementFailed
from bench.known import Tally, download, echo, serve
from bench.machine import kernel_bytes
from bench.processes import Process, ProcessFailed
from bench.site import MEMBER_UID, Site, Unavailable, free_port
from bench.workloads import Face, Kind, Workload
from tests.fakes.faults import FaultyRelay
from tower_agent.reconnect import STABLE_AFTER_SECONDS

__all__ = ["measure_disaster"]

MIB = 2**20

# Of each stalled reader. The upstream's data has no end: any number of megabytes waits.
RECEIVE_BUFFER_BYTES = 64 * 1024
# Of the one whose requests go on beside them.
BESIDE_SECONDS = 4.0
# Buffers fill until nothing moves any more: memory is read when it has not grown for so long.
STEADY_SECONDS = 2.0
STEADY_BYTES = MIB
STEADY_WITHIN_SECONDS = 30.0
STALLED_WITHIN_SECONDS = 60.0

# Longer than the 4.5 s after which a peer counts as dead.
FROZEN_SECONDS = 8.0
FREEZES = 3
NOTICED_WITHIN_SECONDS = 20.0
RESUMED_WITHIN_SECONDS = 30.0
POLL_SECONDS = 0.02

DROPS = 100
# Between two drops once the agent is back.
DROP_APART_SECONDS = (0.05, 0.5)
# An agent whose tunnels never last becomes careful after a minute (SPEC 8). In ten minutes, as
# the row is meant, most last long enough to clear that; so let one do it now and then.
DROPS_IN_A_ROW = 40
STABLE_SECONDS = STABLE_AFTER_SECONDS + 0.5
BACK_WITHIN_SECONDS = 10.0
ECHOES = 50
# 64 KiB after each rest: some 20 MB/s, so that most drops hit bulk under way.
DOWNLOAD_REST_SECONDS = 0.003


def measure_disaster(site: Site, workload: Workload) -> dict[str, float]:
    """Everything that `workloads.metrics_of` tells about a disaster, by its names there.

    Raises:
        MeasurementFailed: If it could not be measured; a stream that broke is a number.
    """
    measure = {
        Kind.STALLED: _stalled,
        Kind.FROZEN: _frozen,
        Kind.DROPS: _drops,
    }[workload.kind]
    try:
        return measure(site, workload)
    except (ProcessFailed, Unavailable) as error:
        raise MeasurementFailed(str(error)) from error


# Stalled readers


def _stalled(site: Site, workload: Workload) -> dict[str, float]:
    upstream, address = _modest_upstream(site)
    entry = f"127.0.0.1:{free_port()}"
    column = tunnel.start_behind(
        site,
        workload.name,
        lambda listen: listen,
        server_arguments=[f"--tcp-entry={entry}={tunnel.CLUSTER}/modest"],
        agent_arguments=[f"--target=modest={address}"],
    )
    ends = column.ends(Face.RAW)
    asking = Workload(name="beside", kind=Kind.REQUEST)
    endpoint = column.endpoints[Face.RAW]

    def ask() -> float:
        try:
            report = site.generator.measure(
                asking, endpoint, seconds=BESIDE_SECONDS, warmup_seconds=0.5
            )
        except MeasurementFailed:
            # No answer at all is a number too: it took at least so long.
            return BESIDE_SECONDS * 1000
        return float(report["p99_ms"])

    try:
        alone = ask()
        before, kernel = _steady(ends), kernel_bytes()
        stalled = _stall(site, workload.workers, entry)
        try:
            grown = {end: size - before[end] for end, size in _steady(ends).items()}
            grown_kernel = kernel_bytes() - kernel
            beside = ask()
        finally:
            site.processes.stop(stalled)
    finally:
        _stop(site, column)
        site.processes.stop(upstream)
    return {
        **{f"memory {end}": size / MIB for end, size in grown.items()},
        "memory both": sum(grown.values()) / MIB,
        "memory kernel": grown_kernel / MIB,
        "p99 without them": alone,
        "p99 beside them": beside,
    }


def _modest_upstream(site: Site) -> tuple[Process, str]:
    """One whose kernel holds little of what waits.

    Elsewhere that memory is another machine's. Here a thousand times four megabytes are more
    than the kernel allows TCP in all (tcp_mem), and then every connection here gets slow.
    """
    command = [sys.executable, "-m", "bench.pyload", "upstream"]
    command += ["-cert", str(site.certificates.server)]
    command += ["-key", str(site.certificates.server_key), "-uid", MEMBER_UID]
    command += ["-send-buffer", str(RECEIVE_BUFFER_BYTES)]
    process = site.processes.start("modest-upstream", command)
    line = process.wait_for(r"^\{.*\}$", within_seconds=STALLED_WITHIN_SECONDS)
    return process, str(json.loads(line.group())["raw"])


def _stall(site: Site, count: int, address: str) -> Process:
    """Open downloads that nobody reads; they stay until the process is stopped."""
    command = [sys.executable, "-m", "bench.pyload", "stall", "-address", address]
    command += ["-workers", str(count), "-receive-buffer", str(RECEIVE_BUFFER_BYTES)]
    process = site.processes.start("stalled", command)
    process.wait_for(r"^stalled \d+$", within_seconds=STALLED_WITHIN_SECONDS)
    return process


def _steady(ends: Mapping[str, Process]) -> dict[str, int]:
    """Resident bytes of each, once they stop growing."""
    deadline = time.monotonic() + STEADY_WITHIN_SECONDS
    last = {end: process.resident_bytes() for end, process in ends.items()}
    while True:
        time.sleep(STEADY_SECONDS)
        now = {end: process.resident_bytes() for end, process in ends.items()}
        is_steady = all(now[end] - last[end] < STEADY_BYTES for end in now)
        # What still grows after so long is told as it is by then.
        if is_steady or time.monotonic() > deadline:
            return now
        last = now


# A link that freezes, and one that drops


@dataclass
class _Faulty:
    """A tunnel whose agent dials through a relay that can be hurt."""

    relay: FaultyRelay
    raw_port: int
    metrics_address: str


@contextmanager
def _faulty_tunnel(site: Site, name: str, target_port: int) -> Iterator[_Faulty]:
    relays: list[FaultyRelay] = []

    def behind(address: str) -> str:
        host, _, port = address.rpartition(":")
        relay = FaultyRelay((host, int(port)))
        relays.append(relay.__enter__())
        return relay.address

    metrics, raw = f"127.0.0.1:{free_port()}", free_port()
    column = None
    try:
        column = tunnel.start_behind(
            site,
            name,
            behind,
            server_arguments=[
                f"--metrics={metrics}",
                f"--tcp-entry=127.0.0.1:{raw}={tunnel.CLUSTER}/known",
            ],
            agent_arguments=[f"--target=known=127.0.0.1:{target_port}"],
        )
        yield _Faulty(relay=relays[0], raw_port=raw, metrics_address=metrics)
    finally:
        if column is not None:
            _stop(site, column)
        for relay in relays:
            relay.__exit__(None, None, None)


def _stop(site: Site, column: Column) -> None:
    for process in reversed(list(column.ends(Face.RAW).values())):
        site.processes.stop(process)


def _frozen(site: Site, workload: Workload) -> dict[str, float]:
    async def run() -> dict[str, float]:
        async with serve() as target_port:
            with _faulty_tunnel(site, workload.name, target_port) as it:
                rounds = [await _freeze_once(it) for _ in range(FREEZES)]
        return {name: max(each[name] for each in rounds) for name in rounds[0]}

    return asyncio.run(run())


async def _freeze_once(faulty: _Faulty) -> dict[str, float]:
    """Freeze under a stream that goes on asking; the worst is what counts."""
    tally, until = Tally(), asyncio.Event()
    dialled = faulty.relay.connections_accepted
    async with asyncio.TaskGroup() as group:
        group.create_task(echo(faulty.raw_port, until, tally))
        await _until(lambda: tally.messages > 10, "echoes before the freeze")
        await asyncio.to_thread(faulty.relay.freeze)
        frozen = time.monotonic()
        by_agent = await _until(
            lambda: faulty.relay.connections_accepted > dialled, "noticed by the agent"
        )
        by_server = await _until(lambda: not _is_connected(faulty), "by the server")
        await asyncio.sleep(max(0.0, frozen + FROZEN_SECONDS - time.monotonic()))
        count = tally.messages
        await asyncio.to_thread(faulty.relay.thaw)
        thawed = time.monotonic()
        back = await _until(lambda: tally.messages > count, "an echo after the thaw")
        until.set()
    return {
        "noticed by agent": by_agent - frozen,
        "noticed by server": by_server - frozen,
        "resumed": back - thawed,
        "broken streams": tally.broken + tally.wrong,
    }


def _is_connected(faulty: _Faulty) -> bool:
    url = f"http://{faulty.metrics_address}/metrics"
    with urllib.request.urlopen(url, timeout=NOTICED_WITHIN_SECONDS) as answer:
        text: str = answer.read().decode()
    line = next(
        line
        for line in text.splitlines()
        if line.startswith("tower_cluster_connected{")
    )
    return float(line.rpartition(" ")[2]) > 0


async def _until(condition: Callable[[], bool], what: str) -> float:
    """When the condition held first; looks often, beside the loop."""
    deadline = time.monotonic() + NOTICED_WITHIN_SECONDS + RESUMED_WITHIN_SECONDS
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline:
            raise MeasurementFailed(f"it did not happen in time: {what}")
        await asyncio.sleep(POLL_SECONDS)
    return time.monotonic()


def _drops(site: Site, workload: Workload) -> dict[str, float]:
    async def run() -> dict[str, float]:
        async with serve() as target_port:
            with _faulty_tunnel(site, workload.name, target_port) as it:
                return await _drop_again_and_again(it)

    return asyncio.run(run())


async def _drop_again_and_again(faulty: _Faulty) -> dict[str, float]:
    tally, until = Tally(), asyncio.Event()
    began, away = time.monotonic(), list[float]()
    async with asyncio.TaskGroup() as group:
        for _ in range(ECHOES):
            group.create_task(echo(faulty.raw_port, until, tally))
        bulk = download(faulty.raw_port, until, tally, DOWNLOAD_REST_SECONDS)
        group.create_task(bulk)
        await _until(lambda: tally.messages > ECHOES, "echoes before the drops")
        rng = random.Random(DROPS)
        for number in range(DROPS):
            if number % DROPS_IN_A_ROW == 0:
                await asyncio.sleep(STABLE_SECONDS)
            await asyncio.sleep(rng.uniform(*DROP_APART_SECONDS))
            away.append(await _drop(faulty, tally, rng))
        until.set()
    return {
        "drops": len(away),
        "broken streams": tally.broken,
        "streams with wrong bytes": tally.wrong,
        "echoes": tally.messages,
        "downloaded": tally.bytes / 10**6,
        "back after p50": statistics.median(away) * 1000,
        "back after max": max(away) * 1000,
        "echo p99": percentile(tally.waits, 99) * 1000,
        "seconds": time.monotonic() - began,
    }


async def _drop(faulty: _Faulty, tally: Tally, rng: random.Random) -> float:
    """Cut now, or in the middle of a frame; seconds until echoes come again."""
    dialled = faulty.relay.connections_accepted
    if rng.random() < 0.5:
        await asyncio.to_thread(faulty.relay.cut)
    else:
        await asyncio.to_thread(faulty.relay.cut_after, rng.randrange(1, 200_000))
    began = time.monotonic()
    await _until(lambda: faulty.relay.connections_accepted > dialled, "dialled again")
    count = tally.messages
    return await _until(lambda: tally.messages > count, "echoes again") - began
