"""The multi-call binary `kubelab`: where it is, what is missing for it, and how it is built.

It is kept outside the checkout, under the digest of its sources, so that a fresh clone
and a changed one each find the right one:

    ~/.cache/tower-testbed/<digest>/kubelab      (TOWER_TESTBED_CACHE overrides the base)
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["BuildFailed", "binary_path", "build", "cache_directory", "missing"]

SOURCES = Path(__file__).with_name("src")
# A line at least this often, so that nobody takes a slow build for a hung one.
PROGRESS_INTERVAL_SECONDS = 10.0
# Written into the programs' `--version`, as upstream's own build does.
VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")

Report = Callable[[str], None]


class BuildFailed(Exception):
    """The binary cannot be built; the message is one line, or the compiler's own."""


def cache_directory() -> Path:
    """The base of everything that is kept outside the checkout."""
    override = os.environ.get("TOWER_TESTBED_CACHE")
    return Path(override) if override else Path.home() / ".cache" / "tower-testbed"


def binary_path() -> Path:
    """Where the binary of these sources is, or will be."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        content = source.read_bytes()
        digest.update(f"{source.name} {len(content)}\n".encode() + content)
    return cache_directory() / digest.hexdigest()[:16] / "kubelab"


def missing() -> str | None:
    """What stands in the way of a real control plane, in one line; None if nothing does.

    A binary that is not built yet stands in the way only where it cannot be built.
    """
    if sys.platform != "linux":
        return "the real control plane needs Linux"
    if binary_path().exists():
        return None
    needed = _go_needed()
    if shutil.which("go") is None:
        return f"no Go: install Go {needed} or newer (https://go.dev/dl), then `make testbed`"
    have = _go("env", "GOVERSION").strip()
    if _numbers(have) < _numbers(needed):
        return f"{have} is too old: install Go {needed} or newer (https://go.dev/dl), then `make testbed`"
    return None


def build(report: Report) -> Path:
    """Build the binary if it is not there; two builds at once wait for each other.

    Args:
        report: Called with each line of progress.

    Raises:
        BuildFailed: With the reason.
    """
    target = binary_path()
    if target.exists():
        return target
    if reason := missing():
        raise BuildFailed(reason)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / "lock", report):
        if target.exists():  # the other build made it
            return target
        # Beside the target, since only within a file system a rename is atomic.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as scratch:
            output = Path(scratch) / "kubelab"
            _compile(output, report)
            output.rename(target)
    return target


def _compile(output: Path, report: Report) -> None:
    started = time.monotonic()
    report(
        "testbed: looking at the sources (the first time this downloads 250 MB of Go modules)"
    )
    packages = len(_go("list", "-deps", ".").splitlines())
    report(
        f"testbed: compiling up to {packages} packages; a cold build takes 7 to 20 minutes on 2 cores"
    )
    command = ["go", "build", "-v", "-trimpath", f"-ldflags={_linker_flags()}"]
    output_log: list[str] = []
    compiled = 0
    last_report = started
    with subprocess.Popen(
        [*command, "-o", str(output), "."],
        cwd=SOURCES,
        env=_go_environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:  # -v: a line for each package that is compiled
            output_log.append(line)
            compiled += 1
            now = time.monotonic()
            if now - last_report >= PROGRESS_INTERVAL_SECONDS:
                last_report = now
                report(
                    f"testbed: {compiled} packages compiled, {_elapsed(now - started)}"
                )
    if process.returncode != 0:
        raise BuildFailed("go build failed:\n" + "".join(output_log[-20:]))
    report(f"testbed: built in {_elapsed(time.monotonic() - started)}")


def _linker_flags() -> str:
    version = _go("list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes").strip()
    major, minor = version.removeprefix("v").split(".")[:2]
    values = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
    }
    settings = [
        f"-X {package}.{name}={value}"
        for package in VERSION_PACKAGES
        for name, value in values.items()
    ]
    return " ".join(["-s -w", *settings])  # -s -w: no symbols, half the size


def _go(*arguments: str) -> str:
    """Run a go command in the sources and return what it prints."""
    result = subprocess.run(
        ["go", *arguments],
        cwd=SOURCES,
        env=_go_environment(),
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise BuildFailed(f"go {arguments[0]} failed:\n{result.stderr.strip()[-2000:]}")
    return result.stdout


def _go_environment() -> dict[str, str]:
    # Part of the keys of Go's build cache: the same flags everywhere, or each build is a cold one.
    return {
        **os.environ,
        "GOFLAGS": "-buildvcs=false",
        "GOTOOLCHAIN": "local",  # never download another Go
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }


def _go_needed() -> str:
    match = re.search(r"^go (\S+)$", (SOURCES / "go.mod").read_text(), re.MULTILINE)
    assert match is not None
    return match.group(1)


def _numbers(version: str) -> tuple[int, ...]:
    """`go1.26.8` or `1.26.0` as numbers that compare."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _elapsed(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


@contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """Hold an advisory lock on a file; the kernel frees it if we die."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            report("testbed: another build is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
