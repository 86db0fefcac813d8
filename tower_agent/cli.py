"""The command `tower-agent`: the member's end. Reads settings, runs `app.run`; decides nothing."""

import os
import sys
from typing import Annotated, Any

import typer

from shared.logs import set_up_logging
from shared.program import EXIT_USAGE, run_program
from shared.settings import SettingsError
from shared.version import VERSION
from tower_agent.settings import (
    ANY_NAME,
    DEFAULT_ALLOW_GROUPS,
    DEFAULT_ALLOW_USERS,
    DEFAULT_WINDOW_MEMORY,
    MAX_TUNNELS,
    AgentSettings,
    parse_agent_settings,
)

__all__ = ["cli", "main"]

cli = typer.Typer(
    name="tower-agent",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # A trace with local variables could show a secret.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JOINING = "Joining and credentials"
MEMBER = "The member"
PERMISSION = "What the host may do"
TUNNEL = "The tunnel"
OBSERVING = "Health and logging"

# The environment variable with the join string itself. It is no option's: then it could be
# given as an argument.
JOIN_VARIABLE = "TOWER_JOIN"

# What `run` and `check` both take.
KubeconfigOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        envvar="TOWER_AGENT_KUBECONFIG",
        show_default="the pod's ServiceAccount",
        rich_help_panel=MEMBER,
        help="How the agent reaches the member's apiserver. KUBECONFIG is not read: it is too easily another "
        "cluster's.",
    ),
]
AllowUserOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="USER",
        envvar="TOWER_AGENT_ALLOW_USERS",
        show_default=", ".join(DEFAULT_ALLOW_USERS),
        rich_help_panel=PERMISSION,
        help="A user that the host may act as. Can be given more than once, and then replaces the default; "
        f"`{ANY_NAME}` allows every name but those that begin with system:, which have to be listed one by one.",
    ),
]
AllowGroupOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GROUP",
        envvar="TOWER_AGENT_ALLOW_GROUPS",
        show_default=", ".join(DEFAULT_ALLOW_GROUPS),
        rich_help_panel=PERMISSION,
        help="The same for groups. What a user or group may do is decided by the member's RBAC.",
    ),
]
LogLevelOption = Annotated[
    str,
    typer.Option(
        metavar="LEVEL",
        envvar="TOWER_LOG_LEVEL",
        rich_help_panel=OBSERVING,
        help="debug, info, warning or error.",
    ),
]
LogFormatOption = Annotated[
    str,
    typer.Option(
        metavar="FORMAT",
        envvar="TOWER_LOG_FORMAT",
        rich_help_panel=OBSERVING,
        help="text, or json: one object a line. Logs go to stderr.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tower-agent {VERSION}")
        raise typer.Exit


@cli.callback()
def tower_agent(
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
    """Tower's agent, in a private cluster: dials out to a Tower server and lets the host use this cluster's apiserver.

    Nothing here listens for the host. What the host may do is decided here, by the options of
    `tower-agent run` and by the member's own RBAC.
    """


@cli.command()
def run(
    join_file: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|-",
            envvar="TOWER_JOIN_FILE",
            show_default=False,
            rich_help_panel=JOINING,
            help="A file (mode 0600) with the join string that `tower token create` printed; `-` reads stdin. "
            f"Or put the string itself into the environment as {JOIN_VARIABLE}. It is never an argument, "
            "because arguments are public. Needed for the first start only.",
        ),
    ] = None,
    state_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            envvar="TOWER_AGENT_STATE_DIR",
            show_default=False,
            rich_help_panel=JOINING,
            help="Where the agent keeps its key and certificates, outside of Kubernetes.",
        ),
    ] = None,
    state_secret: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE/NAME",
            envvar="TOWER_AGENT_STATE_SECRET",
            show_default=False,
            rich_help_panel=JOINING,
            help="The Secret in which it keeps them, inside. One of the two is needed.",
        ),
    ] = None,
    ca_file: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            envvar="TOWER_AGENT_CA_FILE",
            show_default=False,
            rich_help_panel=JOINING,
            help="The CA certificates (PEM) to trust on the way to the server, where a proxy or load balancer ends "
            "TLS with a certificate of its own. The tunnel's own proofs stay as they are.",
        ),
    ] = None,
    kubeconfig: KubeconfigOption = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=HOST:PORT",
            envvar="TOWER_AGENT_TARGETS",
            rich_help_panel=MEMBER,
            help="Another address in the member that the host's TCP entries may reach. Can be given more than once; "
            "in the environment separated by blanks.",
        ),
    ] = None,
    allow_user: AllowUserOption = None,
    allow_group: AllowGroupOption = None,
    health: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="TOWER_AGENT_HEALTH",
            show_default="off",
            rich_help_panel=OBSERVING,
            help="Serve /healthz (the process works) and /readyz (the tunnel stands, and the agent is not asked to "
            "stop) here, for probes, and /metrics for Prometheus.",
        ),
    ] = None,
    window_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            envvar="TOWER_AGENT_WINDOW_MEMORY",
            rich_help_panel=TUNNEL,
            help="How much memory all streams together may use to fill fast and long paths, such as 256Mi or 1Gi; "
            "one tunnel at most half of it. Near the limit streams get smaller, and none stops.",
        ),
    ] = DEFAULT_WINDOW_MEMORY,
    tunnels: Annotated[
        int,
        typer.Option(
            metavar="NUMBER",
            envvar="TOWER_AGENT_TUNNELS",
            rich_help_panel=TUNNEL,
            help=f"How many tunnels to hold at a time, 1 to {MAX_TUNNELS}. New streams go to the one with the fewest; "
            "when one is cut, the others serve. More than one helps where something on the way limits or cuts "
            "single TCP connections.",
        ),
    ] = 1,
    drain_time: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            envvar="TOWER_AGENT_DRAIN_TIME",
            rich_help_panel=TUNNEL,
            help="How long running streams may take to end when the agent is asked to stop; what runs then is cut "
            "off. 0s cuts at once. Keep it some seconds below the pod's terminationGracePeriodSeconds.",
        ),
    ] = "20s",
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = "text",
) -> None:
    """Join if that has not happened yet, then keep a tunnel to the server until SIGTERM or SIGINT.

    Then it drains: the server opens nothing new here (another agent of the cluster takes over where there is one),
    and running streams may end for `--drain-time`. A second signal ends it without waiting.

    At every connection it prints one line on stdout: `tower-agent ready: CLUSTER connected to HOST:PORT`.

    **First start**, outside of Kubernetes (the join string comes from `tower token create alpha` on the host):

    ```
    tower-agent run --join-file ./join --state-dir ./agent --kubeconfig ~/.kube/member
    ```

    **Later starts** need no token:

    ```
    tower-agent run --state-dir ./agent --kubeconfig ~/.kube/member
    ```

    **In Kubernetes**, `tower token create alpha --format manifest` has all of this.

    HTTPS_PROXY and NO_PROXY are honoured on the way to the server.

    Exit status: 0 stopped by a signal, 1 failed, 2 wrong usage, 4 the server cannot be reached for the join,
    5 the server refuses this agent.
    """
    settings = _settings(
        join_file=join_file,
        # Taken out, so that no process that we might start inherits it.
        join_text=os.environ.pop(JOIN_VARIABLE, None),
        state_dir=state_dir,
        state_secret=state_secret,
        kubeconfig=kubeconfig,
        targets=target or (),
        allow_users=allow_user or (),
        allow_groups=allow_group or (),
        ca_file=ca_file,
        health=health,
        window_memory=window_memory,
        tunnels=tunnels,
        drain_time=drain_time,
        log_level=log_level,
        log_format=log_format,
    )
    # Files that we make are ours alone.
    os.umask(0o077)
    # Only now: --help and wrong usage should not wait for everything to load.
    from tower_agent.app import run as run_app

    raise typer.Exit(run_program(lambda: run_app(settings)))


