"""A bug on purpose, for the tests of the drivers; not a target that a run of all takes."""

from tests.fuzz.target import Target

__all__ = ["TARGETS"]


def _run(data: bytes) -> None:
    if data[:2] == b"hi" and len(data) > 3 and data[2] > 100:
        raise IndexError("a length that nobody checked")


TARGETS = (Target(name="planted", run=_run, seeds=lambda: [b"hi\x05hello"]),)
