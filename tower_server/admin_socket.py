"""The unix socket of the admin API: who may open it, and what happens to one that a dead server left.

Whoever can open the socket is an admin: the file's permissions are the authentication. So it
is made with mode 0600, in a directory in which nobody else can put another in its place.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from aiohttp import web

from shared.program import ProgramFailed

__all__ = ["bind_admin_socket", "serve_on_socket"]

SOCKET_MODE = 0o600

# Admin requests are few; more than this waiting means that somebody's script runs wild.
BACKLOG = 32

# How long a running server may take to accept our probe before we call its socket dead. It is
# on this machine: the kernel accepts for it, even when it is busy.
PROBE_TIMEOUT_SECONDS = 2.0

# A stopping server answers what it has begun, and no request of ours takes longer.
SHUTDOWN_TIMEOUT_SECONDS = 5.0


@contextlib.asynccontextmanager
async def serve_on_socket(app: web.Application, path: Path) -> AsyncIterator[None]:
    """Serve `app` on a unix socket at `path` for as long as the context lasts; then the file is gone.

    Raises:
        ProgramFailed: If the directory is not safe or another server is alive on it.
    """
    # Blocking is no harm here: a server that starts has nothing else to do yet, and no thread
    # may run while the umask is changed.
    listener = bind_admin_socket(path)
    identity = _identity(path)
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=SHUTDOWN_TIMEOUT_SECONDS,
    )
    try:
        await runner.setup()
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        yield
    finally:
        # The file goes first, so that nobody finds a socket that no longer answers; unless it is
        # no longer ours, because an admin removed it and a new server took the place.
        _remove_if(path, identity)
        await runner.cleanup()
        listener.close()


def bind_admin_socket(path: Path) -> socket.socket:
    """Bind and listen at `path` with mode 0600; a socket that nobody serves any more is replaced.

    Blocks for up to PROBE_TIMEOUT_SECONDS.

    Raises:
        ProgramFailed: If that is not possible or not safe; says what to do.
    """
    with _locked_directory(path.parent):
        _refuse_occupied(path)
        # Bound under another name first: the socket appears under its own name with its final
        # mode, and replaces a stale one in one step.
        temporary = path.with_name(f".{os.getpid()}")
        temporary.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _bind_private(listener, temporary)
            os.chmod(temporary, SOCKET_MODE)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            os.replace(temporary, path)
        except BaseException:
            listener.close()
            temporary.unlink(missing_ok=True)
            raise
        return listener


def _bind_private(listener: socket.socket, path: Path) -> None:
    # umask is the only way to make the file without a moment in which others could open it.
    # It counts for the whole process; at start nothing else makes files.
    previous = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listener.bind(str(path))
    finally:
        os.umask(previous)


@contextlib.contextmanager
def _locked_directory(directory: Path) -> Iterator[None]:
    """Check the directory, and hold its lock so that two starting servers take turns."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ProgramFailed(
            f"The admin socket's directory {directory} cannot be used ({error.strerror}): "
            "make it, owned by the server's user with mode 0700, or name another with --admin-socket."
        ) from error
    try:
        _refuse_unsafe(directory, os.fstat(handle))
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _refuse_unsafe(directory: Path, status: os.stat_result) -> None:
    """Nobody else may be able to replace the socket by one of his own.

    A directory that all may write to is good enough if it is sticky, like /tmp: there a file
    can be replaced by its owner only.
    """
    if status.st_uid not in (os.geteuid(), 0):
        raise ProgramFailed(
            f"The admin socket's directory {directory} belongs to another user (uid {status.st_uid}), who could put "
            "a socket of his own there: name a directory of the server's user with --admin-socket."
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise ProgramFailed(
            f"The admin socket's directory {directory} can be written to by others (mode {mode:04o}), who could put "
            f"a socket of their own there: run `chmod go-w {directory}`, or name another with --admin-socket."
        )


def _refuse_occupied(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ProgramFailed(
            f"{path} is there and is not a socket: move it away, or choose another path with --admin-socket."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_SECONDS)
        try:
            probe.connect(str(path))
        except OSError as error:
            # Refused: the file outlived its process. Anything else (a full backlog, no permission)
            # means that somebody is there.
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return
    raise ProgramFailed(
        f"A server is already running with the admin socket {path}: "
        "stop it first, or give this one its own --state-dir and --admin-socket."
    )


def _remove_if(path: Path, identity: tuple[int, int] | None) -> None:
    if _identity(path) == identity:
        path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode: the same file, and not only the same name."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
