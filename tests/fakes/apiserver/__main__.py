"""`python -m tests.fakes.apiserver --dir DIR [--port 0] [--name alpha]`: the demo apiserver as a program.

Writes DIR/admin.kubeconfig (and agent.kubeconfig, alice.kubeconfig, …), prints `ready URL` when
it listens, and ends with SIGINT, SIGTERM, or with its parent if --with-parent is given and stdin closes.
"""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from tests.fakes.apiserver.server import DemoApiserver


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fakes.apiserver", description=__doc__
    )
    parser.add_argument(
        "--dir",
        type=Path,
        required=True,
        help="where keys, kubeconfigs and pod folders go",
    )
    parser.add_argument(
        "--port", type=int, default=0, help="on 127.0.0.1; 0: any free one"
    )
    parser.add_argument(
        "--name",
        default="alpha",
        help="of the cluster, in its kubeconfigs and node names",
    )
    parser.add_argument(
        "--with-parent", action="store_true", help="end when stdin reaches its end"
    )
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments))
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    if arguments.with_parent:
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        loop.create_task(_until_end(reader, ended), name="parent")  # noqa: RUF006
    async with DemoApiserver(
        arguments.name, arguments.dir, port=arguments.port
    ) as server:
        print(f"ready {server.url}", flush=True)
        await ended.wait()


async def _until_end(reader: asyncio.StreamReader, ended: asyncio.Event) -> None:
    await reader.read()
    ended.set()


if __name__ == "__main__":
    sys.exit(main())
