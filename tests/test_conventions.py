"""The rules of this code base that a program can check; what ruff, mypy and import-linter check is not here.

Covered: docstrings, `__all__`, what a package says about its parts; the size of files and
functions; names; who starts tasks; what breaks on uvloop; the clock in pure code; what must
not be in the tree (keys, paths and addresses of somebody's machine); tests mirror the source.

A rule that cannot be kept somewhere gets an entry in the exceptions beside it, with its reason.
An entry that nobody needs any more fails too.
"""

import ast
import importlib
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("certs", "shared", "tower_agent", "tower_server")

MAX_FILE_LINES = 800
# Beyond this, the head of the file says why it is "longer than our files are".
SOFT_MAX_FILE_LINES = 400
# Of a body: declarations of command-line options and docstrings are not what makes code hard to follow.
MAX_BODY_LINES = 70

BANNED_NAMES = {
    "base",
    "common",
    "helper",
    "helpers",
    "manager",
    "misc",
    "util",
    "utils",
}

# Offered without a docstring: one of each for a frame of SPEC.md, which says it all.
CODECS = r"shared\.wire\.frames\.(encode|parse)_"

# Tasks outside of task groups belong to shared.tunnel.tasks.TaskSet.
STARTS_TASKS = {
    "shared/tunnel/tasks.py": "the home of them",
    "shared/http/upstream.py": "shared.http knows no tunnel; the pool cancels and awaits its connects in close()",
}

# Source modules without a test file of their own, and the tests that cover them.
COVERED_ELSEWHERE = {
    # Interfaces: protocols, types and constants, without anything that could be wrong alone.
    "shared/errors.py": "tests/shared/wire/test_spec.py",
    "shared/streams.py": "tests/shared/mux/test_stream.py",
    "shared/version.py": "tests/test_packaging.py",
    "shared/member/questions.py": "tests/shared/member/test_client.py",
    "shared/mux/handler.py": "tests/shared/mux/test_session.py",
    "shared/tunnel/owner.py": "tests/shared/tunnel/test_connection.py",
    # Halves of one thing, tested through its front.
    "shared/mux/table.py": "tests/shared/mux/test_session.py",
    "shared/tunnel/sockets.py": "tests/shared/tunnel/test_connection.py",
    "tower_agent/attempt.py": "tests/tower_agent/test_wrong_joins.py",
    "tower_agent/check.py": "tests/tower_agent/test_cli.py",
    "tower_server/access_form.py": "tests/tower_server/test_access_cli.py",
    "tower_server/admin_access.py": "tests/tower_server/test_access_cli.py",
    "tower_server/admin_direct.py": "tests/tower_server/test_direct_orders.py",
    "tower_server/direct_cluster.py": "tests/tower_server/test_direct.py",
    "tower_server/direct_cli.py": "tests/tower_server/test_direct_orders.py",
    "tower_server/admin_client.py": "tests/tower_server/test_admin_cli.py",
    "tower_server/admin_console.py": "tests/tower_server/test_admin_cli.py",
    "tower_server/admin_documents.py": "tests/tower_server/test_admin.py",
    "tower_server/admin_orders.py": "tests/tower_server/test_admin.py",
    "tower_server/answers.py": "tests/tower_server/test_join.py",
    "tower_server/issuer.py": "tests/tower_server/test_admin.py",
    "tower_server/private_output.py": "tests/tower_server/test_access_cli.py",
    "tower_server/controllers/actions.py": "tests/e2e/test_cluster_objects.py",
    "tower_server/controllers/clusters.py": "tests/e2e/test_cluster_objects.py",
    "tower_server/gateway/callers.py": "tests/tower_server/gateway/test_face.py",
    "tower_server/gateway/requests.py": "tests/tower_server/gateway/test_face.py",
    "shared/member/gateway.py": "tests/tower_server/gateway/test_face.py",
    "tower_server/tables.py": "tests/tower_server/test_admin_cli.py",
    "tower_server/stores/memory.py": "tests/tower_server/stores/test_stores.py",
    "tower_server/stores/sqlite_file.py": "tests/tower_server/stores/test_sqlite.py",
}

# Test files that mirror no single module.
TESTS_OF_MORE = {
    "tests/certs/test_exports.py": "all modules of certs",
    "tests/shared/wire/test_spec.py": "SPEC.md",
    "tests/tower_agent/test_resume.py": "sessions that go on, through all layers",
    "tests/tower_agent/test_wrong_joins.py": "every way in which a join can fail, through all layers",
    "tests/tower_server/stores/test_agreement.py": "all stores, the same history",
    "tests/tower_server/stores/test_stores.py": "all stores, the same contract",
}


# -- what is there -----------------------------------------------------------------------


