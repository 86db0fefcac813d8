"""The soak's mixed load: what people and programs do at once, each checking every byte it gets.

Each kind of work is a coroutine that does one round of it and raises where something is wrong.
A wrong byte is never excused. A broken connection is, when the agent was killed meanwhile; and for
connections that were only being made, when the link was frozen: a stranger is not held for long.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self

from bench import known
from tests.e2e.kubectl import Kubectl
from tests.e2e.raw_client import Access, RawClient

__all__ = ["Load", "Weather"]

# Longer than any freeze and the resume after it.
ROUND_TIMEOUT_SECONDS = 40.0

# Between two looks of a loop that has nothing to do.
PAUSE_SECONDS = 0.2

STALLED_BUFFER_BYTES = 64 * 1024

# Rounds that several are through in a minute, on a busy machine and with all that happens.
REQUESTS_A_ROUND = 40
DOWNLOAD_BYTES = 10_000_000

# The largest answer that an apiserver gives by itself.
BIG_PATH = "/openapi/v2"
COUNTER_PATH = "/api/v1/namespaces/default/configmaps/soak"


class Weather:
    """What has been done to the link: when work may fail. Used from two threads, single writer."""

    def __init__(self) -> None:
        # Spans of time (monotonic) in which established streams may end: the agent is killed.
        self.outages: list[tuple[float, float]] = []
        # ... in which connections that are being made may fail: the link is frozen.
        self.freezes: list[tuple[float, float]] = []
        # ... in which those of the raw face may: the agent is away for a moment. The sealed face
        # holds new connections for so long.
        self.cuts: list[tuple[float, float]] = []

    def excuses(self, this: "Round") -> bool:
        """Whether a round that failed now had a reason to."""
        spans = list(self.outages)
        if this.is_new:
            spans += self.freezes
            if this.is_raw:
                spans += self.cuts
        now = time.monotonic()
        return any(begin <= now and this.start <= end for begin, end in spans)


class Round:
    """One round of some work."""

    def __init__(self, *, is_raw: bool) -> None:
        self.start = time.monotonic()
        self.is_raw = is_raw
        # Its connection is only being made; work unsets it when that has come through.
        self.is_new = True


class Broken(Exception):
    """A round found something wrong that nothing excuses."""


Work = Callable[[Round], Awaitable[None]]


class Load:
    """All kinds of work at once, on an event loop of its own; use as a context manager."""

    # The sealed face.
    access: Access

    def __init__(self, weather: Weather, kubectl: Kubectl) -> None:
        self._weather = weather
        # `access` and this are set to the way through the tunnel before `start`.
        self.kubectl = kubectl
        # Of the raw face, on the server's side; set before `start`.
        self.raw_port = 0
        # Where the raw face leads to, known after entering.
        self.target_port = 0
        # Rounds done, rounds that failed with an excuse, and failures without one.
        self.done: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.failures: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="load")
        self._ends = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        # The names of all kinds of work.
        self.kinds: list[str] = []
        # Of the big answer, once it is known.
        self._big_digest = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self.target_port = self._call(self._ends.enter_async_context(known.serve()))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self._call(self._ends.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Begin with everything."""
        self._call(self._start())

    def stop(self) -> None:
        """End everything; all connections are closed."""
        self._call(self._stop())

    def _call(self, work: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await work

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        return future.result(2 * ROUND_TIMEOUT_SECONDS)

    async def _start(self) -> None:
        # How many at once.
        kinds: list[tuple[str, int, Work]] = [
            ("requests", 4, self._requests),
            ("new connections", 2, self._new_connection),
            ("big answers", 1, self._big_answer),
            ("slow readers", 2, self._slow_reader),
            ("leavers", 2, self._leaver),
            ("watches", 5, self._watch),
            ("exec", 1, self._exec),
            ("raw echoes", 4, self._raw_echo),
            ("raw connections", 2, self._raw_connection),
            ("raw downloads", 1, self._raw_download),
            ("raw slow readers", 2, self._raw_slow_reader),
        ]
        self.kinds = [name for name, *_ in kinds]
        self._tasks = [
            self._loop.create_task(self._repeat(name, work))
            for name, count, work in kinds
            for _ in range(count)
        ]

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _repeat(self, name: str, work: Work) -> None:
        while True:
            this = Round(is_raw=name.startswith("raw"))
            try:
                async with asyncio.timeout(ROUND_TIMEOUT_SECONDS):
                    await work(this)
                self.done[name] += 1
            except (OSError, EOFError) as error:
                if self._weather.excuses(this):
                    self.excused[name] += 1
                else:
                    self._fail(name, this, error)
            # A wrong byte, a wrong status: nothing excuses it.
            except Exception as error:
                self._fail(name, this, error)
            await asyncio.sleep(PAUSE_SECONDS)

    def _fail(self, name: str, this: Round, error: Exception) -> None:
        lasted = time.monotonic() - this.start
        self.failures.append(f"{name}, after {lasted:.1f} s: {error!r}")

    # The sealed face

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            raise Broken(what)

    async def _get(self, client: RawClient, path: str) -> bytes:
        answer = await client.request("GET", path)
        if answer.status in (502, 503):
            # The agent is away, or was just now: as good as a broken connection.
            raise ConnectionError(f"status {answer.status}")
        self._expect(answer.status == 200, f"{path}: status {answer.status}")
        return answer.body

    async def _requests(self, this: Round) -> None:
        """Requests on one connection that is kept."""
        async with RawClient(self.access) as client:
            for _ in range(REQUESTS_A_ROUND):
                body = await self._get(client, "/api/v1/namespaces/default")
                this.is_new = False
                self._expect(json.loads(body)["metadata"]["name"] == "default", "name")
                await asyncio.sleep(PAUSE_SECONDS / 4)

    async def _new_connection(self, this: Round) -> None:
        async with RawClient(self.access) as client:
            await self._get(client, "/version")

    async def _big_answer(self, this: Round) -> None:
        async with RawClient(self.access) as client:
            self._check_big(await self._get(client, BIG_PATH))

    def _check_big(self, body: bytes) -> None:
        digest = hashlib.sha256(body).hexdigest()
        self._big_digest = self._big_digest or digest
        self._expect(digest == self._big_digest, f"{len(body)} other bytes")

    @contextlib.asynccontextmanager
    async def _asking(self, client: RawClient) -> AsyncIterator[asyncio.Task[bytes]]:
        """A big request under way, which ends with the context."""
        client.receive_buffer(STALLED_BUFFER_BYTES)
        request = asyncio.create_task(self._get(client, BIG_PATH))
        try:
            yield request
        finally:
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

    async def _slow_reader(self, this: Round) -> None:
        """Asks for much, reads nothing for seconds, and then wants all of it."""
        async with RawClient(self.access) as client, self._asking(client) as request:
            await asyncio.sleep(PAUSE_SECONDS)
            client.pause_reading()
            await asyncio.sleep(random.uniform(1, 4))
            client.resume_reading()
            self._check_big(await request)

    async def _leaver(self, this: Round) -> None:
        """Asks for much, reads nothing, and leaves."""
        async with RawClient(self.access) as client, self._asking(client):
            client.pause_reading()
            await asyncio.sleep(random.uniform(0, 3))

    async def _watch(self, this: Round) -> None:
        """Sees a counter's every value, one after the other."""
        query = "watch=1&fieldSelector=metadata.name%3Dsoak&timeoutSeconds=8"
        path = f"{COUNTER_PATH.rpartition('/')[0]}?{query}"
        async with RawClient(self.access) as client:
            last = None
            async for line in client.lines(path):
                event = json.loads(line)
                this.is_new = False
                self._expect(event["type"] in ("ADDED", "MODIFIED"), line[:80].decode())
                value = int(event["object"]["data"]["n"])
                follows = last is None or value == last + 1
                self._expect(follows, f"the counter jumped from {last} to {value}")
                last = value

    async def _exec(self, this: Round) -> None:
        """A command in a pod, by kubectl."""
        word = f"word-{random.getrandbits(40)}"
        process = await asyncio.create_subprocess_exec(
            *self.kubectl.command_line("exec", "-i", "box", "--", "cat"),
            env=self.kubectl.full_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await process.communicate(word.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise ConnectionError(err.decode(errors="replace")[-200:])
        self._expect(out.decode() == word, f"{word} came back as {out[:80]!r}")

    # The raw face

    async def _open_raw(
        self, mode: bytes, buffer_bytes: int = 0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        near = socket.socket()
        if buffer_bytes:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        near.setblocking(False)
        try:
            await self._loop.sock_connect(near, ("127.0.0.1", self.raw_port))
        except BaseException:
            near.close()
            raise
        reader, writer = await asyncio.open_connection(sock=near)
        writer.write(mode)
        return reader, writer

    async def _echo(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        data = random.randbytes(random.choice((1, 100, 5_000, 100_000)))
        writer.write(data)
        back = await reader.readexactly(len(data))
        self._expect(back == data, f"an echo of {len(data)} bytes differs")

    async def _raw_echo(self, this: Round) -> None:
        reader, writer = await self._open_raw(known.ECHO)
        try:
            for _ in range(REQUESTS_A_ROUND):
                await self._echo(reader, writer)
                this.is_new = False
                await asyncio.sleep(PAUSE_SECONDS / 4)
        finally:
            writer.transport.abort()

    async def _raw_connection(self, this: Round) -> None:
        """A connection for one message; closed in order, so the end comes through too."""
        reader, writer = await self._open_raw(known.ECHO)
        try:
            await self._echo(reader, writer)
            this.is_new = False
            writer.write_eof()
            self._expect(await reader.read() == b"", "bytes behind the end")
        finally:
            writer.transport.abort()

    async def _raw_download(self, this: Round) -> None:
        """Bulk, for some seconds, in rests: the machine is for others too."""
        reader, writer = await self._open_raw(known.BULK)
        try:
            await self._read_bulk(this, reader, DOWNLOAD_BYTES, rest_seconds=0.01)
        finally:
            writer.transport.abort()

    async def _raw_slow_reader(self, this: Round) -> None:
        """Reads nothing while megabytes wait; then some, or it just leaves."""
        reader, writer = await self._open_raw(known.BULK, STALLED_BUFFER_BYTES)
        try:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(random.uniform(0.5, 5))
            if random.random() < 0.5:
                with contextlib.suppress(RuntimeError):
                    writer.transport.resume_reading()  # type: ignore[attr-defined]
                await self._read_bulk(this, reader, 2_000_000, rest_seconds=0)
        finally:
            writer.transport.abort()

    async def _read_bulk(
        self,
        this: Round,
        reader: asyncio.StreamReader,
        count: int,
        rest_seconds: float,
    ) -> None:
        offset = 0
        while offset < count:
            data = await reader.read(known.CHUNK_BYTES)
            if not data:
                raise ConnectionError("the bulk ended")
            this.is_new = False
            good = data == known.bulk_bytes(offset, len(data))
            self._expect(good, f"wrong bytes behind {offset}")
            offset += len(data)
            await asyncio.sleep(rest_seconds)
