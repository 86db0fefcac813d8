"""The two kinds of connection and the faces, for tests that have to pass for all.

The fixtures `kind`, `face`, `tower`, `direct` and `tunnelled` are in conftest.py; without these marks
a test has a cluster whose agent has joined, by the sealed face.
"""

import pytest

__all__ = [
    "BOTH_KINDS",
    "DIRECT",
    "DIRECT_GATEWAY",
    "GATEWAY",
    "PROXY",
    "SEALED",
    "WAYS",
]

PROXY, DIRECT = "proxy", "direct"
SEALED, GATEWAY = "sealed", "gateway"

BOTH_KINDS = pytest.mark.parametrize("kind", [PROXY, DIRECT])
# The ways that everything is tried on. What is left, the gateway to a direct cluster, has the same
# parts as these and only one of its own: a few steps do for it.
WAYS = pytest.mark.parametrize(
    ("kind", "face"), [(PROXY, SEALED), (DIRECT, SEALED), (PROXY, GATEWAY)]
)
DIRECT_GATEWAY = pytest.mark.parametrize(("kind", "face"), [(DIRECT, GATEWAY)])
