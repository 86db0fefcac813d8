"""What a process that relays bytes needs before its first one.

Covered: glibc's allocator, other allocators left alone, the collector's thresholds.
"""

import gc
import platform
from collections.abc import Iterator

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
