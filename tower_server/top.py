"""`tower top`: what goes through the tunnels, second by second, busiest clusters first.

The server gives totals; rates are the difference of two readings by the server's own clock, so
that a slow answer does not look like a burst.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tower_server.admin_client import CommandFailed
from tower_server.tables import harmless, memory_words, traffic_table

__all__ = ["REFRESH_SECONDS", "busiest_first", "watch", "with_rates"]

# As often as a person can read it; one reading costs the server some microseconds a stream.
REFRESH_SECONDS = 1.0

# What differs by less than this is equally busy, so that idle clusters keep their places.
ORDER_STEP_BYTES = 1024

# Above and below the table: a summary, a blank line, the headings, and the remark.
OTHER_LINES = 4

Document = Mapping[str, Any]
Read = Callable[[], Document]


def with_rates(now: Document, before: Document | None) -> list[dict[str, Any]]:
    """The clusters of a reading, with bytes per second since the one before.

    A rate is None where there is nothing to compare with: at first, for a cluster that is new,
    and after a restart of the server.
    """
    earlier: dict[str, Document] = {}
    seconds = 0.0
    if before is not None:
        seconds = now["clock_seconds"] - before["clock_seconds"]
        earlier = {cluster["name"]: cluster for cluster in before["clusters"]}
    return [
        {
            **cluster,
            "sent_bytes_per_second": _rate(
                cluster, earlier.get(cluster["name"]), "sent_bytes_total", seconds
            ),
            "received_bytes_per_second": _rate(
                cluster, earlier.get(cluster["name"]), "received_bytes_total", seconds
            ),
        }
        for cluster in now["clusters"]
    ]


def busiest_first(clusters: Sequence[Document]) -> list[Document]:
    """By bytes per second, then by name; who is away comes last."""

    def place(cluster: Document) -> tuple[bool, int, str]:
        rate = (cluster["sent_bytes_per_second"] or 0.0) + (
            cluster["received_bytes_per_second"] or 0.0
        )
        is_away = cluster["state"] != "connected"
        return is_away, -int(rate // ORDER_STEP_BYTES), cluster["name"]

    return sorted(clusters, key=place)


def watch(
    read: Read,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show the table on the screen until Ctrl-C. When the server is away for a while, that is said below it.

    Raises:
        CommandFailed: If the first reading fails; later ones are tried again.
    """
    console = console or Console(highlight=False, markup=False)
    before = read()
    clusters = with_rates(before, None)
    picture = _picture(clusters, before, "", console)
    with (
        suppress(KeyboardInterrupt),
        Live(picture, console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            sleep(REFRESH_SECONDS)
            try:
                now = read()
            except CommandFailed as error:
                remark = f"no answer: {error}"
            else:
                remark, clusters, before = "", with_rates(now, before), now
            live.update(_picture(clusters, before, remark, console), refresh=True)


def _picture(
    clusters: list[dict[str, Any]], reading: Document, remark: str, console: Console
) -> Group:
    room = max(1, console.height - OTHER_LINES)
    ordered = busiest_first(clusters)
    hidden = len(ordered) - room
    if hidden > 0 and not remark:
        remark = f"{hidden} more do not fit: `tower top --once` prints all"
    table: Table = traffic_table(ordered[:room])
    summary = _summary(clusters, reading["window_memory"])
    return Group(Text(summary), Text(), table, Text(harmless(remark)))


def _summary(clusters: Sequence[Document], memory: Document) -> str:
    connected = sum(cluster["state"] == "connected" for cluster in clusters)
    streams = sum(cluster["open_streams"] for cluster in clusters)
    return (
        f"{connected} of {len(clusters)} clusters connected, {streams} streams; "
        f"{memory_words(memory)}. Ctrl-C ends this."
    )


def _rate(
    cluster: Document, earlier: Document | None, field: str, seconds: float
) -> float | None:
    if earlier is None or seconds <= 0:
        return None
    difference = cluster[field] - earlier[field]
    return difference / seconds if difference >= 0 else None
