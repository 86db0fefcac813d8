"""`python -m tests.testbed build | up NAME | down NAME | path`: the test bed by hand."""

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.testbed import binary
from tests.testbed.controlplane import ControlPlane, ControlPlaneFailed

# `down` waits this long for the holder to end everything; killing takes well under a second.
DOWN_TIMEOUT_SECONDS = 15.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.testbed", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build", help="build the control plane's binary and helm, if they are not there"
    )
    build.add_argument(
        "--if-possible",
        action="store_true",
        help="where it cannot be built, say why in one line; status 0, but 1 if CI is set",
    )
    commands.add_parser(
        "path", help="print where the binary is; status 1 if it is not built"
    )
    up = commands.add_parser(
        "up", help="start a control plane and print its kubeconfig"
    )
    down = commands.add_parser(
        "down", help="stop it; its files stay until the next `up`"
    )
    hold = commands.add_parser("hold", help="like up, but stay in front until Ctrl-C")
    for command in (up, down, hold):
        command.add_argument("name")
        command.add_argument(
            "--dir", type=Path, help="its folder (default: in the test bed's cache)"
        )
    for command in (up, hold):
        command.add_argument("--nodes", type=int, default=1)
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except (binary.BuildFailed, ControlPlaneFailed) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "build":
        for program in (binary.KUBELAB, binary.HELM):
            if arguments.if_possible and (reason := program.missing()):
                print(f"testbed: the e2e tests do not run: {reason}", file=sys.stderr)
                return 1 if os.environ.get("CI") else 0
            print(program.build(lambda line: print(line, file=sys.stderr, flush=True)))
        return 0
    if arguments.command == "path":
        path = binary.KUBELAB.path()
        print(path)
        return 0 if path.exists() else 1
    directory: Path = arguments.dir or binary.cache_directory() / "run" / arguments.name
    if arguments.command == "up":
        return _up(arguments.name, directory, arguments.nodes)
    if arguments.command == "hold":
        return _hold(arguments.name, directory, arguments.nodes)
    return _down(directory)


def _up(name: str, directory: Path, nodes: int) -> int:
    """Start a holder in the background; it lives until `down`."""
    arguments = ["hold", name, "--dir", str(directory), "--nodes", str(nodes)]
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.testbed", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout is not None
    line = holder.stdout.readline()  # the kubeconfig, or the end of a failed start
    if not line:
        return holder.wait()
    print(line, end="")
    return 0


def _hold(name: str, directory: Path, nodes: int) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with ControlPlane(name, directory, nodes=nodes) as control_plane:
            print(control_plane.kubeconfig, flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0


def _down(directory: Path) -> int:
    """End the holder: the lock says whether it is there, and its pid cannot be another's while it is held."""
    try:
        lock = os.open(directory / "lock", os.O_RDWR)
    except FileNotFoundError:
        raise ControlPlaneFailed(f"no control plane in {directory}") from None
    deadline = time.monotonic() + DOWN_TIMEOUT_SECONDS
    pid = int(os.pread(lock, 20, 0) or 0)
    asked = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                raise ControlPlaneFailed(f"process {pid} does not end") from None
            if pid and not asked:
                os.kill(pid, signal.SIGTERM)
                asked = True
            time.sleep(0.05)
        else:
            os.close(lock)
            return 0


if __name__ == "__main__":
    sys.exit(main())
