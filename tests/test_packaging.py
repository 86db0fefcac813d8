"""What is shipped: the wheel, its commands, and the locks that name every dependency.

Covered: what lies in the wheel and nothing else; one version everywhere; the three commands
run from the wheel alone; both locks pin all that pyproject.toml names, by hash, from no
particular index, and agree with each other. Nothing here needs a network.
"""

import ast
import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from shared.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
PACKAGES = {"tower_server", "tower_agent", "shared", "certs"}
DIST_INFO = f"tower-{VERSION}.dist-info"
# Which requirements each lock answers for.
LOCKS = {
    "requirements.lock": [*PROJECT["dependencies"], *EXTRAS["demo"]],
    "requirements-dev.lock": [
        *PROJECT["dependencies"],
        *EXTRAS["demo"],
        *EXTRAS["dev"],
    ],
}
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)", re.MULTILINE)
BUILD_SECONDS = 60
COMMAND_SECONDS = 30


# -- the wheel ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built by the hatchling that is installed."""
    directory = tmp_path_factory.mktemp("dist")
    command = ["-m", "hatchling", "build", "--target", "wheel"]
    result = subprocess.run(
        [sys.executable, *command, "--directory", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = directory.iterdir()
    assert path.name == f"tower-{VERSION}-py3-none-any.whl"
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as an installer does it."""
    directory = tmp_path_factory.mktemp("site-packages")
    wheel.extractall(directory)
    return directory


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return message_from_string(wheel.read(f"{DIST_INFO}/METADATA").decode())


def test_its_top_level_is_the_four_packages_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert top == PACKAGES | {DIST_INFO}


def test_every_module_of_the_packages_is_in_it(wheel: zipfile.ZipFile) -> None:
    modules = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules == {name for name in wheel.namelist() if name.endswith(".py")}


def test_the_specification_and_the_licence_are_in_it(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"shared/wire/SPEC.md", "certs/README.md"} <= names
    assert f"{DIST_INFO}/licenses/LICENSE" in names


def test_nothing_secret_and_nothing_compiled_is_in_it(wheel: zipfile.ZipFile) -> None:
    allowed = (".py", ".md", ".typed", ".txt", "METADATA", "WHEEL", "RECORD", "LICENSE")
    assert [name for name in wheel.namelist() if not name.endswith(allowed)] == []


def test_the_version_is_the_same_in_code_pyproject_and_wheel(metadata: Message) -> None:
    assert PROJECT["version"] == VERSION == metadata["Version"]


def test_it_cannot_be_uploaded_by_accident(metadata: Message) -> None:
    # The import name `shared` belongs to somebody else on the public index.
    assert "Private :: Do Not Upload" in metadata.get_all("Classifier", [])


def test_the_classifiers_name_the_pythons_that_it_installs_on() -> None:
    wanted = Requirement(f"python{PROJECT['requires-python']}").specifier
    named = {
        text.rpartition(" :: ")[2]
        for text in PROJECT["classifiers"]
        if text.startswith("Programming Language :: Python :: 3.")
    }
    assert named == {f"3.{minor}" for minor in range(30) if f"3.{minor}.0" in wanted}


# -- its commands ------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(PROJECT["scripts"]))
def test_a_command_runs_from_the_wheel_alone(installed: Path, command: str) -> None:
    points = configparser.ConfigParser()
    points.read(installed / DIST_INFO / "entry_points.txt")
    module, _, function = points["console_scripts"][command].partition(":")
    program = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        f"sys.argv = [{command!r}, '--version']\n"
        f"import {module} as module\n"
        f"assert module.__file__.startswith({str(installed)!r}), module.__file__\n"
        f"sys.exit(module.{function}())\n"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert result.returncode == 0, result.stderr
    assert VERSION in result.stdout


# -- the locks ---------------------------------------------------------------------------


def pins(lock: str) -> dict[str, Version]:
    text = (ROOT / lock).read_text()
    return {
        canonicalize_name(match["name"]): Version(match["version"])
        for match in PIN.finditer(text)
    }


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_every_direct_dependency_as_pyproject_wants_it(lock: str) -> None:
    pinned = pins(lock)
    for requirement in map(Requirement, LOCKS[lock]):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in {lock}: make lock"
        assert version in requirement.specifier, f"{requirement}: {version} in {lock}"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_hashes_for_each_pin_and_names_no_index(lock: str) -> None:
    text = (ROOT / lock).read_text()
    for line in text.splitlines():
        known = line.startswith(("    --hash=sha256:", "    # ")) or PIN.match(line)
        assert known, f"{lock}: {line!r} is neither a pin, a hash nor a comment"
    assert "://" not in text
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert [block for block in blocks if "--hash=sha256:" not in block] == []


def test_what_builds_the_wheel_is_locked_too() -> None:
    pinned = pins("requirements.lock")
    for requirement in map(Requirement, PYPROJECT["build-system"]["requires"]):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_both_locks_agree() -> None:
    run, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert {name: dev.get(name) for name in run} == run


def test_every_direct_dependency_says_why_it_is_there() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for requirement in [*PROJECT["dependencies"], *EXTRAS["demo"], *EXTRAS["dev"]]:
        start = re.compile(rf'\s+"{re.escape(requirement)}",\s+# \S')
        assert any(map(start.match, lines)), f"{requirement} is there for no reason"


def test_the_packages_import_what_the_wheel_requires_and_nothing_else() -> None:
    imported: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {name.name.partition(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.partition(".")[0])
    foreign = imported - PACKAGES - sys.stdlib_module_names
    providers = packages_distributions()
    distributions = {canonicalize_name(providers[name][0]) for name in foreign}
    required = {
        canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]
    }
    assert distributions == required
