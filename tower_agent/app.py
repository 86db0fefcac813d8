"""Wires the agent: credentials (joining if there are none), tunnel, targets, reports.

links ──dial──▶ server            reporter ──control stream──▶ server
server ──streams──▶ dispatcher ─┬─ sealed ──▶ TLS end ──▶ relay ──▶ pool ──▶ apiserver
                                ├─ gateway ─▶ TLS end ──▶ relay ──▶ (the same)
                                └─ tcp/NAME ──▶ raw target
"""

import asyncio
import dataclasses
import hashlib
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from certs.contexts import inner_server, outer_client, sealed_server
from certs.joining import JoinString
from shared.http.apiserver import ApiServer, BadKubeconfig, from_kubeconfig, in_cluster
from shared.http.identity import Policy
from shared.http.upstream import UpstreamPool
from shared.member.client import MemberClient
from shared.member.expiry import credential_expires_at
from shared.member.gateway import GatewayFace
from shared.member.preflight import MemberFacts, PreflightFailed, check_member
from shared.member.questions import MemberRequest
from shared.member.report import MemberProbe
from shared.member.sealed import SealedFace
from shared.metrics import Metric
from shared.mux.budget import WindowBudget
from shared.mux.counters import Counters
from shared.mux.readings import read_memory, read_sessions
from shared.mux.session import Session
from shared.program import EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE, ProgramFailed
from shared.settings import HostPort, SettingsError
from shared.tunnel.connection import TunnelConnection
from shared.tunnel.tasks import TaskSet
from shared.version import VERSION
from shared.wire.hello import Hello
from tower_agent.credentials import (
    Credentials,
    CredentialStore,
    CredentialsUnavailable,
    DirectoryStore,
    SecretStore,
)
from tower_agent.dialer import Dialer
from tower_agent.dispatch import Dispatcher
from tower_agent.enrol import JoinFailed, JoinSettings, obtain_credentials
from tower_agent.health import serve_health
from tower_agent.link import Link, LinkEnded
from tower_agent.metrics import agent_metrics
from tower_agent.raw import RawTargets
from tower_agent.renewal import RenewalFailed, Renewer, good_credentials
from tower_agent.reporter import CONTROL_TARGET, Reporter
from tower_agent.settings import AgentSettings, JoinSource

__all__ = ["member_apiserver", "run"]

_log = logging.getLogger(__name__)

# For the last words to the server when the agent stops.
STOP_SECONDS = 2.0
STOPPING = "the agent stops"


async def run(settings: AgentSettings) -> None:
    """Join if need be, then stay connected until cancelled.

    Prints one line at every (re)connect.

    Raises:
        ProgramFailed: With one sentence, when it cannot start or must not go on.
    """
    async with AsyncExitStack() as stack:
        pool = UpstreamPool(member_apiserver(settings), loop=asyncio.get_running_loop())
        stack.push_async_callback(pool.close)
        request = MemberClient(pool)
        ca_file = settings.ca_file
        outer_ca_pem = _read(ca_file) if ca_file else None
        store = _store(settings, request)
        credentials = await _credentials(settings, store, pool, request, outer_ca_pem)
        if outer_ca_pem is not None:
            credentials = _trusting(credentials, outer_ca_pem)
        try:
            credentials = await good_credentials(credentials, store)
        except RenewalFailed as error:
            raise ProgramFailed(str(error), exit_code=EXIT_REFUSED) from error
        try:
            agent = _Agent(settings, credentials, store, pool, request)
        except ValueError as error:
            raise ProgramFailed(str(error)) from error
        stack.push_async_callback(agent.close)
        if settings.health is not None:
            await _serve_health(stack, settings.health, agent)
        stack.push_async_callback(agent.drain, settings.drain_time.total_seconds())
        await agent.run()


