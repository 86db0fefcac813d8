"""The processes of one control plane, by name: start, signal, kill. The work is done by `supervisor.py`."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["ProcessFailed", "Processes"]

# A supervisor answers at once, except for a kill with patience, which brings its own.
CLOSE_TIMEOUT_SECONDS = 10.0
# How much of a log goes into an error: enough for the reason, short enough to read.
LOG_TAIL_LINES = 12


class ProcessFailed(Exception):
    """A process could not be started, or ended when it should not."""


class Processes:
    """Named processes in a folder, logs in DIRECTORY/log. Usable from any thread.

    Everything ends with `close`, and also when the process that made this object dies.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log_directory = directory / "log"
        self.log_directory.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()  # one request and its answer at a time
        self._supervisor = subprocess.Popen(
            # -I -S: no site packages, no environment; starts in 20 ms.
            [
                sys.executable,
                "-I",
                "-S",
                str(Path(__file__).with_name("supervisor.py")),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal is for the test process
        )

    def start(self, name: str, argv: list[str]) -> int:
        """Start a process and return its pid. Raises ProcessFailed if it runs already."""
        log, cwd = str(self.log_path(name)), str(self.directory)
        return int(self._ask("start", name, argv=argv, log=log, cwd=cwd)["pid"])

    def pid(self, name: str) -> int:
        """The pid that was started last under this name, whether or not it still runs."""
        return int(self._ask("status", name)["pid"])

    def running(self, name: str) -> bool:
        """Whether the process is there. Raises ProcessFailed if it was never started."""
        return self._ask("status", name)["exit"] is None

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal, for example SIGSTOP to freeze a process. Nothing happens if it has ended."""
        self._ask("signal", name, signal=number)

    def kill(
        self,
        name: str,
        number: signal.Signals = signal.SIGKILL,
        patience_seconds: float = 10.0,
    ) -> None:
        """End a process and wait for its end; SIGKILL follows when the patience is used up."""
        self._ask("kill", name, signal=number, patience_seconds=patience_seconds)

    def check(self, name: str) -> None:
        """Raise ProcessFailed, with the end of the log, if the process has ended."""
        if not self.running(name):
            lines = self.log_path(name).read_text(errors="replace").splitlines()
            tail = "\n  ".join(lines[-LOG_TAIL_LINES:])
            raise ProcessFailed(
                f"{name} ended; the end of {self.log_path(name)}:\n  {tail}"
            )

    def log_path(self, name: str) -> Path:
        return self.log_directory / f"{name}.log"

    def close(self) -> None:
        """Kill all processes (SIGKILL) and wait until they are gone. Twice does no harm."""
        with self._lock:
            for pipe in (self._supervisor.stdin, self._supervisor.stdout):
                if pipe is not None:
                    pipe.close()
            try:
                self._supervisor.wait(CLOSE_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()
                self._supervisor.wait()

    def _ask(self, do: str, name: str, **fields: Any) -> dict[str, Any]:
        pipe_in, pipe_out = self._supervisor.stdin, self._supervisor.stdout
        assert pipe_in is not None and pipe_out is not None
        with self._lock:
            try:
                pipe_in.write(json.dumps({"do": do, "name": name, **fields}) + "\n")
                pipe_in.flush()
                line = pipe_out.readline()
            except (OSError, ValueError) as error:
                raise ProcessFailed("the control plane has been stopped") from error
        answer: dict[str, Any] = (
            json.loads(line) if line else {"error": "its supervisor is gone"}
        )
        if "error" in answer:
            raise ProcessFailed(f"{do} {name}: {answer['error']}")
        return answer
