"""The result for eyes (a table) and for programs (out/latest.json, out/machine.json)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from bench.figures import Figure, rounded
from bench.targets import TARGETS

__all__ = ["as_json", "table_of", "write_results"]

# The share of one end alone is in the JSON; in the table the sum of both is enough.
ONLY_IN_JSON = ("cpu server", "cpu agent")
MORE_IS_BETTER = ("rate", "throughput")
# Within 5 % of the yardstick is as good as it, for better and for worse.
TOLERANCE = 0.05


def table_of(figures: Sequence[Figure], title: str, note: str) -> Table:
    """One line a metric, a rule between workloads, ratios coloured by what is better."""
    table = Table(
        title=title, caption=note, title_justify="left", caption_justify="left"
    )
    table.add_column("workload", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for name in ("direct", "prototype", "tunnel", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("target", no_wrap=True)
    shown = [figure for figure in figures if figure.metric not in ONLY_IN_JSON]
    for index, figure in enumerate(shown):
        is_first = index == 0 or shown[index - 1].workload != figure.workload
        if is_first and index:
            table.add_section()
        table.add_row(
            figure.workload if is_first else "",
            figure.metric,
            figure.unit,
            _number(figure.direct),
            _number(figure.prototype),
            _number(figure.tunnel),
            _ratio(figure),
            TARGETS.get((figure.workload, figure.metric), ""),
        )
    return table


def as_json(figures: Iterable[Figure]) -> str:
    """The text of latest.json: a list of objects with fixed keys."""
    return json.dumps([figure.as_json() for figure in figures], indent=1) + "\n"


def write_results(
    directory: Path, figures: Iterable[Figure], machine: Mapping[str, object]
) -> Path:
    """Write both files, each whole or not at all; the path of latest.json."""
    directory.mkdir(parents=True, exist_ok=True)
    latest = directory / "latest.json"
    _replace(latest, as_json(figures))
    _replace(directory / "machine.json", json.dumps(machine, indent=1) + "\n")
    return latest


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def _number(value: float | None) -> str:
    short = rounded(value)
    if short is None:
        return "–"
    if abs(short) >= 100:
        return f"{short:,.0f}"
    return f"{short:.3g}"


def _ratio(figure: Figure) -> Text:
    ratio = figure.ratio
    if ratio is None:
        return Text("–")
    gain = ratio - 1 if figure.metric in MORE_IS_BETTER else 1 - ratio
    # Against `direct` a tunnel can only lose: such a ratio says how much, not how well.
    if figure.prototype is None:
        return Text(f"{ratio:.2f} of direct", style="dim")
    style = "red" if gain < -TOLERANCE else "green" if gain > TOLERANCE else ""
    return Text(f"{ratio:.2f}", style=style)
