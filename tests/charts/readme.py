"""The README of each chart, made from its Chart.yaml and the comments of its values.yaml.

`python -m tests.charts.readme --write` writes them; without `--write` it says which are out of
date. A comment above a value is its description; what has no comment is a group.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.charts.chart import CHARTS

__all__ = ["Value", "described_values", "readme"]

_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):(?: |$)")

# Longer defaults are said in words by the description.
MAX_DEFAULT_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class Value:
    """A leaf of values.yaml."""

    path: str
    default: Any
    description: str


def described_values(directory: Path) -> list[Value]:
    """Every value of a chart with the comment above it, in the file's order."""
    text = (directory / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    return list(_leaves(text, defaults))


def _leaves(text: str, defaults: dict[str, Any]) -> Iterator[Value]:
    path: list[str] = []
    comment: list[str] = []
    inside: int | None = (
        None  # the indentation of a described value whose own lines follow
    )
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.removeprefix("#").strip())
            continue
        match = _KEY.match(line)
        if match is None or (inside is not None and len(match[1]) > inside):
            if not stripped:
                comment = []
            continue
        inside = None
        path = [*path[: len(match[1]) // 2], match[2]]
        default = _at(defaults, path)
        if comment:
            inside = len(match[1])
            description = " ".join(comment)
            yield Value(path=".".join(path), default=default, description=description)
        else:
            assert isinstance(default, dict), f"{'.'.join(path)} has no comment"
        comment = []


def _at(values: Any, path: list[str]) -> Any:
    for key in path:
        values = values[key]
    return values


def readme(directory: Path) -> str:
    """The chart's README."""
    chart = yaml.safe_load((directory / "Chart.yaml").read_text())
    intro = (directory / "README.head.md").read_text().strip()
    rows = [
        f"| `{value.path}` | {_default(value.default)} | {value.description} |"
        for value in described_values(directory)
    ]
    return "\n".join(
        [
            f"# {chart['name']}",
            "",
            chart["description"],
            "",
            intro,
            "",
            "## Values",
            "",
            "Wrong names and types are refused (`values.schema.json`).",
            "",
            "| value | default | what it is |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _default(default: Any) -> str:
    text = json.dumps(default)
    return f"`{text}`" if len(text) <= MAX_DEFAULT_CHARACTERS else "see values.yaml"


def main() -> int:
    """Write the READMEs, or say which differ."""
    stale = []
    for chart in sorted(CHARTS.glob("*/Chart.yaml")):
        path, text = chart.parent / "README.md", readme(chart.parent)
        if path.exists() and path.read_text() == text:
            continue
        stale.append(str(path.relative_to(CHARTS.parent)))
        if "--write" in sys.argv:
            path.write_text(text)
    print("\n".join(stale))
    return 1 if stale and "--write" not in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
