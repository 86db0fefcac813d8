"""How programs run: signals stop them cleanly, errors become one line and an exit status."""

import asyncio
import errno
import signal
import subprocess
import sys
import textwrap

import pytest

from shared.program import ProgramFailed, run_program
from shared.settings import SettingsError

SCRIPT = """
    import asyncio, sys
    from shared.program import run_program

    async def main():
        try:
            print("started", flush=True)
            await asyncio.Event().wait()
        finally:
            print("cleaned up", flush=True)
            {cleanup}

    sys.exit(run_program(main))
"""


def start(cleanup: str = "pass") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).format(cleanup=cleanup)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_program_clean_up_and_is_a_success(
    signum: signal.Signals,
) -> None:
    process = start()
    process.send_signal(signum)
    output, _ = process.communicate(timeout=20)
    assert (output, process.returncode) == ("cleaned up\n", 0)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_a_second_signal_ends_a_program_that_does_not_stop(
    signum: signal.Signals, status: int
) -> None:
    process = start(cleanup="await asyncio.sleep(3600)")
    process.send_signal(signum)
    assert process.stdout is not None and process.stdout.readline() == "cleaned up\n"
    process.send_signal(signum)
    process.communicate(timeout=20)
    assert process.returncode == status


def run_failing(error: Exception) -> int:
    async def main() -> None:
        raise error

    return run_program(main)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ProgramFailed("Do this."), 1, "Error: Do this.\n"),
        (ProgramFailed("No.", exit_code=5), 5, "Error: No.\n"),
        (SettingsError("--listen is wrong."), 2, "Error: --listen is wrong.\n"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 1, "choose another port"),
        (PermissionError(errno.EACCES, "Permission denied", "/s"), 1, "(/s)"),
        (ExceptionGroup("tasks", [ProgramFailed("Do this.")]), 1, "Error: Do this.\n"),
    ],
)
def test_expected_errors_are_one_line_on_stderr(
    capsys: pytest.CaptureFixture[str], error: Exception, status: int, text: str
) -> None:
    assert run_failing(error) == status
    output = capsys.readouterr()
    assert text in output.err and output.err.count("\n") == 1 and output.out == ""


def test_the_caller_can_name_more_expected_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def main() -> None:
        raise LookupError("not there")

    assert (
        run_program(main, lambda error: 3 if isinstance(error, LookupError) else None)
        == 3
    )
    assert capsys.readouterr().err == "Error: not there\n"


def test_an_error_that_nobody_foresaw_is_logged_with_its_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert run_failing(ZeroDivisionError("surprise")) == 1
    assert "ZeroDivisionError: surprise" in caplog.text


def test_a_cancellation_that_is_no_signal_is_not_taken_for_one() -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        run_program(main)


def test_a_program_that_ends_by_itself_is_a_success() -> None:
    async def main() -> None:
        pass

    assert run_program(main) == 0


def test_it_runs_on_uvloop_where_that_is_installed() -> None:
    uvloop = pytest.importorskip("uvloop")
    loops = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())

    run_program(main)
    assert isinstance(loops[0], uvloop.Loop)