@cache
def tracked() -> tuple[Path, ...]:
    """The files of the checkout, with those that are not added yet and without those that git ignores."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, check=True)
        names = listed.stdout.decode().split("\0")
        paths = [ROOT / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        paths = [
            path
            for folder in (*PACKAGES, "bench", "tests")
            for path in (ROOT / folder).rglob("*")
            if "__pycache__" not in path.parts
        ]
        paths += ROOT.iterdir()
    return tuple(sorted(path for path in paths if path.is_file()))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python_files(*folders: str) -> list[Path]:
    return [
        path
        for path in tracked()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders
    ]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=name_of(path))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


SOURCES = python_files(*PACKAGES)
EVERYTHING = python_files(*PACKAGES, "bench", "tests")
MODULES = [path for path in SOURCES if not path.stem.startswith("__")]


def test_this_file_sees_the_tree() -> None:
    assert len(SOURCES) > 80 and len(EVERYTHING) > 200
    assert ROOT / "Makefile" in tracked()


# -- words -------------------------------------------------------------------------------


def test_every_module_says_what_it_is_for() -> None:
    assert [name_of(p) for p in EVERYTHING if not ast.get_docstring(tree_of(p))] == []


@pytest.mark.parametrize(
    "init", [p for p in SOURCES if p.stem == "__init__"], ids=name_of
)
def test_a_package_explains_each_of_its_parts(init: Path) -> None:
    text = ast.get_docstring(tree_of(init)) or ""
    parts = {p.stem for p in MODULES if p.parent == init.parent}
    parts |= {p.parent.name for p in SOURCES if p.parent.parent == init.parent}
    parts -= {init.parent.name}
    unexplained = {part for part in parts if not re.search(rf"\b{part}\b", text)}
    assert unexplained == set(), f"{name_of(init)} does not mention them"


# -- names that cross borders ------------------------------------------------------------


def defined(path: Path) -> set[str]:
    """Public functions and classes, but for commands: their names belong to the command line."""
    return {
        node.name
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not any(
            isinstance(d, ast.Call) and _is_command(d) for d in node.decorator_list
        )
    }


def _is_command(decorator: ast.Call) -> bool:
    function = decorator.func
    return isinstance(function, ast.Attribute) and function.attr in (
        "command",
        "callback",
    )


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_all_lists_what_a_module_offers(path: Path) -> None:
    module = importlib.import_module(dotted(path))
    offered: list[str] = module.__all__
    assert len(offered) == len(set(offered))
    assert [name for name in offered if not hasattr(module, name)] == []
    assert defined(path) <= set(offered), "public by name, and not in __all__"
    undocumented = [
        node.name
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.name in offered
        and not ast.get_docstring(node)
        and not re.match(CODECS, f"{dotted(path)}.{node.name}")
    ]
    assert undocumented == []


def test_modules_take_from_each_other_what_is_offered() -> None:
    strays = []
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if node.module.partition(".")[0] not in PACKAGES:
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                is_module = (
                    hasattr(module, "__path__")
                    and (
                        ROOT / node.module.replace(".", "/") / f"{alias.name}.py"
                    ).exists()
                )
                if not is_module and alias.name not in module.__all__:
                    strays.append(f"{name_of(path)}: {node.module}.{alias.name}")
    assert strays == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    named = {p for p in EVERYTHING if {p.stem, p.parent.name} & BANNED_NAMES}
    assert [name_of(path) for path in named] == []


# -- sizes -------------------------------------------------------------------------------


def test_a_long_file_says_why_at_its_head() -> None:
    silent = []
    for path in python_files(*PACKAGES, "bench"):
        lines = len(path.read_text().splitlines())
        head = ast.get_docstring(tree_of(path)) or ""
        if lines > SOFT_MAX_FILE_LINES and "longer than our files" not in head.lower():
            silent.append(f"{name_of(path)}: {lines} lines")
    assert silent == []


def test_no_file_is_too_long() -> None:
    lengths = {name_of(p): len(p.read_text().splitlines()) for p in EVERYTHING}
    assert {n: lines for n, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    too_long = {}
    for path in EVERYTHING:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                if lines > MAX_BODY_LINES:
                    too_long[f"{name_of(path)}: {node.name}"] = lines
    assert too_long == {}


# -- tasks, loops, clocks ----------------------------------------------------------------


def starts_a_task(node: ast.AST) -> bool:
    """`asyncio.create_task(…)`, `loop.create_task(…)`; not a TaskGroup's, which owns its tasks."""
    if not isinstance(node, ast.Call):
        return False
    function = ast.unparse(node.func)
    return bool(
        re.search(r"\bensure_future$", function)
        or re.search(r"(^|\b(asyncio|\w*loop|\w*loop\(\))\.)create_task$", function)
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("asyncio.create_task(f())", True),
        ("create_task(f())", True),
        ("self._loop.create_task(f())", True),
        ("asyncio.get_running_loop().create_task(f())", True),
        ("asyncio.ensure_future(f())", True),
        ("group.create_task(f())", False),
        ("self._tasks.start(f())", False),
    ],
)
def test_a_started_task_is_recognized(source: str, found: bool) -> None:
    (statement,) = ast.parse(source).body
    assert isinstance(statement, ast.Expr)
    assert starts_a_task(statement.value) is found


