"""Throughput of a real prefork worker: without results, with ours, with django-celery-results'.

On the servers of DATABASE_URL and CELERY_BROKER_URL: PostgreSQL and Redis. The time is from
when a worker is told to take the queued messages until it has ended the last task. The kinds
take turns, so that whatever else the machine does weighs on all of them alike.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any
from uuid import uuid4

import pytest
import redis
from django.conf import settings
from django.db import connection
from django.test.utils import setup_databases, teardown_databases

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.conftest import running_worker, worker_name
from tests.result_backend import OURS

#: What is promised: at most so many times the time of the floor, at least so many times
#: faster than django-celery-results.
FLOOR_TIMES, FASTER = 2.0, 3.0
#: A round that takes longer than this many seconds is given up.
PATIENCE = 300


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A worker with its result backend, and how its messages are sent."""

    name: str
    backend: str
    is_tracked: bool = False
    ignore_result: bool = False

    @property
    def queue(self) -> str:
        """The queue of its messages; it has another one that stays empty."""
        return f"bench-{self.name}-{settings.QUEUE}"


KINDS = (
    Kind(name="floor", backend="disabled://", ignore_result=True),
    Kind(name="ours", backend=OURS, is_tracked=True),
    Kind(name="dcr", backend="django_celery_results.backends:DatabaseBackend"),
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--tasks", type=int, default=2000, help="in each round (2000)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind (5)")


def run(arguments: Namespace) -> None:
    """Measure, and print medians and ratios; exit with 1 if they are not what is promised."""
    databases = setup_databases(verbosity=0, interactive=False)
    try:
        seconds = _measure(arguments.tasks, arguments.rounds)
    finally:
        connection.close()
        teardown_databases(databases, verbosity=0)
    sys.exit(0 if _print(seconds, arguments.tasks) else 1)


def _measure(tasks: int, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {kind.name: [] for kind in KINDS}
    with ExitStack() as workers:
        for kind in KINDS:
            workers.enter_context(_worker(kind))
        for kind in KINDS:
            # The first tasks of a process open its connections.
            _round(kind, 20)
        for number in range(rounds):
            for kind in KINDS:
                seconds[kind.name].append(_round(kind, tasks))
            latest = "  ".join(f"{name} {values[-1]:6.2f} s" for name, values in seconds.items())
            _say(f"round {number + 1}: {latest}")
    return seconds


def _worker(kind: Kind) -> Any:
    return running_worker(
        f"bench-{kind.name}",
        *("--concurrency", "2", "--prefetch-multiplier", "4"),
        *("-Q", f"{kind.queue}-idle", "-I", "tests.benchmarks.tasks", "-l", "WARNING"),
        CELERY_RESULT_BACKEND=kind.backend,
    )


def _round(kind: Kind, tasks: int) -> float:
    """Return how many seconds the worker needed for so many tasks."""
    key = f"bench-{uuid4()}"
    _send(kind, tasks, key)
    worker = [worker_name(f"bench-{kind.name}")]
    begun_at = time.time()
    app.control.add_consumer(kind.queue, destination=worker)
    ended_at = _told(key)
    app.control.cancel_consumer(kind.queue, destination=worker, reply=True, timeout=5)
    if kind.is_tracked:
        _check(tasks)
    return ended_at - begun_at


def _told(key: str) -> float:
    """Return the time that the last task writes down."""
    server = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"])
    deadline = time.monotonic() + PATIENCE
    while (told := server.lpop(key)) is None:
        assert time.monotonic() < deadline, "the worker does not come to an end"
        time.sleep(0.02)
    return float(told)


def _send(kind: Kind, tasks: int, key: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        track = ["tests.benchmarks.tasks.nothing"] if kind.is_tracked else []
        patch.setattr(
            settings, "CELERY_ADMIN_RUNNER", {**settings.CELERY_ADMIN_RUNNER, "TRACK": track}
        )
        for _ in range(tasks):
            app.send_task(
                "tests.benchmarks.tasks.nothing",
                queue=kind.queue,
                ignore_result=kind.ignore_result,
            )
    app.send_task("tests.benchmarks.tasks.tell_time", [key], queue=kind.queue)


def _check(tasks: int) -> None:
    """Make sure that it was the whole work: each run has its row, and that its start and end."""
    whole = TaskRunRecord.objects.filter(state=State.SUCCESS, started_at__isnull=False)
    deadline = time.monotonic() + 10
    while (number := whole.count()) < tasks and time.monotonic() < deadline:
        time.sleep(0.1)
    assert number == tasks, f"{number} of {tasks} runs have succeeded"
    TaskRunRecord.objects.all()._raw_delete(TaskRunRecord.objects.db)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _print(seconds: dict[str, list[float]], tasks: int) -> bool:
    """Print what was measured; tell whether it is what is promised."""
    middle = {name: median(values) for name, values in seconds.items()}
    times = median(
        ours / floor for ours, floor in zip(seconds["ours"], seconds["floor"], strict=True)
    )
    faster = median(dcr / ours for dcr, ours in zip(seconds["dcr"], seconds["ours"], strict=True))
    _say(f"\n{tasks} tasks, {connection.vendor}, medians of {len(seconds['ours'])} rounds:")
    for name, value in middle.items():
        _say(f"  {name:6} {value:6.2f} s  {value / tasks * 1000:5.2f} ms a task")
    _say(f"  ours / floor {times:.2f}  (at most {FLOOR_TIMES})")
    _say(f"  dcr / ours   {faster:.2f}  (at least {FASTER})")
    return times <= FLOOR_TIMES and faster >= FASTER
