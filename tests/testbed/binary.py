"""Go programs that tests run: where each is, what is missing for it, and how it is built.

A program is kept outside the checkout, under the digest of its sources, so that a fresh clone
and a changed one each find the right one:

    ~/.cache/tower-testbed/<digest>/kubelab      (TOWER_TESTBED_CACHE overrides the base)

`KUBELAB` is the multi-call binary of the control plane, `HELM` what installs our charts.
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
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HELM", "KUBELAB", "BuildFailed", "GoProgram", "cache_directory"]

# A line at least this often, so that nobody takes a slow build for a hung one.
PROGRESS_INTERVAL_SECONDS = 10.0
Report = Callable[[str], None]


class BuildFailed(Exception):
    """The binary cannot be built; the message is one line, or the compiler's own."""


def cache_directory() -> Path:
    """The base of everything that is kept outside the checkout."""
    override = os.environ.get("TOWER_TESTBED_CACHE")
    return Path(override) if override else Path.home() / ".cache" / "tower-testbed"


@dataclass(frozen=True, kw_only=True)
class GoProgram:
    """One program: a folder with go.mod, and which package of it to build."""

    name: str
    sources: Path
    package: str
    # The module whose version the program says is its own, and the variables (`%s` for its
    # parts) into which the linker writes it.
    versioned_module: str
    version_variables: tuple[tuple[str, str], ...]
    # What a cold build costs, for whoever waits.
    cold_build: str

    def path(self) -> Path:
        """Where the binary of these sources is, or will be."""
        digest = hashlib.sha256()
        for source in sorted(self.sources.iterdir()):
            content = source.read_bytes()
            digest.update(f"{source.name} {len(content)}\n".encode() + content)
        return cache_directory() / digest.hexdigest()[:16] / self.name

    def missing(self) -> str | None:
        """What stands in the way of the program, in one line; None if nothing does.

        A binary that is not built yet stands in the way only where it cannot be built.
        """
        if sys.platform != "linux":
            return f"{self.name} needs Linux"
        if self.path().exists():
            return None
        needed = self._go_needed()
        if shutil.which("go") is None:
            return f"no Go: install Go {needed} or newer (https://go.dev/dl), then `make testbed`"
        have = self._go("env", "GOVERSION").strip()
        if _numbers(have) < _numbers(needed):
            return f"{have} is too old: install Go {needed} or newer (https://go.dev/dl), then `make testbed`"
        return None

    def build(self, report: Report) -> Path:
        """Build the binary if it is not there; two builds at once wait for each other.

        Args:
            report: Called with each line of progress.

        Raises:
            BuildFailed: With the reason.
        """
        target = self.path()
        if target.exists():
            return target
        if reason := self.missing():
            raise BuildFailed(reason)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / "lock", report):
            if target.exists():  # the other build made it
                return target
            # Beside the target, since only within a file system a rename is atomic.
            with tempfile.TemporaryDirectory(
                dir=target.parent, prefix="build-"
            ) as scratch:
                output = Path(scratch) / self.name
                self._compile(output, report)
                output.rename(target)
        return target

    def _compile(self, output: Path, report: Report) -> None:
        started = time.monotonic()
        report(f"testbed: looking at the sources of {self.name}, and fetching modules")
        packages = len(self._go("list", "-deps", self.package).splitlines())
        report(
            f"testbed: compiling up to {packages} packages; a cold build takes {self.cold_build} on 2 cores"
        )
        command = ["go", "build", "-v", "-trimpath", f"-ldflags={self._linker_flags()}"]
        output_log: list[str] = []
        compiled = 0
        last_report = started
        with subprocess.Popen(
            [*command, "-o", str(output), self.package],
            cwd=self.sources,
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
        report(f"testbed: built {self.name} in {_elapsed(time.monotonic() - started)}")

    def _linker_flags(self) -> str:
        version = self._go("list", "-m", "-f", "{{.Version}}", self.versioned_module)
        version = version.strip()
        major, minor = version.removeprefix("v").split(".")[:2]
        parts = {"version": version, "major": major, "minor": minor}
        settings = [
            f"-X {variable}={value.format(**parts)}"
            for variable, value in self.version_variables
        ]
        return " ".join(["-s -w", *settings])  # -s -w: no symbols, half the size

    def _go(self, *arguments: str) -> str:
        """Run a go command in the sources and return what it prints."""
        result = subprocess.run(
            ["go", *arguments],
            cwd=self.sources,
            env=_go_environment(),
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise BuildFailed(
                f"go {arguments[0]} failed:\n{result.stderr.strip()[-2000:]}"
            )
        return result.stdout

    def _go_needed(self) -> str:
        text = (self.sources / "go.mod").read_text()
        match = re.search(r"^go (\S+)$", text, re.MULTILINE)
        assert match is not None
        return match.group(1)


def _kubernetes_version() -> Iterator[tuple[str, str]]:
    """Into the programs' `--version`, as upstream's own build does."""
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        yield f"{package}.gitVersion", "{version}"
        yield f"{package}.gitMajor", "{major}"
        yield f"{package}.gitMinor", "{minor}"
        yield f"{package}.gitTreeState", "clean"


KUBELAB = GoProgram(
    name="kubelab",
    sources=Path(__file__).with_name("src"),
    package=".",
    versioned_module="k8s.io/kubernetes",
    version_variables=tuple(_kubernetes_version()),
    cold_build="7 to 20 minutes",
)

HELM = GoProgram(
    name="helm",
    sources=Path(__file__).with_name("helm"),
    package="helm.sh/helm/v3/cmd/helm",
    versioned_module="helm.sh/helm/v3",
    version_variables=(
        ("helm.sh/helm/v3/internal/version.version", "{version}"),
        # What `helm template` and `helm lint` take for the cluster's version when they see none:
        # the oldest that our charts promise to work on.
        ("helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor", "1"),
        ("helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor", "28"),
        ("helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor", "1"),
        ("helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor", "28"),
    ),
    cold_build="2 to 5 minutes",
)


def _go_environment() -> dict[str, str]:
    # Part of the keys of Go's build cache: the same flags everywhere, or each build is a cold one.
    return {
        **os.environ,
        "GOFLAGS": "-buildvcs=false",
        "GOTOOLCHAIN": "local",  # never download another Go
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }


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