async def _serve_health(
    stack: AsyncExitStack, address: HostPort, agent: "_Agent"
) -> None:
    try:
        await stack.enter_async_context(
            serve_health(address, agent.not_ready, agent.metrics)
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise ProgramFailed(
            f"The agent cannot listen on {address} ({reason}): choose another address of this "
            "machine with --health."
        ) from error


def member_apiserver(settings: AgentSettings) -> ApiServer:
    """Where the member's apiserver is, and the credential for it.

    Raises:
        ProgramFailed: If the kubeconfig cannot be used, or we are in no Pod.
    """
    try:
        if settings.kubeconfig is not None:
            return from_kubeconfig(settings.kubeconfig, monotonic=time.monotonic)
        return in_cluster(monotonic=time.monotonic)
    except (BadKubeconfig, OSError) as error:
        raise ProgramFailed(str(error)) from error


async def _credentials(
    settings: AgentSettings,
    store: CredentialStore,
    pool: UpstreamPool,
    request: MemberRequest,
    outer_ca_pem: bytes | None,
) -> Credentials:
    async def facts() -> MemberFacts:
        return await check_member(
            request,
            apiserver=str(pool.apiserver),
            allow_users=settings.allow_users,
            allow_groups=settings.allow_groups,
        )

    join: JoinString | None = None
    try:
        join = await _join_string(settings.join, store)
        return await obtain_credentials(
            store,
            join,
            facts,
            JoinSettings(
                agent_version=VERSION,
                outer_ca_pem=outer_ca_pem,
                environ=os.environ,
            ),
        )
    except JoinFailed as error:
        code = EXIT_REFUSED if error.permanent else EXIT_UNREACHABLE
        if join is None:
            code = EXIT_USAGE  # nobody was asked: it was not given, and is needed
        raise ProgramFailed(str(error), exit_code=code) from error
    except SettingsError:
        raise
    except (PreflightFailed, CredentialsUnavailable, ValueError) as error:
        raise ProgramFailed(str(error)) from error


async def _join_string(
    source: JoinSource | None, store: CredentialStore
) -> JoinString | None:
    """The join string; None if there is none, or it is gone and the agent has joined.

    Raises:
        ValueError: If it cannot be used and is needed.
    """
    if source is None:
        return None
    try:
        text = source.read()
    except SettingsError as error:
        # Who deletes the file of a used token does well: the next start must not need it.
        if await store.load() is None:
            raise
        _log.info("going on with the credentials in %s: %s", store, error)
        return None
    return JoinString.parse(text)


def _trusting(credentials: Credentials, outer_ca_pem: bytes) -> Credentials:
    """Credentials for an outer TLS that a given CA's certificate may end.

    What was found at the join is not the last word: a proxy may have come in between, or
    got a new CA. The Tower CA stays good, should the proxy be gone.

    Raises:
        ProgramFailed: If it is no CA.
    """
    try:
        outer_client("custom", outer_ca_pem)
    except ValueError as error:
        raise ProgramFailed(
            f"The file of --ca-file cannot be used: {error}."
        ) from error
    both = outer_ca_pem + b"\n" + credentials.ca_pem
    return dataclasses.replace(credentials, outer_mode="custom", outer_ca_pem=both)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProgramFailed(
            f"--ca-file {path} cannot be read: {error.strerror}."
        ) from error


def _store(settings: AgentSettings, request: MemberRequest) -> CredentialStore:
    secret = settings.state_secret
    if secret is not None:
        return SecretStore(request, namespace=secret.namespace, name=secret.name)
    assert settings.state_dir is not None  # settings demand one of the two
    return DirectoryStore(settings.state_dir)


def _place(settings: AgentSettings) -> str:
    """Where this agent runs: the same after a restart, and another for another replica.

    It is a digest, because the names of machines and folders are not the host's business.
    """
    state = settings.state_secret or settings.state_dir
    return hashlib.sha256(f"{socket.gethostname()} {state}".encode()).hexdigest()[:32]


class _Agent:
    """The parts of a joined agent."""

    def __init__(
        self,
        settings: AgentSettings,
        credentials: Credentials,
        store: CredentialStore,
        pool: UpstreamPool,
        request: MemberRequest,
    ) -> None:
        # Replaced by `_use` when the certificate is renewed.
        self._credentials = credentials
        self._renewer = Renewer(credentials, store, self._use)
        self._dialers: list[Dialer] = []
        self._tasks = TaskSet("agent")
        # Set by drain.
        self._is_draining = False
        # Of all tunnels, one after the other.
        self._counters = Counters()
        # Memory for windows, of all tunnels together.
        self._budget = WindowBudget(settings.window_memory_bytes)
        self._reporter = Reporter(
            credentials,
            MemberProbe(
                request,
                speaker=pool.apiserver.speaker,
                expires_at=lambda: credential_expires_at(pool.apiserver),
                clock=time.monotonic,
            ),
        )
        policy = Policy(users=settings.allow_users, groups=settings.allow_groups)
        self._sealed = SealedFace(
            sealed_server(
                credentials.certificate_pem, credentials.key_pem, credentials.ca_pem
            ),
            cluster=credentials.cluster,
            zone=credentials.zone,
            policy=policy,
            pool=pool,
        )
        self._gateway = GatewayFace(
            self._sealed,
            cluster=credentials.cluster,
            zone=credentials.zone,
            context=inner_server(
                credentials.certificate_pem, credentials.key_pem, credentials.ca_pem
            ),
        )
        targets = {target.name: target.address for target in settings.targets}
        self._raw = RawTargets(targets, self._tasks)
        self._place, self._instance = _place(settings), secrets.token_hex(8)
        # One for each tunnel: each dials, resumes and drains by itself.
        self._links = [self._make_link(number) for number in range(settings.tunnels)]

    def _make_link(self, number: int) -> Link:
        def connected(connection: TunnelConnection, hello: Hello) -> None:
            self._connected(connection, hello, number)

        async def dial(
            resume: Session | None, reached: Callable[[], None]
        ) -> TunnelConnection:
            return await dialer.dial(resume, reached)

        link = Link(dial, connected, random.SystemRandom())
        dispatcher = Dispatcher(
            self._raw,
            self._sealed.open,
            self._gateway.open,
            link.tunnel_ready,
            link.tunnel_lost,
            link.going_away,
        )
        # For all dials of this link.
        dialer = Dialer(
            self._credentials,
            dispatcher,
            place=self._place,
            instance=self._instance,
            budget=self._budget,
        )
        self._dialers.append(dialer)
        return link

    def _use(self, credentials: Credentials) -> None:
        """Dial, serve and report with a renewed certificate from now on; nothing ends for it."""
        self._credentials = credentials
        for dialer in self._dialers:
            dialer.use(credentials)
        self._reporter.use(credentials)
        self._sealed.context = sealed_server(
            credentials.certificate_pem, credentials.key_pem, credentials.ca_pem
        )

    def not_ready(self) -> str | None:
        """Why the host cannot use the member through this agent now, if that is so."""
        if self._is_draining:
            return "draining: the agent stops"
        if any(link.current is not None for link in self._links):
            return None
        return "no tunnel to the server"

    def metrics(self) -> Iterable[Metric]:
        sessions = [t.session for link in self._links for t in link.tunnels]
        return agent_metrics(
            self._credentials.cluster,
            read_sessions(sessions, self._counters, uncounted_target=CONTROL_TARGET),
            read_memory(self._budget),
            answers=self._sealed.answers.copy(),
            client_connections=self._sealed.open_connections,
            is_draining=self._is_draining,
        )

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._reporter.run(), name="agent: reporter")
                group.create_task(self._renewer.run(), name="agent: renewer")
                for number, link in enumerate(self._links):
                    group.create_task(link.run(), name=f"agent: link {number}")
        except* LinkEnded as ended:
            raise ProgramFailed(
                str(ended.exceptions[0]), exit_code=EXIT_REFUSED
            ) from ended

    async def drain(self, seconds: float) -> None:
        """Want no new streams, and let those that run end within so many seconds."""
        self._is_draining = True
        async with asyncio.TaskGroup() as group:
            for link in self._links:
                group.create_task(link.drain(STOPPING, seconds), name="agent: drain")

    async def close(self) -> None:
        """Take leave of the server; streams end."""
        self._sealed.close(STOPPING)
        async with asyncio.TaskGroup() as group:
            for link in self._links:
                group.create_task(link.close(STOPPING, STOP_SECONDS), name="agent: end")
        await self._tasks.close()

    def _connected(
        self, connection: TunnelConnection, hello: Hello, number: int
    ) -> None:
        self._counters.take_over(connection.session)
        address = self._credentials.server_address
        _log.info("connected to %s (%s)", address, hello.software)
        # Whoever read our first line may be gone; that is no reason to lose the tunnel.
        with suppress(OSError):
            print(
                f"tower-agent ready: {self._credentials.cluster} connected to {address}",
                flush=True,
            )
        self._reporter.connected(connection, resumed=hello.resume, number=number)
