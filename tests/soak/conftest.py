"""The soak's fixtures are those of the e2e tests; everything in this folder is one."""

from pathlib import Path

import pytest

from tests.e2e.conftest import alpha, new_tower, workspace

__all__ = ["alpha", "new_tower", "workspace"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
