"""Writing what contains a secret: to stdout, or to a file that only its owner can read."""

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from shared.program import EXIT_FAILED
from tower_server.admin_client import CommandFailed

__all__ = ["STDOUT", "write_private_text"]

STDOUT = "-"


def write_private_text(text: str, out: str | None) -> Path | None:
    """Write `text` to stdout (`out` is None or `-`), or to a new file with mode 0600 in `out`'s place.

    The file is there whole or not at all. A symbolic link is followed to the file it means.

    Returns:
        The file that was written, None for stdout.

    Raises:
        CommandFailed: If the file cannot be written.
    """
    if out is None or out == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
        return None
    path = Path(out).expanduser()
    try:
        _replace(path.resolve(), text)
    except OSError as error:
        raise CommandFailed(
            f"{path} cannot be written ({error.strerror or error}): choose another file with --out.",
            EXIT_FAILED,
        ) from error
    return path


def _replace(path: Path, text: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(None, "it is there and is not a file")
    # mkstemp makes it with mode 0600 and a name that nobody can have prepared.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:32]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
