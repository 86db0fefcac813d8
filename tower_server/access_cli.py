"""`tower kubeconfig` and `tower credential`: a cluster's access, for people, control planes and plugins."""

import json
import os
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from shared.program import EXIT_USAGE
from tower_server.admin_client import AdminClient
from tower_server.admin_console import (
    EXIT_STATUS,
    OutOption,
    admin_api,
    names_known_as,
    parse_span,
    say,
    socket_path,
)
from tower_server.private_output import write_private_text

__all__ = [
    "CLUSTER_VARIABLE",
    "EXEC_INFO_VARIABLE",
    "Face",
    "Format",
    "add_commands",
    "credential",
    "kubeconfig",
]

# Says which cluster, where a consumer's configuration is the same for all of them.
CLUSTER_VARIABLE = "TOWER_CLUSTER"
# What client-go tells a plugin: its own version, and the cluster with `provideClusterInfo`.
EXEC_INFO_VARIABLE = "KUBERNETES_EXEC_INFO"


class Format(StrEnum):
    """In which form an access is handed out; a test compares it with `access_form`."""

    KUBECONFIG = "kubeconfig"
    SECRET = "secret"
    ARGOCD = "argocd"
    FLUX = "flux"
    CLUSTER_API = "cluster-api"
    CLUSTER_PROFILE = "clusterprofile"


class Face(StrEnum):
    """By which way a kubeconfig leads to the cluster; a test compares it with `kubeconfig.Face`."""

    SEALED = "sealed"
    GATEWAY = "gateway"


UserOption = Annotated[
    str | None,
    typer.Option(
        metavar="USER",
        show_default="tower:admin",
        help="Who the requests come from in the member, in its RBAC and in its audit log.",
    ),
]
GroupOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GROUP",
        show_default="tower:cluster-admins, if no --user is given either",
        help="A group of that user. Can be given more than once.",
    ),
]


def add_commands(cli: typer.Typer) -> None:
    """Make both commands of `cli`."""
    cli.command(epilog=EXIT_STATUS)(kubeconfig)
    cli.command(epilog=EXIT_STATUS)(credential)


def kubeconfig(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="The cluster; several make one kubeconfig with a context each.",
            autocompletion=names_known_as("clusters", "name"),
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All clusters that have joined.")
    ] = False,
    user: UserOption = None,
    group: GroupOption = None,
    ttl: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long it can be used, from 1m to 30d. Its certificate then expires; get a new one.",
        ),
    ] = "8h",
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="|".join(Format),
            help="The kubeconfig itself, or an object for `kubectl apply` on the host: a Secret that holds it, as "
            "such, for Argo CD, for Flux or as Cluster API makes it; or a ClusterProfile, which holds no credential.",
        ),
    ] = Format.KUBECONFIG,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAMESPACE",
            show_default="argocd, flux-system or default",
            help="Where the object goes.",
        ),
    ] = None,
    object_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="tower-CLUSTER, or what the form prescribes",
            help="What the object is called.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A label of the object, by which an ApplicationSet selects it. Can be given more than once.",
        ),
    ] = None,
    face: Annotated[
        Face,
        typer.Option(
            metavar="|".join(Face),
            help="`sealed`: TLS ends in the member's agent, and the server sees nothing. `gateway`: it ends in the "
            "server, so that a request needs one round trip to the member and no TLS handshake there.",
        ),
    ] = Face.SEALED,
    plugin: Annotated[
        bool,
        typer.Option(
            "--exec",
            help="Put no secret into it: whoever uses it runs `tower credential`, and needs the admin socket.",
        ),
    ] = False,
    out: OutOption = None,
) -> None:
    """Write a kubeconfig for a cluster that has joined. It contains a key: keep it to yourself.

    Any Kubernetes client can use it. It is good for this cluster only, and stays good when server or agent
    restart.

    ```
    tower kubeconfig alpha --out alpha.kubeconfig
    kubectl --kubeconfig alpha.kubeconfig get pods -A
    ```

    **With less power than an admin** (the member's RBAC has to know the names, and its agent has to allow them:
    `tower-agent run --allow-user jane --allow-group developers`):

    ```
    tower kubeconfig alpha --user jane --group developers --ttl 1h
    ```

    **Where another control plane looks for it**, good for 30 days:

    ```
    tower kubeconfig alpha --format argocd --label env=prod --ttl 30d | kubectl apply -f -
    tower kubeconfig alpha --format flux -n flux-system --ttl 30d | kubectl apply -f -
    ```

    **One file for all clusters**, without any secret in it:

    ```
    tower kubeconfig --all --exec --out ~/.kube/tower
    ```
    """
    order: dict[str, Any] = {
        "user": user,
        "groups": group or None,
        "ttl_seconds": int(parse_span(ttl).total_seconds()),
    }
    if form is not Format.KUBECONFIG or namespace or object_name or label:
        order |= {"format": form, "namespace": namespace, "name": object_name}
        order |= {"labels": label or None}
    way = {} if face is Face.SEALED else {"face": face}
    with admin_api(context) as admin:
        wanted = _wanted(admin, names or [], every=every)
        if plugin:
            _refuse_object(form)
            arguments = _plugin_arguments(context, user, group or [], ttl)
            order = {"plugin": arguments}
        order |= way
        answers = [
            admin.post("kubeconfig", order=order | {"cluster": name}) for name in wanted
        ]
        path = write_private_text(_joined(answers), out)
    if path is not None:
        _say_what_was_written(path, answers)


