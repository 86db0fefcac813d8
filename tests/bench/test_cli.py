"""`python -m bench` as a whole: options, exit status, and a smoke run of direct rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main
from bench.site import ROOT


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_run_of_direct_rows_with_the_python_generator_leaves_its_numbers_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    out = tmp_path / "out"
    ended = bench(
        "--columns=direct",
        "--generator=python",
        "--only=raw-request-16",
        "--only=sealed-request-1",
        "--rounds=1",
        "--seconds=0.2",
        f"--out={out}",
        "--json",
    )
    assert ended.returncode == 0, ended.stderr
    printed = json.loads(ended.stdout)
    assert printed == json.loads((out / "latest.json").read_text())
    assert [(entry["workload"], entry["metric"]) for entry in printed] == [
        ("raw-request-16", "rate"),
        ("raw-request-16", "p50"),
        ("raw-request-16", "p99"),
        ("sealed-request-1", "p50"),
        ("sealed-request-1", "p99"),
    ]
    assert all(entry["direct"] > 0 and entry["tunnel"] is None for entry in printed)
    machine = json.loads((out / "machine.json").read_text())
    assert "Python generator" in machine["machine"]
    assert machine["not_measured"] == {}
    assert list(temporary.iterdir()) == []


def test_a_column_that_cannot_start_is_named_with_its_reason_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWER_PROTOTYPE", str(tmp_path))
    ended = bench(
        "--columns=prototype",
        "--generator=python",
        "--only=raw-request-1",
        "--rounds=1",
        f"--out={tmp_path / 'out'}",
    )
    assert ended.returncode == 1
    assert "not measured: prototype: no prototype in" in ended.stderr
    assert "TOWER_PROTOTYPE names another folder" in ended.stderr
    assert json.loads((tmp_path / "out" / "latest.json").read_text()) == []


def test_rows_over_a_link_need_the_relay_and_say_so(tmp_path: Path) -> None:
    ended = bench(
        "--columns=direct",
        "--generator=python",
        "--only=wan50-open-request",
        f"--out={tmp_path / 'out'}",
    )
    assert ended.returncode == 1
    assert "wan50: needs the relay of the Go generator" in ended.stderr


def test_a_pattern_that_fits_nothing_is_a_usage_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--only", "nothing-like-it"]) == 2
    assert "--list shows all" in capsys.readouterr().err


def test_the_list_names_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "sealed-connect-16" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "arguments", [["--seconds=0"], ["--seconds=600"], ["--rounds=0"], ["--columns=frp"]]
)
def test_options_outside_their_bounds_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("examples:", "--only", "--wan", "TOWER_PROTOTYPE", "exit status"):
        assert word in text
