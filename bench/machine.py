"""On what a run ran: figures without a machine beside them mean nothing."""

import os
import platform
import ssl
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

__all__ = ["describe", "kernel_bytes", "machine_line", "start_of_run"]

MEMINFO, SOCKSTAT = Path("/proc/meminfo"), Path("/proc/net/sockstat")


def machine_line(generator: str) -> str:
    """One line for the head of the table and for a note on an issue."""
    return ", ".join(
        [
            _processor(),
            f"{os.cpu_count()} cores",
            _memory(),
            f"{platform.system()} {platform.release()}",
            f"Python {platform.python_version()}",
            f"uvloop {_version('uvloop')}",
            # Without its date.
            " ".join(ssl.OPENSSL_VERSION.split()[:2]),
            f"load by {generator}",
        ]
    )


def start_of_run() -> dict[str, object]:
    """What must be read before the run makes its own load."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_before": list(os.getloadavg()),
    }


def describe(
    generator: str, started: dict[str, object], **settings: object
) -> dict[str, object]:
    """The whole of machine.json."""
    return {
        "machine": machine_line(generator),
        **started,
        "load_average_after": list(os.getloadavg()),
        "websockets": _version("websockets"),
        "cryptography": _version("cryptography"),
        "commit": _commit(),
        **settings,
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> str:
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return "memory unknown"
    return f"{size / 2**30:.0f} GiB"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _commit() -> str | None:
    """The commit of the checkout, `+` behind it when files differ; None without git."""
    root = Path(__file__).parent.parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def kernel_bytes() -> int:
    """What the kernel holds for sockets, both ends of each; 0 where it does not say."""
    try:
        slab = _number(MEMINFO.read_text(), "Slab:") * 1024
        pages = _number(SOCKSTAT.read_text().partition("TCP:")[2], "mem")
    except (OSError, ValueError):
        return 0
    return slab + pages * os.sysconf("SC_PAGE_SIZE")


def _number(text: str, name: str) -> int:
    words = text.split()
    return int(words[words.index(name) + 1])
