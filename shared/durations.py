"""Spans of time as people write and read them: `8h`, `1h30m`, `3m12s`. Pure."""

import re
from datetime import UTC, datetime, timedelta

__all__ = ["format_age", "format_duration", "parse_duration", "rfc3339"]

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")

# More digits than any sensible span has, and few enough for timedelta.
MAX_DURATION_CHARS = 16


def parse_duration(text: str) -> timedelta:
    """Read `90s`, `30m`, `8h`, `7d` or a combination from large to small, such as `1h30m`.

    Raises:
        ValueError: If it is anything else, also a number without a unit.
    """
    match = _DURATION.fullmatch(text)
    if not text or len(text) > MAX_DURATION_CHARS or match is None:
        raise ValueError(
            f"{text!r} is not a span of time: write a number with a unit (s, m, h, d), such as 30m, 8h or 7d."
        )
    seconds = sum(
        int(number) * unit
        for number, unit in zip(match.groups(default="0"), _UNITS.values(), strict=True)
    )
    try:
        return timedelta(seconds=seconds)
    except OverflowError as error:
        raise ValueError(f"{text!r} is longer than any span we can handle.") from error


def format_duration(span: timedelta) -> str:
    """`span` with its two largest units: `3m12s`, `2d4h`; `0s` for anything below a second."""
    seconds = max(0, int(span.total_seconds()))
    parts: list[tuple[int, str]] = []
    for unit, size in _UNITS.items():
        count, seconds = divmod(seconds, size)
        if count or parts:
            parts.append((count, unit))
    shown = parts[:2] or [(0, "s")]
    return "".join(
        f"{count}{unit}" for count, unit in shown if count or unit == shown[0][1]
    )


def format_age(moment: datetime, now: datetime) -> str:
    """`3m12s ago`, or `in 23h59m` for a moment that is still to come."""
    if moment > now:
        return f"in {format_duration(moment - now)}"
    return f"{format_duration(now - moment)} ago"


def rfc3339(moment: datetime) -> str:
    """`2026-01-02T03:04:05Z`, for machines."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
