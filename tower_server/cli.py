"""The command `tower-server`: the host's end. Reads settings, runs `app.serve`; decides nothing."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from certs.names import DEFAULT_ZONE
from shared.logs import set_up_logging
from shared.program import EXIT_FAILED, EXIT_USAGE, run_program
from shared.settings import SettingsError
from shared.version import VERSION
from tower_server.settings import (
    ADMIN_SOCKET_NAME,
    DEFAULT_LISTEN,
    DEFAULT_WINDOW_MEMORY,
    ServeSettings,
    parse_serve_settings,
)

__all__ = ["cli", "main"]

cli = typer.Typer(
    name="tower-server",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # A trace with local variables could show a secret.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ADDRESSES = "Addresses"
STATE = "State and administration"
OBSERVING = "Metrics and logging"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tower-server {VERSION}")
        raise typer.Exit


@cli.callback()
def tower_server(
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
    """Tower's server, on the host: private clusters dial in here, and control planes reach them through it.

    It makes its certificate authority at the first start, in the state directory. Clusters are
    invited, listed and removed with the command `tower`, on the same machine.
    """


@cli.command()
def serve(
    state_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            envvar="TOWER_STATE_DIR",
            show_default=False,
            rich_help_panel=STATE,
            help="Where the CA, the clusters and the tokens are kept; made if it is not there. "
            "Back it up: with it lost, every member has to join again. Needed, unless --store is kubernetes.",
        ),
    ] = None,
    store: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            envvar="TOWER_STORE",
            rich_help_panel=STATE,
            help="sqlite: in --state-dir. kubernetes: in the host cluster, where clusters are Cluster objects.",
        ),
    ] = "sqlite",
    namespace: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE",
            envvar="TOWER_NAMESPACE",
            show_default="the pod's",
            rich_help_panel=STATE,
            help="The namespace of the host cluster for Tower's Secrets; whoever may read Secrets there is an admin "
            "of all members. With --store kubernetes.",
        ),
    ] = None,
    host_kubeconfig: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            envvar="TOWER_HOST_KUBECONFIG",
            show_default="the pod's ServiceAccount",
            rich_help_panel=STATE,
            help="How to reach the host's apiserver. With --store kubernetes.",
        ),
    ] = None,
    ca_secret: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="TOWER_CA_SECRET",
            show_default="tower-ca, made if it is not there",
            rich_help_panel=STATE,
            help="A Secret with an existing Tower CA (tls.key, tls.crt). With --store kubernetes.",
        ),
    ] = None,
    admin_socket: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            envvar="TOWER_ADMIN_SOCKET",
            show_default=f"DIR/{ADMIN_SOCKET_NAME}",
            rich_help_panel=STATE,
            help="The unix socket for the command `tower`, made with mode 0600: "
            "whoever can open it is an admin.",
        ),
    ] = None,
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            envvar="TOWER_LISTEN",
            rich_help_panel=ADDRESSES,
            help="Where to listen, for agents and for Kubernetes clients alike. "
            "Port 0: any free one, named in the ready line.",
        ),
    ] = DEFAULT_LISTEN,
    public_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="TOWER_PUBLIC_ADDRESS",
            show_default="the listen address",
            rich_help_panel=ADDRESSES,
            help="What agents dial and kubeconfigs name. Needed when the server listens on all addresses.",
        ),
    ] = None,
    zone: Annotated[
        str,
        typer.Option(
            metavar="ZONE",
            envvar="TOWER_ZONE",
            rich_help_panel=ADDRESSES,
            help="The DNS suffix under which clusters have names (alpha.ZONE), inside TLS only: nobody has to "
            "resolve it. It cannot be changed once the CA is made.",
        ),
    ] = DEFAULT_ZONE,
    tcp_entry: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT=CLUSTER/TARGET",
            envvar="TOWER_TCP_ENTRIES",
            rich_help_panel=ADDRESSES,
            help="For tests and measurements: a plain TCP entry to a target that the cluster's agent lists "
            "(`tower-agent run --target`). Nobody is authenticated on it. Can be given more than once; "
            "in the environment separated by blanks.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="TOWER_METRICS",
            show_default="off",
            rich_help_panel=OBSERVING,
            help="Serve /metrics for Prometheus and /readyz for probes here, by plain HTTP and for everybody who "
            "reaches the address: best one of this machine, like 127.0.0.1:9643.",
        ),
    ] = None,
    gateway_token_file: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            envvar="TOWER_GATEWAY_TOKEN_FILE",
            show_default="no tokens",
            help='Bearer tokens for the gateway, one a line: token,user,uid,"group1,group2" (as kube-apiserver\'s '
            "--token-auth-file). Read again when it changes.",
        ),
    ] = None,
    resume_time: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            envvar="TOWER_RESUME_TIME",
            help="How long streams wait for their agent after a lost connection before they end; "
            "0s ends them at once.",
        ),
    ] = "60s",
    window_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            envvar="TOWER_WINDOW_MEMORY",
            help="How much memory all streams together may use to fill fast and long paths, such as 256Mi or 1Gi; "
            "one tunnel at most half of it. Near the limit streams get smaller, and none stops.",
        ),
    ] = DEFAULT_WINDOW_MEMORY,
    drain_time: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            envvar="TOWER_DRAIN_TIME",
            help="How long running streams may take to end when the server is asked to stop; what runs then is cut "
            "off. 0s cuts at once. Keep it some seconds below a pod's terminationGracePeriodSeconds.",
        ),
    ] = "20s",
    log_level: Annotated[
        str,
        typer.Option(
            metavar="LEVEL",
            envvar="TOWER_LOG_LEVEL",
            rich_help_panel=OBSERVING,
            help="debug, info, warning or error.",
        ),
    ] = "info",
    log_format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            envvar="TOWER_LOG_FORMAT",
            rich_help_panel=OBSERVING,
            help="text, or json: one object a line. Logs go to stderr.",
        ),
    ] = "text",
) -> None:
    """Run the server until SIGTERM or SIGINT.

    Then it drains: it lets nobody in, tells its agents to dial elsewhere, and lets running streams end for
    `--drain-time`. Its state directory and its addresses are free from the first moment on, so that its successor
    can be started at once. A second signal ends it without waiting.

    When it serves, it prints one line on stdout: `tower-server ready on HOST:PORT`.

    **On this machine only**, to try it:

    ```
    tower-server serve --state-dir ./state --listen 127.0.0.1:8443
    ```

    **For members elsewhere**:

    ```
    tower-server serve --state-dir /var/lib/tower --public-address tower.example.com:8443
    ```

    **In Kubernetes**, with the state in the cluster (the chart has all of this):

    ```
    tower-server serve --store kubernetes --admin-socket /run/tower/admin.sock --public-address tower.example.com:8443
    ```

    Exit status: 0 stopped by a signal, 1 failed, 2 wrong usage.
    """
    try:
        settings = parse_serve_settings(
            state_dir=state_dir,
            store=store,
            namespace=namespace,
            host_kubeconfig=host_kubeconfig,
            ca_secret=ca_secret,
            listen=listen,
            public_address=public_address,
            zone=zone,
            admin_socket=admin_socket,
            tcp_entries=tcp_entry or (),
            metrics=metrics,
            gateway_token_file=gateway_token_file,
            resume_time=resume_time,
            window_memory=window_memory,
            drain_time=drain_time,
            log_level=log_level,
            log_format=log_format,
        )
    except SettingsError as error:
        _refuse(error)
    raise typer.Exit(_run(settings))


def _run(settings: ServeSettings) -> int:
    # Files that we make are ours alone, also those of libraries (SQLite's journal).
    os.umask(0o077)
    set_up_logging(settings.log)
    # Only now: --help and wrong usage should not wait for everything to load.
    from tower_server.app import serve as serve_app
    from tower_server.stores import StoreUnavailable

    return run_program(
        lambda: serve_app(settings),
        lambda error: EXIT_FAILED if isinstance(error, StoreUnavailable) else None,
    )


def _refuse(error: SettingsError) -> NoReturn:
    print(f"Error: {error}", file=sys.stderr)
    raise typer.Exit(EXIT_USAGE)


def main() -> None:
    """Entry point of the `tower-server` script."""
    # By name: `python -m` would put its own into usage lines and completion scripts.
    cli(prog_name="tower-server")


if __name__ == "__main__":
    main()
