"""Clients that ask for bytes without end and never read one: `python -m bench.pyload stall`."""

import socket
import sys

from bench.pyload import preamble

__all__ = ["run_stall"]

CONNECT_SECONDS = 20.0


def run_stall(address: str, workers: int, receive_buffer: int) -> None:
    """Open so many, say so, and hold them until standard input ends."""
    host, _, port = address.rpartition(":")
    held = []
    for _ in range(workers):
        near = socket.socket()
        # Before the connection is made, or the window is larger from the beginning.
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        near.settimeout(CONNECT_SECONDS)
        near.connect((host, int(port)))
        near.sendall(preamble.encode(preamble.DOWNLOAD))
        held.append(near)
    print(f"stalled {len(held)}", flush=True)
    sys.stdin.read()
    for near in held:
        near.close()
