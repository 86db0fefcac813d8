"""exec over WebSocket: subprotocols v4.channel.k8s.io and v5.channel.k8s.io.

The first byte of each binary message is its channel. v5 adds channel 255: its second byte
names a channel that the client closes, which is how stdin ends. The exit code is a Status
on channel 3, the last message.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import struct
import termios
from typing import Any

from aiohttp import WSMsgType, web

from tests.fakes.apiserver.requests import RequestInfo
from tests.fakes.apiserver.status import bad_request

__all__ = ["PROTOCOLS", "serve_exec"]

Json = dict[str, Any]

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
# The first terminal that the leader of a new session opens becomes its controlling one: Ctrl-C works in it.
TAKE_TERMINAL = 'exec "$@" <>"$0" >&0 2>&0'
READ_BYTES = 32 * 1024  # as the kubelet's own copy loop


async def serve_exec(
    request: web.Request, info: RequestInfo, folder: str, environment: dict[str, str]
) -> web.WebSocketResponse:
    """Run the command of an exec request and relay its streams until it ends or the client goes.

    Raises:
        ApiError: 400 without a command, or for a request that is not a WebSocket upgrade.
    """
    command = info.query.get("command", [])
    if not command:
        raise bad_request("you must specify at least 1 container command")
    socket = web.WebSocketResponse(protocols=PROTOCOLS, compress=False, max_msg_size=0)
    if not socket.can_prepare(request).ok:
        raise bad_request(
            "Upgrade request required; this server has exec over WebSocket only"
        )
    await socket.prepare(request)
    if socket.ws_protocol not in PROTOCOLS:
        await socket.close()
        return socket
    session = _Session(socket, folder, environment)
    if info.is_true("tty"):
        status = await session.run_on_terminal(
            command, with_stdin=info.is_true("stdin")
        )
    else:
        status = await session.run_on_pipes(command, with_stdin=info.is_true("stdin"))
    if not socket.closed:
        await socket.send_bytes(bytes([ERROR]) + json.dumps(status).encode())
        await socket.close()
    return socket


class _Session:
    """One running command."""

    def __init__(
        self, socket: web.WebSocketResponse, folder: str, environment: dict[str, str]
    ) -> None:
        self.socket = socket
        self.folder = folder
        self.environment = environment
        self.terminal: int | None = (
            None  # the terminal's descriptor, if the command has one
        )

    async def run_on_pipes(self, command: list[str], *, with_stdin: bool) -> Json:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self.folder,
                env=self.environment,
                stdin=asyncio.subprocess.PIPE
                if with_stdin
                else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            return _not_started(error)
        assert process.stdout is not None and process.stderr is not None
        async with self._input(process, process.stdin):
            async with asyncio.TaskGroup() as copies:
                copies.create_task(
                    self._copy(process.stdout, STDOUT), name="exec stdout"
                )
                copies.create_task(
                    self._copy(process.stderr, STDERR), name="exec stderr"
                )
            return _exit_status(await process.wait())

    async def run_on_terminal(self, command: list[str], *, with_stdin: bool) -> Json:
        leader, follower = os.openpty()
        try:
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", TAKE_TERMINAL, os.ttyname(follower), *command),
                cwd=self.folder,
                env={**self.environment, "TERM": "xterm"},
                stdin=follower,
                stdout=follower,
                stderr=follower,
                start_new_session=True,
            )
        except OSError as error:
            os.close(leader)
            return _not_started(error)
        finally:
            os.close(follower)
        self.terminal = leader
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        # The terminal's descriptor is duplicated: each transport closes its own.
        output, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader),
            os.fdopen(os.dup(leader), "rb", 0),
        )
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(os.dup(leader), "wb", 0)
        )
        keyboard = asyncio.StreamWriter(transport, protocol, None, loop)
        try:
            async with self._input(process, keyboard if with_stdin else None):
                await self._copy(reader, STDOUT)
                return _exit_status(await process.wait())
        finally:
            output.close()
            transport.abort()
            self.terminal = None
            os.close(leader)

    @contextlib.asynccontextmanager
    async def _input(
        self, process: asyncio.subprocess.Process, stdin: asyncio.StreamWriter | None
    ):  # type: ignore[no-untyped-def]
        """Relay what the client sends while the body runs; the process group ends with it."""
        task = asyncio.get_running_loop().create_task(
            self._receive(process, stdin), name="exec stdin"
        )
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            _kill_group(process)
            if process.returncode is None:
                await process.wait()
            if stdin is not None:
                stdin.close()

    async def _receive(
        self, process: asyncio.subprocess.Process, stdin: asyncio.StreamWriter | None
    ) -> None:
        async for message in self.socket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel == STDIN and stdin is not None:
                # A command may end, or close its stdin, before it has read all.
                with contextlib.suppress(ConnectionError):
                    stdin.write(data)
                    await stdin.drain()
            elif channel == CLOSE and data[:1] == bytes([STDIN]) and stdin is not None:
                stdin.close()
            elif channel == RESIZE:
                self._resize(data)
        _kill_group(process)  # the client is gone

    def _resize(self, data: bytes) -> None:
        if self.terminal is not None:
            size = json.loads(data)
            packed = struct.pack("HHHH", size["Height"], size["Width"], 0, 0)
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, packed)

    async def _copy(self, reader: asyncio.StreamReader, channel: int) -> None:
        with contextlib.suppress(ConnectionError, OSError):  # a terminal ends with EIO
            while data := await reader.read(READ_BYTES):
                await self.socket.send_bytes(bytes([channel]) + data)


def _kill_group(process: asyncio.subprocess.Process) -> None:
    # The command is the leader of a session of its own: what it started in the background ends with it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _exit_status(code: int) -> Json:
    """The last message: how the command ended."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    code = 128 - code if code < 0 else code  # as a shell reports a signal
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def _not_started(error: OSError) -> Json:
    status = _exit_status(127)
    return {**status, "message": f"error executing command: {error}"}
