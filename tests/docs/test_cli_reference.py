"""The README names every option and environment variable, and its reference is that of the code."""

import re

import pytest

from tests.docs.cli_reference import (
    BEGIN,
    END,
    README,
    cli_reference,
    environment_variables,
    options,
)

# Shorter than this, the README is the stub that packaging needs.
MIN_README_BYTES = 500


@pytest.fixture
def readme() -> str:
    if not README.exists() or README.stat().st_size < MIN_README_BYTES:
        pytest.skip("README.md is not written yet")
    return README.read_text()


def test_every_option_is_in_the_readme(readme: str) -> None:
    missing = {
        o for o in options() if not re.search(rf"{re.escape(o)}(?![\w-])", readme)
    }
    assert not missing


def test_every_environment_variable_is_in_the_readme(readme: str) -> None:
    missing = {v for v in environment_variables() if not re.search(rf"\b{v}\b", readme)}
    assert not missing


def test_the_reference_in_the_readme_is_that_of_the_code(readme: str) -> None:
    pasted = readme.partition(BEGIN)[2].partition(END)[0]
    assert pasted.strip() == cli_reference().strip(), (
        "run: python -m tests.docs.cli_reference --write"
    )


def test_the_reference_has_the_commands_of_all_three_programs() -> None:
    text = cli_reference()
    for command in (
        "`tower token create CLUSTER`",
        "`tower cluster remove NAME`",
        "`tower kubeconfig NAME...`",
        "`tower-server serve`",
        "`tower-agent run`",
        "`tower-agent check`",
    ):
        assert f"# {command}\n" in text


def test_the_reference_finds_options_and_variables() -> None:
    assert {
        "--state-dir",
        "--tcp-entry",
        "--allow-group",
        "--out",
        "--version",
    } <= options()
    assert {
        "TOWER_STATE_DIR",
        "TOWER_JOIN",
        "TOWER_JOIN_FILE",
    } <= environment_variables()


def test_every_option_explains_itself() -> None:
    for line in cli_reference().splitlines():
        if line.startswith("| `"):
            assert line.rstrip(" |").count("|") >= 3 and not line.endswith("|  |"), line
