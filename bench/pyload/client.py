"""The clients: one measurement, one JSON report, as load/ has them."""

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.figures import percentile
from bench.pyload import preamble

__all__ = ["Options", "run_client"]

# Longer than any honest answer here: past it something hangs.
STUCK_SECONDS = 10.0
READ_BYTES = 256 << 10
# "Without end" in a Content-Length.
ENDLESS_BYTES = 1 << 50
# Streams that are opened at once: a thousand would measure the accept queue.
OPENING_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of `client`."""

    workload: str
    address: str
    workers: int
    request_bytes: int
    response_bytes: int
    warmup: float
    seconds: float
    ca: str
    cert: str
    key: str
    server_name: str
    path: str


class Stream:
    """One connection, raw or HTTPS, and the exchange of one request on it."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._sequence = 0
        # Set by `connect`.
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self) -> "Stream":
        """Connect and shake hands."""
        options = self._options
        host, _, port = options.address.rpartition(":")
        if not host.startswith("127."):
            raise ValueError(f"{options.address} is not a loopback address")
        context = None
        if options.ca:
            context = ssl.create_default_context(cafile=options.ca)
            context.set_alpn_protocols(["http/1.1"])
            if options.cert:
                context.load_cert_chain(options.cert, options.key)
        self.reader, self.writer = await asyncio.wait_for(
            asyncio.open_connection(
                host,
                int(port),
                ssl=context,
                server_hostname=options.server_name if context else None,
                limit=READ_BYTES,
            ),
            STUCK_SECONDS,
        )
        return self

    async def exchange(self) -> None:
        """One request and its whole answer, checked."""
        async with asyncio.timeout(STUCK_SECONDS):
            await (self._exchange_https() if self._options.ca else self._exchange_raw())

    async def _exchange_raw(self) -> None:
        options = self._options
        self._sequence += 1
        mark = self._sequence.to_bytes(preamble.ECHO_BYTES, "big")
        request = mark + bytes(options.request_bytes - preamble.ECHO_BYTES)
        if self._sequence == 1:
            sizes = (options.request_bytes, options.response_bytes)
            request = preamble.encode(preamble.REQUEST, *sizes) + request
        self.writer.write(request)
        response = await self.reader.readexactly(options.response_bytes)
        if response[: preamble.ECHO_BYTES] != mark:
            raise ValueError("a response does not belong to its request")

    async def _exchange_https(self) -> None:
        options = self._options
        self.writer.write(self.get(options.response_bytes, options.request_bytes))
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if " 200 " not in head.partition("\r\n")[0]:
            raise ValueError(f"status {head.partition(chr(13))[0]}")
        await self.reader.readexactly(options.response_bytes)

    def get(self, size: int, head_bytes: int) -> bytes:
        """A GET for `size` bytes, padded to about `head_bytes`."""
        options = self._options
        head = (
            f"GET {options.path}/bench/{size} HTTP/1.1\r\nHost: {options.address}\r\n"
        )
        head += (
            "User-Agent: tower-bench/1\r\nAccept: application/json, */*\r\nX-Padding: "
        )
        return (head + "p" * max(1, head_bytes - len(head) - 4) + "\r\n\r\n").encode()

    async def start_download(self) -> None:
        """Ask for bytes without end."""
        endless = self.get(ENDLESS_BYTES, 0)
        self.writer.write(
            endless if self._options.ca else preamble.encode(preamble.DOWNLOAD)
        )
        await self.writer.drain()

    def close(self) -> None:
        """Gone at once: what is still under way is of no use."""
        self.writer.transport.abort()


