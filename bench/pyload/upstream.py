"""The raw server and the member's HTTPS apiserver, as load/ has them."""

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable

from bench.pyload import preamble

__all__ = ["run_upstream"]

CHUNK_BYTES = 256 << 10
HEAD_BYTES_AT_MOST = 64 << 10
BENCH_PATH = "/bench/"
REVIEWS = "/apis/authorization.k8s.io/v1/"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def run_upstream(
    certificate: str, key: str, uid: str, send_buffer_bytes: int = 0
) -> None:
    """Serve on two loopback ports, print them, and end when standard input does.

    `send_buffer_bytes` bounds what the kernel holds of each raw connection; 0: its own choice.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])

    async def https(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _serve_https(reader, writer, uid)

    raw_server = await asyncio.start_server(
        _closing(_serve_raw), "127.0.0.1", 0, limit=CHUNK_BYTES, backlog=1024
    )
    https_server = await asyncio.start_server(
        _closing(https), "127.0.0.1", 0, ssl=context, limit=CHUNK_BYTES, backlog=1024
    )
    if send_buffer_bytes:
        # Accepted sockets have the listening one's.
        raw_server.sockets[0].setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes
        )
    addresses = {}
    for name, server in (("raw", raw_server), ("https", https_server)):
        host, port = server.sockets[0].getsockname()
        addresses[name] = f"{host}:{port}"
    print(json.dumps(addresses), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    raw_server.close()
    https_server.close()


def _closing(serve: Serve) -> Serve:
    """Clients leave in the middle of things: that is how a measurement ends."""

    async def handle(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return handle


async def _serve_raw(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    mode, request_bytes, response_bytes = preamble.decode(
        await reader.readexactly(preamble.PREAMBLE_BYTES)
    )
    if mode == preamble.DOWNLOAD:
        await _write_forever(writer)
    elif mode == preamble.UPLOAD:
        await _acknowledge_forever(reader, writer)
    rest = bytes(response_bytes - preamble.ECHO_BYTES)
    while True:
        request = await reader.readexactly(request_bytes)
        writer.write(request[: preamble.ECHO_BYTES] + rest)
        await writer.drain()


async def _write_forever(writer: asyncio.StreamWriter) -> None:
    chunk = bytes(CHUNK_BYTES)
    while True:
        writer.write(chunk)
        await _drain(writer)


async def _acknowledge_forever(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    unacknowledged = 0
    while data := await reader.read(CHUNK_BYTES):
        acks, unacknowledged = divmod(unacknowledged + len(data), preamble.ACK_BYTES)
        writer.write(bytes(acks))
    raise ConnectionResetError("the client is done")


async def _serve_https(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: str
) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.split("\r\n")
        method, path, _ = line.split(" ", 2)
        headers = {
            name.lower(): value.strip()
            for name, _, value in (field.partition(":") for field in fields if field)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if path.startswith(BENCH_PATH) and path[len(BENCH_PATH) :].isdigit():
            await _write_body(writer, int(path[len(BENCH_PATH) :]))
        else:
            status, answer = member_answer(method, path.partition("?")[0], body, uid)
            data = json.dumps(answer).encode()
            writer.write(_head(status, "application/json", len(data)) + data)
            await writer.drain()
        if headers.get("connection", "").lower() == "close":
            return


async def _write_body(writer: asyncio.StreamWriter, size: int) -> None:
    writer.write(_head("200 OK", "application/octet-stream", size))
    chunk = bytes(CHUNK_BYTES)
    while size > 0:
        writer.write(chunk[:size])
        size -= len(chunk)
        await _drain(writer)


async def _drain(writer: asyncio.StreamWriter) -> None:
    """Drain, and let the loop turn: without that nobody would tell us of a lost client."""
    await writer.drain()
    await asyncio.sleep(0)


def _head(status: str, content_type: str, size: int) -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {size}\r\n\r\n"
    ).encode()


def member_answer(method: str, path: str, body: bytes, uid: str) -> tuple[str, object]:
    """Status line and JSON of what an agent's preflight asks (load/member.go)."""
    if method == "POST" and path.startswith(REVIEWS):
        rules = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
        status = {"allowed": True, "incomplete": False, "resourceRules": rules}
        status["nonResourceRules"] = [{"verbs": ["*"], "nonResourceURLs": ["*"]}]
        return "201 Created", {**json.loads(body or b"{}"), "status": status}
    if path == "/version":
        return "200 OK", {"major": "1", "minor": "33", "gitVersion": "v1.33.0-bench"}
    if path == "/api/v1/namespaces/kube-system":
        metadata = {"name": "kube-system", "uid": uid, "resourceVersion": "1"}
        return "200 OK", {"kind": "Namespace", "apiVersion": "v1", "metadata": metadata}
    if path in ("/readyz", "/livez", "/healthz"):
        return "200 OK", "ok"
    message = f"the bench's member knows no {path}"
    status_object = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return "404 Not Found", {
        **status_object,
        "reason": "NotFound",
        "code": 404,
        "message": message,
    }
