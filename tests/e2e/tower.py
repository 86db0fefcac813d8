"""A whole Tower made of real processes: one server, and an agent for each member that joins.

A member can also be added with a kubeconfig of its own; then there is no agent.

Everything goes through the command lines, as an operator would: nothing here imports the
product. `Tower` is the operator; the tests ask it for kubeconfigs, status, and disasters.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.kubectl import clean_environment
from tests.e2e.member import Member
from tests.e2e.processes import NotReady, Process

__all__ = ["DIRECT_USER", "Agent", "AgentOptions", "Tower", "wait_until"]

ROOT = Path(__file__).resolve().parents[2]

ADMIN_TIMEOUT_SECONDS = 20.0

# An agent whose server was away for seconds is back within one; a broken one never.
REPAIR_SECONDS = 10.0

# The wait between two looks at something that a deadline bounds.
POLL_SECONDS = 0.05

# Names the host may act as in these tests beside the defaults: each is used by some test.
EXTRA_USERS = ["bob", "carol", "nobody"]
EXTRA_GROUPS = ["dev"]

# Whose certificate is in the kubeconfig of a direct connection.
DIRECT_USER = "tower-direct"


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Poll until the condition holds; returns when the look began that found it so.

    The last look begins when the time is up: "within 5 s" means that whoever asks after
    5 s is told so, however long the asking itself takes.

    Raises:
        AssertionError: If it does not hold within `seconds`; says `what` was awaited.
    """
    start = time.monotonic()
    while True:
        began = time.monotonic() - start
        if condition():
            return began
        if began >= seconds:
            raise AssertionError(f"not within {seconds} s: {what}")
        left = start + seconds - time.monotonic()
        time.sleep(max(0.0, min(POLL_SECONDS, left)))


# Nothing may be left behind, also when the test run is killed: PR_SET_PDEATHSIG, SIGKILL.
# The parent that counts is the thread that starts us, which is pytest's main one.
DIE_WITH_PARENT = "import ctypes; ctypes.CDLL(None).prctl(1, 9)"


def program(module: str, *arguments: str) -> list[str]:
    """The command line of one of our programs, by the entry point that is installed."""
    run = f"import sys; from {module} import main; sys.exit(main())"
    # -P: what PYTHONPATH names, and not what happens to lie in the working directory.
    return [sys.executable, "-P", "-c", f"{DIE_WITH_PARENT}; {run}", *arguments]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """How an agent differs from the ordinary one."""

    # Dial this HOST:PORT instead of the one in the join string (a relay, a proxy).
    through: str | None = None
    # Keep the credentials in the manifest's Secret instead of a directory.
    in_secret: bool = False
    # What a join Secret of the host says, instead of tokens made for it: its keys and their texts.
    invitation: Mapping[str, str] | None = None
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(kw_only=True)
class Agent:
    """An agent's process and what its manifest says."""

    cluster: str
    process: Process
    # Of the manifest, in the member.
    namespace: str
    service_account: str

    def wait_ready(self) -> str:
        """The line that says it is connected; raises NotReady with its log otherwise."""
        return self.process.wait_for_line("tower-agent ready")


