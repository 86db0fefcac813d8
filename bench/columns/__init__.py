"""The ways from client to upstream that a run compares.

    direct      straight at the upstream: what the machine and the load programs can do
    prototype   the throw-away of design.md 5, where its folder is there: the yardstick
    tunnel      tower-server and tower-agent as an admin starts them

Each module has one `start(site, link)`, which returns a running `Column` or raises
Unavailable.
"""

from collections.abc import Callable, Mapping

from bench.columns import direct, prototype, tunnel
from bench.columns.column import Column
from bench.site import Site
from bench.workloads import Link

__all__ = ["STARTERS", "Column"]

STARTERS: Mapping[str, Callable[[Site, Link], Column]] = {
    "direct": direct.start,
    "prototype": prototype.start,
    "tunnel": tunnel.start,
}
