"""Zones are made once for all tests of the PKI: nothing in one changes."""

from datetime import timedelta

import pytest

from tests.certs.zone import NOW, Zone


@pytest.fixture(scope="session")
def zone(tmp_path_factory: pytest.TempPathFactory) -> Zone:
    return Zone(tmp_path_factory.mktemp("zone") / "ca")


@pytest.fixture(scope="session")
def old_zone(tmp_path_factory: pytest.TempPathFactory) -> Zone:
    """A zone that is old enough to have issued what is expired by now."""
    made = NOW - timedelta(days=200)
    return Zone(tmp_path_factory.mktemp("old") / "ca", now=made)


@pytest.fixture(scope="session")
def other_zone(tmp_path_factory: pytest.TempPathFactory) -> Zone:
    """Another organisation's Tower, with the same name for its zone."""
    return Zone(tmp_path_factory.mktemp("other") / "ca")
