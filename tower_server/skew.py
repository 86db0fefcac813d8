"""How far the agents' versions are from the server's, and whether that is tested. Pure.

A server works with agents of its own minor version and of the one before, and so do agents with a
server that is one minor version behind them. The server is upgraded first: what is new is used
only when both ends have it (SPEC 3).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["VersionSkew", "version_skew"]

# Of the minor version, as long as the major one is the same.
MAX_TESTED_DISTANCE = 1

# What goes into a sentence; a list of thousands is nobody's help.
MAX_NAMES = 5

_VERSION = re.compile(r"(?:^|/)(\d{1,6})\.(\d{1,6})\.(\d{1,6})")


@dataclass(frozen=True, kw_only=True)
class VersionSkew:
    """Which agents have another version than the server; names are sorted."""

    older: tuple[str, ...] = ()
    newer: tuple[str, ...] = ()
    # Those of the above, and others, that are so far away that nobody has tested it.
    untested: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """What an admin should know and do; nothing if all is well."""
        found = []
        if self.untested:
            found.append(
                f"{_count(self.untested)} of a version that is not tested with this server's: "
                "upgrade one minor version at a time, the server first."
            )
        if older := tuple(name for name in self.older if name not in self.untested):
            found.append(
                f"{_count(older)} older than the server: upgrade them when it suits you."
            )
        if newer := tuple(name for name in self.newer if name not in self.untested):
            found.append(
                f"{_count(newer)} newer than the server: upgrade the server soon."
            )
        return found


def version_skew(server: str, agents: Mapping[str, str]) -> VersionSkew:
    """Compare the server's version with its agents' (`0.1.0` or `tower-agent/0.1.0`, by cluster).

    What cannot be read counts as untested.
    """
    own = _parse(server)
    older, newer, untested = [], [], []
    for name, text in sorted(agents.items()):
        version = _parse(text)
        if version is None or own is None:
            untested.append(name)
            continue
        if version < own:
            older.append(name)
        elif version > own:
            newer.append(name)
        if version[0] != own[0] or abs(version[1] - own[1]) > MAX_TESTED_DISTANCE:
            untested.append(name)
    return VersionSkew(older=tuple(older), newer=tuple(newer), untested=tuple(untested))


def _parse(text: str) -> tuple[int, int, int] | None:
    match = _VERSION.search(text)
    if match is None:
        return None
    return int(match[1]), int(match[2]), int(match[3])


def _count(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:MAX_NAMES])
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{len(names)} {'agent' if len(names) == 1 else 'agents'} ({shown}{more})"
