"""Runs kubectl as a person would, keeps what it said, and makes two sayings comparable.

Every command is recorded with its exit code and both outputs: the transcript. Two
transcripts of one script, one through the tunnel and one directly at the member, are equal
after `normalised`, which blanks only what differs between two runs for good reasons.
"""

import dataclasses
import os
import queue
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

__all__ = ["Kubectl", "Line", "Result", "StreamingKubectl", "normalised"]

# A command that takes longer hangs. Far above what two busy cores need.
COMMAND_TIMEOUT_SECONDS = 60.0

# What the environment of a test run must not decide: whom kubectl talks to, and how.
FOREIGN_VARIABLES = re.compile(
    r"(?i)^(https?_proxy|no_proxy|all_proxy|kube.*|tower_.*)$"
)


def clean_environment(**extra: str) -> dict[str, str]:
    """Our environment without proxies and Kubernetes settings, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if not FOREIGN_VARIABLES.match(k)}
    return {**kept, **extra}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What one kubectl command did."""

    command: tuple[str, ...]
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        errors = f"--- stderr\n{self.err}" if self.err else ""
        command = " ".join(self.command)
        return f"$ kubectl {command}\n{self.out}{errors}--- exit {self.code}\n"


class KubectlFailed(AssertionError):
    """A command that should have worked did not; the message is its transcript."""


class Kubectl:
    """kubectl with one kubeconfig, in one namespace if given, with a HOME of its own."""

    def __init__(
        self,
        binary: Path,
        kubeconfig: Path,
        home: Path,
        *,
        namespace: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.binary = binary
        self.kubeconfig = kubeconfig
        self.home = home
        self.namespace = namespace
        # Added to the clean environment of every command.
        self.environment = dict(environment or {})
        # Every command run by calling this object, and every note, in order.
        self.transcript: list[str] = []

    def variant(self, *, namespace: str, **environment: str) -> "Kubectl":
        """The same kubectl in a namespace, with more variables, with a new transcript."""
        return Kubectl(
            self.binary,
            self.kubeconfig,
            self.home,
            namespace=namespace,
            environment={**self.environment, **environment},
        )

    def note(self, text: str) -> None:
        """Add something seen (a stream's line, a checksum) to the transcript."""
        self.transcript.append(f"# {text}\n")

    def __call__(
        self,
        *arguments: str,
        stdin: str | bytes | None = None,
        code: int | None = 0,
        timeout: float = COMMAND_TIMEOUT_SECONDS,
    ) -> str:
        """Run a command, record it, and return its stdout.

        Raises:
            KubectlFailed: If it ends with another exit code than `code` (None: any).
        """
        result = self.run(*arguments, stdin=stdin, timeout=timeout)
        self.transcript.append(str(result))
        if code is not None and result.code != code:
            raise KubectlFailed(f"expected exit {code}:\n{result}")
        return result.out

    def quiet(self, *arguments: str, stdin: str | bytes | None = None) -> str:
        """Run a command that is not part of the transcript (preparing, polling)."""
        result = self.run(*arguments, stdin=stdin)
        if result.code != 0:
            raise KubectlFailed(f"expected exit 0:\n{result}")
        return result.out

    def run(
        self,
        *arguments: str,
        stdin: str | bytes | None = None,
        timeout: float = COMMAND_TIMEOUT_SECONDS,
    ) -> Result:
        """Run a command to its end, whatever the end is."""
        if isinstance(stdin, str):
            stdin = stdin.encode()
        done = subprocess.run(
            self.command_line(*arguments),
            env=self.full_environment(),
            input=b"" if stdin is None else stdin,
            capture_output=True,
            timeout=timeout,
        )
        return Result(
            command=arguments,
            code=done.returncode,
            out=done.stdout.decode(errors="replace"),
            err=done.stderr.decode(errors="replace"),
        )

    def start(self, *arguments: str, stdin: bool = False) -> "StreamingKubectl":
        """Start a command that keeps talking (watch, logs -f, port-forward)."""
        return StreamingKubectl(
            self.command_line(*arguments), self.full_environment(), stdin=stdin
        )

    def command_line(self, *arguments: str) -> list[str]:
        """The whole command, for those who start it themselves (a terminal)."""
        namespace = [] if self.namespace is None else [f"--namespace={self.namespace}"]
        return [
            str(self.binary),
            f"--kubeconfig={self.kubeconfig}",
            *namespace,
            *arguments,
        ]

    def full_environment(self) -> dict[str, str]:
        """The environment that belongs to `command_line`."""
        return clean_environment(HOME=str(self.home), **self.environment)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A line that a streaming command printed, and when it reached us (monotonic)."""

    text: str
    at: float


class StreamingKubectl:
    """A running kubectl whose lines are read as they come; use as a context manager."""

    def __init__(
        self, command: list[str], environment: dict[str, str], *, stdin: bool
    ) -> None:
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        # Lines that the test has not asked for yet.
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        # All lines so far, for the message when one does not come.
        self._seen: list[str] = []
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                text = raw.decode(errors="replace").rstrip("\r\n")
                self._lines.put(Line(text=text, at=time.monotonic()))
        self._lines.put(None)

    def write(self, data: bytes) -> None:
        """Send bytes to the command's stdin (started with stdin=True)."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def next_line(self, containing: str = "", timeout: float = 15.0) -> Line:
        """The next line that contains this text; lines before it are passed over."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(self._missing(containing, "not said")) from None
            if line is None:
                raise AssertionError(self._missing(containing, "ended without"))
            self._seen.append(line.text)
            if containing in line.text:
                return line

    def _missing(self, text: str, what: str) -> str:
        said = "\n".join(self._seen[-20:])
        return f"{what}: {text!r} by {self.process.args!r}, which said:\n{said}"


# What differs between two runs for good reasons, and what stands for it. In this order.
NORMALISATIONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} [+-]\d{4}", "TIME"),
        (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UID"),
        (r"https://[\w.-]+:\d+(/clusters/[a-z0-9-]+)?", "SERVER"),
        (r"\b(127\.0\.0\.1|localhost|\[::1\]):\d+", "ADDRESS"),
        (r"(\"?resourceVersion\"?: ?)\"\d+\"", r'\1"VERSION"'),
        (r"(?i)(resource version:\s+)\d+", r"\1VERSION"),
        (r"\b10\.\d+\.\d+\.\d+\b", "IP"),
        # Pods of a Deployment and their token volumes end in random letters.
        (r"\b(web-[0-9a-f]{6,10})-[0-9a-z]{5}\b", r"\1-POD"),
        (r"\b(kube-api-access)-[0-9a-z]{5}\b", r"\1-VOLUME"),
        (r"(?m)^[IWEF]\d{4} [\d:.]+ +\d+ ", "LOG "),
        # Ages: 0s, 12s, 3m4s, 1h2m. Also "(x2 over 3s)" of events.
        (r"\b\d+(ms|[smhd])(\d+[smh])?\b", "AGE"),
        # What was replaced had its own width, and tables are aligned by it.
        (r"[ \t]{2,}", "  "),
        (r"-{3,}", "---"),
        (r"(?m)[ \t]+$", ""),
    )
)


def normalised(text: str, *, namespace: str) -> str:
    """The text with times, addresses, versions and the namespace's name blanked."""
    text = text.replace(namespace, "NAMESPACE")
    for pattern, replacement in NORMALISATIONS:
        text = pattern.sub(replacement, text)
    return text