def test_every_task_has_an_owner() -> None:
    starting = {
        name_of(p) for p in SOURCES if any(map(starts_a_task, ast.walk(tree_of(p))))
    }
    assert starting == set(STARTS_TASKS)


def test_nobody_asserts_that_a_transport_is_one_of_asyncio() -> None:
    # uvloop's transports are not instances of asyncio's abstract classes.
    asserted = re.compile(r"isinstance\(.*\basyncio\.\w*Transport\b")
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in python_files(*PACKAGES, "bench")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and asserted.search(ast.unparse(node))
    ]
    assert found == []


def test_pure_code_is_told_the_time() -> None:
    # `import time` is the business of import-linter; this is about datetime.
    pure = (ROOT / "certs", ROOT / "shared" / "wire", ROOT / "shared" / "mux")
    clock = re.compile(r"\b(datetime|date)\.(now|utcnow|today)$")
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        if any(path.is_relative_to(folder) for folder in pure)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and clock.search(ast.unparse(node.func))
    ]
    assert found == []


# -- what must not be in the tree --------------------------------------------------------

# Homes of people, and package indexes: both are true on one machine only.
OF_ONE_MACHINE = re.compile(
    r"""(?<![\w.-])/(?:root|work|Users/\w+|home/\w+)/\w
    | (?:\bextra-|\b)index-url | \bfind-links | \bGOPROXY=\w | \bregistry=http
    | \b(?:pypi|pythonhosted|npmjs|crates)\.(?:org|io|com)\b
    | \bproxy\.golang\.org\b | \b(?:artifactory|nexus)\b""",
    re.VERBOSE,
)
PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{40}"
)
SECRET_SUFFIXES = {".key", ".pem", ".p12", ".pfx", ".kubeconfig", ".sqlite"}


def texts() -> list[tuple[str, str]]:
    # go.sum and the locks are long lists of hashes; test_packaging.py knows the locks.
    return [
        (name_of(path), path.read_text(errors="replace"))
        for path in tracked()
        if path.suffix not in (".sum", ".lock") and path != Path(__file__)
    ]


def test_nothing_names_somebodys_machine_or_package_index() -> None:
    found = [
        f"{name}: {match.group()}"
        for name, text in texts()
        for match in OF_ONE_MACHINE.finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    ["/root/x", "cd /home/jane/tower", "--index-url x", "https://pypi.org/simple"],
)
def test_a_machines_own_names_are_recognized(text: str) -> None:
    assert OF_ONE_MACHINE.search(text)


@pytest.mark.parametrize(
    "text", ["shared/work/x", "https://tower.example.com/root/x", "~/.cache/work/"]
)
def test_other_paths_are_left_alone(text: str) -> None:
    assert not OF_ONE_MACHINE.search(text)


def test_no_private_key_is_in_the_tree() -> None:
    assert [name_of(p) for p in tracked() if p.suffix in SECRET_SUFFIXES] == []
    assert [name for name, text in texts() if PRIVATE_KEY.search(text)] == []


def test_a_private_key_is_recognized() -> None:
    body = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg"
    for kind in ("", "EC ", "ENCRYPTED "):
        assert PRIVATE_KEY.search(f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n")


# -- tests mirror the source -------------------------------------------------------------

TEST_FILES = [p for p in python_files("tests") if p.stem.startswith("test_")]


def mirrors(test: Path, module: Path) -> bool:
    """tests/a/test_b.py or tests/a/test_b_more.py for a/b.py."""
    return test.parent == ROOT / "tests" / module.parent.relative_to(ROOT) and (
        test.stem == f"test_{module.stem}"
        or test.stem.startswith(f"test_{module.stem}_")
    )


def test_every_module_has_its_tests() -> None:
    untested = {
        name_of(module)
        for module in MODULES
        if not any(mirrors(test, module) for test in TEST_FILES)
    }
    assert untested == set(COVERED_ELSEWHERE)
    assert [n for n in COVERED_ELSEWHERE.values() if not (ROOT / n).exists()] == []


def test_every_test_file_has_its_module() -> None:
    folders = [ROOT / "tests" / package for package in PACKAGES]
    homeless = {
        name_of(test)
        for test in TEST_FILES
        if any(test.is_relative_to(folder) for folder in folders)
        and not any(mirrors(test, module) for module in MODULES)
    }
    assert homeless == set(TESTS_OF_MORE)


def test_no_folder_of_tests_is_a_package() -> None:
    # With an __init__.py, tests/shared would shadow the package `shared`.
    assert [name_of(p) for p in python_files("tests") if p.stem == "__init__"] == []


def test_what_ci_runs_is_make_test() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & 0o111, "not executable"
    assert run.read_text().splitlines()[-1] == "make test"
