"""Logging: both formats, secrets that are kept out, lines that are not repeated without end."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from shared.logs import (
    MAX_REMEMBERED_LINES,
    REPEAT_PERIOD_SECONDS,
    REPEATS_WRITTEN,
    LogFormat,
    LogSettings,
    RepeatFilter,
    parse_log_settings,
    redact,
    set_up_logging,
)
from shared.settings import SettingsError

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2Vj"
JOIN = (
    f"tower+join://alpha:k3v9m2x7qaht.{SECRET}@tower.example.com:8443?pin=sha256:00ff"
)
JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbHBoYSJ9.c2lnbmF0dXJl"
KEY = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"
PEM_IN_BASE64 = "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t" + SECRET


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for library in ("aiohttp.access", "websockets"):
        logging.getLogger(library).setLevel(logging.NOTSET)


class Log:
    """A logger after `set_up_logging`, and what it wrote."""

    def __init__(self, log_format: LogFormat, level: str = "info") -> None:
        self.stream = io.StringIO()
        set_up_logging(LogSettings(level=level, format=log_format), self.stream)
        self.logger = logging.getLogger("tower.test")

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text.splitlines()]


# Settings


def test_level_and_format_are_words_in_any_case() -> None:
    assert parse_log_settings("Debug", "JSON") == LogSettings(
        level="debug", format="json"
    )


@pytest.mark.parametrize(("level", "log_format"), [("loud", "text"), ("info", "xml")])
def test_unknown_words_are_refused_with_the_known_ones(
    level: str, log_format: str
) -> None:
    with pytest.raises(SettingsError, match="use one of (debug|text), "):
        parse_log_settings(level, log_format)


# Formats


def test_text_has_time_level_logger_message_and_extra_fields() -> None:
    log = Log("text")
    log.logger.info("%s connected", "alpha", extra={"sessions": 1})
    time, _, rest = log.text.partition(" ")
    assert rest == "INFO tower.test: alpha connected (sessions=1)\n"
    assert time.endswith("Z") and len(time) == len("2026-01-02T03:04:05.678Z")


def test_json_is_one_object_a_line_with_the_extra_fields_beside() -> None:
    log = Log("json")
    log.logger.warning("two\nlines", extra={"cluster": "alpha", "rtt": 0.5})
    (entry,) = log.objects
    assert entry.pop("time")
    assert entry == {
        "level": "warning",
        "logger": "tower.test",
        "message": "two\nlines",
        "cluster": "alpha",
        "rtt": 0.5,
    }


def test_extra_fields_cannot_replace_our_own() -> None:
    log = Log("json")
    log.logger.info("true", extra={"level": "false", "logger": "false"})
    assert (log.objects[0]["level"], log.objects[0]["logger"]) == ("info", "tower.test")


def test_levels_below_the_chosen_one_are_not_written() -> None:
    log = Log("text", level="warning")
    log.logger.info("not this")
    assert log.text == ""


def test_words_of_a_peer_cannot_look_like_a_line_of_ours_or_move_the_cursor() -> None:
    log = Log("text")
    log.logger.info("%s", "a\nINFO forged\r\x1b[2J\u2028b", extra={"who": "x\ny"})
    assert log.text.count("\n") == 1
    assert "\x1b" not in log.text and "\r" not in log.text and "\u2028" not in log.text


def test_an_exception_is_written_with_its_trace_indented() -> None:
    log = Log("text")
    try:
        raise ValueError("first\nINFO forged")
    except ValueError:
        log.logger.exception("it failed")
    first, *trace = log.text.splitlines()
    assert first.endswith("ERROR tower.test: it failed")
    assert trace and all(line.startswith("    ") for line in trace)


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        JOIN,
        f"cannot parse {JOIN!r}",
        f"Authorization: Bearer {JWT}",
        f"{{'authorization': 'bearer {SECRET}'}}",
        f"Proxy-Authorization: Basic {SECRET}",
        f"base64url.bearer.authorization.k8s.io.{SECRET}, v5.channel.k8s.io",
        JWT.replace("c2lnbmF0dXJl", SECRET),
        KEY,
        f"EC {KEY.replace('PRIVATE', 'EC PRIVATE')}",
        KEY.removesuffix("-----END PRIVATE KEY-----\n"),
        repr(KEY),
        f"client-key-data: {PEM_IN_BASE64}",
    ],
)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_secrets_are_not_written(text: str, log_format: LogFormat) -> None:
    log = Log(log_format)
    log.logger.info("message %s", text)
    log.logger.info("extra", extra={"field": text})
    log.logger.info("object", extra={"field": [text]})
    try:
        raise ValueError(text)
    except ValueError:
        log.logger.exception("trace")
    assert log.text.count("redacted") >= 4
    assert SECRET not in log.text


def test_cluster_and_token_id_of_a_join_string_stay_readable() -> None:
    assert redact(JOIN) == (
        "tower+join://alpha:k3v9m2x7qaht.[redacted]@tower.example.com:8443?pin=sha256:00ff"
    )


@pytest.mark.parametrize(
    "text",
    [
        "alpha connected",
        "bearer of news",
        "sha256:00ff",
        "GET /clusters/alpha/api/v1/pods",
        "eyJ",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert redact(text) == text


def test_a_long_line_without_secrets_takes_no_time() -> None:
    # A pattern that backtracks would take minutes for this.
    assert (
        len(redact("eyJ" * 100_000 + "-----BEGIN PRIVATE KEY" + "bearer " * 50_000)) > 0
    )


# Repeated lines


class Repeats:
    """A filter with a clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.filter = RepeatFilter(clock=lambda: self.now)

    def passes(
        self, message: str, level: int = logging.INFO
    ) -> logging.LogRecord | None:
        record = logging.makeLogRecord(
            {"name": "tower", "levelno": level, "msg": message}
        )
        return record if self.filter.filter(record) else None


def test_a_line_is_written_a_few_times_and_then_counted() -> None:
    repeats = Repeats()
    written = [repeats.passes("no route") for _ in range(REPEATS_WRITTEN + 7)]
    assert sum(record is not None for record in written) == REPEATS_WRITTEN
    repeats.now += REPEAT_PERIOD_SECONDS
    record = repeats.passes("no route")
    assert record is not None and record.repeated == 7


def test_other_lines_are_not_held_back_by_a_repeated_one() -> None:
    repeats = Repeats()
    for _ in range(100):
        repeats.passes("alpha: no route")
    assert repeats.passes("beta: no route")
    assert repeats.passes("alpha: no route", logging.ERROR)


def test_what_was_held_back_is_said_in_both_formats() -> None:
    for log_format in ("text", "json"):
        log = Log(log_format)  # type: ignore[arg-type]
        log.logger.info("again", extra={"repeated": 7})
        assert "7" in log.text


def test_the_memory_of_lines_is_bounded() -> None:
    repeats = Repeats()
    for number in range(MAX_REMEMBERED_LINES * 2):
        repeats.passes(f"line {number}")
    assert len(repeats.filter._seen) == MAX_REMEMBERED_LINES
