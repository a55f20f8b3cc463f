"""Run a measurement: ``python -m tests.benchmarks worker --tasks 2000``."""

from __future__ import annotations

from argparse import ArgumentParser

from tests.benchmarks import calls, dispatch, live, worker

MEASUREMENTS = {"calls": calls, "dispatch": dispatch, "live": live, "worker": worker}


def main() -> None:
    """Read the command line, and run what it names."""
    parser = ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    measurements = parser.add_subparsers(dest="measurement", required=True)
    for name, module in MEASUREMENTS.items():
        module.add_arguments(measurements.add_parser(name))
    arguments = parser.parse_args()
    MEASUREMENTS[arguments.measurement].run(arguments)


main()
