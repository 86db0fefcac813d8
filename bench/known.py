"""A TCP server with bytes that everybody knows, and clients that check each of them.

What happens to a stream while its tunnel is cut can only be told where every byte is known: one
mode echoes, the other sends a block of prime length again and again, so that any piece of it
tells its place.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

__all__ = [
    "BULK",
    "CHUNK_BYTES",
    "ECHO",
    "Tally",
    "bulk_bytes",
    "download",
    "echo",
    "serve",
]

# The first byte of a connection says which.
ECHO, BULK = b"E", b"B"
CHUNK_BYTES = 64 * 1024
MESSAGE_BYTES = 1024
# Between two messages of one echo, as a person or a poll has them.
PAUSE_SECONDS = 0.02

_BLOCK = random.Random(3).randbytes(65_521)


@dataclass
class Tally:
    """What the clients saw, all together."""

    # Streams that ended before we ended them, and those that had a byte which is not the next.
    broken: int = 0
    wrong: int = 0
    messages: int = 0
    bytes: int = 0
    # How long each message took, in seconds.
    waits: list[float] = field(default_factory=list)
    # Why streams broke, for the report of a failure.
    reasons: list[str] = field(default_factory=list)


def bulk_bytes(offset: int, count: int) -> bytes:
    """What lies at this place of the bulk."""
    start = offset % len(_BLOCK)
    needed = start + count
    return (_BLOCK * (needed // len(_BLOCK) + 1))[start:needed]


@asynccontextmanager
async def serve() -> AsyncIterator[int]:
    """Serve on a loopback port, which is yielded."""
    server = await asyncio.start_server(_serve_one, "127.0.0.1", 0, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _serve_one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        if await reader.readexactly(1) == ECHO:
            while data := await reader.read(CHUNK_BYTES):
                writer.write(data)
                await writer.drain()
        else:
            offset = 0
            while True:
                writer.write(bulk_bytes(offset, CHUNK_BYTES))
                offset += CHUNK_BYTES
                await writer.drain()
    # A client that has what it wanted. We are cancelled only at the end, when asyncio's
    # streams (3.11) take that for an error.
    except (OSError, EOFError, asyncio.CancelledError):
        pass
    finally:
        writer.transport.abort()


async def echo(port: int, until: asyncio.Event, tally: Tally) -> None:
    """One stream that sends a message, waits for it, and sends the next, until told to stop."""
    number = 0
    async with _stream(port, ECHO, tally) as (reader, writer):
        while not until.is_set():
            number += 1
            sent = random.Random(f"{port} {number}").randbytes(MESSAGE_BYTES)
            began = time.monotonic()
            writer.write(sent)
            back = await reader.readexactly(len(sent))
            tally.waits.append(time.monotonic() - began)
            tally.messages += 1
            if back != sent:
                tally.wrong += 1
                return
            await asyncio.sleep(PAUSE_SECONDS)


async def download(
    port: int, until: asyncio.Event, tally: Tally, rest_seconds: float
) -> None:
    """One stream of bulk, with a rest after each piece."""
    offset = 0
    async with _stream(port, BULK, tally) as (reader, _):
        while not until.is_set():
            data = await reader.read(CHUNK_BYTES)
            if not data:
                raise EOFError("the bulk ended")
            if data != bulk_bytes(offset, len(data)):
                tally.wrong += 1
                return
            offset += len(data)
            tally.bytes += len(data)
            await asyncio.sleep(rest_seconds)


@asynccontextmanager
async def _stream(
    port: int, mode: bytes, tally: Tally
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(mode)
        yield reader, writer
    except (OSError, EOFError) as error:
        tally.broken += 1
        tally.reasons.append(repr(error))
    finally:
        writer.transport.abort()
