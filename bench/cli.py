"""Options, the run as a whole, and the exit status."""

import argparse
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench.columns import prototype
from bench.figures import COLUMNS
from bench.generator import CACHE_VARIABLE, Generator, find_generator
from bench.machine import describe, machine_line, start_of_run
from bench.processes import Processes, ProcessFailed
from bench.report import as_json, table_of, write_results
from bench.runner import Outcome, run
from bench.site import ROOT, clean_environment, open_site
from bench.workloads import WORKLOADS, Workload, selected

__all__ = ["main"]

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
DEFAULT_SECONDS = 1.5
DEFAULT_ROUNDS = 2
SECONDS_AT_MOST = 60.0
ROUNDS_AT_MOST = 20

ABOUT = """\
Measure the tunnel beside a direct connection and the prototype, all in one run.

Client, upstream, server and agent are processes of their own on loopback, in a
temporary directory that is removed in the end. Rows are the median of the rounds;
ratio is tunnel to prototype, or to direct where there is no prototype.
"""
EXAMPLES = f"""\
examples:
  python -m bench                               everything without a long link, about 3 minutes
  python -m bench --only sealed                 every row with "sealed" in its name
  python -m bench --only 'raw-request-*' --only raw-connect-16 --rounds 5
  python -m bench --wan                         also the rows over a delaying link
  python -m bench --only agents-5000            5,000 simulated agents on one server, 1.5 minutes
  python -m bench --only objects-1000           1,000 Cluster objects on one server, 2 minutes
  python -m bench --only busy100m --seconds 6   a request on a full 100 Mbit/s line
  python -m bench --columns direct,prototype    without our own programs
  python -m bench --json > mine.json            the rows of latest.json on standard output

environment:
  TOWER_BENCH_DEBUG=1       the load programs write why connections ended (see --keep)
  {prototype.VARIABLE}=DIR       the prototype, else ../shared/prototype beside the checkout
  {CACHE_VARIABLE}=DIR   where the built load generator is kept, else ~/.cache/tower-testbed

exit status: 0 all columns measured; 1 a column or a row is missing; 2 usage;
130 interrupted (what was measured so far is shown, and not written)

Other load on the machine shows in every number: leave it alone while this runs.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = _parse(arguments)
    if options.list:
        print("\n".join(workload.name for workload in WORKLOADS))
        return OK
    workloads = selected(options.only, wan=options.wan)
    console = Console(stderr=True, highlight=False)
    if not workloads:
        console.print(f"no workload fits {' or '.join(options.only)}; --list shows all")
        return USAGE
    signal.signal(signal.SIGTERM, _as_interrupt)
    _raise_file_limit()
    try:
        generator, reason = find_generator(options.generator, clean_environment())
    except ProcessFailed as error:
        console.print(f"no load generator: {error}")
        return FAILED
    if reason:
        console.print(f"[yellow]{reason}[/yellow]")
    return _run(options, workloads, generator, console)


def _run(
    options: argparse.Namespace,
    workloads: Sequence[Workload],
    generator: Generator,
    console: Console,
) -> int:
    outcome, started, interrupted = Outcome(), start_of_run(), False
    try:
        _measure(options, workloads, generator, outcome, console)
    except KeyboardInterrupt:
        interrupted = True
    except ProcessFailed as error:
        console.print(f"the bench did not start: {error}")
        return FAILED
    figures = outcome.samples.figures()
    if options.json:
        sys.stdout.write(as_json(figures))
    else:
        note = f"{options.rounds} rounds of {options.seconds:g} s, medians"
        # Wide enough for every number, also where a file takes the output.
        wide = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
        wide.print(table_of(figures, machine_line(generator.name), note))
    for where, why in outcome.troubles.items():
        console.print(f"[red]not measured[/red]: {where}: {why}", soft_wrap=True)
    if interrupted:
        console.print("interrupted: results not written")
        return INTERRUPTED
    machine = describe(
        generator.name,
        started,
        seconds=options.seconds,
        rounds=options.rounds,
        not_measured=outcome.troubles,
    )
    latest = write_results(options.out, figures, machine)
    console.print(f"written to {latest}", soft_wrap=True)
    return FAILED if outcome.troubles else OK


def _measure(
    options: argparse.Namespace,
    workloads: Sequence[Workload],
    generator: Generator,
    outcome: Outcome,
    console: Console,
) -> None:
    # Short: the path of a unix socket below it must stay under 108 bytes.
    directory = Path(tempfile.mkdtemp(prefix="tower-bench-"))
    try:
        with (
            console.status("starting the upstream") as status,
            Processes(directory, clean_environment()) as processes,
        ):
            site = open_site(directory, processes, generator)
            run(
                site,
                workloads,
                options.columns,
                seconds=options.seconds,
                rounds=options.rounds,
                outcome=outcome,
                progress=status.update,
            )
    finally:
        if options.keep:
            console.print(f"kept: {directory}", soft_wrap=True)
        else:
            _remove(directory)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_choices(parser)
    _add_outputs(parser)
    return parser.parse_args(arguments)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """What is measured, and for how long."""
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="workloads to take: a name, a part of names, or a glob; repeatable",
    )
    parser.add_argument(
        "--wan", action="store_true", help="take the rows over a delaying link, too"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=DEFAULT_SECONDS,
        metavar="S",
        help="measured window of one row (default %(default)s; rows over a long link "
        "take at least what they need)",
    )
    parser.add_argument(
        "--rounds",
        type=_rounds,
        default=DEFAULT_ROUNDS,
        metavar="N",
        help="how often each row is taken (default %(default)s)",
    )
    parser.add_argument(
        "--columns",
        type=_columns,
        default=list(COLUMNS),
        metavar="A,B",
        help=f"some of {','.join(COLUMNS)} (default: all)",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """By what it is measured, and where the results go."""
    parser.add_argument(
        "--generator",
        choices=("auto", "go", "python"),
        default="auto",
        help="the load generator (default: Go where it builds, else Python)",
    )
    parser.add_argument(
        "--list", action="store_true", help="print the names of all workloads and stop"
    )
    parser.add_argument(
        "--json", action="store_true", help="print rows as JSON instead of the table"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "bench" / "out",
        metavar="DIR",
        help="where latest.json and machine.json go (default: bench/out)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the temporary directory with all logs and keys",
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= SECONDS_AT_MOST:
        raise argparse.ArgumentTypeError(f"must be 0.05 to {SECONDS_AT_MOST:g}")
    return value


def _rounds(text: str) -> int:
    value = int(text)
    if not 1 <= value <= ROUNDS_AT_MOST:
        raise argparse.ArgumentTypeError(f"must be 1 to {ROUNDS_AT_MOST}")
    return value


def _columns(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(COLUMNS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return [name for name in COLUMNS if name in names]


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does: everything is stopped, nothing is left."""
    raise KeyboardInterrupt


def _raise_file_limit() -> None:
    """A thousand held streams need as many files, in every process on their way."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
