"""Logging of server and agent: one line an event, as text or JSON, on stderr.

    record ─▶ RepeatFilter (same line again and again?) ─▶ formatter ─▶ redact() ─▶ stderr

Code logs with `logging.getLogger(__name__)` and puts what a machine wants to search for
into `extra={"cluster": ..., "stream": ...}`; both formats show it.

Secrets have types whose repr is redacted, so none should ever get here. `redact()` is the
second fence, for the day on which somebody logs a foreign exception that quotes a header.
"""

import json
import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TextIO

from shared.settings import SettingsError

__all__ = [
    "LOG_FORMATS",
    "LOG_LEVELS",
    "LogFormat",
    "LogSettings",
    "RepeatFilter",
    "parse_log_settings",
    "redact",
    "set_up_logging",
]

LogFormat = Literal["text", "json"]

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS: tuple[LogFormat, ...] = ("text", "json")

# The same line more often than this in the period is counted instead of written: a member
# that cannot join tries every few seconds, and must not fill its node's disk. Five show
# that it goes on; a minute is short enough for somebody who watches.
REPEATS_WRITTEN = 5
REPEAT_PERIOD_SECONDS = 60.0

# Lines whose repetition we remember, least recently seen first out. About 300 KB.
MAX_REMEMBERED_LINES = 1024

# One record's text. A foreign error may quote a whole body; the beginning says enough.
MAX_LINE_CHARS = 16 * 1024

_REDACTED = "[redacted]"

# Cheap signs that one of the patterns may match: without them a line is not searched.
_SIGNS = re.compile(r"(?i)bearer|basic |eyJ|tower\+join|PRIVATE KEY|LS0tLS1CRUdJTi")

_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A private key, also one that a cut-off message does not close.
    (
        re.compile(
            r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|\Z)",
            re.DOTALL,
        ),
        "[redacted private key]",
    ),
    # The same in base64, as client-key-data of a kubeconfig and as a Secret's value. It may be a certificate as well.
    (re.compile(r"LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]*"), "[redacted PEM]"),
    # tower+join://CLUSTER:TOKENID.SECRET@HOST: cluster and id are what one searches for.
    (
        re.compile(r"(tower\+join://[^\s:/@.]*:[^\s.@]*\.)[^\s@]*"),
        rf"\g<1>{_REDACTED}",
    ),
    # Authorization headers and proxies' ones, and the bearer token that Kubernetes clients put into a subprotocol.
    (
        re.compile(r"(?i)\b(bearer|basic)[ +]+[A-Za-z0-9._~+/=-]{8,}"),
        rf"\1 {_REDACTED}",
    ),
    (
        re.compile(r"(?i)(base64url\.bearer\.authorization\.k8s\.io\.)[A-Za-z0-9_-]+"),
        rf"\g<1>{_REDACTED}",
    ),
    # Any JWT or JWS that stands alone: assertions, ServiceAccount tokens. It begins at the edge of
    # a word, or a long word would be searched from each of its characters: quadratic.
    (
        re.compile(
            r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"
        ),
        "[redacted token]",
    ),
)

# What every LogRecord has by itself; the rest came in by `extra`.
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "repeated",
    "color_message",
}

# Line breaks and terminal escapes in a peer's words must not look like lines of ours.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): " ",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """How much is logged, and in which form."""

    level: str = "info"
    format: LogFormat = "text"


def parse_log_settings(level: str, format_name: str) -> LogSettings:
    """Check the two words.

    Raises:
        SettingsError: If one is unknown; the message lists the known ones.
    """
    if level.lower() not in LOG_LEVELS:
        raise SettingsError(
            f"--log-level {level!r} is unknown: use one of {', '.join(LOG_LEVELS)}."
        )
    for known in LOG_FORMATS:
        if format_name.lower() == known:
            return LogSettings(level=level.lower(), format=known)
    raise SettingsError(
        f"--log-format {format_name!r} is unknown: use one of {', '.join(LOG_FORMATS)}."
    )


def redact(text: str) -> str:
    """`text` with everything that looks like a token, a join string's secret or a private key replaced."""
    if _SIGNS.search(text):
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
    return text


def set_up_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (stderr), in place of whatever was set up before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        _JsonFormatter() if settings.format == "json" else _TextFormatter()
    )
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    logging.captureWarnings(True)
    # One line a request or connection would be noise: we log what matters, with its cluster.
    for library in ("aiohttp.access", "websockets"):
        logging.getLogger(library).setLevel(logging.WARNING)


class RepeatFilter(logging.Filter):
    """Lets the same line through a few times a period, and says afterwards how many it kept back.

    "Same" is the finished message with its logger and level, so that two clusters' troubles
    never count together. The number kept back is told when the line is written again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        # (logger, level, message) -> [start of the period, lines in it]; least recently seen first.
        self._seen: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.levelno, record.getMessage()[:256])
        now = self._clock()
        start, count = self._seen.pop(key, (now, 0))
        if now - start >= REPEAT_PERIOD_SECONDS:
            record.repeated = max(0, count - REPEATS_WRITTEN)
            start, count = now, 0
        self._seen[key] = (start, count + 1)
        if len(self._seen) > MAX_REMEMBERED_LINES:
            self._seen.popitem(last=False)
        return count < REPEATS_WRITTEN


class _TextFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678Z INFO tower_server.registry: alpha connected (sessions=1)`."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()[:MAX_LINE_CHARS]
        # In this order: the patterns are for text as it was said, not for our escapes.
        message = redact(message).translate(_CONTROLS)
        extra = ", ".join(
            f"{key}={redact(str(value)[:MAX_LINE_CHARS]).translate(_CONTROLS)}"
            for key, value in _extra_fields(record)
        )
        line = f"{_timestamp(record)} {record.levelname} {record.name}: {message}"
        if extra:
            line += f" ({extra})"
        if repeated := _repeated(record):
            line += f" [and {repeated} times more since]"
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()[:MAX_LINE_CHARS]),
        }
        for key, value in _extra_fields(record):
            plain = isinstance(value, int | float | bool) or value is None
            fields.setdefault(
                key, value if plain else redact(str(value)[:MAX_LINE_CHARS])
            )
        if repeated := _repeated(record):
            fields["repeated"] = repeated
        if trace := _trace(self, record):
            fields["exception"] = trace
        return json.dumps(fields, ensure_ascii=False)


def _timestamp(record: logging.LogRecord) -> str:
    text = datetime.fromtimestamp(record.created, UTC).isoformat(
        timespec="milliseconds"
    )
    return text.replace("+00:00", "Z")


def _extra_fields(record: logging.LogRecord) -> list[tuple[str, object]]:
    return [item for item in vars(record).items() if item[0] not in _OWN_FIELDS]


def _repeated(record: logging.LogRecord) -> int:
    return int(getattr(record, "repeated", 0))


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    # Redacted before it is cut: half a key would not be recognised.
    text = redact("\n".join(parts))[-MAX_LINE_CHARS:]
    # Indented, so that line breaks in a peer's words cannot look like lines of ours.
    return "\n".join(
        f"    {line.translate(_CONTROLS)}" for line in text.split("\n") if line
    )
