"""The demo apiserver: a member without Kubernetes, for `make run` and for loopback tests.

    async with DemoApiserver("alpha", directory) as member:
        ...  # member.url, member.kubeconfig, member.agent_kubeconfig, member.audit_log

It has the same attributes for identities as `tests.testbed.controlplane.ControlPlane`, and
passes the same tests (tests/conformance) for the subset in README.md.
"""

import itertools
import secrets
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tests.fakes.apiserver import identity, seed, status
from tests.fakes.apiserver.api import Api
from tests.fakes.apiserver.audit import AuditEvent, AuditLog
from tests.fakes.apiserver.bodies import MAX_BODY_BYTES, json_response
from tests.fakes.apiserver.identity import User
from tests.fakes.apiserver.openapi import openapi
from tests.fakes.apiserver.pods import PodFiles
from tests.fakes.apiserver.rbac import Authorizer, Question
from tests.fakes.apiserver.requests import RequestInfo, parse
from tests.fakes.apiserver.resources import discovery, find
from tests.fakes.apiserver.status import ApiError
from tests.fakes.apiserver.store import Store
from tests.testbed import pki
from tests.testbed.kubeconfigs import write_kubeconfig

__all__ = ["DemoApiserver"]

Json = dict[str, Any]

NAMES = [
    "127.0.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
]
# Longer than any client keeps an idle connection, so that closing is always the client's choice.
KEEP_ALIVE_SECONDS = 3600.0
# At the end running watches are cut: nothing in here is worth waiting for.
SHUTDOWN_SECONDS = 0.2


