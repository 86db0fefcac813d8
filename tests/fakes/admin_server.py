"""A real admin API on a real unix socket, over the memory store, in a thread of its own.

So that tests can run the blocking command line against it. Time stands still until a test moves it.
"""

import asyncio
import threading
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from certs.authority import Authority
from certs.joining import JoinString
from certs.names import ClusterName
from shared.mux.readings import MemoryReading
from shared.settings import HostPort
from tests.fakes.registry import FakeRegistry
from tower_server.admin import AdminApi
from tower_server.admin_socket import serve_on_socket
from tower_server.direct import DirectConnections
from tower_server.membership import TokenUse
from tower_server.registry import Registry
from tower_server.stores.memory import MemoryStore
from tower_server.tokens import TokenId

__all__ = ["ZONE", "AdminServer"]

ZONE = "clusters.tower.internal"
START_TIMEOUT_SECONDS = 10

Answer = TypeVar("Answer")


class AdminServer:
    """Use as a context manager; `run` runs a coroutine on the server's loop."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "admin.sock"
        self.store = MemoryStore()
        self.registry = FakeRegistry()
        # Where clusters with a direct connection show that they are served.
        self.reached = Registry()
        self.memory = MemoryReading(
            used_bytes=3 * 2**20, ceiling_bytes=2**28, held_back=0
        )
        self.public_address = HostPort(host="tower.example.com", port=8443)
        # A certificate's begin and the table's ages are compared with the real clock elsewhere,
        # so time stands still at the present.
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.authority = Authority.open_or_create(directory / "ca", ZONE, self.now)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="admin server")

    def __enter__(self) -> "AdminServer":
        self._thread.start()
        assert self._ready.wait(START_TIMEOUT_SECONDS)
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def run(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def later(self, **span: float) -> None:
        self.now += timedelta(**span)

    def join(self, string: str, member_uid: str = "uid-of-alpha") -> None:
        """Let a cluster join with a join string, without the network and the proofs."""
        join = JoinString.parse(string)
        self.run(
            self.store.use_token(
                TokenUse(
                    token_id=TokenId(join.token_id),
                    cluster=ClusterName(join.cluster),
                    member_uid=member_uid,
                    agent_version="0.1.0",
                    key_pin="sha256:" + "0" * 64,
                    serial=1,
                    certificate=b"",
                    at=self.now,
                )
            )
        )

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        # The real one; its members are not in the fake registry.
        direct = DirectConnections(
            self.reached,
            self.authority,
            lambda stream: None,
            clock=lambda: self.now,
            may_name_files=True,
        )
        api = AdminApi(
            memory=lambda: self.memory,
            store=self.store,
            sessions=self.registry,
            direct=direct,
            authority=self.authority,
            public_address=self.public_address,
            clock=lambda: self.now,
        )
        async with serve_on_socket(api.application(), self.socket):
            self._ready.set()
            await self._stop.wait()
        await direct.close("the test is over")
