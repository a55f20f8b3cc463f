"""What the commands have in common that list runs, and deal with each."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta

from django.core.management.base import OutputWrapper
from django.db import router
from django.utils import timezone

from celery_admin_runner.durations import parse_duration
from celery_admin_runner.exceptions import NotSendable
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State

#: How many runs one query reads.
BATCH_SIZE = 1000
#: What is told of a run that was sent.
SENT = "sent"

#: Deals with a run, and tells what came of it.
Action = Callable[[TaskRunRecord], str]


class Listing:
    """Runs as they are told of, what was done with each, and how many there were."""

    def __init__(
        self,
        runs: TaskRunRecordQuerySet,
        describe: Callable[[TaskRunRecord], Mapping[str, str]],
        action: Action | None = None,
        *,
        successes: Collection[str] = (SENT,),
    ) -> None:
        """Take what ``action`` tells of a run that it has dealt with as ``successes``."""
        self.runs = runs
        self.describe = describe
        self.action = action
        self.successes = successes
        self.found = 0
        #: With how many the action has dealt.
        self.done = 0

    def __iter__(self) -> Iterator[dict[str, str]]:
        for run in _in_batches(self.runs):
            self.found += 1
            row = {**self.describe(run), "outcome": ""}
            if self.action is not None:
                row["outcome"] = self.action(run)
                self.done += row["outcome"] in self.successes
            yield row

    def write_lines(self, output: OutputWrapper, form: str) -> None:
        """Write a line of this form for each run."""
        for row in self:
            line = form.format(**{name: value or "-" for name, value in row.items()})
            output.write(f"{line}  {row['outcome']}".rstrip())

    def write_json(self, output: OutputWrapper) -> None:
        """Write an array, a line for each run, without holding them all."""
        output.write("[", ending="")
        for number, row in enumerate(self):
            output.write(f"{',' if number else ''}\n{json.dumps(row)}", ending="")
        output.write("\n]" if self.found else "]")


def all_runs() -> TaskRunRecordQuerySet:
    """Return all runs, from where they are written: a replica may not know the latest word."""
    return TaskRunRecord.objects.using(router.db_for_write(TaskRunRecord))


def send(runner: TaskRunner, run: TaskRunRecord) -> str:
    """Send a run again, and tell what came of it."""
    try:
        runner.send_again(run)
    except NotSendable as error:
        return f"not sent: {error}"
    if run.state != State.UNSENT:
        return SENT
    return f"not sent: {run.publish_error}"


def duration(text: str) -> timedelta:
    """Read a duration of the command line; argparse shows the message of this error only."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def local_text(moment: datetime) -> str:
    """Return a moment in the current time zone, to the second."""
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return local.isoformat(" ", "seconds")


def _in_batches(runs: TaskRunRecordQuerySet) -> Iterator[TaskRunRecord]:
    """Yield the runs, oldest first; each query is done before what it found is acted upon."""
    runs = runs.order_by("pk")
    batch = list(runs[:BATCH_SIZE])
    while batch:
        yield from batch
        batch = list(runs.filter(pk__gt=batch[-1].pk)[:BATCH_SIZE])
