"""Measure: ``python -m tests.benchmarks [name ...] [--rows N] [--database URL] [--json FILE]``.

Without a name everything is measured. Databases are made for it, beside the one that is named,
and go when it is done. With few rows, as 20000, all takes minutes, and says little of speed: with
fewer than 1,000,000 nothing is judged. The floor is the least that does the same.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from tests.benchmarks import (
    calls,
    dispatch,
    export,
    indexes,
    live,
    many,
    output,
    pages,
    prune,
    scheduled,
    startup,
    task_list,
    worker,
)
from tests.benchmarks.measuring import Benchmark, Figure, as_json, as_line, as_markdown, say

BENCHMARKS: dict[str, Benchmark] = {
    "calls": calls,
    "dispatch": dispatch,
    "export": export,
    "indexes": indexes,
    "live": live,
    "many": many,
    "output": output,
    "pages": pages,
    "prune": prune,
    "scheduled": scheduled,
    "task_list": task_list,
    "worker": worker,
    "startup": startup,
}
#: Fewer rows than these are no journal; of fewer than those no speed is judged.
ROWS_MIN, ROWS_JUDGED = 1000, 1_000_000


def main() -> None:
    """Read the command line, measure what it names, and print the figures."""
    parser = ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the journal (1000000)")
    parser.add_argument("--database", metavar="URL", help="else DATABASE_URL, else SQLite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--rounds", type=int, default=7, help="of each comparison (7)")
    parser.add_argument(
        "--keep", action="store_true", help="keep the databases, and take those that were kept"
    )
    parser.add_argument(
        "--judge", action="store_true", help="exit with 1 if a promise is not kept"
    )
    for name, benchmark in BENCHMARKS.items():
        benchmark.add_arguments(parser.add_argument_group(name))  # type: ignore[arg-type]
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in BENCHMARKS]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if arguments.rows < ROWS_MIN:
        parser.error(f"--rows must be {ROWS_MIN:,} or more")
    if arguments.json and not arguments.json.parent.is_dir():
        parser.error(f"there is no folder {arguments.json.parent}")
    is_judged = arguments.rows >= ROWS_JUDGED
    figures: list[Figure] = []
    for name in arguments.names or BENCHMARKS:
        say(f"{name} ...")
        for figure in BENCHMARKS[name].measure(arguments):
            figures.append(figure)
            say(as_line(figure, is_judged=is_judged))
    sys.stdout.write(f"{as_markdown(figures)}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(figures), indent=2, ensure_ascii=False))
    if arguments.judge and is_judged and not all(figure.is_kept for figure in figures):
        sys.exit(1)


main()
