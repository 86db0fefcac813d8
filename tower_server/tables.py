"""What `tower` prints for people: tables and their words. Pure: documents of the admin API in, text out.

Much of what is shown was said by agents, so all of it is made harmless first: no control
characters reach the terminal, and nothing is read as markup.
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.durations import format_age, format_duration

__all__ = [
    "cluster_details",
    "clusters_table",
    "harmless",
    "memory_words",
    "print_table",
    "status_details",
    "tokens_table",
    "traffic_table",
]

# Where the output is no terminal (a pipe, a file) nothing is folded or cut off.
PIPE_WIDTH_COLUMNS = 1000

# As long as a cluster's name may be, which is never cut. What an agent says may be longer;
# `show` and -o json have all of it.
MAX_CELL_CHARS = 63

_NOTHING = "-"

_STYLES = {
    "connected": "green",
    "ready": "green",
    "away": "yellow",
    "expired": "dim",
    "used": "dim",
    "revoked": "dim",
    "never": "dim",
}

Document = Mapping[str, Any]


def harmless(text: str) -> str:
    """`text` without characters that move the cursor, change colours or end the line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def clusters_table(clusters: Sequence[Document], now: datetime) -> Table:
    """One line a cluster: who is here, since when, how far away, and how busy."""
    table = _table("NAME", "STATE", "SINCE", "RTT", "AGENT", "APISERVER", "STREAMS")
    for cluster in clusters:
        _row(
            table,
            cluster["name"],
            cluster["state"],
            _age(cluster["since"], now),
            _milliseconds(cluster["rtt_seconds"]),
            cluster["agent_version"] or _none_if_direct(cluster),
            "unreachable"
            if cluster["apiserver_error"]
            else cluster["apiserver_version"],
            str(cluster["open_streams"]),
        )
    return table


def traffic_table(clusters: Sequence[Document]) -> Table:
    """One line a cluster: what goes through its tunnels now. Rates that are not known yet are None."""
    table = _table(
        *("NAME", "STATE", "TUNNELS", "RTT", "STREAMS", "IN/s", "OUT/s"),
        *("QUEUE", "STALLED", "STALLS", "RESUMES", "RESENT"),
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for cluster in clusters:
        _row(
            table,
            cluster["name"],
            cluster["state"],
            str(cluster["sessions"]),
            _milliseconds(cluster["rtt_seconds"]),
            str(cluster["open_streams"]),
            _size(cluster["received_bytes_per_second"]),
            _size(cluster["sent_bytes_per_second"]),
            _size(cluster["queued_bytes"]),
            str(cluster["stalled_streams"]),
            str(cluster["window_stalls_total"]),
            str(cluster["resumes_total"]),
            _size(cluster["retransmitted_bytes_total"]),
        )
    return table


def tokens_table(tokens: Sequence[Document], now: datetime) -> Table:
    """One line a token, the newest last."""
    table = _table("ID", "CLUSTER", "STATE", "CREATED", "EXPIRES")
    for token in tokens:
        _row(
            table,
            token["id"],
            token["cluster"],
            token["state"],
            _age(token["created_at"], now),
            _age(token["expires_at"], now) if token["state"] == "ready" else None,
        )
    return table


def cluster_details(cluster: Document, now: datetime) -> Table:
    """Everything about one cluster, one field a line."""
    return _details(
        ("Name", cluster["name"]),
        ("State", cluster["state"]),
        ("Since", _moment(cluster["since"], now)),
        ("Round trip", _milliseconds(cluster["rtt_seconds"])),
        ("Open streams", str(cluster["open_streams"])),
        ("Connection", cluster["connection"]),
        *(
            (f"Tunnel {number}", _tunnel(tunnel, now))
            for number, tunnel in enumerate(cluster["tunnels"], 1)
        ),
        ("Agent", cluster["agent_version"]),
        ("Apiserver", cluster["apiserver_version"]),
        ("Apiserver error", cluster["apiserver_error"]),
        ("Nodes", _count(cluster["node_count"])),
        ("Credential ends", cluster["credential_expires_at"]),
        *(("Look at", warning) for warning in cluster["warnings"]),
        ("Joined", _moment(cluster["joined_at"], now)),
        ("Member UID", cluster["member_uid"]),
        ("URL", cluster["url"]),
        ("TLS server name", cluster["tls_server_name"]),
    )


def _tunnel(tunnel: Document, now: datetime) -> str:
    count = tunnel["open_streams"]
    parts = (
        tunnel["state"],
        f"since {_age(tunnel['since'], now)}",
        _milliseconds(tunnel["rtt_seconds"]),
        f"{count} stream{'' if count == 1 else 's'}",
        tunnel["agent_version"],
    )
    return ", ".join(part for part in parts if part)


def status_details(status: Document, now: datetime) -> Table:
    """The server itself, one field a line."""
    counts = status["clusters"]
    return _details(
        ("Server", f"{status['version']}, up {_up(status['started_at'], now)}"),
        ("Public address", status["public_address"]),
        ("Zone", status["zone"]),
        ("CA pin", status["ca_pin"]),
        (
            "Clusters",
            f"{counts['connected']} connected, {counts['away']} away, {counts['never']} not joined yet",
        ),
        ("Open streams", str(status["open_streams"])),
        ("Tokens ready", str(status["tokens_ready"])),
        *(("Look at", warning) for warning in status["warnings"]),
    )


def print_table(table: Table) -> None:
    """Print to stdout: with colours on a terminal, plain and unfolded elsewhere."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=PIPE_WIDTH_COLUMNS)
    with console.capture() as captured:
        console.print(table)
    # Rich fills the last column up with blanks, which only get in the way of copying.
    sys.stdout.write(
        "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    )


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in headings:
        # The name is what one copies: it is never cut.
        table.add_column(
            heading, no_wrap=True, overflow="ellipsis" if heading != "NAME" else "fold"
        )
    return table


def _row(table: Table, *cells: str | None) -> None:
    table.add_row(*(_cell(_shortened(harmless(cell or _NOTHING))) for cell in cells))


def _details(*fields: tuple[str, str | None]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        if value is not None:
            table.add_row(Text(f"{name}:"), _cell(harmless(value)))
    return table


def _cell(text: str) -> Text:
    return Text(text, style=_STYLES.get(text, ""))


def _none_if_direct(cluster: Document) -> str | None:
    return "(direct)" if cluster["connection"] == "direct" else None


def _count(number: int | None) -> str | None:
    return None if number is None else str(number)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CELL_CHARS else text[:MAX_CELL_CHARS] + "…"


def _age(moment: str | None, now: datetime) -> str | None:
    return format_age(datetime.fromisoformat(moment), now) if moment else None


def _moment(moment: str | None, now: datetime) -> str | None:
    return f"{_age(moment, now)} ({moment})" if moment else None


def _up(moment: str, now: datetime) -> str:
    return format_duration(max(now - datetime.fromisoformat(moment), timedelta(0)))


def memory_words(memory: Document) -> str:
    """How much the windows of all clusters hold, of how much."""
    used, ceiling = _size(memory["used_bytes"]), _size(memory["ceiling_bytes"])
    return f"windows hold {used} of {ceiling}"


def _size(bytes_: float | None) -> str | None:
    if bytes_ is None:
        return None
    value = float(bytes_)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            digits = 0 if unit == "B" or value >= 99.95 else 1
            return f"{value:.{digits}f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def _milliseconds(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    milliseconds = seconds * 1000
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
