"""A TCP relay on loopback that cuts, freezes and tears a link in the middle of a frame.

It stands between two real processes (agent and server, say) and is driven from the test:
`freeze` makes packets vanish without a FIN or RST, as a dead NAT entry does; `cut` ends
every connection with a RST; `cut_after` tears a connection after so many more bytes;
`refuse` closes the port. The relay lives on an event loop in a thread of its own, so that
plain and asynchronous tests use it in the same way and a busy test cannot slow the link.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

__all__ = ["FaultyRelay"]

# One read of the relay. Large, so that bulk tests measure the product and not this fake.
CHUNK_BYTES = 256 * 1024

# No command of a test takes longer than a few loop turns; this only names a dead relay.
COMMAND_TIMEOUT_SECONDS = 10.0

# l_onoff=1, l_linger=0: close() sends RST and throws away what is unsent.
LINGER_RESET = struct.pack("ii", 1, 0)


class FaultyRelay:
    """Relays connections on a loopback port to `target`; use as a context manager.

    The port stays the same for the relay's life, also over `refuse` and `accept`.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        # Where new connections go; may be changed between connections.
        self.target = target
        # Our own end, known after entering.
        self.host = "127.0.0.1"
        self.port = 0
        # Counted from the start: connections accepted and bytes relayed, both ways.
        self.connections_accepted = 0
        self.bytes_relayed = 0
        # None, or how many more bytes pass before every connection is torn.
        self._bytes_left: int | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="faulty-relay")
        self._server: asyncio.Server | None = None
        # Set while bytes may pass. A frozen relay still accepts: the kernel of a
        # machine behind a broken path would not, but the dialler's TLS stalls alike.
        self._flowing = asyncio.Event()
        # Both sockets of each live connection.
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """HOST:PORT to dial instead of the target."""
        return f"{self.host}:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections are being relayed now."""
        return len(self._writers) // 2

    def __enter__(self) -> Self:
        self._thread.start()
        self._flowing.set()
        self.accept()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._call(self._shut_down)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def freeze(self) -> None:
        """Let nothing pass any more, in either direction, and say nothing to anybody."""
        self._do(self._flowing.clear)

    def thaw(self) -> None:
        """Let bytes pass again, those first that were held back."""
        self._do(self._flowing.set)

    def cut(self) -> None:
        """End every connection with a RST. New ones are accepted."""
        self._do(self._cut)

    def cut_after(self, byte_count: int) -> None:
        """Tear every connection after `byte_count` more bytes: in the middle of a frame."""

        def arm() -> None:
            self._bytes_left = byte_count

        self._do(arm)

    def refuse(self) -> None:
        """Close the port and every connection, as a stopped server does."""
        self._call(self._refuse)

    def accept(self) -> None:
        """Open the port (again)."""
        self._call(self._accept)

    # What follows runs on the relay's own loop.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _call(self, command: Callable[[], Coroutine[Any, Any, None]]) -> None:
        future = asyncio.run_coroutine_threadsafe(command(), self._loop)
        future.result(COMMAND_TIMEOUT_SECONDS)

    def _do(self, action: Callable[[], None]) -> None:
        async def command() -> None:
            action()

        self._call(command)

    async def _accept(self) -> None:
        self._server = await asyncio.start_server(
            self._relay, self.host, self.port, limit=CHUNK_BYTES
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._cut()

    async def _shut_down(self) -> None:
        await self._refuse()
        self._flowing.set()
        own = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not own]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _cut(self) -> None:
        for writer in self._writers:
            # The transport may have closed its socket already.
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET
                )
            writer.transport.abort()
        self._bytes_left = None

    async def _relay(
        self, near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter
    ) -> None:
        self.connections_accepted += 1
        writers = {near_writer}
        try:
            far_reader, far_writer = await asyncio.open_connection(
                *self.target, limit=CHUNK_BYTES
            )
            writers.add(far_writer)
            self._writers |= writers
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(near_reader, far_writer))
                pumps.create_task(self._pump(far_reader, near_writer))
            for writer in writers:
                writer.close()  # after what is still in its buffer
                await writer.wait_closed()
        # A refused target and a connection that was cut both end the other side. We are
        # cancelled only at the end, when asyncio's streams (3.11) take that for an error.
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            self._writers -= writers
            for writer in writers:
                writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._flowing.wait()
            if self._bytes_left is not None:
                data, torn = data[: self._bytes_left], len(data) >= self._bytes_left
                self._bytes_left -= len(data)
                if torn:
                    writer.write(data)
                    await asyncio.sleep(0)
                    self._cut()
                    return
            self.bytes_relayed += len(data)
            writer.write(data)
            await writer.drain()
        # EOF is news like any other: a frozen link does not deliver it.
        await self._flowing.wait()
        with contextlib.suppress(OSError):
            writer.write_eof()
