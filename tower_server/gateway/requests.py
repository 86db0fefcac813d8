"""One request of the gateway: who asks, for which cluster, and what its agent gets of it.

In this order, so that nobody learns anything by asking without a credential: the head's
grammar (400), who it is (401), whether the credential is for that cluster (403), whether
there is such a cluster (404), whether it is there now (503).
"""

from collections.abc import Callable
from datetime import datetime

from shared.durations import format_duration, rfc3339
from shared.http.asserted import asserted_lines
from shared.http.framing import request_body
from shared.http.heads import RequestHead, parse_request_head
from shared.http.identity import relayed_lines
from shared.http.status import Refusal
from shared.http.translation import AnotherRoute, Outgoing
from tower_server.gateway.callers import GatewayCaller
from tower_server.gateway.routes import Route, begins_with_route, route_of
from tower_server.gateway.streams import RETRY_AFTER_SECONDS, StreamPools
from tower_server.registry import ClusterStatus, LiveSession, Registry

__all__ = ["Requests"]

# Refusals of understood requests: whoever sent one may go on on the connection.
_HARMLESS = (403, 404, 429, 502, 503)

Authenticate = Callable[[RequestHead], GatewayCaller]


class Requests:
    """Judges requests, for all connections."""

    def __init__(
        self,
        registry: Registry,
        pools: StreamPools,
        now: Callable[[], datetime],
    ) -> None:
        self._registry = registry
        self._pools = pools
        self._now = now

    def translate(
        self,
        raw: bytes,
        authenticate: Authenticate,
        take_over: Callable[[bytes], None],
    ) -> Outgoing:
        """Translate one head for the agent of its cluster.

        Args:
            authenticate: Says who sent it, or raises a Refusal.
            take_over: Serves what is not for us.

        Raises:
            Refusal: If it must not be sent, or cannot be.
            AnotherRoute: If it is not for us.
        """
        head = parse_request_head(raw)
        if not begins_with_route(raw):
            raise AnotherRoute(take_over)
        try:
            return self._translate(head, authenticate)
        except Refusal as refusal:
            is_simple = head.keeps_alive and not head.has_body and not head.upgrade
            refusal.keeps_alive = is_simple and refusal.code in _HARMLESS
            raise

    def _translate(self, head: RequestHead, authenticate: Authenticate) -> Outgoing:
        caller = authenticate(head)
        route = route_of(head.target)
        assert route is not None  # its line begins with one
        caller.check(route.cluster)
        session = self._session(route)
        return Outgoing(
            method=head.method,
            target=route.target,
            first_bytes=b"%b %b HTTP/1.%d\r\nHost: %b\r\n%b%b\r\n"
            % (
                head.method,
                route.target,
                head.minor,
                route.cluster.encode(),
                asserted_lines(caller.user, caller.groups),
                relayed_lines(head),
            ),
            prefix=b"",  # the agent has set it already, where an answer names a path
            body=request_body(head),
            upgrade=head.upgrade,
            keeps_alive=head.keeps_alive,
            upstreams=self._pools.of(session),
        )

    def _session(self, route: Route) -> LiveSession:
        session = self._registry.pick(route.cluster)
        if session is not None:
            return session
        status = self._registry.status(route.cluster)
        if status is None:
            raise Refusal(
                code=404,
                message=f"there is no cluster {route.cluster} here; `tower cluster list` tells "
                "which there are",
            )
        raise Refusal(
            code=503,
            message=_away(status, self._now()),
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


def _away(status: ClusterStatus, now: datetime) -> str:
    if status.state == "never" or status.since is None:
        return f"cluster {status.name} is not connected: its agent has not come yet"
    return (
        f"cluster {status.name} is not connected since {rfc3339(status.since)} "
        f"({format_duration(now - status.since)}): its agent dials the server, and has not come back yet"
    )