class Tower:
    """One server in a directory of its own; stop() ends everything that was started."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        # A Unix socket's path may not be longer than 107 bytes: keep `directory` short.
        self.socket = directory / "admin.sock"
        self.state = directory / "server"
        self._arguments = arguments
        # HOST:PORT, known after the first start and kept over restarts.
        self.address = f"127.0.0.1:{port}"
        self.agents: dict[str, Agent] = {}
        # Clusters with a direct connection, and the member's user that we are there.
        self.added: dict[str, str] = {}
        # Those that another has taken over from, and may still drain.
        self._replaced: list[Process] = []
        self.environment = clean_environment(
            PYTHONPATH=str(ROOT), HOME=str(directory), PYTHONUNBUFFERED="1"
        )
        # Differs for the server and the admin's commands; agents have `AgentOptions`.
        self._own_environment = dict(environment or {})
        self.server = self._server_process()

    def use_environment(self, environment: Mapping[str, str]) -> None:
        """Start server and admin's commands with other variables from now on."""
        self._own_environment = dict(environment)

    def start(self) -> None:
        """Start the server, on the port that it had before if there was one."""
        if self.server.running:
            self._replaced.append(self.server)
        self.server = self._server_process()
        self.server.start()
        line = self.server.wait_for_line("tower-server ready on ")
        self.address = line.removeprefix("tower-server ready on ").strip()

    def stop(self) -> None:
        """Stop agents and server; no-op for what is not running."""
        for agent in self.agents.values():
            agent.process.stop()
        self.server.stop()
        for process in self._replaced:
            process.stop()

    def repair(self) -> None:
        """Start again what a test left dead, so that the next one finds a whole Tower."""
        if not self.server.running:
            self.start()
        for agent in self.agents.values():
            if not agent.process.running:
                agent.process.start()
                agent.wait_ready()
            self.wait_connected(agent.cluster, REPAIR_SECONDS)
        for name in self.added:
            self.wait_connected(name, REPAIR_SECONDS)

    # Adding

    def add(
        self, member: Member, kubeconfig: Path | None = None, *arguments: str
    ) -> None:
        """Add a member with a direct connection, with rights like an agent's; wait for it."""
        kubeconfig = kubeconfig or self.direct_kubeconfig(member)
        self.admin(
            *("cluster", "add", member.name, "--kubeconfig", str(kubeconfig)),
            *_allowed(),
            *arguments,
        )
        self.added[member.name] = DIRECT_USER
        self.wait_connected(member.name, REPAIR_SECONDS)

    def direct_kubeconfig(self, member: Member) -> Path:
        """A kubeconfig with a client certificate, whose user may do what an agent may."""
        subject = {"kind": "User", "name": DIRECT_USER}
        member.allow_to_act_as(
            "tower-direct-may-act",
            subject,
            users=["tower:admin", *EXTRA_USERS],
            groups=["tower:cluster-admins", *EXTRA_GROUPS],
        )
        group, core = "authorization.k8s.io", [""]
        member.grant(
            "tower-direct-looks",
            subject,
            {
                "apiGroups": [group],
                "resources": ["subjectaccessreviews"],
                "verbs": ["create"],
            },
            {
                "apiGroups": core,
                "resources": ["namespaces"],
                "verbs": ["get"],
                "resourceNames": ["kube-system"],
            },
            {"apiGroups": core, "resources": ["nodes"], "verbs": ["list"]},
        )
        member.grant(
            "tower-direct-admins",
            {"kind": "Group", "name": "tower:cluster-admins"},
            {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
            {"nonResourceURLs": ["*"], "verbs": ["*"]},
        )
        return member.plane.client_kubeconfig(DIRECT_USER)

    def acts_in(self, name: str) -> str:
        """The member's user that impersonates others there."""
        if name in self.added:
            return self.added[name]
        agent = self.agents[name]
        return f"system:serviceaccount:{agent.namespace}:{agent.service_account}"

    # Joining

    def join(self, member: Member, options: AgentOptions | None = None) -> Agent:
        """Join a member as its admin would, with the rights of the manifest; wait for it."""
        agent = self.prepare(member, options or AgentOptions())
        agent.process.start()
        try:
            agent.wait_ready()
        except NotReady:
            # Nothing that could be repaired for the next test: it joins anew.
            agent.process.stop()
            del self.agents[member.name]
            raise
        # Used up. Every later start has to do without it.
        self.join_file(member.name).unlink()
        return agent

    def second_agent(self, name: str) -> Process:
        """Start another agent of a cluster beside the first, as a Deployment's update does: with
        the same credentials, in another place. It is the one that stays in `agents`."""
        agent = self.agents[name]
        old, place = agent.process, self.directory / f"agent-{name}"
        new_place = self.directory / f"agent-{name}-2"
        shutil.copytree(place, new_place)
        self._replaced.append(old)
        agent.process = Process(
            f"{old.name} 2",
            [str(new_place) if word == str(place) else word for word in old.command],
            old.environment,
            self.directory / f"agent-{name}-2.log",
        )
        agent.process.start()
        agent.wait_ready()
        return agent.process

    def prepare(self, member: Member, options: AgentOptions) -> Agent:
        """Everything that `join` does before it starts the agent."""
        name = member.name
        manifest = (
            options.invitation["manifest.yaml"]
            if options.invitation
            else self.admin("token", "create", name, "--format", "manifest")
        )
        documents = [d for d in yaml.safe_load_all(manifest) if d]
        member.apply(*documents)
        account = _only(d for d in documents if d["kind"] == "ServiceAccount")
        namespace = account["metadata"]["namespace"]
        service_account = account["metadata"]["name"]
        member.allow_to_act_as(
            "tower-agent-may-act-as-more",
            {
                "kind": "ServiceAccount",
                "namespace": namespace,
                "name": service_account,
            },
            users=EXTRA_USERS,
            groups=EXTRA_GROUPS,
        )
        kubeconfig = member.plane.service_account_kubeconfig(namespace, service_account)
        process = Process(
            f"tower-agent {name}",
            program(
                "tower_agent.cli",
                *("run", "--join-file", str(self._write_join_file(name, options))),
                *self._keep_credentials(name, documents, options),
                *("--kubeconfig", str(kubeconfig)),
                *_allowed(),
                *options.arguments,
            ),
            {**self.environment, **options.environment},
            self.directory / f"agent-{name}.log",
        )
        self.agents[name] = Agent(
            cluster=name,
            process=process,
            namespace=namespace,
            service_account=service_account,
        )
        return self.agents[name]

    def join_file(self, name: str) -> Path:
        """Where the join string is while it is good for something."""
        return self.directory / f"{name}.join"

    # What an admin asks

    def admin(self, *arguments: str) -> str:
        """stdout of a `tower` command; raises AssertionError unless it exits with 0."""
        done = self.run_admin(*arguments)
        assert done.returncode == 0, (
            f"tower {' '.join(arguments)}: exit {done.returncode}\n"
            f"{done.stdout}{done.stderr}\n{self.server.log_tail()}"
        )
        return done.stdout

    def run_admin(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A `tower` command, whatever its exit code is."""
        return subprocess.run(
            program("tower_server.admin_cli", "--socket", str(self.socket), *arguments),
            env={**self.environment, **self._own_environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ADMIN_TIMEOUT_SECONDS,
        )

    def kubeconfig(self, cluster: str, *arguments: str, name: str = "") -> Path:
        """A kubeconfig written by `tower kubeconfig`; `name` tells several apart."""
        path = self.directory / f"{name or cluster}.kubeconfig"
        self.admin("kubeconfig", cluster, *arguments, "--out", str(path))
        return path

    def cluster(self, name: str) -> dict[str, Any]:
        """What `tower cluster list -o json` says of a cluster."""
        listed = json.loads(self.admin("cluster", "list", "-o", "json"))
        clusters = listed["clusters"] if isinstance(listed, dict) else listed
        return dict(_only(c for c in clusters if c["name"] == name))

    def wait_connected(self, name: str, seconds: float) -> float:
        """Wait until the list says `connected`; returns how long that took."""
        return wait_until(
            lambda: self.cluster(name)["state"] == "connected",
            seconds,
            f"{name} connected\n{self.logs()}",
        )

    def logs(self) -> str:
        """The ends of all logs, for the message of a failure."""
        agents = [agent.process.log_tail() for agent in self.agents.values()]
        return "\n".join([self.server.log_tail(), *agents])

    def _server_process(self) -> Process:
        return Process(
            "tower-server",
            program(
                "tower_server.cli",
                *("serve", "--state-dir", str(self.state)),
                *("--listen", self.address, "--admin-socket", str(self.socket)),
                *self._arguments,
            ),
            {**self.environment, **self._own_environment},
            self.directory / "server.log",
        )

    def _write_join_file(self, name: str, options: AgentOptions) -> Path:
        text = (
            options.invitation["join"]
            if options.invitation
            else self.admin("token", "create", name).strip()
        )
        if options.through is not None:
            text = re.sub(r"@[^?/]+", f"@{options.through}", text)
        path = self.join_file(name)
        path.touch(mode=0o600)
        path.write_text(text + "\n")
        return path

    def _keep_credentials(
        self, name: str, documents: list[dict[str, Any]], options: AgentOptions
    ) -> tuple[str, str]:
        if not options.in_secret:
            return "--state-dir", str(self.directory / f"agent-{name}")
        # The Secret that the manifest creates empty, for the agent to fill.
        secret = _only(
            d
            for d in documents
            if d["kind"] == "Secret" and not d.get("data") and not d.get("stringData")
        )["metadata"]
        return "--state-secret", f"{secret['namespace']}/{secret['name']}"


def _allowed() -> list[str]:
    users = ["tower:admin", *EXTRA_USERS]
    groups = ["tower:cluster-admins", *EXTRA_GROUPS]
    return [
        *(word for user in users for word in ("--allow-user", user)),
        *(word for group in groups for word in ("--allow-group", group)),
    ]


def _only(items: Any) -> Any:
    found = list(items)
    assert len(found) == 1, f"expected one, found {len(found)}: {found}"
    return found[0]
