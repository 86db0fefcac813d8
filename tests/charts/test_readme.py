"""The charts' READMEs: made from the values, complete, and in step with the schema."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.version import VERSION
from tests.charts.chart import CHARTS
from tests.charts.readme import described_values, readme

DIRECTORIES = sorted(path.parent for path in CHARTS.glob("*/Chart.yaml"))
each_chart = pytest.mark.parametrize(
    "directory", DIRECTORIES, ids=lambda path: path.name
)


@each_chart
def test_the_readme_is_what_the_values_say(directory: Path) -> None:
    assert (directory / "README.md").read_text() == readme(directory), (
        "out of date: python -m tests.charts.readme --write"
    )


@each_chart
def test_every_default_is_described(directory: Path) -> None:
    described = {value.path for value in described_values(directory)}
    values = yaml.safe_load((directory / "values.yaml").read_text())

    def undescribed(value: Any, path: str) -> list[str]:
        if path in described:
            return []
        if not isinstance(value, dict) or not value:
            return [path]
        return [
            name
            for key, inner in value.items()
            for name in undescribed(inner, f"{path}.{key}".lstrip("."))
        ]

    assert undescribed(values, "") == []


@each_chart
def test_the_schema_knows_exactly_the_values(directory: Path) -> None:
    schema = json.loads((directory / "values.schema.json").read_text())
    values = yaml.safe_load((directory / "values.yaml").read_text())

    def compare(node: dict[str, Any], value: Any, path: str) -> None:
        if "properties" not in node:
            return
        assert node["additionalProperties"] is False, path
        assert set(node["properties"]) - {"global"} == set(value), path
        for key, inner in node["properties"].items():
            if key in value and isinstance(value[key], dict):
                compare(inner, value[key], f"{path}.{key}")

    compare(schema, values, "")


@each_chart
def test_chart_and_program_have_one_version(directory: Path) -> None:
    chart = yaml.safe_load((directory / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
