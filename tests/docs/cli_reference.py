"""Renders the help of the three commands as markdown, for the README.

`python -m tests.docs.cli_reference` prints it; `--write` puts it between the two marks in
README.md; tests/docs/test_cli_reference.py compares.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from tower_agent.cli import cli as tower_agent
from tower_server.admin_cli import cli as tower
from tower_server.cli import cli as tower_server

__all__ = [
    "BEGIN",
    "END",
    "README",
    "cli_reference",
    "environment_variables",
    "options",
]

README = Path(__file__).parents[2] / "README.md"
BEGIN = "<!-- begin: commands (python -m tests.docs.cli_reference --write) -->"
END = "<!-- end: commands -->"

# Of typer itself; they are the same for every program that is made with it.
_TYPER_OWN = {"--install-completion", "--show-completion", "--help", "-h"}

# Read by hand, so that they cannot be given as options (tower_agent.cli).
_VARIABLES_WITHOUT_OPTION = ("TOWER_JOIN",)


def cli_reference() -> str:
    """Every command with its help, its arguments and its options; the same text each time."""
    return "\n".join(_section(name, command) for name, command in _commands())


def options() -> set[str]:
    """Every long option of the three programs."""
    return {
        flag
        for _, command in _commands()
        for parameter in _parameters(command)
        for flag in parameter.opts
        if flag.startswith("--")
    }


def environment_variables() -> set[str]:
    """Every environment variable that the three programs read."""
    return set(_VARIABLES_WITHOUT_OPTION) | {
        parameter.envvar
        for _, command in _commands()
        for parameter in _parameters(command)
        if parameter.envvar
    }


def _commands() -> Iterator[tuple[str, Any]]:
    for app in (tower, tower_server, tower_agent):
        command = typer.main.get_command(app)
        assert command.name is not None
        yield from _with_subcommands(command.name, command)


def _with_subcommands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for subname, subcommand in getattr(command, "commands", {}).items():
        yield from _with_subcommands(f"{name} {subname}", subcommand)


def _parameters(command: Any) -> list[Any]:
    return [p for p in command.params if not _TYPER_OWN & set(p.opts)]


def _section(name: str, command: Any) -> str:
    heading = "#" * min(3 + name.count(" "), 5)
    arguments = [p for p in _parameters(command) if p.param_type_name == "argument"]
    flags = [p for p in _parameters(command) if p.param_type_name == "option"]
    usage = " ".join([name, *(_metavar(argument) for argument in arguments)])
    parts = [f"{heading} `{usage}`", inspect.cleandoc(command.help or "")]
    if arguments or flags:
        rows = [_row(parameter) for parameter in (*arguments, *flags)]
        parts.append(
            "\n".join(
                [
                    _row_of("", "environment", "default", "what it is"),
                    "|-|-|-|-|",
                    *rows,
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{_metavar(parameter)}`"
    else:
        name = f"`{', '.join(parameter.opts)}{_value(parameter)}`"
    variable = f"`{parameter.envvar}`" if parameter.envvar else ""
    return _row_of(name, variable, _default(parameter), parameter.help or "")


def _row_of(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _value(parameter: Any) -> str:
    if parameter.is_flag:
        return ""
    return f" {_metavar(parameter)}"


def _default(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return ""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if (
        parameter.is_flag
        or not parameter.show_default
        or parameter.default in (None, [], ())
    ):
        return ""
    return f"`{getattr(parameter.default, 'value', parameter.default)}`"


def _write() -> None:
    text = README.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(
            f"README.md has no place for it: put these two lines there.\n{BEGIN}\n{END}"
        )
    README.write_text(f"{before}{BEGIN}\n\n{cli_reference()}\n{END}{after}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        _write()
    else:
        print(cli_reference())
