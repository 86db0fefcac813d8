"""The raw protocol's first 16 bytes; load/preamble.go describes them."""

import struct

__all__ = [
    "ACK_BYTES",
    "DOWNLOAD",
    "ECHO_BYTES",
    "PREAMBLE_BYTES",
    "REQUEST",
    "UPLOAD",
    "decode",
    "encode",
]

REQUEST, DOWNLOAD, UPLOAD = b"R", b"D", b"U"
MAGIC = b"TWB"
LAYOUT = struct.Struct("!c3sIQ")  # mode, magic, request bytes, response bytes
PREAMBLE_BYTES = LAYOUT.size
# The first bytes of a response repeat those of its request.
ECHO_BYTES = 8
# An upload is answered with one byte for each of these.
ACK_BYTES = 1 << 20
# Larger than any workload; a wrong preamble must not allocate gigabytes.
EXCHANGE_BYTES_AT_MOST = 16 << 20


def encode(mode: bytes, request_bytes: int = 0, response_bytes: int = 0) -> bytes:
    """What a client sends first."""
    return LAYOUT.pack(mode, MAGIC, request_bytes, response_bytes)


def decode(data: bytes) -> tuple[bytes, int, int]:
    """Mode, request and response size.

    Raises:
        ValueError: Not a client of ours, or sizes beyond all workloads.
    """
    mode, magic, request_bytes, response_bytes = LAYOUT.unpack(data)
    if magic != MAGIC or mode not in (REQUEST, DOWNLOAD, UPLOAD):
        raise ValueError(f"not a bench client: preamble {data.hex()}")
    sizes = (request_bytes, response_bytes)
    if mode == REQUEST and not all(
        ECHO_BYTES <= n <= EXCHANGE_BYTES_AT_MOST for n in sizes
    ):
        raise ValueError(f"request and response of {sizes} bytes are out of range")
    return mode, request_bytes, response_bytes
