"""Ours, through its own command lines, as an admin would do it.

serve, token create, run with the string in a file, kubeconfig; the member is the
load program's HTTPS server, which answers what the agent's preflight asks.
"""

import base64
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from bench.certificates import SERVER_NAME, write_private
from bench.columns.column import Column
from bench.generator import Endpoint
from bench.processes import Process, ProcessFailed
from bench.site import PYTHON, Site, Unavailable, free_port
from bench.workloads import Face, Link

__all__ = ["CLUSTER", "read_kubeconfig", "start", "start_behind"]

CLUSTER = "alpha"
TARGET = "raw"
READY_WITHIN_SECONDS = 20.0
COMMAND_WITHIN_SECONDS = 30.0
JOIN_STRING = "tower+join://"
# The console scripts of pyproject.toml, without asking that they are installed.
PROGRAMS = {
    "tower-server": "tower_server.cli",
    "tower-agent": "tower_agent.cli",
    "tower": "tower_server.admin_cli",
}


def start(site: Site, link: Link) -> Column:
    """Start server and agent, join, and wait for an answer through each face."""
    try:
        return _start(site, link)
    except ProcessFailed as error:
        raise Unavailable(f"the tunnel did not start: {error}") from error


def _start(site: Site, link: Link) -> Column:
    name = f"tunnel-{link.name}"
    return start_behind(
        site, link.name, lambda address: site.behind(link, name, address)
    )


def start_behind(
    site: Site,
    name: str,
    behind: Callable[[str], str],
    *,
    server_arguments: Sequence[str] = (),
    agent_arguments: Sequence[str] = (),
) -> Column:
    """Start both ends with an agent that dials what `behind` makes of the server's address.

    Raises:
        ProcessFailed, Unavailable: They did not start, or nothing comes through them.
    """
    directory = site.directory / f"tunnel-{name}"
    directory.mkdir(mode=0o700)
    listen = f"{SERVER_NAME}:{free_port()}"
    public = behind(listen)
    options = [f"--listen={listen}", f"--public-address={public}", *server_arguments]
    server, entry = _start_server(site, name, directory, options)
    join_string = _create_token(site, directory)
    agent = _start_agent(site, name, directory, join_string, agent_arguments)
    kubeconfig = directory / "kubeconfig"
    _tower(site, directory, ["kubeconfig", CLUSTER, "--out", str(kubeconfig)])
    # The client stands at the server: a link lies only between server and agent.
    sealed = read_kubeconfig(kubeconfig.read_text(), directory, listen)
    endpoints = {Face.RAW: Endpoint(address=entry), Face.SEALED: sealed}
    for face, endpoint in endpoints.items():
        site.wait_until_served(f"the tunnel's {face.value} face", endpoint)
    ends = {"server": server, "agent": agent}
    return Column(endpoints=endpoints, ends=lambda _: ends)


def _start_server(
    site: Site, name: str, directory: Path, options: Sequence[str]
) -> tuple[Process, str]:
    """The running server and the address of its raw entry."""
    command = [
        *_program("tower-server"),
        "serve",
        f"--state-dir={directory / 'server'}",
        f"--admin-socket={_socket(directory)}",
        f"--tcp-entry={SERVER_NAME}:0={CLUSTER}/{TARGET}",
        *options,
    ]
    server = site.processes.start(f"tower-server-{name}", command)
    server.wait_for(r"^tower-server ready on ", within_seconds=READY_WITHIN_SECONDS)
    line = server.wait_for(r"^tcp entry (\S+) -> ", within_seconds=0)
    return server, line.group(1)


def _start_agent(
    site: Site,
    name: str,
    directory: Path,
    join_string: str,
    options: Sequence[str],
) -> Process:
    join_file = write_private(directory / "join", join_string.encode() + b"\n")
    member = write_private(directory / "member.kubeconfig", _member_kubeconfig(site))
    command = [
        *_program("tower-agent"),
        "run",
        f"--join-file={join_file}",
        f"--state-dir={directory / 'agent'}",
        f"--kubeconfig={member}",
        f"--target={TARGET}={site.raw_address}",
        *options,
    ]
    agent = site.processes.start(f"tower-agent-{name}", command)
    agent.wait_for(r"^tower-agent ready: ", within_seconds=READY_WITHIN_SECONDS)
    return agent


def _create_token(site: Site, directory: Path) -> str:
    said = _tower(site, directory, ["token", "create", CLUSTER])
    for line in said.splitlines():
        if line.strip().startswith(JOIN_STRING):
            return line.strip()
    raise ProcessFailed("`tower token create` printed no join string")


def _tower(site: Site, directory: Path, arguments: Sequence[str]) -> str:
    command = [*_program("tower"), f"--socket={_socket(directory)}", *arguments]
    what = f"`tower {' '.join(arguments[:2])}`"
    try:
        ended = subprocess.run(
            command,
            cwd=directory,
            env=dict(site.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_SECONDS,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ProcessFailed(f"{what} hangs") from error
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["it said nothing"]
        raise ProcessFailed(f"{what} ended with {ended.returncode}: {said[-1]}")
    return ended.stdout


def _program(name: str) -> list[str]:
    return [
        PYTHON,
        "-c",
        f"import sys; from {PROGRAMS[name]} import main; sys.exit(main())",
    ]


def _socket(directory: Path) -> Path:
    return directory / "admin.sock"


def _member_kubeconfig(site: Site) -> bytes:
    """How the agent reaches its apiserver: the bench's CA and any bearer token."""
    cluster = {
        "server": f"https://{site.https_address}",
        "certificate-authority-data": _encoded(site.certificates.ca),
    }
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "member",
            "clusters": [{"name": "member", "cluster": cluster}],
            "users": [{"name": "agent", "user": {"token": "bench-agent"}}],
            "contexts": [
                {"name": "member", "context": {"cluster": "member", "user": "agent"}}
            ],
        }
    ).encode()


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def read_kubeconfig(text: str, directory: Path, address: str) -> Endpoint:
    """The sealed face of a kubeconfig as the load client's endpoint.

    Args:
        text: What `tower kubeconfig` wrote.
        directory: Where its certificate and key go, for the client to load.
        address: Where the client stands; the URL's own host may be behind a link.
    """
    config: dict[str, Any] = yaml.safe_load(text)
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]

    def put(encoded: str, file_name: str) -> Path:
        return write_private(directory / file_name, base64.b64decode(encoded))

    return Endpoint(
        address=address,
        ca=put(cluster["certificate-authority-data"], "sealed-ca.pem"),
        certificate=put(user["client-certificate-data"], "sealed-client.pem"),
        key=put(user["client-key-data"], "sealed-client.key"),
        server_name=cluster["tls-server-name"],
        path=urlsplit(cluster["server"]).path,
    )
