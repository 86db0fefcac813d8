"""A relay between a watched stream and a scripted apiserver: what most tests of it need.

async with relayed(echo_heads) as bench:
    bench.send(b"GET /clusters/alpha/api HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n")
    answer = await bench.answer()
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

from shared.http.apiserver import ApiServer, Credential
from shared.http.identity import Caller, Policy
from shared.http.relay import Limits, RequestRelay
from shared.http.service import RequestService
from shared.http.upstream import UpstreamPool
from tests.fakes.streams import FakeStream
from tests.fakes.upstream import RawUpstream, Script

__all__ = [
    "CREDENTIAL",
    "NOW",
    "SECONDS",
    "Bench",
    "WatchedStream",
    "make_caller",
    "relayed",
]

NOW = datetime(2030, 1, 1, tzinfo=UTC)
CREDENTIAL = "agents.own.token"
# Long enough for any machine; a test that waits this long has failed.
SECONDS = 10.0


def make_caller(**changes: object) -> Caller:
    fields: dict[str, object] = {
        "user": "tower:admin",
        "groups": ("tower:cluster-admins",),
        "cluster": "alpha",
        "not_after": NOW + timedelta(hours=1),
        "serial": 7,
    }
    return Caller(**(fields | changes))  # type: ignore[arg-type]


class WatchedStream(FakeStream):
    """A FakeStream that a test can wait on."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()

    def write(self, data: bytes | memoryview) -> None:
        super().write(data)
        self._changed.set()

    def write_eof(self) -> None:
        super().write_eof()
        self._changed.set()

    def reset(self, code: object, reason: str) -> None:
        super().reset(code, reason)  # type: ignore[arg-type]
        self._changed.set()

    def taken(self, count: int) -> None:
        super().taken(count)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class Bench:
    """One relay, its stream, and the apiserver behind it."""

    def __init__(self, service: RequestService, upstream: RawUpstream) -> None:
        self.service = service
        self.upstream = upstream
        self.pool = service.pool
        self.stream = WatchedStream()
        self.relay: RequestRelay
        # Of the output, what `answer` has returned already.
        self._read_bytes = 0
        self.sent_bytes = 0

    def send(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        self.relay.data_received(data)

    @property
    def unread(self) -> bytes:
        return self.stream.output[self._read_bytes :]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what is not seen in the stream."""
        async with asyncio.timeout(SECONDS):
            while not condition():
                await asyncio.sleep(0.001)

    async def answer(self) -> bytes:
        """The next answer that has a Content-Length (0 if it says none)."""

        def end() -> int:
            head_end = self.unread.find(b"\r\n\r\n") + 4
            if head_end < 4:
                return 0
            length = 0
            for line in self.unread[:head_end].lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            return head_end + length if len(self.unread) >= head_end + length else 0

        await self.stream.until(lambda: end() > 0 or self.stream.reset_with is not None)
        assert end(), f"reset with {self.stream.reset_with}"
        answer = self.unread[: end()]
        self._read_bytes += len(answer)
        return answer

    async def text(self, marker: bytes) -> bytes:
        """What has come up to and including the marker."""
        await self.stream.until(lambda: marker in self.unread)
        end = self.unread.index(marker) + len(marker)
        data = self.unread[:end]
        self._read_bytes += end
        return data

    @property
    def received(self) -> bytes:
        """All that the apiserver got, over all connections."""
        return b"".join(bytes(link.received) for link in self.upstream.connections)


@contextlib.asynccontextmanager
async def relayed(
    script: Script,
    *,
    caller: Caller | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
    now: Callable[[], datetime] = lambda: NOW,
    base_path: bytes = b"",
) -> AsyncIterator[Bench]:
    loop = asyncio.get_running_loop()
    async with RawUpstream(script) as upstream:
        apiserver = ApiServer(
            host="127.0.0.1",
            port=upstream.port,
            tls=None,
            server_hostname=None,
            base_path=base_path,
            credential=Credential(token=CREDENTIAL, monotonic=loop.time),
        )
        pool = UpstreamPool(apiserver, loop=loop)
        service = RequestService(
            pool=pool, policy=policy or Policy(), loop=loop, now=now, limits=limits
        )
        bench = Bench(service, upstream)
        bench.relay = service.serve(bench.stream, caller or make_caller())
        try:
            yield bench
        finally:
            bench.relay.stream_closed(None)
            assert service.open_connections == 0
            await pool.close()
