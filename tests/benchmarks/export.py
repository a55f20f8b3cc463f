"""The export of the journal as CSV, beside a plain csv.writer, and beside bare COPY.

What is compared: the file of all columns of all runs, the first bytes that the page of the admin
sends, and by how much a process grows that writes the file. Everything in a database of its own.

What the limit is: Python. By profile, of a plain csv.writer over an iterator most goes into
making objects of times and of JSON, and texts of these again. Ours reads texts where it can, and
looks for formulas a column at a time. On PostgreSQL the server writes the lines; there it takes
twice the server's time of bare COPY, and four times the client's. By what goes when each is left
out: half of the server's part is the texts of times (0.3 µs each), a fifth to look at the first
character of 20 texts, a tenth each durations and doubts about JSON. The client cuts off where
each line stands, and decodes. A batch costs two milliseconds besides, to be made and planned.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone
from import_export.resources import modelresource_factory

from celery_admin_runner.export import EXPORT_FIELDS, write_csv
from celery_admin_runner.models import TaskRunRecord
from tests.benchmarks.journal import ADMIN, DAYS, journal, task_name_of
from tests.benchmarks.measuring import Figure, duration_text, in_turns, seconds

EXPORT = "/admin/celery_admin_runner/taskrunrecord/export/"
#: What is promised.
TIMES, TIMES_OF_COPY, FIRST_BYTE_MS, GROWTH_MIB = 1.2, 3, 200, 16
#: The peer holds everything in memory: so many runs of it are measured, and one in ten at most.
PEER_MAX = 100_000
#: Runs of 1 MB each, for the memory.
WIDE_RUNS, WIDE_CHARACTERS = 64, 1_000_000
#: What stands in the columns, without what is computed.
_SPECIAL = {
    "content_type": "content_type_id",
    "retry_of": "retry_of_id",
    "cancel_requested_by": "cancel_requested_by__username",
}
_COLUMNS = [_SPECIAL.get(name, name) for name in EXPORT_FIELDS if name != "duration"]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument(
        "--export-rounds", type=int, default=3, help="of the whole export, which takes long (3)"
    )
    parser.add_argument("--export", metavar="TEXT", default="", help="only those that have it")


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Compare the seconds of the whole file, the first bytes, and the memory."""
    is_small = arguments.rows < 1_000_000
    about = {"database": connection.vendor, "rows": arguments.rows}
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "first bytes": lambda: _first_bytes(about, 1 if is_small else arguments.rounds),
        "memory": lambda: _memory(about),
        "whole": lambda: _whole(about, 1 if is_small else arguments.export_rounds),
        "peer": lambda: _peer(about),
    }
    with journal(arguments.rows, keep=arguments.keep):
        for name, figures in parts.items():
            if arguments.export in name:
                yield from figures()
    if arguments.export in "memory":
        yield from _memory_of_wide_runs(arguments)


def _whole(about: dict[str, Any], rounds: int) -> Iterator[Figure]:
    turns = in_turns(_ours, _plain_writer, rounds=rounds)
    yield turns.figure(
        "export", "CSV export / plain csv.writer over an iterator", at_most=TIMES, **about
    )
    if connection.vendor == "postgresql":
        turns = in_turns(_ours, _bare_copy, rounds=rounds)
        yield turns.figure("export", "CSV export / bare COPY", at_most=TIMES_OF_COPY, **about)


def _ours() -> None:
    with _file() as file:
        write_csv([TaskRunRecord.objects.all()], file)


def _plain_writer() -> None:
    runs = TaskRunRecord.objects.order_by("-created_at", "-id").values_list(*_COLUMNS)
    with _file() as file:
        csv.writer(file).writerows(runs.iterator())


def _bare_copy() -> None:
    runs = TaskRunRecord.objects.order_by("-created_at", "-id").values_list(*_COLUMNS)
    select, _params = runs.query.sql_with_params()
    bare: Any = connection
    with bare.cursor() as cursor, cursor.copy(f"COPY ({select}) TO STDOUT (FORMAT csv)") as lines:
        for _line in lines:
            pass


