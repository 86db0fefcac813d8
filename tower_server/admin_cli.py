"""The command `tower`, for admins on the host: gives orders over the admin socket, prints answers.

What was asked for goes to stdout and nothing else does: hints go to stderr, so that
`tower token create alpha | ...` and `tower kubeconfig alpha > file` are what they look like.
Somewhat longer than our files are: half of it is the help of the commands.
"""

import sys
import time
from typing import Annotated

import typer

from shared.durations import format_duration
from shared.program import EXIT_USAGE
from shared.version import VERSION
from tower_server import access_cli, tables
from tower_server.admin_console import (
    EXIT_STATUS,
    SOCKET_NAME,
    SOCKET_VARIABLE,
    STATE_DIR_VARIABLE,
    AllowGroupOption,
    AllowUserOption,
    ImageOption,
    KnownCluster,
    OutOption,
    Output,
    OutputOption,
    TokenForm,
    admin_api,
    as_json,
    names_known_as,
    now,
    parse_span,
    say,
    stdin_is_terminal,
    stdout_is_terminal,
    typer_app,
)
from tower_server.direct_cli import add_direct_commands
from tower_server.private_output import write_private_text
from tower_server.top import REFRESH_SECONDS, busiest_first, watch, with_rates

__all__ = ["cli", "main"]

cli = typer_app(name="tower")
token_cli = typer_app(
    help="Join tokens: invitations for clusters. Each is good for one cluster and one join."
)
cluster_cli = typer_app(
    help="The clusters that have joined or were added, and those that are invited."
)
cli.add_typer(token_cli, name="token")
add_direct_commands(cluster_cli)
cli.add_typer(cluster_cli, name="cluster")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tower {VERSION}")
        raise typer.Exit


