"""What it costs to keep what a run prints, and to show it while it goes on.

A real worker, with one process, runs a task that prints 100,000 lines: once as a run, whose output
is captured and written down beside, and once in a worker that knows no run. Between the start of
the task and that of the next one lies all that belongs to it, the end of its output too. Celery
makes a record for its log of each line, which is the limit; ours appends the line to a list, and
joins, cleans and writes 64 kB at a time. Then the payload of the page that follows a run: of one
line more, beside what the page was told before.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import Max, Sum
from django.db.models.functions import Length
from django.test import Client
from django.urls import reverse

from celery_admin_runner import recording
from celery_admin_runner.models import TaskRunOutput, TaskRunRecord
from celery_admin_runner.states import State
from tests.benchmarks.journal import ADMIN, journal
from tests.benchmarks.measuring import Figure, in_turns
from tests.celery_app import app
from tests.conftest import running_worker
from tests.factories import make_run
from tests.waiting import wait_until

#: What is promised: the time of a run against that without capture; the bytes that an answer
#: to the page has more for one new line, beside the line.
TIMES, BYTES_BESIDE = 1.3, 200
#: Enough for all lines.
RAISED = 64 * 1024 * 1024
#: A run that takes longer than this many seconds is given up.
PATIENCE = 300
PRINT, TELL = "tests.benchmarks.tasks.print_lines", "tests.benchmarks.tasks.tell_time"
LINE = "One line more, which the page has not been told of.\n"


@dataclass(frozen=True)
class Kind:
    """A worker, and whether its tasks are runs."""

    name: str
    is_tracked: bool
    output_max_bytes: int | None = None

    @property
    def queue(self) -> str:
        """The queue of its messages."""
        return f"bench-{self.name}-{settings.QUEUE}"


PLAIN = Kind("plain", is_tracked=False)
CAPTURED = {
    "with OUTPUT_MAX_BYTES as it is": Kind("captured", is_tracked=True),
    "all kept": Kind("all", is_tracked=True, output_max_bytes=RAISED),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--lines", type=int, default=100_000, help="that a run prints (100000)")


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Measure on an empty journal."""
    is_small = arguments.rows < 1_000_000
    lines, rounds = (1000, 1) if is_small else (arguments.lines, arguments.rounds)
    is_file = "filesystem" in str(app.conf.broker_url)
    with journal(0), ExitStack() as workers:
        workers.callback(recording.close)
        workers.enter_context(_worker(PLAIN))
        for what, kind in CAPTURED.items():
            with _worker(kind):
                turns = in_turns(_printing(kind, lines), _printing(PLAIN, lines), rounds=rounds)
            yield turns.figure(
                "output",
                f"run that prints {lines:,} lines, {what}, against no capture",
                # A message is looked for once a second there.
                at_most=None if is_file else TIMES,
                rows=lines,
            )
        yield from _payload(lines)


def _worker(kind: Kind) -> Any:
    limit = kind.output_max_bytes
    return running_worker(
        f"bench-{kind.name}",
        *("--concurrency", "1", "--prefetch-multiplier", "4"),
        *("-Q", kind.queue, "-I", "tests.benchmarks.tasks", "-l", "WARNING"),
        **({} if limit is None else {"TEST_OUTPUT_MAX_BYTES": str(limit)}),
    )


def _printing(kind: Kind, lines: int) -> Callable[[], float]:
    """Return what has lines printed, and gives how many seconds that took."""

    def action() -> float:
        begun, ended = (Path(settings.FOLDER) / f"told-{uuid4()}" for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:
            ours = settings.CELERY_ADMIN_RUNNER
            track = [PRINT] if kind.is_tracked else []
            patch.setattr(settings, "CELERY_ADMIN_RUNNER", {**ours, "TRACK": track})
            app.send_task(PRINT, [str(begun), lines], queue=kind.queue)
        app.send_task(TELL, [str(ended)], queue=kind.queue)
        wait_until(ended.exists, seconds=PATIENCE, why="the worker does not come to an end")
        if kind.is_tracked:
            _check(lines, kind)
        return float(ended.read_text()) - float(begun.read_text())

    return action


def _check(lines: int, kind: Kind) -> None:
    """Make sure that the output is there, and forget the run."""
    run = TaskRunRecord.objects.get()
    wait_until(lambda: TaskRunRecord.objects.filter(pk=run.pk, state=State.SUCCESS).exists())
    kept = run.output.aggregate(size=Sum(Length("text")))["size"]
    last = f"{lines - 1:7} of {lines}"
    assert last in run.output.latest("seq").text, "the end of the output is missing"
    assert kind.output_max_bytes is None or kept >= lines * len(last), kept
    run.delete()


def _payload(lines: int) -> Iterator[Figure]:
    """Measure what the page of a run is told of one line more, beside a page that has it all."""
    run = make_run(state=State.STARTED)
    piece = "A line that the run has printed, and that the page has shown.\n" * 100
    TaskRunOutput.objects.bulk_create(
        TaskRunOutput(run=run, seq=seq + 1, stream="stdout", text=piece)
        for seq in range(max(lines // 100, 2))
    )
    client = Client()
    client.force_login(User.objects.get(username=ADMIN))
    url = reverse("admin:celery_admin_runner_taskrunrecord_live", args=[run.pk])

    def size(after: int) -> int:
        answer = client.get(url, {"after": after})
        assert answer.status_code == 200, answer
        return len(answer.content)

    known = run.output.aggregate(latest=Max("seq"))["latest"]
    whole, nothing_new = size(0), size(known)
    TaskRunOutput.objects.create(run=run, seq=known + 1, stream="stdout", text=LINE)
    one_line = size(known)
    yield Figure(
        benchmark="output",
        what="what an answer to the live page has more for one line, beside it",
        value=one_line - nothing_new - len(LINE),
        unit="bytes",
        at_most=BYTES_BESIDE,
        ours=f"{one_line:,} bytes",
        floor=f"{nothing_new:,} bytes",
        database=connection.vendor,
        rows=lines,
    )
    yield Figure(
        benchmark="output",
        what="an answer with one line more, against one from the beginning",
        value=one_line / whole,
        ours=f"{one_line:,} bytes",
        floor=f"{whole:,} bytes",
        database=connection.vendor,
        rows=lines,
    )
    run.delete()
