"""`make run`: the whole of Tower on loopback, step by step, ending with kubectl through the tunnel.

    KUBECONFIG_MEMBER=path   join that cluster, instead of one that is started for the occasion
    ONCE=1                   end after the output, with status 0 (for scripts)

Nothing is left behind: everything lies in one temporary folder, every process is ended.
"""

import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.demo.member import Member, start_member
from tests.demo.shell import Failed, Shell
from tests.demo.tables import show

CLUSTER = "alpha"


def main() -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    folder = Path(tempfile.mkdtemp(prefix="tower-demo-"))
    shell = Shell(folder, stop)
    member: Member | None = None
    try:
        member = start_member(shell)
        _tour(shell, member)
        if not os.environ.get("ONCE"):
            shell.say(
                "\nEverything stays up until Ctrl-C.",
                "In another terminal, for example:",
                "",
                f"    export KUBECONFIG={folder}/alpha.kubeconfig",
                f"    {member.kubectl or 'kubectl'} get pods -A --watch",
                f"    {_command('tower')} --socket {folder}/server/admin.sock cluster list",
            )
            stop.wait()
            shell.say("\nstopping ...")
        return 0
    except Failed as failure:
        if stop.is_set():
            return 130
        print(f"\n{failure}", file=sys.stderr)
        return 1
    finally:
        shell.close()
        if member is not None:
            member.close()
        shutil.rmtree(folder, ignore_errors=True)


def _tour(shell: Shell, member: Member) -> None:
    folder = shell.folder
    server_state, socket = folder / "server", folder / "server" / "admin.sock"

    shell.step(
        "The server, on the host: it makes its CA and waits for calls, on one port."
    )
    ready = shell.start(
        "server",
        ["tower_server", "serve", "--state-dir", str(server_state)]
        + ["--listen", "127.0.0.1:0"],
        shown="tower-server serve --listen 127.0.0.1:0",
        ready="tower-server ready on ",
    )
    shell.say(f"    {ready}")

    shell.step(
        "An admin on the host invites a cluster: a token, good once and for a day."
    )
    join = shell.tower(socket, "token", "create", CLUSTER)
    join_file = folder / "join"
    join_file.touch(mode=0o600)
    join_file.write_text(join)
    shell.say(f"    {_redacted(join.strip())}")

    shell.step(
        "The agent, in the member: it dials out, joins, and keeps its own key.",
        "Nothing can dial in to the member; the server never sees its credentials.",
    )
    ready = shell.start(
        "agent",
        ["tower_agent", "run", "--join-file", str(join_file)]
        + [
            "--state-dir",
            str(folder / "agent"),
            "--kubeconfig",
            str(member.kubeconfig),
        ],
        shown="tower-agent run --join-file join --kubeconfig member.kubeconfig",
        ready="tower-agent ready: ",
    )
    shell.say(f"    {ready}")
    shell.say(shell.tower(socket, "cluster", "list"))

    shell.step(
        "A kubeconfig for it: ordinary, short-lived, good for this cluster only."
    )
    kubeconfig = folder / "alpha.kubeconfig"
    shell.tower(socket, "kubeconfig", CLUSTER, "--out", str(kubeconfig))

    shell.step("And kubectl, through the tunnel, as if the member stood next door.")
    show(shell, kubeconfig, member)


def _command(name: str) -> str:
    installed = Path(sys.executable).with_name(name)
    return str(installed) if installed.exists() else name


def _redacted(join: str) -> str:
    """The join string without its secret, which does not belong on a screen."""
    head, _, rest = join.partition(".")
    _, _, tail = rest.partition("@")
    return f"{head}.***@{tail}"


if __name__ == "__main__":
    sys.exit(main())
