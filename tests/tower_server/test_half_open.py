"""The counting of half-open places: limits per cluster and source, each place given back once."""

import pytest

from tower_server import half_open
from tower_server.half_open import HalfOpenPlaces


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_open, "MAX_HALF_OPEN_PER_CLUSTER", 2)
    monkeypatch.setattr(half_open, "MAX_HALF_OPEN_PER_SOURCE", 3)


def test_a_cluster_has_only_so_many_places_whoever_takes_them() -> None:
    places = HalfOpenPlaces()
    assert places.take("one", "alpha") and places.take("two", "alpha")
    assert places.take("three", "alpha") is None
    assert places.take("three", "beta")


def test_a_source_has_only_so_many_places_in_whatever_clusters() -> None:
    places = HalfOpenPlaces()
    assert all(places.take("one", name) for name in ("alpha", "beta", "gamma"))
    assert places.take("one", "delta") is None
    assert places.take("two", "delta")


def test_a_place_that_is_left_is_free_again_and_only_once() -> None:
    places = HalfOpenPlaces()
    first, second = places.take("one", "alpha"), places.take("one", "alpha")
    assert first and second
    first.leave()
    first.leave()
    assert places.by_cluster["alpha"] == 1
    assert places.take("one", "alpha") and places.take("one", "alpha") is None


def test_nothing_is_remembered_of_who_holds_none() -> None:
    places = HalfOpenPlaces()
    place = places.take("one", "alpha")
    assert place
    place.leave()
    # A refused one must not leave a trace either: strangers choose their addresses.
    for _ in range(2):
        places.take("two", "beta")
    assert places.take("three", "beta") is None
    assert dict(places.by_source) == {"two": 2}
    assert dict(places.by_cluster) == {"beta": 2}
