"""How our programs run: an event loop (uvloop where it is installed), signals, an exit status.

SIGTERM and SIGINT cancel the main coroutine, which gets to end its work in its own `finally`
blocks. A second signal ends the process at once, for whoever does not want to wait.
"""

import asyncio
import errno
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from shared.logs import redact
from shared.settings import SettingsError
from shared.tunnel.tuning import keep_heap_trimmed, tune_process

__all__ = [
    "EXIT_FAILED",
    "EXIT_NOT_FOUND",
    "EXIT_OK",
    "EXIT_REFUSED",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "ProgramFailed",
    "run_program",
]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_UNREACHABLE = 4
EXIT_REFUSED = 5

# What shells report for a process that SIGINT ended.
EXIT_INTERRUPTED = 130

_log = logging.getLogger(__name__)


class ProgramFailed(Exception):
    """The program cannot start or go on; the sentence names the cause and the remedy.

    Raised by the code that knows; the command line prints it and ends with `exit_code`.
    """

    def __init__(self, sentence: str, *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code

    def __str__(self) -> str:
        return self.sentence


def run_program(
    main: Callable[[], Coroutine[Any, Any, None]],
    exit_code_of: Callable[[Exception], int | None] = lambda error: None,
) -> int:
    """Run `main()` until it ends or a signal stops it, and return the exit status.

    A stop by signal is a success. ProgramFailed, SettingsError, common OSErrors, and those errors
    that `exit_code_of` has a number for, become one line on stderr. What nobody foresaw is
    logged with its trace.
    """
    tune_process()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_until_signal(main))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        return _report(error, exit_code_of)
    return EXIT_OK


async def _until_signal(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = asyncio.get_running_loop()
    keep_heap_trimmed(loop)
    task = asyncio.current_task()
    assert task is not None
    stopped_by: list[signal.Signals] = []

    def stop(received: signal.Signals) -> None:
        stopped_by.append(received)
        _log.info("%s: stopping; a second one ends at once", received.name)
        # Back to the default, so that the second one kills.
        for handled in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(handled)
        task.cancel()

    for handled in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(handled, stop, handled)
    try:
        await main()
    except asyncio.CancelledError:
        # Our own cancellation ends here, at the top: nobody above waits for it.
        if not stopped_by:
            raise
        task.uncancel()


def _report(error: Exception, exit_code_of: Callable[[Exception], int | None]) -> int:
    """Print what went wrong and choose the exit status."""
    if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        return _report(error.exceptions[0], exit_code_of)
    exit_code = exit_code_of(error)
    if isinstance(error, ProgramFailed):
        exit_code = error.exit_code
    elif isinstance(error, SettingsError):
        exit_code = EXIT_USAGE
    if exit_code is not None:
        print(f"Error: {redact(str(error))}", file=sys.stderr)
        return exit_code
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        reason = error.strerror or str(error)
        place = f" ({error.filename})" if error.filename else ""
        print(f"Error: {reason}{place}: {_REMEDIES[error.errno]}", file=sys.stderr)
        return EXIT_FAILED
    _log.error("stopped by an error that should not happen", exc_info=error)
    return EXIT_FAILED


_REMEDIES = {
    errno.EADDRINUSE: "another process listens there; stop it, or choose another port.",
    errno.EADDRNOTAVAIL: "this machine does not have that address; `ip address` shows those that it has.",
    errno.EACCES: "this user may not; check the owner of the path, or choose a port above 1023.",
    errno.EROFS: "the file system is read-only; name a directory that can be written to.",
    errno.ENOSPC: "the disk is full; make room and start again.",
}


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it can be imported (half of our speed), else the default."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
