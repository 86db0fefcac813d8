"""Every fuzz target survives a bounded run, and a driver that finds something says so.

Covered: each target with its seeds and corpus, by coverage where atheris is installed and by the
plain loop everywhere; the same seed does the same; a planted bug is found by either driver, kept,
and shown again; every input of the corpus belongs to a target.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import guided
from tests.fuzz.__main__ import CORPUS, corpus_of
from tests.fuzz.loop import fuzz, mutated
from tests.fuzz.target import MODULES, Source, Target, load

ROOT = Path(__file__).resolve().parents[2]

# A target takes some two seconds; the machine may be busy.
RUN_SECONDS = 100
PLAIN_SECONDS = 10.0

needs_atheris = pytest.mark.skipif(
    not guided.is_available(), reason="atheris has no wheel for this machine"
)


def command(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": f"{ROOT}:{':'.join(sys.path)}", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )


@needs_atheris
@pytest.mark.parametrize("name", MODULES)
def test_a_target_survives_a_bounded_run(name: str, tmp_path: Path) -> None:
    done = command("run", name, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing found (atheris" in done.stdout


@pytest.mark.parametrize("name", MODULES)
def test_a_target_survives_the_plain_loop(name: str) -> None:
    target = load(name)
    runs, corpus = target.runs, corpus_of(target)
    result = fuzz(target, corpus, seed=1, runs=runs, seconds=PLAIN_SECONDS)
    if result.crash is not None:
        raise AssertionError(
            f"raised for {result.crash.data!r}"
        ) from result.crash.error
    assert result.runs >= min(len(corpus), runs)


@pytest.mark.parametrize(
    "driver", [pytest.param((), marks=needs_atheris, id="atheris"), ("--plain",)]
)
def test_a_planted_bug_is_found_kept_and_shown(
    driver: tuple[str, ...], tmp_path: Path
) -> None:
    done = command("run", "planted", "--runs", "200000", *driver, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "a length that nobody checked" in done.stderr
    (kept,) = tmp_path.glob("crash-planted-*")
    shown = command("show", "planted", kept.name, cwd=tmp_path)
    assert shown.returncode == 1
    assert "a length that nobody checked" in shown.stderr


def test_an_unknown_target_is_a_usage_error(tmp_path: Path) -> None:
    done = command("run", "nothing", cwd=tmp_path)
    assert done.returncode == 2 and "no target 'nothing'" in done.stderr


def test_the_same_seed_does_the_same() -> None:
    seen: list[list[bytes]] = []
    for seed in (1, 1, 2):
        inputs: list[bytes] = []
        target = Target(name="noting", run=inputs.append, seeds=lambda: [b"abc"])
        fuzz(target, [b"abc", b"defghi"], seed=seed, runs=200, seconds=PLAIN_SECONDS)
        seen.append(inputs)
    assert seen[0] == seen[1] != seen[2]
    assert len(set(seen[0])) > 100


def test_changes_use_words_and_other_inputs() -> None:
    rng = random.Random(1)
    results = [mutated(rng, [b"aaaaaaaa", b"bbbbbbbb"], [b"WORD"]) for _ in range(500)]
    assert any(b"WORD" in result for result in results)
    assert any(b"ab" in result for result in results)
    assert any(len(result) < 8 for result in results)
    assert mutated(rng, [], []) is not None


def test_a_source_that_is_used_up_says_zero() -> None:
    source = Source(b"\x01\x02\x03")
    assert (source.number(), source.number(2), bool(source)) == (1, 0x203, False)
    assert (source.number(4), source.take(2), source.rest()) == (0, b"", b"")


def test_the_corpus_has_inputs_for_targets_only() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(MODULES)
    for name in MODULES:
        sizes = [path.stat().st_size for path in (CORPUS / name).glob("*")]
        assert len(sizes) <= 60 and max(sizes, default=0) <= load(name).max_bytes
