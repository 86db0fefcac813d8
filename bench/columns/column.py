"""A running way from client to upstream, as the runner sees it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.generator import Endpoint
from bench.processes import Process
from bench.workloads import Face

__all__ = ["Column"]

# Of one face: "server" and "agent" -> process. Empty where there is no tunnel.
Ends = Mapping[str, Process]


def _no_ends(_: Face) -> Ends:
    return {}


@dataclass(frozen=True, kw_only=True)
class Column:
    """Where its clients connect to, and whose CPU and memory is the tunnel's."""

    endpoints: Mapping[Face, Endpoint]
    ends: Callable[[Face], Ends] = field(default=_no_ends)
