"""The README is true: what it tells people to type exists, and what it quotes is what they will see.

Covered: make targets, our own commands and their options, links in all documents, files and
folders, sentences quoted from errors and from the demo, the version, and the length of what a
newcomer reads first. The reference of options is test_cli_reference.py's.
"""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from shared.version import VERSION
from tower_agent.cli import cli as tower_agent
from tower_server.admin_cli import cli as tower
from tower_server.cli import cli as tower_server

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PROGRAMS = {
    "tower": typer.main.get_command(tower),
    "tower-server": typer.main.get_command(tower_server),
    "tower-agent": typer.main.get_command(tower_agent),
}
# A newcomer reads these over a coffee. Drawings, commands and their output are not counted.
FIRST_SECTIONS = 4
MAX_WORDS_OF_FIRST_SECTIONS = 600

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GENERATED = re.compile(r"<!-- begin: .*?<!-- end: .*?-->", re.DOTALL)
WRITTEN = GENERATED.sub("", README)  # by people


def sections() -> dict[str, str]:
    """Title and text of each section; what is before the first one has the title `Tower`."""
    parts = re.split(r"^##? (.+)$", WRITTEN, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(language: str, text: str = WRITTEN) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def typed() -> list[str]:
    """The commands that the README shows after a prompt, without comments."""
    lines = "".join(blocks("console")).splitlines()
    commands = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    return [re.sub(r"\s+# .*", "", command) for command in commands]


def ours() -> list[list[str]]:
    """Each call of one of our programs, in blocks and in the text, as words."""
    inline = re.findall(r"`(tower[a-z-]* [^`]+)`", WRITTEN)
    calls = []
    for command in [*typed(), *inline]:
        # Only what is ours: `env $(…) tower-agent run …` runs tower-agent.
        match = re.search(
            r"(?:^|\s)(tower|tower-agent|tower-server) (?![a-z]+:)", command
        )
        if match and not command.startswith(("kubectl", "helm")):
            call = re.split(r"[|>;]", command[match.start() :])[0]
            calls.append(shlex.split(call))
    return calls


# -- commands ----------------------------------------------------------------------------


def test_every_make_target_that_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):.*## ", MAKEFILE, re.MULTILINE))
    commands = "\n".join([*typed(), *re.findall(r"`([^`\n]+)`", WRITTEN)])
    named = set(re.findall(r"(?:^|\s)make ([a-z][a-z0-9-]*)", commands, re.MULTILINE))
    assert {"run", "test", "testbed"} <= named <= targets


def test_make_help_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    targets = re.findall(r"^([a-z][a-z0-9-]*):.*## ", MAKEFILE, re.MULTILINE)
    assert sorted(phony[1].split()) == sorted(targets)


def test_it_shows_all_three_programs() -> None:
    assert {call[0] for call in ours()} == set(PROGRAMS)


@pytest.mark.parametrize("call", ours(), ids=" ".join)
def test_a_command_of_ours_exists_with_its_options(call: list[str]) -> None:
    program, *words = call
    command = PROGRAMS[program]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        word = words.pop(0)
        assert word in command.commands, f"{program} has no {word}"
        command = command.commands[word]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


# -- files and links ---------------------------------------------------------------------

DOCUMENTS = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *ROOT.glob("certs/*.md"),
        *ROOT.glob("shared/**/*.md"),
        *ROOT.glob("bench/**/*.md"),
        *ROOT.glob("tests/**/*.md"),
    )
    if path.exists()
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = FENCE.sub("", document.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = document.parent / path if path else document
        assert found.exists(), f"{target} is not there"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in {_anchor(title) for title in titles}, target


def _anchor(title: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_the_tree_that_it_shows_is_the_tree() -> None:
    (tree,) = blocks("", sections()["Develop"])
    shown = set(
        re.findall(
            r"(?:^|  )((?:[a-z]+_)?[a-z]+(?:/[a-z]+)?)(?=  )", tree, re.MULTILINE
        )
    )
    missing = {name for name in shown if "/" in name and not (ROOT / name).is_dir()}
    assert missing == set()
    packages = {
        str(path.parent.relative_to(ROOT))
        for name in ("certs", "shared", "tower_agent", "tower_server", "bench")
        for path in (ROOT / name / "__init__.py", *(ROOT / name).glob("*/__init__.py"))
    }
    parts = {p for p in packages if p.startswith("shared/") or "/" not in p} - {
        "shared"
    }
    assert parts | {"tests"} <= shown


# -- quotations --------------------------------------------------------------------------


def sentences(*folders: str) -> str:
    """Every string of the source, f-strings with … for what is filled in."""
    found: list[str] = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (
                        part.value if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    )
                    found.append("".join(map(str, parts)))
    return "\n".join(found)


def troubles() -> list[str]:
    """The first column of the table `if it does not connect`."""
    rows = re.findall(r"^\| (`.+?`) \|", sections()["On real clusters"], re.MULTILINE)
    return [row.strip("`") for row in rows]


def test_the_table_of_troubles_has_its_rows() -> None:
    assert len(troubles()) >= 5


@pytest.mark.parametrize("sentence", troubles())
def test_a_quoted_error_is_what_the_agent_says(sentence: str) -> None:
    source = sentences("tower_agent", "certs", "shared")
    for fragment in sentence.split("…"):
        assert fragment.strip() in source, f"nothing says {fragment.strip()!r}"


def test_the_demo_says_what_is_quoted_of_it() -> None:
    source = sentences("tests/demo")
    quoted = re.findall(r"^\d\. (.+)$", "".join(blocks("console")), re.MULTILINE)
    assert quoted and [line for line in quoted if line not in source] == []


def test_ready_lines_are_those_of_the_programs() -> None:
    source = sentences("tower_agent", "tower_server")
    shown = re.findall(
        r"^\s*(tower-(?:server|agent) ready\b.*?) ?(?:alpha|0\.0\.0\.0)",
        "".join(blocks("console")),
        re.MULTILINE,
    )
    assert len(shown) == 2
    assert [line for line in shown if line not in source] == []


def test_the_files_of_the_servers_state_are_those_that_it_writes() -> None:
    state = re.search(
        r"\*\*State\*\*: (.+?)Back it up", sections()["Operate"], re.DOTALL
    )
    assert state is not None
    source = sentences("tower_server", "certs")
    for name in re.findall(r"`([\w./]+)`", state[1]):
        assert name.strip("/") in source, name


def test_the_version_is_this_one() -> None:
    assert f"({VERSION})" in sections()["Status"]


def test_what_comes_first_is_short() -> None:
    first = list(sections().values())[:FIRST_SECTIONS]
    words = sum(len(FENCE.sub("", text).split()) for text in first)
    assert words <= MAX_WORDS_OF_FIRST_SECTIONS
