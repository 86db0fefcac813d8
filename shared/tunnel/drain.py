"""The friendly end of tunnels: GOAWAY, time for what runs, then RESET with the reason.

Both ends stop like this. Streams end by themselves as long as there is time; those that can
end between two pieces of work (connections between two requests) are asked to. What is left
when the time is up is reset, so that whoever waits at either end learns why, at once.
"""

import asyncio
from collections.abc import Callable, Iterable

from shared.errors import Code
from shared.tunnel.owner import Tunnel

__all__ = ["drain_tunnels"]

# How often we look whether streams are over.
LOOK_SECONDS = 0.1


async def drain_tunnels(
    tunnels: Callable[[], Iterable[Tunnel]], reason: str, seconds: float
) -> int:
    """Let the streams of tunnels end in their own time, `seconds` at most, and close each tunnel
    that has none left; in the end all are closed, though not yet gone.

    Returns how many streams of users were cut off. When it is cancelled, nothing is: the
    tunnels stay, and take no new streams.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        running: list[Tunnel] = []
        for tunnel in list(tunnels()):
            tunnel.session.go_away(Code.GOING_AWAY, reason)
            tunnel.session.wind_down()
            if tunnel.session.is_spent:
                tunnel.close(Code.GOING_AWAY, reason)
            elif not tunnel.closed:
                running.append(tunnel)
        left_seconds = deadline - loop.time()
        if not running or left_seconds <= 0:
            break
        await asyncio.sleep(min(LOOK_SECONDS, left_seconds))
    cut_off = 0
    for tunnel in running:
        cut_off += tunnel.session.reset_streams(Code.GOING_AWAY, reason)
        tunnel.close(Code.GOING_AWAY, reason)
    return cut_off