@contextmanager
def _file() -> Iterator[io.TextIOWrapper]:
    with open(os.devnull, "w", encoding="utf-8", newline="") as file:
        yield file


def _peer(about: dict[str, Any]) -> Iterator[Figure]:
    """Yield how long django-import-export takes as it is, for all runs if it were as fast."""
    number = min(about["rows"] // 10, PEER_MAX)
    runs = TaskRunRecord.objects.order_by("-id")[:number]
    bare = modelresource_factory(TaskRunRecord)
    names = [name for name in EXPORT_FIELDS if name != "duration"]

    def theirs() -> None:
        bare().export(runs, export_fields=names).export("csv")

    took = seconds(theirs) * about["rows"] / max(number, 1)
    ours = seconds(_ours)
    yield Figure(
        benchmark="export",
        what="CSV export / django-import-export",
        value=ours / took,
        ours=duration_text(ours),
        floor=f"{duration_text(took)} (of {number:,} runs, scaled)",
        **about,
    )


def _first_bytes(about: dict[str, Any], rounds: int) -> Iterator[Figure]:
    """Yield after how long the page sends the first bytes, and the first runs."""
    client = Client()
    client.force_login(User.objects.get(username=ADMIN))
    cases = {
        "all runs": "",
        "failed runs": "?state=FAILURE",
        "a user's runs since a day": f"?user=user7&created_from={_day(DAYS // 2)}",
        "a search": f"?q={task_name_of(3)[:-2]}",
        "a search that finds nothing": "?q=nothing",
    }
    for what, query in cases.items():
        header, runs = [], []
        for _ in range(rounds + 1):
            begun_at = perf_counter()
            response: Any = client.post(f"{EXPORT}{query}", export_form())
            if not response.streaming:
                raise AssertionError(response.content.decode())
            text = iter(response)
            next(text)
            header.append(perf_counter() - begun_at)
            next(text, None)
            runs.append(perf_counter() - begun_at)
            response.close()
        for part, times in (("first byte", header), ("first 100 runs", runs)):
            middle = sorted(times[1:])[len(times[1:]) // 2]
            yield Figure(
                benchmark="export",
                what=f"{part} of an export of {what}",
                value=middle * 1e3,
                unit="ms",
                at_most=FIRST_BYTE_MS,
                **about,
            )


def export_form() -> dict[str, str]:
    """Return what the export page sends for CSV with all columns."""
    names = (f"taskrunrecordresource_{name}" for name in EXPORT_FIELDS)
    return {"resource": "0", "format": "0", **dict.fromkeys(names, "on")}


def _day(days: int) -> str:
    """Return the day so many days ago."""
    return (timezone.now() - timedelta(days=days)).date().isoformat()


def _memory(about: dict[str, Any], what: str = "") -> Iterator[Figure]:
    """Yield by how much a process grows that has written a few runs, and then writes all."""
    settings = connection.settings_dict
    with TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "TEST_DATABASE_NAME": str(settings["NAME"]),
            "TEST_FOLDER": str(Path(folder, "own")),
        }
        program = [sys.executable, "-m", "tests.benchmarks.growth"]
        found = subprocess.run(
            program, env=environment, check=True, capture_output=True, text=True
        )
    before, after = map(int, found.stdout.split())
    yield Figure(
        benchmark="export",
        what=f"memory growth of an export{what}",
        value=(after - before) / 1024,
        unit="MiB",
        at_most=GROWTH_MIB,
        **about,
    )


def _memory_of_wide_runs(arguments: Namespace) -> Iterator[Figure]:
    """Yield the growth with runs of 1 MB each behind others that are narrow."""
    narrow = 2 * WIDE_RUNS * 50
    with journal(narrow, keep=arguments.keep):
        wide = TaskRunRecord.objects.filter(pk__lte=WIDE_RUNS)
        wide.update(traceback="x" * WIDE_CHARACTERS)
        about = {"database": connection.vendor, "rows": narrow}
        yield from _memory(about, what=f", with {WIDE_RUNS} runs of 1 MB each")
        wide.update(traceback="")
