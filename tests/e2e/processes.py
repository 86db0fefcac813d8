"""A process of ours under test: started, heard, killed with -9 and started again.

Its stdout is read line by line (that is where programs say that they are ready), its stderr
goes to a log file that a failing test shows. Only the pid that was started is ever signalled.
"""

import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["NotReady", "Process"]

# A Python program's imports on two busy cores take about 2 s; more than this is a hang.
READY_TIMEOUT_SECONDS = 30.0

# A program that was asked to stop drains and says GOAWAY; then it is killed.
STOP_TIMEOUT_SECONDS = 10.0

LOG_TAIL_CHARACTERS = 4000


class NotReady(AssertionError):
    """The process ended or stayed silent; the message holds the end of its log."""


class Process:
    """One program with its arguments, which can be started more than once."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.environment = dict(environment)
        # Both outputs, over all starts.
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        # Lines of the present start's stdout that nobody waited for yet.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the present start."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the program; it must not be running."""
        assert not self.running, f"{self.name} is running already"
        self._join_reader()
        self._lines = queue.SimpleQueue()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C in the terminal is for pytest, which then stops us in order.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout, self._lines)
        )
        self._reader.start()

    def wait_for_line(
        self, containing: str, timeout: float = READY_TIMEOUT_SECONDS
    ) -> str:
        """The next line of stdout that contains this text.

        Raises:
            NotReady: If it does not come in time, or the program ends first.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise NotReady(self._failure(f"did not say {containing!r}")) from None
            if line is None:
                raise NotReady(self._failure(f"ended before it said {containing!r}"))
            if containing in line:
                return line

    def wait(self, timeout: float) -> int:
        """The exit code, once the program has ended by itself."""
        assert self._process is not None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                self._failure(f"still runs after {timeout} s")
            ) from None

    def send_signal(self, number: signal.Signals) -> None:
        """Only that; `wait` tells what became of it."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, as a machine that loses power: nothing is said to anybody."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask the program to end (SIGTERM), kill it if it does not; no-op if it is gone."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._join_reader()

    def log_tail(self) -> str:
        """The end of what it wrote, for the message of a failure."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- {self.name}\n{text[-LOG_TAIL_CHARACTERS:]}"

    def _failure(self, what: str) -> str:
        code = None if self._process is None else self._process.poll()
        return f"{self.name} (exit {code}) {what}\n{self.log_tail()}"

    def _read(self, stream: IO[bytes], lines: "queue.SimpleQueue[str | None]") -> None:
        with stream, self.log.open("ab") as log:
            for line in stream:
                log.write(line)
                log.flush()
                lines.put(line.decode(errors="replace").rstrip())
        lines.put(None)

    def _join_reader(self) -> None:
        if self._reader is not None:
            self._reader.join()
            self._reader = None
