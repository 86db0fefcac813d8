"""The arithmetic of a benchmark: percentiles, medians over rounds, ratios.

Pure, so that the numbers we are judged by can be checked without a single socket.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "COLUMNS",
    "Figure",
    "Samples",
    "median",
    "percentile",
    "ratio_of",
    "rounded",
]

# In the order of the table. `direct` is the client straight at the upstream.
COLUMNS = ("direct", "prototype", "tunnel")

# Four digits say more than any of these measurements can repeat.
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the result: a metric of a workload in every column that has it."""

    workload: str
    metric: str
    unit: str
    direct: float | None
    prototype: float | None
    tunnel: float | None

    @property
    def ratio(self) -> float | None:
        """Tunnel to prototype; where there is no prototype, tunnel to direct."""
        return ratio_of(self.tunnel, self.prototype, self.direct)

    def as_json(self) -> dict[str, object]:
        """The shape of an entry of latest.json; nothing measured is null."""
        return {
            "workload": self.workload,
            "metric": self.metric,
            "unit": self.unit,
            "tunnel": rounded(self.tunnel),
            "prototype": rounded(self.prototype),
            "direct": rounded(self.direct),
            "ratio": rounded(self.ratio),
        }


class Samples:
    """What the rounds measured, by workload and metric in the order of first appearance."""

    def __init__(self) -> None:
        # (workload, metric) -> column -> one value a round.
        self._values: dict[tuple[str, str], dict[str, list[float]]] = {}
        # (workload, metric) -> unit.
        self._units: dict[tuple[str, str], str] = {}

    def add(
        self, workload: str, metric: str, unit: str, column: str, value: float
    ) -> None:
        """Keep one round's value."""
        key = (workload, metric)
        self._units[key] = unit
        self._values.setdefault(key, {}).setdefault(column, []).append(value)

    def figures(self) -> list[Figure]:
        """The medians over the rounds so far, metrics of one workload together."""
        order = {workload: None for workload, _ in self._values}
        keys = sorted(self._values, key=lambda key: list(order).index(key[0]))
        return [
            Figure(
                workload=key[0],
                metric=key[1],
                unit=self._units[key],
                **{
                    column: median(self._values[key].get(column, ()))
                    for column in COLUMNS
                },
            )
            for key in keys
        ]


def percentile(values: Iterable[float], percent: float) -> float:
    """Nearest rank: the smallest value that `percent` of all do not exceed.

    Raises:
        ValueError: There are no values, or percent is outside 0 < percent <= 100.
    """
    ordered = sorted(values)
    if not ordered or not 0 < percent <= 100:
        raise ValueError(f"no {percent}th percentile of {len(ordered)} values")
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def median(values: Sequence[float]) -> float | None:
    """The middle value, the mean of the two middle ones, or None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def ratio_of(
    tunnel: float | None, prototype: float | None, direct: float | None
) -> float | None:
    """What the tunnel is of its yardstick; None without one, or where that is zero."""
    yardstick = direct if prototype is None else prototype
    if tunnel is None or not yardstick:
        return None
    return tunnel / yardstick


def rounded(value: float | None) -> float | None:
    """`value` to four significant digits, which JSON and table both show."""
    return None if value is None else float(f"{value:.{SIGNIFICANT_DIGITS}g}")
