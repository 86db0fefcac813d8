"""One of our charts: rendered, linted and checked by the real helm."""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CHARTS", "Chart", "ChartRefused", "only"]

CHARTS = Path(__file__).resolve().parents[2] / "charts"
TIMEOUT_SECONDS = 60.0

Values = Mapping[str, Any]


class ChartRefused(Exception):
    """helm says no; the message is what it says."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart's folder and the helm to use."""

    helm: Path
    name: str

    @property
    def directory(self) -> Path:
        return CHARTS / self.name

    def values(self) -> dict[str, Any]:
        """The defaults."""
        return dict(yaml.safe_load((self.directory / "values.yaml").read_text()))

    def lint(self, values: Values | None = None) -> str:
        return self._run(["lint", "--strict", str(self.directory)], values)

    def render(
        self,
        values: Values | None = None,
        *,
        release: str = "tower",
        namespace: str = "tower-system",
        api_versions: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """The objects of `helm template`."""
        arguments = ["template", release, str(self.directory), "--namespace", namespace]
        for version in api_versions:
            arguments += ["--api-versions", version]
        text = self._run([*arguments, "--include-crds"], values)
        return [document for document in yaml.safe_load_all(text) if document]

    def install(
        self,
        kubeconfig: Path,
        release: str,
        namespace: str,
        values: Values | None = None,
    ) -> None:
        """Install or upgrade a release. Nobody waits for pods: there is no kubelet for them."""
        command = ["upgrade", "--install", release, str(self.directory)]
        where = ["--kubeconfig", str(kubeconfig), "--namespace", namespace]
        self._run([*command, *where, "--create-namespace"], values)

    def uninstall(self, kubeconfig: Path, release: str, namespace: str) -> None:
        """Remove a release."""
        done = subprocess.run(
            [str(self.helm), "uninstall", release, "--kubeconfig", str(kubeconfig)]
            + ["--namespace", namespace],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        assert done.returncode == 0, done.stderr

    def _run(self, arguments: list[str], values: Values | None) -> str:
        # JSON is YAML, and nothing is lost in between.
        done = subprocess.run(
            [str(self.helm), *arguments, "--values", "-"],
            input=json.dumps(values or {}),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        if done.returncode != 0:
            raise ChartRefused(done.stdout + done.stderr)
        return done.stdout


def only(
    objects: Iterable[dict[str, Any]], kind: str, suffix: str = ""
) -> dict[str, Any]:
    """The one object of a kind whose name ends so."""
    found = [
        item
        for item in objects
        if item["kind"] == kind and item["metadata"]["name"].endswith(suffix)
    ]
    assert len(found) == 1, f"{len(found)} objects of kind {kind} {suffix}"
    return found[0]
