"""What a process that relays bytes needs before its first one: a patient malloc and collector.

glibc gives every buffer over 128 KiB its own mmap, and page faults then cost more than
all Python together: 3 to 4 times the throughput of plain relaying (design 5, measured).
And Python's cycle collector, at its defaults, walks everything that start-up made again
and again: a tenth of the agent's time in a bulk transfer (measured).

The patient malloc has its price: what a busy second has fragmented stays ours for ever, and an
agent with 25 MB in use had 180 MB after five minutes of mixed load. So now and then we collect
what died lately, and give back what lies free between what is used.
"""

import asyncio
import ctypes
import gc
import platform
import resource
from contextlib import suppress

__all__ = [
    "clean_heap_top",
    "keep_heap_trimmed",
    "raise_file_limit",
    "trim_heap",
    "tune_allocator",
    "tune_collector",
    "tune_process",
]

# mallopt's parameter numbers, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

# Buffers up to this come from the heap, not from mmap; the largest we make is 1 MiB.
_MMAP_THRESHOLD_BYTES = 256 * 1024 * 1024
# Free memory at the heap's end that is kept rather than given back and faulted in again.
_TRIM_THRESHOLD_BYTES = 32 * 1024 * 1024
_TOP_PAD_BYTES = 4 * 1024 * 1024

# How often to look whether much lies free between what is used, and what is much. To give back
# 200 MB takes 15 ms, and some more when it is needed again. With 30 s the memory of a mixed load
# still rose from peak to peak, with 10 s it does not (all measured).
TRIM_EVERY_SECONDS = 10.0
TRIM_ABOVE_BYTES = 16 * 1024 * 1024

# New objects that trigger a young collection (700 by default); a frame makes a few, and
# nearly all die by reference counting. The older generations keep their proportions.
_COLLECT_AFTER_OBJECTS = 10_000


# From this size on, glibc's free() may give memory back (FASTBIN_CONSOLIDATION_THRESHOLD: 64 KiB).
_LARGE_BYTES = 128 * 1024


def _open_heap() -> ctypes.CDLL | None:
    """glibc, or None where the libc is another one."""
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
        libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    except (OSError, AttributeError):
        return None
    return libc


# Set by tune_allocator: who has not tuned the heap has not spoilt it either.
_heap: ctypes.CDLL | None = None


def tune_process() -> None:
    """Everything here. Call it once, when the program's modules are loaded."""
    raise_file_limit()
    tune_allocator()
    tune_collector()


def raise_file_limit() -> None:
    """Allow ourselves as many open files as we may have.

    The soft limit is 1,024 nearly everywhere, for the sake of programs that call select();
    with it a server would carry a thousand agents.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(
        ValueError, OSError
    ):  # where "unlimited" is more than the kernel's own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tune_allocator() -> bool:
    """Set glibc's thresholds; False where the libc is another one (then nothing is done)."""
    global _heap
    _heap = _open_heap()
    if _heap is None:
        return False
    mallopt = _heap.mallopt
    return all(
        mallopt(option, value) == 1
        for option, value in (
            (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
            (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES),
            (_M_TOP_PAD, _TOP_PAD_BYTES),
        )
    )


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


def trim_heap() -> bool:
    """Give free memory back to the system if there is much; True if that was tried.

    Does nothing where the libc is not glibc, or older than 2.33.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        libc = ctypes.CDLL(None)
        mallinfo, malloc_trim = libc.mallinfo2, libc.malloc_trim
    except (OSError, AttributeError):
        return False
    mallinfo.restype = _MallocInfo
    info = mallinfo()
    # What lies at the heap's end, malloc itself gives back. What was given back from between
    # still counts as free here: to look again costs 0.2 ms (measured).
    if info.fordblks - info.keepcost < TRIM_ABOVE_BYTES:
        return False
    malloc_trim(ctypes.c_size_t(_TOP_PAD_BYTES))
    return True


def keep_heap_trimmed(loop: asyncio.AbstractEventLoop) -> None:
    """Collect and trim now and then, for as long as the loop runs."""

    def trim() -> None:
        # A served TLS connection ends as a cycle of some 25 objects, with 40 KB of OpenSSL's
        # behind it, which the collector does not see: by its count of objects alone it would
        # wait for hundreds of them. The oldest generation is left to itself, it may be large.
        gc.collect(1)
        trim_heap()
        loop.call_later(TRIM_EVERY_SECONDS, trim)

    loop.call_later(TRIM_EVERY_SECONDS, trim)


def clean_heap_top() -> None:
    """Give back what lies free at the heap's end, so that the next large buffer has no page yet.

    uvloop allocates 256 KiB for each TLS connection, of which one that is idle needs a page.
    But what handshakes before it have freed lies where it comes to lie, and stays resident
    for as long as it lives: 20 KiB a connection. This costs 20 us (both measured).
    """
    if _heap is not None:
        _heap.mallopt(_M_TOP_PAD, 0)
        _heap.mallopt(_M_TRIM_THRESHOLD, 0)
        # To free something large is what makes malloc look at its thresholds.
        _heap.free(_heap.malloc(_LARGE_BYTES))
        _heap.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
        _heap.mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)


def tune_collector() -> None:
    """Leave what start-up made out of collections, and collect less often."""
    gc.collect()
    gc.freeze()
    _, middle, old = gc.get_threshold()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS, middle, old)
