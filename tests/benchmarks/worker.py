"""Throughput of a real prefork worker: without results, with ours, and with those of others.

The floor is the same worker with ``ignore_result`` and without a row. The time is from the first
message to the last, as the worker tells of both. Ours are two UPDATEs for each task, by a
connection that stays: at its end PostgreSQL waits for its disk, which with Celery's own work is
what limits it. The others are figures to compare with: two bare statements in place of ours, the
backend for Redis, and django-celery-results.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connection

from celery_admin_runner import recording
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.benchmarks.journal import journal
from tests.benchmarks.measuring import Figure, in_turns
from tests.celery_app import app
from tests.conftest import running_worker, worker_name
from tests.result_backend import OURS
from tests.waiting import wait_until

#: What is promised: at most so many times the time of the floor.
FLOOR_TIMES = 2.0
#: Others are measured in so many rounds at most.
PEER_ROUNDS = 3
#: A round that takes longer than this many seconds is given up.
PATIENCE = 300
NOTHING, TWO_STATEMENTS = "tests.benchmarks.tasks.nothing", "tests.benchmarks.tasks.two_statements"
DISABLED = "disabled://"
#: How many sessions there have been.
SESSIONS = {
    "postgresql": "SELECT sessions FROM pg_stat_database WHERE datname = current_database()",
    # Of the whole server: whatever else uses it only adds.
    "mysql": "SELECT variable_value FROM information_schema.global_status "
    "WHERE variable_name = 'CONNECTIONS'",
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A worker with its result backend, and how its messages are sent."""

    name: str
    backend: str
    what: str = ""
    task: str = NOTHING
    is_tracked: bool = False
    ignore_result: bool = False

    @property
    def queue(self) -> str:
        """The queue of its messages; it has another one that stays empty."""
        return f"bench-{self.name}-{settings.QUEUE}"


FLOOR = Kind(name="floor", backend=DISABLED, ignore_result=True)
RUNS = Kind(name="ours", backend=OURS, is_tracked=True)
BARE = Kind(name="bare", backend=DISABLED, task=TWO_STATEMENTS, ignore_result=True)
REDIS = Kind(name="redis", backend=str(app.conf.broker_url))
RESULTS = Kind(name="dcr", backend="django_celery_results.backends:DatabaseBackend")
PEERS = {
    "worker with a bare INSERT and UPDATE, against ignore_result": BARE,
    "worker with the Redis backend, against ignore_result": REDIS,
    "worker with django-celery-results, against ignore_result": RESULTS,
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--tasks", type=int, default=2000, help="of a worker, a turn (2000)")


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Measure on an empty journal: our worker, what it opens, and the others."""
    is_small = arguments.rows < 1_000_000
    tasks, rounds = (20, 1) if is_small else (arguments.tasks, arguments.rounds)
    has_redis = REDIS.backend.startswith("redis")
    peers = {what: kind for what, kind in PEERS.items() if kind is not REDIS or has_redis}
    if is_small:
        peers = {what: kind for what, kind in peers.items() if kind is BARE}
    is_file = "filesystem" in str(app.conf.broker_url) or connection.vendor == "sqlite"
    with journal(0), ExitStack() as workers:
        workers.callback(recording.close)
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                # For who sends here alone: that is not what is measured.
                cursor.execute("SET synchronous_commit = off")
        for kind in (FLOOR, RUNS):
            workers.enter_context(_worker(kind))
        floor, sessions = partial(_round, FLOOR, tasks), _Sessions()
        turns = in_turns(partial(_round, RUNS, tasks, sessions), floor, rounds=rounds)
        yield turns.figure(
            "worker",
            f"worker with tracking and results, {tasks} tasks, against ignore_result",
            at_most=None if is_file else FLOOR_TIMES,
            rows=tasks,
        )
        if sessions.opened:
            what = "database sessions that a tracked task opens"
            opened = min(sessions.opened) / tasks
            yield _figure(what, opened, unit="sessions", at_most=0, rows=tasks)
        for what, kind in peers.items():
            with _worker(kind):
                peer = partial(_round, kind, tasks)
                turns = in_turns(peer, floor, rounds=min(rounds, PEER_ROUNDS))
            yield turns.figure("worker", what, rows=tasks)


def _figure(what: str, value: float, **fields: Any) -> Figure:
    return Figure(
        benchmark="worker", what=what, value=value, database=connection.vendor, **fields
    )


class _Sessions:
    """How many sessions the server has had, and how many of them in each of our rounds."""

    def __init__(self) -> None:
        self.opened: list[int] = []

    def number(self) -> int | None:
        """Return how many there were until now; None on SQLite, which has none."""
        if connection.vendor not in SESSIONS:
            return None
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("SELECT pg_stat_clear_snapshot()")
            cursor.execute(SESSIONS[connection.vendor])
            return int(cursor.fetchone()[0])


def _worker(kind: Kind) -> Any:
    """Start a worker as a project's would be: it also dispatches what is due, and prunes."""
    return running_worker(
        f"bench-{kind.name}",
        *("--concurrency", "2", "--prefetch-multiplier", "4"),
        *("-Q", f"{kind.queue}-idle", "-I", "tests.benchmarks.tasks", "-l", "WARNING"),
        CELERY_RESULT_BACKEND=kind.backend,
        TEST_DISPATCH="worker",
        TEST_PRUNE_ON_STARTUP="1",
    )


def _round(kind: Kind, tasks: int, sessions: _Sessions | None = None) -> float:
    """Return how many seconds the worker needed for so many tasks."""
    first, last = (Path(settings.FOLDER) / f"told-{uuid4()}" for _ in range(2))
    _send(kind, tasks, first, last)
    worker = [worker_name(f"bench-{kind.name}")]
    before = sessions and sessions.number()
    app.control.add_consumer(kind.queue, destination=worker)
    wait_until(last.exists, seconds=PATIENCE, why="the worker does not come to an end")
    app.control.cancel_consumer(kind.queue, destination=worker, reply=True, timeout=5)
    if kind.is_tracked:
        whole = TaskRunRecord.objects.filter(state=State.SUCCESS, started_at__isnull=False)
        wait_until(lambda: whole.count() == tasks, why=lambda: f"{whole.count()} of {tasks}")
    if sessions and before is not None:
        sessions.opened.append((sessions.number() or 0) - before)
    TaskRunRecord.objects.all()._raw_delete(TaskRunRecord.objects.db)
    return float(last.read_text()) - float(first.read_text())


def _send(kind: Kind, tasks: int, first: Path, last: Path) -> None:
    """Put the messages into the queue, between those that have the time written down."""
    tell_time = "tests.benchmarks.tasks.tell_time"
    app.send_task(tell_time, [str(first)], queue=kind.queue)
    with pytest.MonkeyPatch.context() as patch:
        ours = settings.CELERY_ADMIN_RUNNER
        track = [kind.task] if kind.is_tracked else []
        patch.setattr(settings, "CELERY_ADMIN_RUNNER", {**ours, "TRACK": track})
        for _ in range(tasks):
            app.send_task(kind.task, queue=kind.queue, ignore_result=kind.ignore_result)
    app.send_task(tell_time, [str(last)], queue=kind.queue)
