"""Processes of a run: ready lines, what /proc says, and that none is left."""

import os
import sys
from pathlib import Path

import pytest

from bench.processes import Processes, ProcessFailed
from bench.site import clean_environment

# Says that it is ready, then ignores SIGTERM and the end of its input.
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ready on 127.0.0.1:1', flush=True); time.sleep(600)"
)
IMPATIENT = "print('ready on 127.0.0.1:1', flush=True); input()"


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_ready_line_is_found_and_leaving_stops_the_process(tmp_path: Path) -> None:
    with Processes(tmp_path, clean_environment()) as processes:
        process = processes.start("p", [sys.executable, "-c", IMPATIENT])
        found = process.wait_for(r"^ready on (\S+)", within_seconds=20)
        assert found.group(1) == "127.0.0.1:1"
        assert process.alive()
    assert not is_running(process.pid)


def test_an_error_in_the_run_stops_every_process(tmp_path: Path) -> None:
    pids = []
    with pytest.raises(KeyboardInterrupt):
        with Processes(tmp_path, clean_environment()) as processes:
            for name in ("a", "b"):
                process = processes.start(name, [sys.executable, "-c", IMPATIENT])
                pids.append(process.pid)
            raise KeyboardInterrupt
    assert [is_running(pid) for pid in pids] == [False, False]


def test_a_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.processes.STOP_WITHIN_SECONDS", 0.1)
    with Processes(tmp_path, clean_environment()) as processes:
        process = processes.start("p", [sys.executable, "-c", STUBBORN])
        process.wait_for("^ready", within_seconds=20)
    assert not is_running(process.pid)


def test_a_process_that_ends_early_says_why(tmp_path: Path) -> None:
    with Processes(tmp_path, clean_environment()) as processes:
        process = processes.start(
            "p", [sys.executable, "-c", "raise OSError('no room')"]
        )
        with pytest.raises(ProcessFailed, match="p ended with 1: OSError: no room"):
            process.wait_for("ready", within_seconds=20)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_cpu_and_memory_are_read_from_proc(tmp_path: Path) -> None:
    burn = f"sum(range(10_000_000)); {IMPATIENT}"
    with Processes(tmp_path, clean_environment()) as processes:
        process = processes.start("p (odd) name", [sys.executable, "-c", burn])
        process.wait_for("^ready", within_seconds=20)
        assert 0 < process.cpu_seconds() < 20
        assert process.resident_bytes() > 1_000_000
    assert process.cpu_seconds() == 0


def test_children_do_not_inherit_settings_of_the_person_who_runs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOWER_STATE_DIR", "/elsewhere")
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.1:3128")
    assert not {"TOWER_STATE_DIR", "HTTPS_PROXY"} & set(clean_environment())
