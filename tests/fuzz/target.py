"""What a fuzz target is, and how it reads its input.

A target takes any bytes, does something with them, and raises if that shows a bug: an
exception which the code under test does not declare, or a broken promise. It must do the
same for the same bytes, or what is found cannot be looked at again.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["MODULES", "PLANTED", "Source", "Target", "load"]

# A bug on purpose, for the tests of the drivers: not among the others.
PLANTED = "planted"

# Where each target is. Names only: what a target imports must be imported by the driver,
# which instruments it.
MODULES = {
    "frames": "wire",
    "hello": "wire",
    "session": "session",
    "tampering": "tampering",
    "life": "life",
    "client-hello": "tls",
    "request-head": "requests",
    "response-head": "responses",
    "chunked-body": "responses",
    "join-string": "joins",
    "join-request": "joins",
    "assertion": "assertion",
    "addresses": "joins",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something to fuzz."""

    name: str
    # Raises for a bug; returns for everything else, declared errors too.
    run: Callable[[bytes], None]
    # Good inputs to begin with: from SPEC, from real sessions, from real clients.
    seeds: Callable[[], Iterable[bytes]]
    # What random bytes would never be: tokens of the grammar.
    words: tuple[bytes, ...] = ()
    max_bytes: int = 4096
    # In a bounded run (CI): some two seconds with either driver.
    runs: int = 20_000


class Source:
    """The input as a supply of decisions; when it is used up all are zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._offset < len(self._data)

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size))

    def take(self, count: int) -> bytes:
        taken = self._data[self._offset : self._offset + count]
        self._offset += count
        return taken

    def rest(self) -> bytes:
        return self.take(max(0, len(self._data) - self._offset))


def load(name: str) -> Target:
    """The target of this name.

    Raises:
        KeyError: There is none.
    """
    home = PLANTED if name == PLANTED else MODULES[name]
    module = importlib.import_module(f"tests.fuzz.{home}")
    return next(target for target in module.TARGETS if target.name == name)
