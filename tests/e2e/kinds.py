"""The two kinds of connection, for tests that have to pass for both.

The fixtures `kind`, `tower`, `direct` and `tunnelled` are in conftest.py; without this mark a test
has a cluster whose agent has joined.
"""

import pytest

__all__ = ["BOTH_KINDS", "DIRECT", "PROXY"]

PROXY, DIRECT = "proxy", "direct"

BOTH_KINDS = pytest.mark.parametrize("kind", [PROXY, DIRECT])
