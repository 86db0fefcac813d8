"""The two kinds of connection and the faces, for tests that have to pass for all.

The fixtures `kind`, `face`, `tower`, `direct` and `tunnelled` are in conftest.py; without these marks
a test has a cluster whose agent has joined, by the sealed face.
"""

import pytest

__all__ = ["BOTH_FACES", "BOTH_KINDS", "DIRECT", "GATEWAY", "PROXY", "SEALED"]

PROXY, DIRECT = "proxy", "direct"
SEALED, GATEWAY = "sealed", "gateway"

BOTH_KINDS = pytest.mark.parametrize("kind", [PROXY, DIRECT])
BOTH_FACES = pytest.mark.parametrize("face", [SEALED, GATEWAY])
