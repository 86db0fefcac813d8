"""The driver that sees coverage: atheris (libFuzzer). In a process of its own, which it ends.

libFuzzer takes over the process and leaves it by exit, so the command line starts this module as
a child. Only our own packages are instrumented: what a target imports from them it must not have
imported before.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CRASHED", "is_available", "main"]

# libFuzzer's exit status where the target raised.
CRASHED = 77

INSTRUMENTED = ["shared", "certs", "tower_server", "tower_agent"]


def is_available() -> bool:
    """Whether atheris is installed: it has wheels for Linux on x86-64 only."""
    return importlib.util.find_spec("atheris") is not None


def main(arguments: Sequence[str]) -> None:
    """`PROGRAM TARGET OPTIONS…`: libFuzzer's own options, then folders. Does not return.

    PROGRAM is what libFuzzer runs to run us again, which it does for a merge.
    """
    import atheris

    program, name, *options = arguments
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.target import load

        target = load(name)
    # The harness too: its branches lead to what it demands.
    run = atheris.instrument_func(target.run)
    atheris.Setup([program, f"-max_len={target.max_bytes}", *options], run)
    atheris.Fuzz()


def write_words(words: Sequence[bytes], path: Path) -> None:
    """A target's words in libFuzzer's form of a dictionary."""
    lines = (
        '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'
        for word in words
        if len(word) <= 64  # libFuzzer's limit
    )
    path.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(sys.argv[1:])
