"""What our app adds to the start of a site: of every web process, worker and command.

The floor is the same site without it, with Celery, import-export and pydantic imported: both are
processes of their own, with their bytecode written before, and of each the CPU time counts. What
limits it are our modules: reading and executing them, most of them for the admin, which Django
imports when it starts. No query, no thread, and no connection.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings

from tests.benchmarks.measuring import Figure, Turns, in_turns

#: What is promised: the CPU time of a start against that of the site without the app.
TIMES = 1.05
#: A start is short, and the ratios of few differ: so many for each round that is asked for.
ROUNDS = 4
SCRIPT = Path(__file__).with_name("site_start.py")
SITE = ("import_export",)
OURS = (*SITE, "celery_admin_runner")


def add_arguments(parser: ArgumentParser) -> None:
    """Add no options."""


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Start sites with the app and without, in turn."""
    rounds = 2 if arguments.rows < 1_000_000 else ROUNDS * arguments.rounds
    starts: dict[tuple[str, ...], list[dict[str, Any]]] = {OURS: [], SITE: []}

    def start(apps: tuple[str, ...]) -> float:
        told = _start(apps)
        starts[apps].append(told)
        return float(told["whole"])

    turns = in_turns(lambda: start(OURS), lambda: start(SITE), rounds=rounds)
    what = "start of a site with the app, CPU, against the same without"
    yield turns.figure("startup", what, at_most=TIMES, database="")
    # The first start of each only wrote bytecode.
    ours = [told["setup"] for told in starts[OURS][1:]]
    pairs = [(before + after) / 2 for before, after in zip(ours[::2], ours[1::2], strict=True)]
    setups = Turns(ours=pairs, floor=[told["setup"] for told in starts[SITE][1:]])
    yield setups.figure("startup", "django.setup() alone, against the same without", database="")
    latest, without = starts[OURS][-1], starts[SITE][-1]
    added = latest["modules"] - without["modules"]
    yield Figure(benchmark="startup", what="modules that it adds", value=added, unit="modules")
    for name in ("connections", "threads"):
        number = max(told[name] for told in starts[OURS])
        what = f"{name} that the start makes"
        yield Figure(benchmark="startup", what=what, value=number, unit="", at_most=0)


def _start(apps: tuple[str, ...]) -> dict[str, Any]:
    """Start a site in a process of its own, and return what it tells."""
    folder = Path(settings.FOLDER)
    kept = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "SYSTEMROOT")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment["PYTHONPATH"] = str(SCRIPT.parent.parent.parent)
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    told = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *apps],
        check=True,
        capture_output=True,
        cwd=folder,
        env=environment,
    )
    started: dict[str, Any] = json.loads(told.stdout)
    assert started["is_alone"], "a thread is left"
    return started
