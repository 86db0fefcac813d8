"""The cluster's prefix; what must not pass is in tests/attacks/test_path_tricks.py."""

import pytest

from shared.http.paths import cluster_prefix, strip_prefix
from shared.http.status import Refusal


def test_the_prefix_is_cut_and_a_slash_is_left() -> None:
    prefix = cluster_prefix("alpha")
    assert prefix == b"/clusters/alpha"
    assert strip_prefix(b"/clusters/alpha/api?x", prefix) == b"/api?x"
    assert strip_prefix(b"/clusters/alpha", prefix) == b"/"


def test_a_refusal_says_what_the_path_must_begin_with() -> None:
    with pytest.raises(Refusal, match="/clusters/alpha/ exactly") as caught:
        strip_prefix(b"/api", cluster_prefix("alpha"))
    assert caught.value.code == 404
