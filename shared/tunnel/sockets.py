"""What we ask of, and learn from, the socket under a transport."""

import asyncio
import contextlib
import socket
import sys

__all__ = ["acknowledged_bytes", "limit_unsent_bytes", "set_no_delay"]

# Where tcpi_bytes_acked lies in Linux's struct tcp_info (linux/tcp.h).
_ACKED_AT = 120


def acknowledged_bytes(transport: asyncio.Transport) -> int:
    """How much of what was sent the kernel knows to have arrived; 0 where it cannot tell.

    A TLS transport does not count what lies in the one below it, so on a slow link its
    buffer stands still for seconds while bytes do move. This number does not.
    """
    raw = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_INFO", None)
    if raw is None or option is None or sys.platform != "linux":
        return 0
    try:
        info = raw.getsockopt(socket.IPPROTO_TCP, option, _ACKED_AT + 8)
    except OSError:
        return 0
    return int.from_bytes(info[_ACKED_AT:], sys.byteorder)  # 0 on an old kernel


def limit_unsent_bytes(transport: asyncio.Transport, count: int) -> None:
    """Have the kernel take no more while so many bytes wait in it to be sent.

    Its send buffer grows to megabytes otherwise, and nothing overtakes what lies there. What
    is sent and not acknowledged does not count: the path stays full. Where the system knows no
    such limit there is none.
    """
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    raw = transport.get_extra_info("socket")
    if raw is None or raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    if option is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, option, count)


def set_no_delay(transport: asyncio.Transport) -> None:
    """Send small messages at once: what is worth waiting for, the session gathers."""
    raw = transport.get_extra_info("socket")
    if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
