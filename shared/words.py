"""What others say, made fit for our own sentences: one line, bounded, without control characters."""

import ssl

__all__ = ["MAX_QUOTED_CHARS", "quoted", "short"]

# How much of a stranger's answer may reach a log line. The server's own sentences fit.
MAX_QUOTED_CHARS = 400


def short(error: BaseException) -> str:
    """Say what an exception is about in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    reason = getattr(error, "reason", None)
    if isinstance(error, ssl.SSLError) and reason:
        # Without the file and line of OpenSSL's source.
        return quoted(reason.replace("_", " ").lower())
    return quoted(
        getattr(error, "strerror", None) or str(error) or type(error).__name__
    )


def quoted(text: str) -> str:
    """Make a stranger's text fit for one log line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_QUOTED_CHARS else line[: MAX_QUOTED_CHARS - 1] + "…"
