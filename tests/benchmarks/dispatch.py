"""One tracked run, sent: ``TaskRunner.run``, a task of TRACK, and what both do at the least.

The floor is what no journal can do without: an INSERT of the same row by a cursor, the same
message by ``apply_async``, and an UPDATE to PENDING of the row if it is still UNSENT, in
autocommit. Plain ``apply_async`` is shown beside it, without a promise.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

from celery.app.task import Task
from django.conf import settings
from django.db import connection
from django.test import override_settings
from django.utils import timezone

from celery_admin_runner.headers import RUN_HEADER
from celery_admin_runner.messages import Message
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import celery_app
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.benchmarks.journal import journal
from tests.benchmarks.measuring import Figure, in_turns
from tests.benchmarks.tasks import nothing

#: What is promised: ours against the floor.
TIMES = 1.2
ARGS, KWARGS = (1,), {"b": 2}
QUEUE = f"bench-dispatch-{settings.QUEUE}"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--dispatch-runs", type=int, default=50, help="in each turn (50)")


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Measure a run of TaskRunner, one that TRACK finds, and a call that is not tracked."""
    # Short turns: whatever else the machine does comes and goes.
    number = arguments.dispatch_runs
    rounds = 5 * arguments.rounds if arguments.rows >= 1_000_000 else 1
    app = celery_app()
    was = app.conf.task_default_queue
    app.conf.task_default_queue = QUEUE
    try:
        with journal(0, keep=arguments.keep):
            floor = Floor(nothing)
            ours = {
                "a run of TaskRunner": (lambda: run(number), TIMES),
                "a task of TRACK": (lambda: tracked(number), TIMES),
                "plain apply_async": (lambda: plain(number), None),
            }
            for what, (action, at_most) in ours.items():
                turns = in_turns(action, lambda: floor.send(number), rounds=rounds)
                yield turns.figure(
                    "dispatch", f"{what}, {number} in a row", at_most=at_most, rows=arguments.rows
                )
    finally:
        app.conf.task_default_queue = was


def run(number: int) -> float:
    """Return how many seconds a TaskRunner needs for so many runs."""
    runner = TaskRunner()
    return timed(number, lambda: runner.run(nothing.name, ARGS, KWARGS))


def tracked(number: int) -> float:
    """Return how many seconds so many calls of a task need that TRACK names."""
    ours = {**settings.CELERY_ADMIN_RUNNER, "TRACK": [nothing.name]}
    with override_settings(CELERY_ADMIN_RUNNER=ours):
        return timed(number, lambda: nothing.apply_async(ARGS, KWARGS))


def plain(number: int) -> float:
    """Return how many seconds so many calls need that nobody records."""
    return timed(number, lambda: nothing.apply_async(ARGS, KWARGS), rows=0)


def timed(number: int, action: Callable[[], object], *, rows: int | None = None) -> float:
    """Return how many seconds it takes so often; afterwards all of it is thrown away."""

    def often() -> None:
        for _ in range(number):
            action()

    return timed_once(often, number, rows=number if rows is None else rows)


def timed_once(action: Callable[[], object], messages: int, *, rows: int) -> float:
    """Return how many seconds it takes once to send so many messages, and make so many rows."""
    begun_at = time.perf_counter()
    action()
    took = time.perf_counter() - begun_at
    runs = TaskRunRecord.objects.all()
    sent = runs.filter(state=State.PENDING, published_at__isnull=False).count()
    assert sent == rows, f"{sent} of {rows} rows"
    runs._raw_delete(runs.db)
    assert (purged := purge()) == messages, f"{purged} of {messages} messages"
    return took


def purge() -> int:
    """Throw away the messages, and return how many there were."""
    with celery_app().connection_for_read() as broker:
        purged: int = broker.default_channel.queue_purge(QUEUE)
    return purged


class Floor:
    """What sending and recording a run costs at the least, by hand."""

    def __init__(self, task: Task) -> None:
        """Take the columns and values from a run of ours."""
        self.task = task
        run = TaskRunner().run(task.name, ARGS, KWARGS)
        message = Message(args=ARGS, kwargs=KWARGS)
        self.headers = message.headers(run)
        fields = [field for field in TaskRunRecord._meta.concrete_fields if not field.primary_key]
        given = TaskRunRecord(args=run.args, kwargs=run.kwargs, task_name=run.task_name)
        given.state = State.UNSENT
        given.queue = run.queue
        self.names = [field.attname for field in fields]
        self.values = [
            field.get_db_prep_save(getattr(given, field.attname), connection) for field in fields
        ]
        quote = connection.ops.quote_name
        table = quote(TaskRunRecord._meta.db_table)
        columns = ", ".join(quote(field.column) for field in fields)
        places = ", ".join(["%s"] * len(fields))
        self.insert = f"INSERT INTO {table} ({columns}) VALUES ({places})"
        self.returning = connection.vendor == "postgresql"
        if self.returning:
            self.insert += " RETURNING id"
        self.update = (
            f"UPDATE {table} SET state = %s, published_at = %s, seen_at = NULL "
            "WHERE id = %s AND state = %s"
        )
        TaskRunRecord.objects.all().delete()
        purge()

    def send(self, number: int) -> float:
        """Return how many seconds it takes so often."""
        return timed(number, self._send)

    def _send(self) -> None:
        task_id, now = str(uuid4()), adapted(timezone.now())
        changed: dict[str, Any] = {
            "task_id": task_id,
            "created_at": now,
            "claimed_at": now,
            "dispatch_id": self._token(),
        }
        values = list(self.values)
        for name, value in changed.items():
            values[self.names.index(name)] = value
        with connection.cursor() as cursor:
            cursor.execute(self.insert, values)
            pk = cursor.fetchone()[0] if self.returning else cursor.lastrowid
        headers = {**self.headers, RUN_HEADER: task_id}
        self.task.apply_async(ARGS, KWARGS, task_id=task_id, headers=headers)
        with connection.cursor() as cursor:
            cursor.execute(
                self.update, [State.PENDING, adapted(timezone.now()), pk, State.UNSENT]
            )

    def _token(self) -> Any:
        field: Any = TaskRunRecord._meta.get_field("dispatch_id")
        return field.get_db_prep_save(uuid4(), connection)


def adapted(moment: Any) -> Any:
    """Return a moment as the database takes it."""
    return connection.ops.adapt_datetimefield_value(moment)
