"""The table for eyes and the two files for programs."""

import io
import json
from pathlib import Path

from rich.console import Console

from bench.figures import Figure
from bench.report import as_json, table_of, write_results

FIGURES = [
    Figure(
        workload="raw-request-16",
        metric="rate",
        unit="1/s",
        direct=74_800.0,
        prototype=16_200.0,
        tunnel=12_150.0,
    ),
    Figure(
        workload="raw-request-16",
        metric="cpu server",
        unit="s/10k",
        direct=None,
        prototype=0.4242,
        tunnel=0.3131,
    ),
    Figure(
        workload="raw-download-1",
        metric="throughput",
        unit="MB/s",
        direct=4000.0,
        prototype=None,
        tunnel=1000.0,
    ),
]


def shown() -> str:
    console = Console(width=150, record=True, file=io.StringIO(), color_system=None)
    console.print(table_of(FIGURES, "a machine", "2 rounds"))
    return console.export_text()


def test_the_table_shows_all_columns_and_the_ratio() -> None:
    (row,) = [line for line in shown().splitlines() if "raw-request-16" in line]
    for text in ("rate", "1/s", "74,800", "16,200", "12,150", "0.75", "≥ 0.95"):
        assert text in row


def test_a_ratio_without_prototype_says_that_it_is_of_direct() -> None:
    (row,) = [line for line in shown().splitlines() if "raw-download-1" in line]
    assert "0.25 of direct" in row
    assert "–" in row


def test_the_share_of_one_end_is_left_to_the_json() -> None:
    assert "cpu server" not in shown()
    assert "cpu server" in as_json(FIGURES)


def test_both_files_are_written_whole(tmp_path: Path) -> None:
    latest = write_results(tmp_path / "out", FIGURES, {"machine": "a machine"})
    entries = json.loads(latest.read_text())
    assert latest.name == "latest.json"
    assert {frozenset(entry) for entry in entries} == {
        frozenset(
            {"workload", "metric", "unit", "tunnel", "prototype", "direct", "ratio"}
        )
    }
    machine = json.loads((tmp_path / "out" / "machine.json").read_text())
    assert machine == {"machine": "a machine"}
    assert {path.name for path in latest.parent.iterdir()} == {
        "latest.json",
        "machine.json",
    }