class Meter:
    """Collects from all workers of one measurement."""

    def __init__(self, options: Options) -> None:
        self.begin = time.perf_counter() + options.warmup
        self.end = self.begin + options.seconds
        # Of operations that lie whole in the window.
        self.latencies: list[float] = []
        self.operations = 0
        self.bytes = 0

    async def repeat(self, operation: Callable[[], Awaitable[None]]) -> None:
        """One operation after the other until the window closes."""
        while (start := time.perf_counter()) <= self.end:
            await operation()
            self.operations += 1
            end = time.perf_counter()
            if start >= self.begin and end <= self.end:
                self.latencies.append(end - start)

    async def watch(self) -> tuple[int, float]:
        """Sleep through the window; the bytes that came in it and its true length."""
        await asyncio.sleep(self.begin - time.perf_counter())
        before, start = self.bytes, time.perf_counter()
        await asyncio.sleep(self.end - start)
        return self.bytes - before, time.perf_counter() - start

    async def count(self, stream: Stream, weight: int = 1) -> None:
        """Count what arrives; the end of it is an error, for bulk has none."""
        while data := await stream.reader.read(READ_BYTES):
            self.bytes += len(data) * weight
        raise ConnectionResetError("a transfer ended early")

    def report(self, arrived: int, seconds: float) -> dict[str, object]:
        """The JSON of the Go program."""
        if not arrived and not self.latencies:
            raise TimeoutError(f"nothing came back within {seconds:.1f} s")
        timed = self.latencies or [0.0]
        return {
            "seconds": seconds,
            "operations": len(self.latencies),
            "operations_total": self.operations,
            "p50_ms": percentile(timed, 50) * 1000,
            "p99_ms": percentile(timed, 99) * 1000,
            "bytes": arrived,
            "bytes_total": self.bytes,
        }


async def run_client(options: Options) -> None:
    """Measure and print."""
    workloads = {
        "request": _requests,
        "connect": _connects,
        "download": _downloads,
        "upload": _uploads,
        "beside": _beside,
    }
    if options.workload == "hold":
        streams = await _open_all(options, options.workers)
        print(json.dumps({"operations_total": len(streams)}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        return
    print(json.dumps(await workloads[options.workload](options)), flush=True)


async def _open_all(options: Options, count: int) -> list[Stream]:
    """Streams that have done one exchange each: they are warm."""

    async def warm() -> Stream:
        stream = await Stream(options).connect()
        await stream.exchange()
        return stream

    streams: list[Stream] = []
    while len(streams) < count:
        more = min(OPENING_AT_ONCE, count - len(streams))
        streams += await asyncio.gather(*(warm() for _ in range(more)))
    return streams


async def _requests(options: Options) -> dict[str, object]:
    streams = await _open_all(options, options.workers)
    meter = Meter(options)
    await asyncio.gather(*(meter.repeat(stream.exchange) for stream in streams))
    return meter.report(0, options.seconds)


async def _connects(options: Options) -> dict[str, object]:
    async def once() -> None:
        stream = await Stream(options).connect()
        try:
            await stream.exchange()
        finally:
            stream.writer.close()

    meter = Meter(options)
    await asyncio.gather(*(meter.repeat(once) for _ in range(options.workers)))
    return meter.report(0, options.seconds)


async def _downloads(options: Options) -> dict[str, object]:
    streams = [await Stream(options).connect() for _ in range(options.workers)]
    return await _transfer(options, streams)


async def _beside(options: Options) -> dict[str, object]:
    (asking,) = await _open_all(options, 1)
    streams = [await Stream(options).connect() for _ in range(options.workers)]
    return await _transfer(options, streams, asking)


async def _transfer(
    options: Options, streams: list[Stream], asking: Stream | None = None
) -> dict[str, object]:
    for stream in streams:
        await stream.start_download()
    meter = Meter(options)
    async with asyncio.TaskGroup() as group:
        reading = [group.create_task(meter.count(stream)) for stream in streams]
        if asking is not None:
            group.create_task(meter.repeat(asking.exchange))
        arrived, elapsed = await meter.watch()
        for task in reading:
            task.cancel()
    for stream in streams:
        stream.close()
    return meter.report(arrived, elapsed)


async def _uploads(options: Options) -> dict[str, object]:
    if options.ca:
        raise ValueError("uploads are raw only")
    streams = [await Stream(options).connect() for _ in range(options.workers)]
    meter = Meter(options)

    async def send(stream: Stream) -> None:
        stream.writer.write(preamble.encode(preamble.UPLOAD))
        chunk = bytes(READ_BYTES)
        while True:
            stream.writer.write(chunk)
            await stream.writer.drain()
            # Lets the loop turn, also where the socket takes all at once.
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(send(stream)) for stream in streams]
        tasks += [
            group.create_task(meter.count(s, preamble.ACK_BYTES)) for s in streams
        ]
        arrived, elapsed = await meter.watch()
        for task in tasks:
            task.cancel()
    for stream in streams:
        stream.close()
    return meter.report(arrived, elapsed)
