"""The commands of `tower cluster` for clusters that the server reaches by itself, by a kubeconfig."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.http.kubeconfig import MAX_KUBECONFIG_BYTES, BadKubeconfig, one_context
from shared.program import EXIT_USAGE
from tower_server.admin_console import (
    EXIT_STATUS,
    KnownCluster,
    Output,
    OutputOption,
    admin_api,
    as_json,
    say,
)

__all__ = ["add_direct_commands"]

STDIN = "-"

KubeconfigOption = Annotated[
    str,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        help="A kubeconfig of the cluster; `-` reads it from stdin. Only the one context is handed on.",
        show_default=False,
    ),
]
ContextOption = Annotated[
    str | None,
    typer.Option(
        "--context",
        metavar="CONTEXT",
        show_default="the current one",
        help="Which context of the kubeconfig.",
    ),
]
InsecureOption = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Accept a kubeconfig that does not have the apiserver's certificate verified, or speaks plain "
        "HTTP: whoever is on the way can then take its credential.",
    ),
]
_ALLOW_HELP = (
    "A {what} that the host may act as in the cluster, if the kubeconfig's user may impersonate it. Can be "
    "given more than once, and then replaces {replaces}; `*` allows every name but those that begin with "
    "system:, which have to be listed one by one."
)


def _allow_option(what: str, replaces: str, default: str) -> Any:
    return typer.Option(
        metavar=what.upper(),
        show_default=default,
        help=_ALLOW_HELP.format(what=what, replaces=replaces),
    )


def add_direct_commands(cluster_cli: typer.Typer) -> None:
    """Add `add` and `set-kubeconfig` to `tower cluster`."""
    cluster_cli.command("add", epilog=EXIT_STATUS)(_add)
    cluster_cli.command("set-kubeconfig", epilog=EXIT_STATUS)(_set_kubeconfig)


def _add(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="What the cluster is to be called: small letters, digits and hyphens.",
            show_default=False,
        ),
    ],
    kubeconfig: KubeconfigOption,
    kubeconfig_context: ContextOption = None,
    allow_user: Annotated[
        list[str] | None, _allow_option("user", "the default", "tower:admin")
    ] = None,
    allow_group: Annotated[
        list[str] | None, _allow_option("group", "the default", "tower:cluster-admins")
    ] = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add a cluster that this server can reach by itself: no agent, the server keeps a kubeconfig of it.

    For the control plane it is a cluster like any other: same URL, same kubeconfigs, same rules. The kubeconfig is
    tried first: its user must be allowed to impersonate those whom the host may act as. It lies in the server's
    store (mode 0600), so prefer one with few rights that ends; `tower status` warns seven days before.

    ```
    tower cluster add beta --kubeconfig beta-admin.kubeconfig
    tower kubeconfig beta --out beta.kubeconfig
    ```

    Client certificates, tokens, passwords, files of these, and `proxy-url` (http, https) can be used. What needs a
    program (`exec`) cannot.
    """
    order = {
        "cluster": name,
        "kubeconfig": _read(kubeconfig, kubeconfig_context),
        "allow_users": allow_user or None,
        "allow_groups": allow_group or None,
        "insecure": insecure,
    }
    with admin_api(context) as admin:
        answer = admin.post("clusters", order=order)
    _warn_if(insecure)
    if output is Output.JSON:
        sys.stdout.write(as_json(answer))
    say(
        f"{answer['name']} is added: it runs {answer['apiserver_version']}, its UID is {answer['member_uid']}. "
        f"{_acting(answer)}\nNext: tower kubeconfig {answer['name']} --out {answer['name']}.kubeconfig"
    )


def _set_kubeconfig(
    context: typer.Context,
    name: KnownCluster,
    kubeconfig: KubeconfigOption,
    kubeconfig_context: ContextOption = None,
    allow_user: Annotated[
        list[str] | None,
        _allow_option("user", "those that were allowed", "as it was"),
    ] = None,
    allow_group: Annotated[
        list[str] | None,
        _allow_option("group", "those that were allowed", "as it was"),
    ] = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a directly connected cluster another kubeconfig: a renewed credential, another address.

    It is used from the next request on, and nothing that runs is cut off. One of another cluster is refused.

    ```
    tower cluster set-kubeconfig beta --kubeconfig renewed.kubeconfig
    ```
    """
    order = {
        "kubeconfig": _read(kubeconfig, kubeconfig_context),
        "allow_users": allow_user or None,
        "allow_groups": allow_group or None,
        "insecure": insecure,
    }
    with admin_api(context) as admin:
        answer = admin.put("clusters", name, "kubeconfig", order=order)
    _warn_if(insecure)
    if output is Output.JSON:
        sys.stdout.write(as_json(answer))
    say(f"{answer['name']} has another kubeconfig. {_acting(answer)}")


def _read(file: str, context: str | None) -> str:
    """One context of the kubeconfig, with absolute paths; wrong usage (status 2) if there is none."""
    source = "what came on stdin" if file == STDIN else file
    try:
        if file == STDIN:
            data = sys.stdin.buffer.read(MAX_KUBECONFIG_BYTES + 1)
            directory = None
        else:
            path = Path(file).expanduser().absolute()
            with path.open("rb") as opened:
                data = opened.read(MAX_KUBECONFIG_BYTES + 1)
            directory = path.parent
        reduced = one_context(data, source=source, directory=directory, context=context)
    except OSError as error:
        say(f"Error: The kubeconfig {source} cannot be read: {error.strerror}.")
        raise typer.Exit(EXIT_USAGE) from None
    except BadKubeconfig as error:
        say(f"Error: {error}.")
        raise typer.Exit(EXIT_USAGE) from None
    return reduced.decode()


def _acting(answer: dict[str, Any]) -> str:
    users, groups = (
        ", ".join(answer[field]) or "none" for field in ("allow_users", "allow_groups")
    )
    return f"The host may act there as users {users} and groups {groups}."


def _warn_if(insecure: bool) -> None:
    if insecure:
        say(
            "Warning: with --insecure, whoever is on the way to that apiserver can read everything and take the "
            "credential in the kubeconfig."
        )
