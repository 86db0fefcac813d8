"""What a process that relays bytes needs before its first one.

Covered: glibc's allocator, other allocators left alone, the collector's thresholds; memory that
is free between what is used is given back, now and then.
"""

import gc
import os
import platform
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.tunnel import tuning


@pytest.fixture
def collector() -> Iterator[None]:
    """At Python's defaults (another test may have tuned it); put back afterwards."""
    thresholds = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_the_allocator_is_tuned_where_it_is_glibcs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert tuning.tune_allocator() is (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert tuning.tune_allocator() is False


def test_what_start_up_made_is_left_out_of_collections(collector: None) -> None:
    before = gc.get_threshold()
    tuning.tune_collector()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[0] > before[0]


# Half a page of small things between every two large ones: the heap's end never comes free.
FRAGMENTED = """
import os
from shared.tunnel import tuning
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
assert tuning.tune_allocator()
kept = []
for _ in range(400):
    kept += [bytes(200_000), bytes(600)]
kept[::2] = [None] * 400
before = resident()
assert tuning.trim_heap()
assert before - resident() > 60_000_000, (before, resident())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's heap is ours to trim"
)
def test_memory_that_is_free_between_what_is_used_is_given_back() -> None:
    # In a process of its own, whose heap nobody else has filled.
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run(
        [sys.executable, "-c", FRAGMENTED], check=True, env=environment, timeout=30
    )


def test_other_heaps_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert tuning.trim_heap() is False


def test_cycles_are_collected_and_the_heap_trimmed_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Loop:
        """Keeps what it shall call later."""

        def __init__(self) -> None:
            self.later: list[tuple[float, Callable[[], None]]] = []

        def call_later(self, delay: float, call: Callable[[], None]) -> None:
            self.later.append((delay, call))

    class Node:
        """Refers to itself: only the collector ends it."""

        def __init__(self) -> None:
            self.itself = self

    trims: list[None] = []
    monkeypatch.setattr(tuning, "trim_heap", lambda: trims.append(None))
    loop = Loop()
    tuning.keep_heap_trimmed(loop)  # type: ignore[arg-type]
    for number in (1, 2, 3):
        ((delay, call),) = loop.later
        loop.later.clear()
        assert delay == tuning.TRIM_EVERY_SECONDS
        dead = weakref.ref(Node())
        call()
        assert dead() is None
        assert len(trims) == number


LIMITED = """
import resource
from shared.tunnel import tuning
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
tuning.raise_file_limit()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
"""


def test_a_program_may_open_as_many_files_as_its_user_may() -> None:
    subprocess.run(
        [sys.executable, "-c", LIMITED],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=True,
        timeout=60,
    )


# As a handshake leaves it: much that is free at the heap's end, and below our threshold.
SPOILT = """
import ctypes, os
from shared.tunnel import tuning
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
tuning.clean_heap_top()  # nothing has been tuned yet: does nothing
assert tuning.tune_allocator()
spoil = bytes(1) * 20_000_000
before = resident()
del spoil
assert before - resident() < 1_000_000, "the heap keeps it"
tuning.clean_heap_top()
assert before - resident() > 15_000_000, (before, resident())
# The thresholds are ours again.
spoil = bytes(1) * 20_000_000
before = resident()
del spoil
assert before - resident() < 1_000_000, "the heap has lost its patience"
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap")
def test_what_lies_free_at_the_heaps_end_is_given_back_when_asked() -> None:
    subprocess.run(
        [sys.executable, "-c", SPOILT],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=True,
        timeout=60,
    )
