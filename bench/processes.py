"""Every process that a run starts: its readiness, its cost, and its certain end.

Children live in process groups of their own, so that Ctrl-C reaches the harness
alone and it can stop them in order; on Linux they also die with the harness when
that is killed. Processes are ended by the handle that started them, never by name.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

__all__ = ["Process", "ProcessFailed", "Processes"]

# From SIGTERM to SIGKILL: a drain of our own programs at idle takes far less.
STOP_WITHIN_SECONDS = 3.0
# Between two looks at a log for the line that says "ready".
POLL_SECONDS = 0.02
PR_SET_PDEATHSIG = 1
# Of the end of a log that goes into an error: the last traceback line and its cause.
LOG_TAIL_BYTES = 2000

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class ProcessFailed(Exception):
    """A process ended, or said nothing in time; the text has the end of its log."""


def _die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """One child, its two logs, and what /proc says about it."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self._stdout = directory / f"{name}.out"
        self._stderr = directory / f"{name}.err"
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self._child = subprocess.Popen(
                command,
                cwd=directory,
                env=dict(environment),
                # The load programs end with their input; the others ignore it.
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.pid = self._child.pid

    def wait_for(self, pattern: str, *, within_seconds: float) -> re.Match[str]:
        """The first line of standard output that matches.

        Raises:
            ProcessFailed: It ended before, or did not say it in time.
        """
        deadline = time.monotonic() + within_seconds
        while True:
            ended = self._child.poll()
            for line in self._stdout.read_text(errors="replace").splitlines():
                if found := re.search(pattern, line):
                    return found
            if ended is not None:
                raise ProcessFailed(f"{self.name} ended with {ended}: {self.said()}")
            if time.monotonic() > deadline:
                raise ProcessFailed(
                    f"{self.name} was not ready within {within_seconds:.0f} s: {self.said()}"
                )
            time.sleep(POLL_SECONDS)

    def said(self) -> str:
        """The last line that it wrote, errors first."""
        for log in (self._stderr, self._stdout):
            lines = (
                log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").split("\n")
            )
            if written := [line.strip() for line in lines if line.strip()]:
                return written[-1]
        return "it said nothing"

    def cpu_seconds(self) -> float:
        """User and system time since it started; 0 where there is no /proc."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return 0.0
        # The name in parentheses may hold blanks: fields are counted behind it.
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Resident memory; 0 where there is no /proc."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    def kill(self) -> None:
        """End it as a crash does."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        self._child.kill()
        self._child.wait()

    def stop(self) -> None:
        """End it: input closed, SIGTERM, and SIGKILL for what does not listen."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        if self._child.poll() is None:
            self._child.terminate()
        try:
            self._child.wait(STOP_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class Processes:
    """Starts processes and stops all of them, the last first, whatever happens."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = dict(environment)
        self._running: list[Process] = []

    def start(self, name: str, command: Sequence[str], **environment: str) -> Process:
        """Start one in the directory of this run."""
        directory = self._directory / name
        directory.mkdir(parents=True, exist_ok=True)
        process = Process(
            name,
            command,
            directory=directory,
            environment={**self._environment, **environment},
        )
        self._running.append(process)
        return process

    def stop(self, process: Process) -> None:
        """Stop one before the others."""
        process.stop()
        self._running.remove(process)

    def kill(self, process: Process) -> None:
        """Kill one: it gets no chance to say goodbye to anybody."""
        process.kill()
        self._running.remove(process)

    def stop_all_but(self, kept: Process) -> None:
        """Stop all others, the last started first."""
        for process in reversed(self._running):
            if process is not kept:
                process.stop()
        self._running = [kept]

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._running:
            self._running.pop().stop()