@cli.callback()
def tower(
    socket: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            envvar=SOCKET_VARIABLE,
            show_default=f"{SOCKET_NAME} in the directory of {STATE_DIR_VARIABLE}",
            help="The server's admin socket.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Invite private clusters, see how they are, and get kubeconfigs for them.

    Works on the machine on which `tower-server serve` runs, for whoever may open its admin socket.

    ```
    tower token create alpha     # invites a cluster, to be called alpha
    tower cluster list           # who is connected, since when
    tower kubeconfig alpha --out alpha.kubeconfig
    kubectl --kubeconfig alpha.kubeconfig get nodes
    ```
    """


# -- tower token -------------------------------------------------------------------------------


@token_cli.command("create", epilog=EXIT_STATUS)
def create_token(
    context: typer.Context,
    cluster: Annotated[
        str,
        typer.Argument(
            metavar="CLUSTER",
            help="What the cluster is to be called: small letters, digits and hyphens. For a cluster that has "
            "joined before, the token is for joining again, and its old agent's certificate ends then.",
            autocompletion=names_known_as("clusters", "name"),
            show_default=False,
        ),
    ],
    ttl: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long the token can be used, such as 30m, 24h or 7d.",
        ),
    ] = "24h",
    form: Annotated[
        TokenForm,
        typer.Option(
            "--format",
            metavar="string|manifest|env",
            help="The bare join string; a manifest to apply in the member; or an env file for an agent elsewhere.",
        ),
    ] = TokenForm.STRING,
    allow_user: AllowUserOption = None,
    allow_group: AllowGroupOption = None,
    image: ImageOption = None,
    out: OutOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a join token: whoever has it can join as CLUSTER, once. It is shown only now.

    **Into Kubernetes**, with kubectl pointing to the member:

    ```
    tower token create alpha --format manifest | kubectl apply -f -
    ```

    **With less power for the host** than cluster-admin, and an image of your own registry:

    ```
    tower token create alpha --format manifest --allow-group developers --image registry.example.com/tower-agent:1
    ```

    **Anywhere else**, hand the file to the machine where the agent will run:

    ```
    tower token create alpha --out join
    tower-agent run --join-file join --state-dir ./agent --kubeconfig member.kubeconfig
    ```
    """
    span = parse_span(ttl)
    with admin_api(context) as admin:
        token = admin.post(
            "tokens",
            order={
                "cluster": cluster,
                "ttl_seconds": int(span.total_seconds()),
                "format": form.value,
                "allow_users": allow_user or None,
                "allow_groups": allow_group or None,
                "image": image,
            },
        )
        secret = token[form.answer_field]
        text = (
            as_json(token)
            if output is Output.JSON
            else secret.removesuffix("\n") + "\n"
        )
        path = write_private_text(text, out)
    say(
        f"Token {token['id']} for {token['cluster']}: good for one join within {format_duration(span)}"
        + (f", written to {path}." if path else ".")
    )


@token_cli.command("list", epilog=EXIT_STATUS)
def list_tokens(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the join tokens: ready, used, expired and revoked ones. Their secrets are stored nowhere.

    A script waits for a cluster to use its token like this:

    ```
    tower token list -o json | jq '.tokens[] | select(.cluster == "alpha").state'
    ```
    """
    with admin_api(context) as admin:
        answer = admin.get("tokens")
    if output is Output.JSON:
        sys.stdout.write(as_json(answer))
    elif answer["tokens"]:
        tables.print_table(tables.tokens_table(answer["tokens"], now()))
    else:
        say("No tokens yet. Next: tower token create alpha")


@token_cli.command("revoke", epilog=EXIT_STATUS)
def revoke_token(
    context: typer.Context,
    token_id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="The token's id, as `tower token list` shows it.",
            autocompletion=names_known_as("tokens", "id"),
            show_default=False,
        ),
    ],
) -> None:
    """Take a join token back. A cluster that has already joined with it stays.

    ```
    tower token revoke k3v9m2x7qaht
    ```
    """
    with admin_api(context) as admin:
        token = admin.delete("tokens", token_id)
    if token["used_at"]:
        say(
            f"Token {token['id']} is revoked, but {token['cluster']} has joined with it and stays: "
            f"to end that, use `tower cluster remove {token['cluster']}`."
        )
    else:
        say(f"Token {token['id']} for {token['cluster']} is revoked.")


# -- tower cluster -----------------------------------------------------------------------------


@cluster_cli.command("list", epilog=EXIT_STATUS)
def list_clusters(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the clusters: connected or away since when, round trip, versions, open streams.

    The state `never` means: invited by a token, and not joined yet.

    ```
    tower cluster list -o json | jq -r '.clusters[] | select(.state == "away").name'
    ```
    """
    with admin_api(context) as admin:
        answer = admin.get("clusters")
    if output is Output.JSON:
        sys.stdout.write(as_json(answer))
    elif answer["clusters"]:
        tables.print_table(tables.clusters_table(answer["clusters"], now()))
    else:
        say("No clusters yet. Next: tower token create alpha")


@cluster_cli.command("show", epilog=EXIT_STATUS)
def show_cluster(
    context: typer.Context, name: KnownCluster, output: OutputOption = Output.TABLE
) -> None:
    """Show everything about one cluster.

    ```
    tower cluster show alpha
    ```
    """
    with admin_api(context) as admin:
        cluster = admin.get("clusters", name)
    if output is Output.JSON:
        sys.stdout.write(as_json(cluster))
    else:
        tables.print_table(tables.cluster_details(cluster, now()))


@cluster_cli.command("remove", epilog=EXIT_STATUS)
def remove_cluster(
    context: typer.Context,
    name: KnownCluster,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget a cluster: its tunnel is cut, its agent can no longer connect, and its open tokens are revoked.

    Of one with a direct connection the kubeconfig is deleted.

    Nothing is changed inside the cluster. It can join again, under this name or another, with a new token.

    ```
    tower cluster remove alpha
    ```
    """
    if not yes and not stdin_is_terminal():
        say("Error: Removing a cluster has to be confirmed: add --yes.")
        raise typer.Exit(EXIT_USAGE)
    with admin_api(context) as admin:
        if not yes:
            # So that a wrong name fails before the question, not after.
            admin.get("clusters", name)
            typer.confirm(
                f"Cut the tunnel of {name} and forget it?", abort=True, err=True
            )
        answer = admin.delete("clusters", name)
    if not answer["joined"]:
        say(f"The invitation of {name} is withdrawn: it had not joined yet.")
        return
    say(
        f"{name} is removed and its tunnel is cut. In the cluster, the agent can be deleted. Kubeconfigs for {name} "
        "lead nowhere now; until they expire they would be good again if a cluster joined under this name."
    )


# -- tower kubeconfig, tower credential, tower status --------------------------------------------


access_cli.add_commands(cli)


@cli.command(epilog=EXIT_STATUS)
def status(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show how the server is: version, addresses, how many clusters and streams.

    ```
    tower status -o json | jq .clusters.away
    ```
    """
    with admin_api(context) as admin:
        answer = admin.get("status")
    if output is Output.JSON:
        sys.stdout.write(as_json(answer))
    else:
        tables.print_table(tables.status_details(answer, now()))


@cli.command(epilog=EXIT_STATUS)
def top(
    context: typer.Context,
    once: Annotated[
        bool,
        typer.Option(
            "--once", help="Measure for one second, print the table, and end."
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Watch what goes through the tunnels, busiest clusters first; Ctrl-C ends it.

    IN is what comes from the member, OUT what goes there, in bytes of the tunnel. QUEUE waits to be sent.
    STALLED streams have data and no credit, because their reader does not take it; STALLS counts how often that was.
    RESUMES counts lost connections that sessions outlived, RESENT the bytes that were sent again for it.

    ```
    tower top
    tower top -o json | jq '.clusters[] | {name, received_bytes_total}'
    ```

    With `-o json` it prints one reading: totals, which only grow while the server runs, and `clock_seconds`, the
    server's clock to divide their differences by.
    """
    with admin_api(context) as admin:
        if output is Output.JSON:
            sys.stdout.write(as_json(admin.get("top")))
        elif once:
            before = admin.get("top")
            time.sleep(REFRESH_SECONDS)
            clusters = busiest_first(with_rates(admin.get("top"), before))
            tables.print_table(tables.traffic_table(clusters))
        elif not stdout_is_terminal():
            say("Error: A live table needs a terminal: add --once, or -o json.")
            raise typer.Exit(EXIT_USAGE)
        else:
            watch(lambda: admin.get("top"))


def main() -> None:
    """Entry point of the `tower` script."""
    # By name: `python -m` would put its own into usage lines and completion scripts.
    cli(prog_name="tower")


if __name__ == "__main__":
    main()