@cli.command()
def check(
    kubeconfig: KubeconfigOption = None,
    allow_user: AllowUserOption = None,
    allow_group: AllowGroupOption = None,
    log_level: LogLevelOption = "warning",
    log_format: LogFormatOption = "text",
) -> None:
    """Ask the member's apiserver whether the agent could do its work, and change nothing.

    Looks whether it answers, accepts the agent's credential, tells the member's UID, and permits the agent to
    act as the users and groups that are allowed. Names the first thing that is missing, and the remedy. The
    server is not needed for it.

    ```
    tower-agent check --kubeconfig ~/.kube/member
    ```

    Exit status: 0 all is well, 1 something is missing, 2 wrong usage.
    """
    settings = _settings(
        needs_state=False,
        kubeconfig=kubeconfig,
        allow_users=allow_user or (),
        allow_groups=allow_group or (),
        log_level=log_level,
        log_format=log_format,
    )
    from tower_agent.check import check as check_member

    raise typer.Exit(run_program(lambda: check_member(settings)))


def _settings(**options: Any) -> AgentSettings:
    """Check the options and set up logging, or end with a sentence on stderr."""
    try:
        settings = parse_agent_settings(**options)
    except SettingsError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    set_up_logging(settings.log)
    return settings


def main() -> None:
    """Entry point of the `tower-agent` script."""
    # By name: `python -m` would put its own into usage lines and completion scripts.
    cli(prog_name="tower-agent")


if __name__ == "__main__":
    main()
