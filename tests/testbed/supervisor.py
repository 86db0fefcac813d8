"""Runs the processes of one control plane, and ends them when its own starter is gone.

A program of its own (stdlib only), started by `processes.py` with a pipe as its stdin and
one as its stdout: a request a line, an answer a line, both JSON.

Why not start the processes from the test process itself? Nothing may be left behind, also
when that one is killed. Linux can signal a child when its parent dies (PR_SET_PDEATHSIG),
but "parent" is the *thread* that forked: a control plane that was started from a worker
thread would die with that thread. Here one thread does everything, so that the signal means
what it says. Three nets, each under the one before:

1. The starter ends in any way: the kernel closes its end of the pipe, we read EOF and kill all.
2. We are killed: the kernel kills our children (PR_SET_PDEATHSIG).
3. A child leaves children of its own: they become ours (PR_SET_CHILD_SUBREAPER), and are killed with the rest.

We are also the only one to reap, so that a recorded pid is never somebody else's.
Off Linux only the first net is there.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def main() -> None:
    # Ctrl-C is the starter's business: it stops us in its own order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if _libc is not None:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = _answer(children, request)
            except OSError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    finally:
        for child in children.values():
            _kill(child, signal.SIGKILL)
        _kill_orphans()


def _answer(
    children: dict[str, subprocess.Popen[bytes]], request: dict[str, Any]
) -> dict[str, Any]:
    """Carry out one request; see `processes.Processes` for what each means."""
    child = children.get(request["name"])
    match request["do"]:
        case "start":
            if child is not None and child.poll() is None:
                return {"error": f"{request['name']} runs already"}
            child = children[request["name"]] = _start(request)
            return {"pid": child.pid}
        case "status" if child is not None:
            return {"pid": child.pid, "exit": child.poll()}
        case "signal" if child is not None:
            child.send_signal(
                request["signal"]
            )  # no-op for a child that has been reaped
            return {"pid": child.pid}
        case "kill" if child is not None:
            _kill(child, request["signal"], request["patience_seconds"])
            return {"pid": child.pid, "exit": child.returncode}
        case _:
            return {"error": f"{request['name']} was never started"}


def _start(request: dict[str, Any]) -> subprocess.Popen[bytes]:
    # Appended to: a restart keeps the log of the run before.
    with Path(request["log"]).open("ab") as log:
        return subprocess.Popen(
            request["argv"],
            cwd=request["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    """Between fork and exec. Safe here, since this program has one thread."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _kill(
    child: subprocess.Popen[bytes], number: int, patience_seconds: float = 0
) -> None:
    """Send a signal and reap; SIGKILL follows when the patience is used up."""
    child.send_signal(number)
    try:
        child.wait(timeout=patience_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _kill_orphans() -> None:
    """Kill what our children left behind, until nothing is ours any more."""
    while True:
        try:
            listing = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        except OSError:
            return  # not Linux, or a kernel without this file
        pids = [int(pid) for pid in listing.split()]
        if not pids:
            return
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
