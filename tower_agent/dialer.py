"""Dials the server: TCP (through a proxy if one is set), TLS, WebSocket upgrade, session.

One call makes one attempt; when to try again is `reconnect`'s business. Every failure
is a `DialFailed` with one sentence that names cause and remedy.
"""

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from certs.assertion import make_assertion
from certs.chains import parse_certificates
from certs.contexts import outer_client
from certs.keys import parse_private_key
from shared.mux.budget import WindowBudget
from shared.mux.session import Role, Session
from shared.mux.windows import INITIAL_WINDOW_BYTES
from shared.outbound import ProxyRefused, open_socket
from shared.tunnel.connection import TunnelConnection, TunnelOwner
from shared.version import VERSION
from shared.wire.hello import Hello
from tower_agent.causes import (
    UpgradeAnswer,
    explain_dial_failure,
    explain_no_connection,
    explain_proxy_refusal,
    parse_error,
)
from tower_agent.credentials import Credentials
from tower_agent.proxies import proxy_for
from tower_agent.reconnect import DIAL_TIMEOUT_SECONDS
from tower_agent.upgrade import Upgrade

__all__ = ["DialFailed", "Dialer"]

# Refusals after which dialling again is no use: the operator has to act. See listener.
_FINAL_CODES = ("cluster_removed", "certificate_replaced", "version")


class DialFailed(Exception):
    """An attempt came to nothing; `sentence` is for the operator."""

    def __init__(
        self,
        sentence: str,
        *,
        final: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        # Trying again cannot help.
        self.final = final
        # The server asked for this pause.
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return self.sentence


class Dialer:
    """Makes tunnels with one set of credentials.

    Raises:
        ValueError: If the credentials are damaged, or HTTPS_PROXY cannot be used.
    """

    def __init__(
        self,
        credentials: Credentials,
        owner: TunnelOwner,
        environ: Mapping[str, str] = os.environ,
        *,
        place: str = "",
        instance: str = "",
        budget: WindowBudget | None = None,
    ) -> None:
        # Memory for windows, of all tunnels together.
        self._budget = budget
        # Told in HELLO: sessions of an earlier process in this place are over.
        self._place = place
        # ... and those of this process are its other tunnels.
        self._instance = instance
        self._owner = owner
        self._proxy = proxy_for(
            credentials.server_host, credentials.server_port, environ
        )
        self.use(credentials)

    def use(self, credentials: Credentials) -> None:
        """Dial with these from now on, which were renewed; tunnels that stand stay.

        Raises:
            ValueError: If they are damaged.
        """
        self._credentials = credentials
        mode = credentials.outer_mode
        ca_pem = credentials.ca_pem if mode == "tower" else credentials.outer_ca_pem
        self._context = outer_client(mode, ca_pem)
        self._key = parse_private_key(credentials.key_pem)
        self._chain = parse_certificates(credentials.certificate_pem)

    async def dial(
        self,
        resume: Session | None = None,
        reached: Callable[[], None] = lambda: None,
    ) -> TunnelConnection:
        """One attempt, DIAL_TIMEOUT_SECONDS at most; cancelling closes what was begun.

        `reached` is called when there is a connection to the server, and its answer is
        waited for.

        With `resume` the tunnel goes on with that session, if the server still has it.

        Our HELLO is under way when this returns, so the server may count on the tunnel:
        from now on it is its owner's, who hears whether it becomes ready or is lost.

        Raises:
            DialFailed: With the reason.
        """
        credentials = self._credentials
        upgrade = Upgrade(
            credentials.server_host, credentials.server_port, self._assertion()
        )
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_SECONDS):
                transport = await self._connect(upgrade, reached)
                try:
                    answer = await upgrade.answered
                except BaseException:
                    transport.abort()
                    raise
        except ProxyRefused as refusal:
            raise self._proxy_refused(refusal) from None
        # ssl.SSLError and TimeoutError are OSErrors.
        except (OSError, ValueError) as error:
            raise self._no_answer(error, upgrade) from error
        if not upgrade.succeeded:
            transport.abort()
            raise self._refused(answer)
        hello = Hello(
            session_id=secrets.token_hex(16),
            window_bytes=INITIAL_WINDOW_BYTES,
            software=f"tower-agent/{VERSION}",
            place=self._place,
            instance=self._instance,
        )
        if resume is not None and resume.closed:
            resume = None  # its time was up while we dialled
        connection = TunnelConnection(
            Role.AGENT,
            upgrade.websocket,
            hello,
            self._owner,
            resume=resume,
            keeps_sessions=True,
            budget=self._budget,
        )
        connection.start(transport)
        return connection

    async def _connect(
        self, upgrade: Upgrade, reached: Callable[[], None]
    ) -> asyncio.Transport:
        host, port = self._credentials.server_host, self._credentials.server_port
        connected = await open_socket(host, port, self._proxy)
        reached()
        # Takes the socket over before it waits for anything, so nobody else may close it:
        # a number that is closed under a transport is soon somebody else's file.
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: upgrade, sock=connected, ssl=self._context, server_hostname=host
        )
        return transport

    def _assertion(self) -> str:
        return make_assertion(
            self._key,
            self._chain,
            self._credentials.audience,
            datetime.now(UTC),
            secrets.token_hex(16),
        )

    # Failures

    def _proxy_refused(self, refusal: ProxyRefused) -> DialFailed:
        address = self._credentials.server_address
        return DialFailed(
            explain_proxy_refusal(
                refusal.status, address=address, proxy=str(self._proxy)
            )
        )

    def _no_answer(self, error: Exception, upgrade: Upgrade) -> DialFailed:
        address = self._credentials.server_address
        proxy = str(self._proxy) if self._proxy else None
        explain = explain_dial_failure if upgrade.is_sent else explain_no_connection
        return DialFailed(explain(error, address=address, proxy=proxy))

    def _refused(self, answer: UpgradeAnswer) -> DialFailed:
        now = datetime.now(UTC)
        error = parse_error(answer.body) if answer.status in (400, 403) else None
        return DialFailed(
            explain_dial_failure(
                answer, address=self._credentials.server_address, now=now
            ),
            final=error is not None and error.code in _FINAL_CODES,
            retry_after_seconds=_retry_after(answer.header("Retry-After"), now),
        )


def _retry_after(header: str | None, now: datetime) -> float | None:
    """RFC 9110, 10.2.3: seconds or a date. None for what is neither."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - now).total_seconds())
