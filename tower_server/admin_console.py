"""What the commands of `tower` have in common: finding the server, options, completion, words to the person."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.durations import parse_duration
from shared.program import EXIT_USAGE
from tower_server.admin_client import AdminClient, CommandFailed
from tower_server.tables import harmless

__all__ = [
    "EXIT_STATUS",
    "SOCKET_NAME",
    "SOCKET_VARIABLE",
    "STATE_DIR_VARIABLE",
    "AllowGroupOption",
    "AllowUserOption",
    "ImageOption",
    "KnownCluster",
    "OutOption",
    "Output",
    "OutputOption",
    "TokenForm",
    "admin_api",
    "as_json",
    "names_known_as",
    "now",
    "parse_span",
    "say",
    "socket_path",
    "stdin_is_terminal",
    "stdout_is_terminal",
    "typer_app",
]

EXIT_STATUS = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 cannot reach the server, 5 refused."

SOCKET_VARIABLE = "TOWER_ADMIN_SOCKET"
STATE_DIR_VARIABLE = "TOWER_STATE_DIR"
# The same as settings.ADMIN_SOCKET_NAME; not imported, because it brings the whole PKI along,
# and completion should not wait for that. A test compares.
SOCKET_NAME = "admin.sock"

# Completion must not make the shell hang when the server does.
COMPLETION_TIMEOUT_SECONDS = 1.0


class Output(StrEnum):
    """How a list or an object is printed."""

    TABLE = "table"
    JSON = "json"


class TokenForm(StrEnum):
    """How a new token is handed out."""

    STRING = "string"
    MANIFEST = "manifest"
    ENV = "env"

    @property
    def answer_field(self) -> str:
        """Where the server's answer has it."""
        return "join_string" if self is TokenForm.STRING else self.value


def typer_app(**settings: Any) -> typer.Typer:
    """A group of commands with the settings that all of ours have."""
    return typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="markdown",
        # A trace with local variables could show a secret.
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def socket_path(option: str | None) -> Path:
    """The admin socket: --socket (or its variable), else the one in the server's state directory.

    Raises:
        CommandFailed: If neither is known.
    """
    if option:
        return Path(option).expanduser()
    if state_dir := os.environ.get(STATE_DIR_VARIABLE):
        return Path(state_dir).expanduser() / SOCKET_NAME
    raise CommandFailed(
        f"Where the server's admin socket is, is not known: give --socket PATH, or set {SOCKET_VARIABLE}, "
        f"or {STATE_DIR_VARIABLE} to the --state-dir of `tower-server serve`.",
        EXIT_USAGE,
    )


@contextmanager
def admin_api(context: typer.Context) -> Iterator[AdminClient]:
    """The server's admin API; what fails inside ends the command with a sentence and its exit status."""
    try:
        yield AdminClient(socket_path(context.find_root().params.get("socket")))
    except CommandFailed as error:
        say(f"Error: {error}")
        raise typer.Exit(error.exit_code) from None


def names_known_as(
    resource: str, field: str
) -> Callable[[typer.Context, str], list[str]]:
    """Complete from what the server knows; silence if it cannot be asked."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        try:
            path = socket_path(context.find_root().params.get("socket"))
            answer = AdminClient(path, COMPLETION_TIMEOUT_SECONDS).get(resource)
            names = [str(item[field]) for item in answer[resource]]
        except Exception:
            return []
        return [name for name in names if name.startswith(incomplete)]

    return complete


def parse_span(text: str) -> timedelta:
    """An option's span of time such as `24h`; wrong usage (status 2) for anything else."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


KnownCluster = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The cluster's name.",
        autocompletion=names_known_as("clusters", "name"),
        show_default=False,
    ),
]
OutputOption = Annotated[
    Output,
    typer.Option(
        "--output",
        "-o",
        metavar="table|json",
        help="A table for people, or JSON with every field.",
    ),
]
OutOption = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FILE",
        show_default="stdout",
        help="Write to this file with mode 0600; what is there is replaced.",
    ),
]
# Of the manifest that `tower token create --format manifest` makes.
AllowUserOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="USER",
        show_default="tower:admin",
        help="With --format manifest: a user that the host may act as, in the agent's arguments and in its "
        "ClusterRole. Can be given more than once, and then replaces the default; `*` allows every name but "
        "those that begin with system:, which have to be listed one by one.",
    ),
]
AllowGroupOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GROUP",
        show_default="tower:cluster-admins",
        help="The same for groups. The manifest binds the default group to cluster-admin; other users and groups "
        "get their rights from the member's admin.",
    ),
]
ImageOption = Annotated[
    str | None,
    typer.Option(
        metavar="REF",
        show_default="tower-agent of this version",
        help="With --format manifest: the agent's image, with the registry from which the member pulls it.",
    ),
]


def as_json(document: Any) -> str:
    """A document of the admin API as `-o json` prints it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def say(text: str) -> None:
    """A word to the person, beside the output."""
    lines = text.split("\n")
    print("\n".join(harmless(line) for line in lines), file=sys.stderr)


def now() -> datetime:
    """The time against which tables and remarks say "3m ago"."""
    return datetime.now(UTC)


def stdout_is_terminal() -> bool:
    """Whether there is a screen to draw on."""
    return sys.stdout.isatty()


def stdin_is_terminal() -> bool:
    """Whether there is a person who can be asked."""
    return sys.stdin.isatty()
