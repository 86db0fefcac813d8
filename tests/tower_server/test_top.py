"""`tower top`: rates between two readings, the order of rows, and a screen that survives the server.

The screen is a console of a fixed size that writes into a string; time is the test's own.
"""

import io
from typing import Any

import pytest
from rich.console import Console

from shared.program import EXIT_UNREACHABLE
from tower_server.admin_client import CommandFailed
from tower_server.top import Document, busiest_first, watch, with_rates


def cluster(name: str = "alpha", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "connected",
        "sessions": 1,
        "rtt_seconds": 0.025,
        "open_streams": 3,
        "stalled_streams": 1,
        "queued_bytes": 2048,
        "sent_bytes_total": 0,
        "received_bytes_total": 0,
        "window_stalls_total": 12,
        "resumes_total": 7,
        "retransmitted_bytes_total": 96_000,
    } | changes


def at(seconds: float, *clusters: dict[str, Any]) -> Document:
    memory = {"used_bytes": 3_000_000, "ceiling_bytes": 250_000_000}
    return {
        "clock_seconds": seconds,
        "window_memory": memory,
        "clusters": list(clusters),
    }


def rates(now: Document, before: Document | None) -> list[tuple[Any, Any]]:
    return [
        (c["received_bytes_per_second"], c["sent_bytes_per_second"])
        for c in with_rates(now, before)
    ]


def test_a_rate_is_the_difference_by_the_servers_clock() -> None:
    before = at(10.0, cluster(received_bytes_total=100, sent_bytes_total=50))
    now = at(12.5, cluster(received_bytes_total=350, sent_bytes_total=50))
    assert rates(now, before) == [(100.0, 0.0)]


@pytest.mark.parametrize(
    "before",
    [
        None,
        at(9.0),
        at(9.0, cluster("beta")),
        at(10.0, cluster()),  # the same moment
        at(5000.0, cluster()),  # the clock of a server that was restarted
        at(9.0, cluster(received_bytes_total=500, sent_bytes_total=500)),  # its totals
    ],
)
def test_without_anything_to_compare_with_there_is_no_rate(
    before: Document | None,
) -> None:
    now = at(10.0, cluster(received_bytes_total=100, sent_bytes_total=100))
    assert rates(now, before) == [(None, None)]


def test_the_busiest_come_first_then_names_then_who_is_away() -> None:
    def row(name: str, rate: float | None, **changes: Any) -> dict[str, Any]:
        both = {"sent_bytes_per_second": rate, "received_bytes_per_second": rate}
        return cluster(name, **both, **changes)

    rows = [
        row("gone", 9e9, state="away"),
        row("new", None),
        row("idle", 30.0),
        row("busy", 1e6),
        row("also-idle", 10.0),
    ]
    names = [c["name"] for c in busiest_first(rows)]
    assert names == ["busy", "also-idle", "idle", "new", "gone"]


class Screen:
    """Runs `watch` over prepared answers, and ends it with Ctrl-C when they are used up."""

    def __init__(self, *answers: Document | CommandFailed, height: int = 24) -> None:
        self._answers = list(answers)
        self.slept: list[float] = []
        self.output = io.StringIO()
        self.console = Console(
            file=self.output, force_terminal=True, width=120, height=height
        )

    def read(self) -> Document:
        answer = self._answers.pop(0)
        if isinstance(answer, CommandFailed):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if not self._answers:
            raise KeyboardInterrupt

    def run(self) -> str:
        watch(self.read, self.console, self.sleep)
        return self.output.getvalue()


def test_the_screen_shows_rates_from_the_second_reading_on() -> None:
    screen = Screen(
        at(1.0, cluster()),
        at(2.0, cluster(received_bytes_total=1_500_000, sent_bytes_total=800)),
    )
    text = screen.run()
    assert screen.slept == [1.0, 1.0]
    summary = "1 of 1 clusters connected, 3 streams; windows hold 3.0 MB of 250 MB."
    assert summary in text
    for cell in ("alpha", "25 ms", "1.5 MB", "800 B", "2.0 kB", "7", "96.0 kB"):
        assert cell in text


def test_a_server_that_is_away_for_a_while_is_said_and_asked_again() -> None:
    away = CommandFailed("Nobody serves the admin socket.", EXIT_UNREACHABLE)
    text = Screen(at(1.0, cluster()), away, at(3.0, cluster("back"))).run()
    assert "no answer: Nobody serves the admin socket." in text
    assert text.rindex("back") > text.rindex("no answer")


def test_a_server_that_is_not_there_at_first_is_an_error() -> None:
    away = CommandFailed("Nobody serves the admin socket.", EXIT_UNREACHABLE)
    with pytest.raises(CommandFailed):
        Screen(away).run()


def test_what_does_not_fit_is_counted() -> None:
    many = [cluster(f"c{number:03}") for number in range(100)]
    text = Screen(at(1.0, *many), height=14).run()
    assert "c000" in text and "c099" not in text
    assert "90 more do not fit: `tower top --once` prints all" in text


def test_a_name_cannot_draw_on_the_screen() -> None:
    text = Screen(at(1.0, cluster("a\x1b[2Jb"))).run()
    assert "a\x1b[2Jb" not in text
