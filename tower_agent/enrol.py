"""From a join string to credentials: when to join, how often to try, and what is kept when.

What one try consists of is in `attempt`. Every failure ends within JOIN_DEADLINE_SECONDS, in one
sentence that names cause and remedy.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from certs.joining import JoinString
from certs.keys import PrivateBytes
from shared.member.preflight import MemberFacts, PreflightFailed
from tower_agent.attempt import Attempt, JoinFailed, JoinSettings
from tower_agent.credentials import Credentials, CredentialStore
from tower_agent.proxies import proxy_for

__all__ = [
    "JOIN_DEADLINE_SECONDS",
    "JoinFailed",
    "JoinSettings",
    "enrol",
    "needs_join",
    "obtain_credentials",
]

logger = logging.getLogger(__name__)

# Whoever starts an agent waits for its first line; 10 s are promised, two are for start and stop.
JOIN_DEADLINE_SECONDS = 8.0

# Pauses between attempts after an error that may pass (a server that starts, a full disk).
# Beyond them we give up with a sentence: what restarts the agent has its own back-off.
RETRY_PAUSES_SECONDS = (0.3, 0.8, 2.0)

# Up to half of a pause is added, so that a fleet that was switched on at once spreads out.
PAUSE_JITTER = 0.5


def needs_join(stored: Credentials | None, join: JoinString | None) -> bool:
    """Say whether the agent has to join: it has nothing, or was given another token since.

    The string that the stored credentials came from changes nothing, so it may stay where it is.
    """
    if stored is None:
        return True
    return join is not None and join.token_id != stored.token_id


async def obtain_credentials(
    store: CredentialStore,
    join: JoinString | None,
    facts: Callable[[], Awaitable[MemberFacts]],
    settings: JoinSettings,
) -> Credentials:
    """Return the stored credentials, or join and store new ones.

    If a re-join under the same name fails, the agent goes on with what it has: a mistake in a
    join string must not cut a member off.

    Args:
        facts: Asked only if the agent has to join, so that one that has joined starts without
            its apiserver; `preflight.check_member` with its arguments.

    Raises:
        JoinFailed, PreflightFailed, CredentialsUnavailable: Each one sentence with the remedy.
    """
    stored = await store.load()
    if stored is not None and not needs_join(stored, join):
        return stored
    if join is None:
        raise JoinFailed(
            f"There are no credentials in {store} yet, and no join string: create one with "
            "`tower token create CLUSTER` and give it by --join-file or TOWER_JOIN."
        )
    deadline = asyncio.get_running_loop().time() + JOIN_DEADLINE_SECONDS
    try:
        member = await facts()
        key_pem = await store.pending_key(join.token_id)
        credentials = await enrol(join, member, key_pem, settings, deadline=deadline)
    except (JoinFailed, PreflightFailed) as failure:
        if stored is None or (stored.cluster, stored.pin) != (join.cluster, join.pin):
            raise
        logger.warning("cannot join anew, going on with the earlier join: %s", failure)
        return stored
    await store.save(credentials)
    logger.info("joined %s as %s", credentials.server_address, credentials.cluster)
    return credentials


async def enrol(
    join: JoinString,
    member: MemberFacts,
    key_pem: PrivateBytes,
    settings: JoinSettings,
    *,
    deadline: float | None = None,
) -> Credentials:
    """Join. Calling it again with the same string and key within 10 minutes gives the same result.

    Cancelling is safe: at worst the server has recorded a join that another call completes.

    Args:
        deadline: On the loop's clock; None for JOIN_DEADLINE_SECONDS from now.

    Raises:
        JoinFailed: Before the deadline.
    """
    try:
        proxy = proxy_for(join.host, join.port, settings.environ)
    except ValueError as error:
        raise JoinFailed(str(error)) from error
    attempt = Attempt(join, member, key_pem, settings, proxy)
    failure: JoinFailed | None = None
    if deadline is None:
        deadline = asyncio.get_running_loop().time() + JOIN_DEADLINE_SECONDS
    try:
        async with asyncio.timeout_at(deadline):
            for pause_seconds in (*RETRY_PAUSES_SECONDS, None):
                try:
                    return await attempt.run()
                except JoinFailed as error:
                    if error.permanent or pause_seconds is None:
                        raise
                    failure = error
                await _pause(max(pause_seconds, failure.pause_seconds), deadline)
    except TimeoutError:
        # The last attempt's own failure tells more than that time is up.
        raise failure or attempt.timed_out() from None
    raise AssertionError("the loop returns or raises")


async def _pause(seconds: float, deadline: float) -> None:
    """Sleep, about that long; raise TimeoutError at once if it would last until the deadline."""
    seconds *= random.SystemRandom().uniform(1.0, 1.0 + PAUSE_JITTER)
    if asyncio.get_running_loop().time() + seconds >= deadline:
        raise TimeoutError
    await asyncio.sleep(seconds)
