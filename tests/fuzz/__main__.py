"""`python -m tests.fuzz`: run fuzz targets, look at what one found, grow the corpus.

    run [TARGET ...]        until --runs or --seconds; exit status 1 if a target raised
    show TARGET FILE        run one input, with the traceback of what it raises
    grow TARGET ...         run, then keep the smallest inputs that reach all that was reached

What is found is written to the present directory as crash-TARGET-DIGEST.
"""

import argparse
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import guided
from tests.fuzz.loop import fuzz
from tests.fuzz.target import MODULES, PLANTED, Target, load

__all__ = ["CORPUS", "corpus_of", "main"]

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus"

# Runs without a bound in time end here; one input may take so long; and a process so much.
SECONDS_AT_MOST = 24 * 3600
INPUT_SECONDS = 10
MEMORY_MEBIBYTES = 1024
# Of one target, by `grow`: the repository is no place for thousands of tiny files.
MAX_KEPT_INPUTS = 60

# For starting the child and for its end.
CHILD_SECONDS = 60

OK, FOUND, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    options = _parse(arguments)
    if unknown := [name for name in options.targets if name not in (*MODULES, PLANTED)]:
        print(f"no target {unknown[0]!r}: {', '.join(MODULES)}", file=sys.stderr)
        return USAGE
    if options.command == "show":
        return _show(load(options.targets[0]), options.file.read_bytes())
    if options.command == "grow" and not guided.is_available():
        print("growing the corpus needs atheris, which sees coverage", file=sys.stderr)
        return USAGE
    status = OK
    for name in options.targets or MODULES:
        status = max(status, _run(load(name), options))
        if options.command == "grow":
            status = max(status, _grow(load(name), options))
    return status


def corpus_of(target: Target) -> list[bytes]:
    """Its seeds, then what earlier runs found worth keeping."""
    kept = sorted((CORPUS / target.name).glob("*"))
    return [*target.seeds(), *(path.read_bytes() for path in kept)]


def _run(target: Target, options: argparse.Namespace) -> int:
    plain = options.plain or not guided.is_available()
    run = _run_plain if plain else _run_guided
    how = "plain" if plain else "atheris"
    runs = options.runs or (0 if options.seconds else target.runs)
    seconds = options.seconds or SECONDS_AT_MOST
    found, said = run(target, runs or sys.maxsize, seconds, options)
    print(f"{target.name}: {said} ({how}, seed {options.seed})", flush=True)
    return FOUND if found else OK


def _run_plain(
    target: Target, runs: int, seconds: float, options: argparse.Namespace
) -> tuple[bool, str]:
    corpus = corpus_of(target)
    result = fuzz(target, corpus, seed=options.seed, runs=runs, seconds=seconds)
    said = f"{result.runs:,} runs in {result.seconds:.1f} s"
    if result.crash is None:
        return False, f"{said}, nothing found"
    traceback.print_exception(result.crash.error)
    return True, f"{said}, raised; {_keep_crash(target, result.crash.data)}"


def _run_guided(
    target: Target, runs: int, seconds: float, options: argparse.Namespace
) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory(prefix="tower-fuzz-") as name:
        directory = Path(name)
        found = directory / "found"
        start = time.monotonic()
        child = _child(
            target,
            directory,
            f"-runs={min(runs, 2**31 - 1)}",
            f"-max_total_time={int(seconds) or 1}",
            f"-seed={options.seed}",
            f"-artifact_prefix={found}/",
            str(_folder(directory / "new")),
            str(_seed_folder(target, directory)),
            seconds=seconds + CHILD_SECONDS,
        )
        if options.command == "grow":
            shutil.copytree(directory / "new", _grown(target), dirs_exist_ok=True)
        took = time.monotonic() - start
        done = re.search(r"Done (\d+) runs in", child.stdout)
        if child.returncode == 0 and done:
            return False, f"{int(done[1]):,} runs in {took:.1f} s, nothing found"
        print(child.stdout[-6000:], file=sys.stderr)
        crashes = [path.read_bytes() for path in sorted(found.iterdir())]
        kept = "; ".join(_keep_crash(target, data) for data in crashes)
        return True, f"exit status {child.returncode}; {kept or 'no input kept'}"


def _child(
    target: Target, directory: Path, *options: str, seconds: float
) -> "subprocess.CompletedProcess[str]":
    """The driver that sees coverage, to its end; it is killed if it does not come to one."""
    _folder(directory / "found")
    words = directory / "words"
    guided.write_words(target.words, words)
    program = directory / "again"
    command = [sys.executable, "-m", "tests.fuzz.guided", str(program), target.name]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    program.chmod(0o700)
    dictionary = [f"-dict={words}"] if target.words else []
    return subprocess.run(
        [
            *command,
            f"-timeout={INPUT_SECONDS}",
            f"-rss_limit_mb={MEMORY_MEBIBYTES}",
            *dictionary,
            *options,
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds,
    )


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _seed_folder(target: Target, directory: Path) -> Path:
    folder = _folder(directory / "seeds")
    for number, data in enumerate(corpus_of(target)):
        (folder / f"{number:04}").write_bytes(data)
    return folder


def _keep_crash(target: Target, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()[:12]
    path = Path(f"crash-{target.name}-{digest}")
    path.write_bytes(data)
    return f"look at it: python -m tests.fuzz show {target.name} {path}"


def _show(target: Target, data: bytes) -> int:
    print(f"{target.name}: {len(data)} bytes: {data!r}")
    try:
        target.run(data)
    except Exception:
        traceback.print_exc()
        return FOUND
    print("nothing raised")
    return OK


def _grown(target: Target) -> Path:
    return Path(tempfile.gettempdir()) / f"tower-fuzz-grown-{target.name}"


def _grow(target: Target, options: argparse.Namespace) -> int:
    """Merge what was found into the corpus: only what reaches more than seeds and corpus do."""
    grown = _grown(target)
    kept = CORPUS / target.name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tower-fuzz-") as name:
        directory = Path(name)
        # libFuzzer merges into the first folder; the seeds count as known.
        into = _seed_folder(target, directory)
        before = {path.name for path in into.iterdir()}
        child = _child(
            *(target, directory, "-merge=1", str(into), str(grown)),
            seconds=options.seconds + 10 * CHILD_SECONDS,
        )
        if child.returncode:
            print(child.stdout[-3000:], file=sys.stderr)
            return FOUND
        fresh = [path for path in into.iterdir() if path.name not in before]
        fresh.sort(key=lambda path: path.stat().st_size)
        fresh = fresh[: max(0, MAX_KEPT_INPUTS - len(list(kept.iterdir())))]
        for path in fresh:
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()[:16]
            (kept / digest).write_bytes(data)
    shutil.rmtree(grown)
    print(f"{target.name}: {len(fresh)} inputs more in {kept.relative_to(ROOT)}")
    return OK


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("run", "grow"):
        sub = commands.add_parser(command)
        sub.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
        sub.add_argument("--runs", type=int, default=0, help="inputs for each target")
        sub.add_argument("--seconds", type=float, default=0, help="for each target")
        sub.add_argument("--seed", type=int, default=1, help="the same does the same")
        sub.add_argument("--plain", action="store_true", help="without atheris")
    show = commands.add_parser("show")
    show.add_argument("targets", nargs=1, metavar="TARGET")
    show.add_argument("file", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
