"""The directory that holds what outlives the server: one server at a time may use it.

    DIR/ca/             the CA: ca.key, ca.crt
    DIR/server.key      ours, with server.crt
    DIR/tower.sqlite    clusters and tokens
    DIR/admin.sock      for the command `tower`, unless it is put elsewhere
    DIR/lock            held by the server that runs

Two servers on one directory would each know half of what happens: a re-join at one would
not end the old agent's tunnel at the other, and status would depend on whom one asks.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from certs.keys import private_directory
from shared.program import ProgramFailed

__all__ = ["AUTHORITY_NAME", "LOCK_NAME", "STORE_NAME", "locked_state_directory"]

AUTHORITY_NAME = "ca"
STORE_NAME = "tower.sqlite"
LOCK_NAME = "lock"

# What a lock that is held says; NFS servers say the second.
_HELD = {errno.EWOULDBLOCK, errno.EACCES}


@contextlib.contextmanager
def locked_state_directory(directory: Path) -> Iterator[Path]:
    """Make sure of the directory, and keep other servers out of it for as long as the
    context lasts. The kernel frees the lock of a process that dies.

    Raises:
        ProgramFailed: If it cannot be made, is not ours alone, or another server has it.
    """
    try:
        private_directory(directory)
        # A folder of its own: whoever may write to it could plant a CA.
        private_directory(directory / AUTHORITY_NAME)
        # A link in its place must not make us open, or create, something elsewhere.
        descriptor = os.open(
            directory / LOCK_NAME,
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
    except ValueError as error:
        raise ProgramFailed(f"{error}.") from error
    except OSError as error:
        raise ProgramFailed(
            f"The state directory {directory} cannot be used ({error.strerror}: "
            f"{error.filename}): name one that the server's user may write to with --state-dir."
        ) from error
    try:
        _lock(descriptor, directory)
        yield directory
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            holder = os.pread(descriptor, 20, 0).decode("ascii", errors="replace")
            process = f" (process {holder})" if holder.isdigit() else ""
            raise ProgramFailed(
                f"Another tower-server{process} runs with the state directory {directory}: "
                "stop it first, or give this one a --state-dir of its own."
            ) from error
        raise ProgramFailed(
            f"The state directory {directory} cannot be locked ({error.strerror}): "
            "put it on a file system that has locks, such as a local disk."
        ) from error
    # Only for that sentence.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
