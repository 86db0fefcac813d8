"""`python -m bench.pyload upstream|client|stall`: flags as the Go program has them, but for `stall`."""

import argparse
import asyncio
import json
import sys
from collections.abc import Coroutine
from typing import Any

from bench.pyload.client import Options, run_client
from bench.pyload.stall import run_stall
from bench.pyload.upstream import run_upstream


def main() -> None:
    """Parse the flags and run one command to its end."""
    parser = argparse.ArgumentParser(prog="python -m bench.pyload")
    commands = parser.add_subparsers(dest="command", required=True)
    upstream = commands.add_parser("upstream")
    for flag in ("-cert", "-key", "-uid"):
        upstream.add_argument(flag, required=True)
    upstream.add_argument("-send-buffer", type=int, default=0)
    client = commands.add_parser("client")
    for flag in ("-workload", "-address"):
        client.add_argument(flag, required=True)
    for flag, default in (
        ("-workers", 1),
        ("-request-bytes", 1024),
        ("-response-bytes", 8192),
    ):
        client.add_argument(flag, type=int, default=default)
    for flag, seconds in (("-warmup", 0.4), ("-seconds", 1.5)):
        client.add_argument(flag, type=float, default=seconds)
    for flag in ("-ca", "-cert", "-key", "-server-name", "-path"):
        client.add_argument(flag, default="")
    stall = commands.add_parser("stall")
    stall.add_argument("-address", required=True)
    for flag in ("-workers", "-receive-buffer"):
        stall.add_argument(flag, type=int, required=True)
    values = vars(parser.parse_args())
    command = values.pop("command")
    if command == "upstream":
        _run(run_upstream(*(values[k] for k in ("cert", "key", "uid", "send_buffer"))))
        return
    if command == "stall":
        run_stall(**values)
        return
    try:
        _run(run_client(Options(**values)))
    except Exception as error:
        # Whatever went wrong goes to the harness in the report, as in the Go program.
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


def _run(work: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(work)
        return
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()
