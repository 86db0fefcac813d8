"""Version skew: what counts as older, newer and untested, and what the admin is told."""

import pytest

from tower_server.skew import VersionSkew, version_skew


def test_the_same_version_is_nothing_to_speak_of() -> None:
    skew = version_skew("0.2.0", {"alpha": "tower-agent/0.2.0", "beta": "0.2.0"})
    assert skew == VersionSkew() and skew.sentences() == []


def test_one_minor_version_apart_is_tested() -> None:
    skew = version_skew("0.2.1", {"alpha": "0.1.9", "beta": "0.3.0", "gamma": "0.2.0"})
    assert (skew.older, skew.newer) == (("alpha", "gamma"), ("beta",))
    assert skew.untested == ()
    assert skew.sentences() == [
        "2 agents (alpha, gamma) older than the server: upgrade them when it suits you.",
        "1 agent (beta) newer than the server: upgrade the server soon.",
    ]


@pytest.mark.parametrize("agent", ["0.1.0", "1.3.0", "0.5.0", "", "unknown", "v2"])
def test_further_apart_nobody_has_tested(agent: str) -> None:
    skew = version_skew("0.3.0", {"alpha": agent})
    assert skew.untested == ("alpha",)
    (sentence,) = skew.sentences()
    assert "one minor version at a time" in sentence


def test_a_thousand_names_do_not_make_a_sentence_longer() -> None:
    skew = version_skew("0.2.0", {f"c{i:04}": "0.1.0" for i in range(1000)})
    assert "c0004 and 995 more" in skew.sentences()[0]