def credential(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help=f"The cluster's name. Without it, what {EXEC_INFO_VARIABLE} says, or {CLUSTER_VARIABLE}.",
            autocompletion=names_known_as("clusters", "name"),
            show_default=False,
        ),
    ] = None,
    user: UserOption = None,
    group: GroupOption = None,
    ttl: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long the certificate is good; the client asks for a new one before.",
        ),
    ] = "1h",
) -> None:
    """Print a credential for a cluster, as kubectl and client-go ask a plugin for it.

    A kubeconfig that names this command holds no secret: `tower kubeconfig --exec` writes one. For consumers of
    ClusterProfiles, the provider `tower` is this command:

    ```
    {"providers": [{"name": "tower", "execConfig": {
      "apiVersion": "client.authentication.k8s.io/v1", "command": "tower", "args": ["credential"],
      "interactiveMode": "Never", "provideClusterInfo": true}}]}
    ```
    """
    info = _exec_info()
    cluster = name or _cluster_of(info) or os.environ.get(CLUSTER_VARIABLE)
    if not cluster:
        say(
            f"Error: which cluster? Give its name, or set {CLUSTER_VARIABLE}, or `provideClusterInfo: true` in the "
            "configuration of this plugin."
        )
        raise typer.Exit(EXIT_USAGE)
    order = {
        "cluster": cluster,
        "user": user,
        "groups": group or None,
        "ttl_seconds": int(parse_span(ttl).total_seconds()),
        "format": "credential",
        "api_version": info.get("apiVersion"),
    }
    with admin_api(context) as admin:
        answer = admin.post("kubeconfig", order=order)
    sys.stdout.write(answer["credential"])


def _wanted(admin: AdminClient, names: list[str], *, every: bool) -> list[str]:
    if bool(names) == every:
        raise typer.BadParameter("name one or more clusters, or give --all, not both")
    if not every:
        return names
    clusters = admin.get("clusters")["clusters"]
    joined = [str(c["name"]) for c in clusters if c["state"] != "never"]
    if not joined:
        say("Error: no cluster has joined yet: begin with `tower token create NAME`.")
        raise typer.Exit(1)
    return joined


def _refuse_object(form: Format) -> None:
    if form is not Format.KUBECONFIG:
        raise typer.BadParameter(
            f"--exec is for a kubeconfig, and --format {form} is an object: leave one of them out"
        )


def _plugin_arguments(
    context: typer.Context, user: str | None, groups: list[str], ttl: str
) -> list[str]:
    """What a kubeconfig calls `tower` with; the cluster's name is added to it."""
    socket = socket_path(context.find_root().params.get("socket")).absolute()
    arguments = ["--socket", str(socket), "credential", "--ttl", ttl]
    arguments += [] if user is None else ["--user", user]
    for group in groups:
        arguments += ["--group", group]
    return arguments


def _joined(answers: list[dict[str, Any]]) -> str:
    if "manifest" in answers[0]:
        return "---\n".join(answer["manifest"] for answer in answers)
    if len(answers) == 1:
        return str(answers[0]["kubeconfig"])
    from tower_server.kubeconfig import merge_kubeconfigs  # brings the PKI along

    return merge_kubeconfigs([answer["kubeconfig"] for answer in answers])


def _say_what_was_written(path: object, answers: list[dict[str, Any]]) -> None:
    first = answers[0]
    if "user" not in first:
        say(
            f"Written to {path}: no secret in it, `tower credential` gets one when needed.\n"
            f"Next: kubectl --kubeconfig {path} get nodes"
        )
        return
    groups = (
        f", groups {', '.join(first['groups'])}" if first["groups"] else ", no groups"
    )
    next_step = (
        f"kubectl apply -f {path}"
        if "manifest" in first
        else f"kubectl --kubeconfig {path} get nodes"
    )
    say(
        f"Written to {path}: user {first['user']}{groups}, until {first['expires_at']}.\n"
        f"Next: {next_step}"
    )


def _exec_info() -> dict[str, Any]:
    """What client-go says; nothing if it says nothing, or nothing that makes sense."""
    try:
        info = json.loads(os.environ.get(EXEC_INFO_VARIABLE, "{}"))
    except (ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) else {}


def _cluster_of(info: dict[str, Any]) -> str | None:
    value: Any = info
    for key in ("spec", "cluster", "config", "cluster"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None
