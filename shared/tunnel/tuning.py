"""What a process that relays bytes needs before its first one: a patient malloc and collector.

glibc gives every buffer over 128 KiB its own mmap, and page faults then cost more than
all Python together: 3 to 4 times the throughput of plain relaying (design 5, measured).
And Python's cycle collector, at its defaults, walks everything that start-up made again
and again: a tenth of the agent's time in a bulk transfer (measured).
"""

import ctypes
import gc
import platform

__all__ = ["tune_allocator", "tune_collector", "tune_process"]

# mallopt's parameter numbers, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

# Buffers up to this come from the heap, not from mmap; the largest we make is 1 MiB.
_MMAP_THRESHOLD_BYTES = 256 * 1024 * 1024
# Free memory at the heap's end that is kept rather than given back and faulted in again.
_TRIM_THRESHOLD_BYTES = 32 * 1024 * 1024
_TOP_PAD_BYTES = 4 * 1024 * 1024

# New objects that trigger a young collection (700 by default); a frame makes a few, and
# nearly all die by reference counting. The older generations keep their proportions.
_COLLECT_AFTER_OBJECTS = 10_000


def tune_process() -> None:
    """Everything here. Call it once, when the program's modules are loaded."""
    tune_allocator()
    tune_collector()


def tune_allocator() -> bool:
    """Set glibc's thresholds; False where the libc is another one (then nothing is done)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(option, value) == 1
        for option, value in (
            (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
            (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES),
            (_M_TOP_PAD, _TOP_PAD_BYTES),
        )
    )


def tune_collector() -> None:
    """Leave what start-up made out of collections, and collect less often."""
    gc.collect()
    gc.freeze()
    _, middle, old = gc.get_threshold()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS, middle, old)
