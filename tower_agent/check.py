"""`tower-agent check`: the preflight alone, for whoever installs an agent or asks why it does not start."""

import asyncio

from shared.http.upstream import UpstreamPool
from shared.member.client import MemberClient
from shared.member.preflight import PreflightFailed, check_member
from shared.program import ProgramFailed
from tower_agent.app import member_apiserver
from tower_agent.settings import AgentSettings

__all__ = ["check"]


async def check(settings: AgentSettings) -> None:
    """Ask the member's apiserver, and print what was found in one line.

    Raises:
        ProgramFailed: For the first thing that is missing, with the remedy.
    """
    apiserver = member_apiserver(settings)
    pool = UpstreamPool(apiserver, loop=asyncio.get_running_loop())
    try:
        facts = await check_member(
            MemberClient(pool),
            apiserver=str(apiserver),
            allow_users=settings.allow_users,
            allow_groups=settings.allow_groups,
        )
    except PreflightFailed as error:
        raise ProgramFailed(str(error)) from error
    finally:
        await pool.close()
    users = ", ".join(sorted(settings.allow_users))
    groups = ", ".join(sorted(settings.allow_groups))
    print(
        f"ready: {apiserver} runs {facts.apiserver_version}, its UID is {facts.uid}; "
        f"the agent may act as users {users} and groups {groups}"
    )
