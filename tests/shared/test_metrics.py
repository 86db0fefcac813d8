"""The text of /metrics: what is read is what is written, and scrapes cannot pile up."""

import asyncio
import threading
from collections.abc import Iterable

import pytest

from shared.errors import Code
from shared.metrics import (
    Metric,
    MetricsPage,
    counter,
    gauge,
    memory_metrics,
    tunnel_metrics,
)
from shared.mux.counters import Counters
from tests.fakes.metrics import MEMORY, Numbers, numbers, reading


async def page(*metrics: Metric) -> Numbers:
    return numbers((await MetricsPage(lambda: metrics).text()).decode())


async def test_every_number_of_a_tunnel_is_written_under_its_name() -> None:
    counters = Counters()
    counters.sent_bytes, counters.received_bytes = 1000, 2000
    counters.opened_by_server, counters.opened_by_agent = 7, 1
    counters.resets_sent[Code.TIMEOUT] += 4
    counters.resets_received[Code.CANCELLED] += 5
    counters.window_stalls = 6
    counters.sent_bulk_bytes, counters.resumes, counters.resent_bytes = 800, 8, 90
    written = await page(*tunnel_metrics({"alpha": reading(counters)}, is_server=True))
    alpha = ("cluster", "alpha")
    assert {k: v for k, v in written.items() if not k[0].startswith("process_")} == {
        ("tower_tunnel_sessions", (alpha,)): 1,
        ("tower_tunnel_rtt_seconds", (alpha,)): 0.025,
        ("tower_tunnel_streams", (alpha,)): 3,
        ("tower_tunnel_stalled_streams", (alpha,)): 2,
        ("tower_tunnel_queued_bytes", (alpha,)): 400,
        ("tower_tunnel_unread_bytes", (alpha,)): 50,
        ("tower_tunnel_window_bytes", (alpha,)): 7000,
        ("tower_tunnel_kept_bytes", (alpha,)): 600,
        ("tower_tunnel_sent_bytes_total", (("class", "bulk"), alpha)): 800,
        ("tower_tunnel_sent_bytes_total", (("class", "interactive"), alpha)): 200,
        ("tower_tunnel_resumes_total", (alpha,)): 8,
        ("tower_tunnel_retransmitted_bytes_total", (alpha,)): 90,
        ("tower_tunnel_bytes_total", (alpha, ("direction", "sent"))): 1000,
        ("tower_tunnel_bytes_total", (alpha, ("direction", "received"))): 2000,
        ("tower_tunnel_streams_opened_total", (alpha, ("opener", "server"))): 7,
        ("tower_tunnel_streams_opened_total", (alpha, ("opener", "agent"))): 1,
        (
            "tower_tunnel_resets_total",
            (("by", "server"), alpha, ("code", "timeout")),
        ): 4,
        (
            "tower_tunnel_resets_total",
            (("by", "agent"), alpha, ("code", "cancelled")),
        ): 5,
        ("tower_tunnel_window_stalls_total", (alpha,)): 6,
    }


async def test_memory_is_written_beside_its_ceiling() -> None:
    written = await page(*memory_metrics(MEMORY))
    assert written["tower_window_memory_bytes", ()] == 30
    assert written["tower_window_memory_ceiling_bytes", ()] == 200
    assert written["tower_window_memory_held_back_total", ()] == 4


async def test_seen_from_the_agent_its_own_resets_are_the_agents() -> None:
    counters = Counters()
    counters.resets_sent[Code.REFUSED] += 1
    written = await page(*tunnel_metrics({"alpha": reading(counters)}, is_server=False))
    labels = (("by", "agent"), ("cluster", "alpha"), ("code", "refused"))
    assert written["tower_tunnel_resets_total", labels] == 1


async def test_a_round_trip_that_nobody_knows_is_absent() -> None:
    written = await page(
        *tunnel_metrics({"alpha": reading(rtt_seconds=None)}, is_server=True)
    )
    assert not any(name == "tower_tunnel_rtt_seconds" for name, _ in written)


async def test_the_process_is_on_the_page_too() -> None:
    written = await page()
    assert written["process_resident_memory_bytes", ()] > 0
    assert written["process_asyncio_tasks", ()] == len(asyncio.all_tasks())


async def test_a_label_may_have_any_text() -> None:
    hostile = 'a"b\\c\nd} 9'
    written = await page(gauge("tower_x", "X.", ("name",), [((hostile,), 1)]))
    assert written["tower_x", (("name", hostile),)] == 1


def test_a_counters_name_says_that_it_is_one() -> None:
    with pytest.raises(AssertionError):
        counter("tower_x", "X.", (), [])


async def test_numbers_are_read_on_the_loop_and_written_beside_it_one_scrape_at_a_time() -> (
    None
):
    reads: list[int] = []
    writes: list[int] = []

    def made_of(number: int) -> Iterable[Metric]:
        writes.append(threading.get_ident())
        yield gauge("tower_x", "X.", (), [((), number)])

    def read() -> Iterable[Metric]:
        reads.append(threading.get_ident())
        return made_of(len(reads))

    metrics = MetricsPage(read)
    texts = await asyncio.gather(*(metrics.text() for _ in range(5)))
    assert set(reads) == {threading.get_ident()}
    assert len(writes) == 5 and threading.get_ident() not in writes
    values = [numbers(text.decode())["tower_x", ()] for text in texts]
    assert values == [1, 2, 3, 4, 5]
