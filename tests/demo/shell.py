"""Steps on the screen, and the processes behind them: started, watched, ended by their pids."""

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

__all__ = ["Failed", "Shell"]

# A process that is not ready by then will not be; the slowest needs 3 s.
READY_SECONDS = 30.0
COMMAND_SECONDS = 60.0
STOP_SECONDS = 5.0


class Failed(Exception):
    """The demo cannot go on; the message says why and where to look."""


class Shell:
    """Says what happens, and runs it."""

    def __init__(self, folder: Path, stop: threading.Event) -> None:
        self.folder = folder
        self._stop = stop
        self._steps = 0
        self._processes: list[tuple[str, subprocess.Popen[str]]] = []
        # Our own processes see neither the user's kubeconfig nor a proxy: all is on loopback.
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy")
            and not name.startswith("TOWER_")
            and name != "KUBECONFIG"
        } | {"HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
        (folder / "home").mkdir()

    def say(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)

    def step(self, *lines: str) -> None:
        """Announce the next step: what happens and what it means."""
        if self._stop.is_set():
            raise Failed("stopped")
        self._steps += 1
        first, *more = lines
        self.say(f"\n{self._steps}. {first}", *(f"   {line}" for line in more))

    def start(self, name: str, module: list[str], *, shown: str, ready: str) -> str:
        """Start one of our programs and wait for its ready line, which is returned."""
        self.say(f"    $ {shown}")
        log = self.folder / f"{name}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                env=self.environ,
                stdin=subprocess.PIPE,  # closes when we die: see --with-parent
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for us; we end it in order
            )
        self._processes.append((name, process))
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(
            target=_pump, args=(process.stdout, lines), name=name, daemon=True
        ).start()
        while True:
            try:
                line = lines.get(timeout=READY_SECONDS)
            except queue.Empty:
                line = None
            if line is None:
                text = log.read_text().strip().splitlines()
                raise Failed(f"{name} did not get ready:\n" + "\n".join(text[-8:]))
            if line.startswith(ready):
                return line.strip()

    def tower(self, socket: Path, *arguments: str) -> str:
        """Run the admin's command and return what it prints."""
        self.say(f"    $ tower {' '.join(_short(a) for a in arguments)}")
        return self.run(
            [sys.executable, "-m", "tower_server.admin_cli", "--socket", str(socket)]
            + list(arguments)
        )

    def run(self, command: list[str], **environ: str) -> str:
        """Run a command to its end; its output, errors too, on failure.

        Raises:
            Failed: With the output, when its status is not 0.
        """
        try:
            result = subprocess.run(
                command,
                env=self.environ | environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{command[0]} took over {COMMAND_SECONDS:.0f} s") from None
        if result.returncode != 0:
            raise Failed(
                f"{' '.join(_short(c) for c in command)}\n{result.stdout}{result.stderr}"
            )
        return result.stdout

    def close(self) -> None:
        """End every process, the newest first."""
        for _name, process in reversed(self._processes):
            process.terminate()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _pump(stream: object, lines: "queue.Queue[str | None]") -> None:
    assert hasattr(stream, "__iter__")
    for line in stream:
        lines.put(line)
    lines.put(None)


def _short(argument: str) -> str:
    """A path without the temporary folder, for people."""
    return Path(argument).name if argument.startswith("/") else argument