class DemoApiserver:
    """An apiserver in memory on loopback: `start` and `stop`, or `async with`.

    After `stop` it can start again, on the same port and with its data.

    Attributes:
        kubeconfig: Client certificate, user `admin`, group system:masters.
        admin_token_kubeconfig: Bearer token, user `admin-token`, group system:masters.
        alice_kubeconfig: Bearer token, user `alice`, group `dev`: no rights at all.
        agent_kubeconfig: Bearer token of the ServiceAccount tower-system/tower-agent: may impersonate.
        service_account_directory: `token`, `ca.crt` and `namespace` of that account, as in a pod.
        audit_log: JSON lines, as kube-apiserver writes them.
        store: The objects; `store.forget_history()` makes old watches answer 410.
    """

    def __init__(self, name: str, directory: Path, *, port: int = 0) -> None:
        self.name = name
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port = port  # the real one after start()
        self.store = Store()
        seed.seed(self.store, name)
        self.authorizer = Authorizer(self.store)
        self.ca = pki.TestAuthority(directory / "pki", f"{name}-ca")
        self.audit_log = directory / "audit.log"
        self.kubeconfig = directory / "admin.kubeconfig"
        self.admin_token_kubeconfig = directory / "admin-token.kubeconfig"
        self.alice_kubeconfig = directory / "alice.kubeconfig"
        self.agent_kubeconfig = directory / "agent.kubeconfig"
        self.service_account_directory = directory / "serviceaccount"
        self._tokens: dict[str, User] = {}
        self._api = Api(
            self.store,
            self.authorizer,
            PodFiles(directory / "podfs"),
            self._tokens.__setitem__,
        )
        self._serial = itertools.count()  # names of the kubeconfigs made on request
        self._audit: AuditLog | None = None  # open between start() and stop()
        self._stack = AsyncExitStack()  # what stop() undoes
        self._tls = self._server_context()
        self._written = False  # whether the kubeconfigs are there

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    # Life

    async def start(self) -> None:
        """Listen, and write the kubeconfigs."""
        self._audit = AuditLog(self.audit_log)
        self._stack.callback(self._audit.close)
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(
            application,
            access_log=None,
            handler_cancellation=True,  # a watch ends when its client goes
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()
        self.port = runner.addresses[0][1]
        if not self._written:
            self._write_kubeconfigs()
            self._written = True

    async def stop(self) -> None:
        """Close everything; objects and tokens stay. Twice does no harm."""
        await self._stack.aclose()
        self._audit = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # Identities

    def client_kubeconfig(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """A kubeconfig with a new client certificate of this member's CA."""
        return self._kubeconfig(None, client=self.ca.issue_client(user, groups))

    def service_account_token(self, namespace: str, name: str) -> str:
        """A new token of an existing ServiceAccount."""
        accounts = find("", "v1", "serviceaccounts")
        assert accounts is not None
        account = self.store.get(accounts, namespace, name)
        token = secrets.token_urlsafe(32)
        self._tokens[token] = identity.service_account(
            namespace, name, account["metadata"]["uid"]
        )
        return token

    def _kubeconfig(
        self,
        path: Path | None,
        *,
        client: pki.KeyPair | None = None,
        token: str | None = None,
    ) -> Path:
        return write_kubeconfig(
            path or self.directory / f"client-{next(self._serial)}.kubeconfig",
            name=self.name,
            server=self.url,
            ca_pem=self.ca.certificate_pem,
            client=client,
            token=token,
        )

    def _write_kubeconfigs(self) -> None:
        admin = self.ca.issue_client("admin", ("system:masters",))
        self._kubeconfig(self.kubeconfig, client=admin)
        for path, user in (
            (
                self.admin_token_kubeconfig,
                User(name="admin-token", groups=("system:masters",)),
            ),
            (self.alice_kubeconfig, User(name="alice", groups=("dev",))),
        ):
            token = secrets.token_urlsafe(32)
            self._tokens[token] = user
            self._kubeconfig(path, token=token)
        token = self.service_account_token(seed.AGENT_NAMESPACE, seed.AGENT_ACCOUNT)
        self._kubeconfig(self.agent_kubeconfig, token=token)
        mount = self.service_account_directory
        mount.mkdir(exist_ok=True)
        pki.write_secret(mount / "token", token.encode())
        (mount / "ca.crt").write_bytes(self.ca.certificate_pem)
        (mount / "namespace").write_text(seed.AGENT_NAMESPACE)

    def _server_context(self) -> ssl.SSLContext:
        self.ca.issue_server("kube-apiserver", NAMES).write(
            self.directory / "pki" / "apiserver"
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        stem = self.directory / "pki" / "apiserver"
        context.load_cert_chain(f"{stem}.crt", f"{stem}.key")
        context.load_verify_locations(self.ca.certificate_path)
        context.verify_mode = ssl.CERT_OPTIONAL  # tokens are the other way
        context.set_alpn_protocols(["http/1.1"])
        return context

    # One request

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        """Parse, authenticate, impersonate, authorize, answer, audit: kube-apiserver's order."""
        event = AuditEvent(
            request.raw_path,
            request.headers.get("User-Agent", ""),
            request.remote or "",
        )
        outcome: Json = {"code": 499}  # stays only if the client goes before the answer
        try:
            info = event.info = parse(request.method, request.raw_path)
            user = self._identify(request, event)
            event.decision = "forbid"
            self.authorizer.demand(user, Question.of_request(info))
            event.decision = "allow"
            if (
                info.verb == "watch"
                or info.subresource == "exec"
                or info.is_true("follow")
            ):
                self._record(
                    event,
                    "ResponseStarted",
                    {"code": 101 if info.subresource == "exec" else 200},
                )
            response = await self._answer(request, info, user)
            outcome = {"code": response.status}
        except ApiError as error:
            body = error.status()
            outcome = {
                key: body[key] for key in ("status", "message", "reason", "code")
            }
            response = json_response(body, error.code)
        finally:
            self._record(event, "ResponseComplete", outcome)
        if not response.prepared:
            response.headers["Audit-Id"] = event.identifier
            response.headers["Cache-Control"] = "no-cache, private"
        return response

    def _identify(self, request: web.Request, event: AuditEvent) -> User:
        """Who asks, after impersonation. Raises ApiError: 400, 401, 403."""
        caller = event.user = self._authenticate(request).authenticated()
        wanted = identity.requested_impersonation(request.headers)
        if wanted is None:
            return caller
        event.decision = "forbid"
        for group, resource, namespace, name in wanted.needed:
            question = Question(
                verb="impersonate",
                group=group,
                resource=resource,
                namespace=namespace,
                name=name,
            )
            self.authorizer.demand(caller, question)
        event.impersonated = wanted.user
        return wanted.user

    def _authenticate(self, request: web.Request) -> User:
        """By certificate, else by token; nobody is anonymous. Raises ApiError 401."""
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport else None
        if certificate:  # the handshake has verified it
            user = identity.user_of_certificate(certificate["subject"])
            if user is not None:
                return user
        token = identity.token_of(request.headers)
        if token is not None and token in self._tokens:
            return self._tokens[token]
        raise status.unauthorized()

    async def _answer(
        self, request: web.Request, info: RequestInfo, user: User
    ) -> web.StreamResponse:
        if info.plural:
            return await self._api.serve(request, info, user)
        if info.verb != "get":
            raise status.method_not_allowed()
        path = info.path.rstrip("/") or "/"
        if path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        if path == "/version":
            return json_response(_VERSION)
        document = discovery(path) or openapi(path)
        if document is None:
            raise status.unknown_path()
        return json_response(document)

    def _record(self, event: AuditEvent, stage: str, outcome: Json) -> None:
        event.stage = stage
        if self._audit is not None:
            self._audit.write(event, outcome)


_MAJOR, _MINOR = seed.VERSION.removeprefix("v").split(".")[:2]
_VERSION = {
    "major": _MAJOR,
    "minor": _MINOR,
    "gitVersion": seed.VERSION,
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "cpython",
    "platform": "linux/amd64",
}
