"""Find scheduled runs that a dispatcher took and never reported as sent, and send them again."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from celery_admin_runner.management.asking import is_confirmed
from celery_admin_runner.management.listing import (
    Action,
    Listing,
    all_runs,
    duration,
    local_text,
    send,
)
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import STALE_SCHEDULED_AFTER, TaskRunRecordQuerySet
from celery_admin_runner.runner import TaskRunner

#: How a run is told of.
LINE = "{id}  {task}  due {due}  claimed {claimed}  queue {queue}"
#: What is told after the list if nothing was done.
ADVICE = (
    "A dispatcher took them and died, or lost the database: the broker may have them, or not. "
    "Look at the queues and at the workers' logs. Then cancel them on their pages, or send them "
    "again: there, or here with --send-again. They may run twice then."
)


class Command(BaseCommand):
    """``manage.py find_stale_scheduled_taskruns``."""

    help = (
        "Lists scheduled task runs that a dispatcher took, longer ago than --older-than, and of "
        "which nobody knows whether they were sent. Exit code 1 if there are any, else 0."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Describe the options."""
        parser.add_argument(
            "--older-than",
            type=duration,
            default=STALE_SCHEDULED_AFTER,
            metavar="DURATION",
            help="Taken longer ago than this: 28d, 12h, 90m, 120s or ISO 8601 (PT12H). "
            "Default: 5m; those taken later are not sent again.",
        )
        parser.add_argument(
            "--json", action="store_true", help="Write a JSON array, an object for each run."
        )
        parser.add_argument(
            "--send-again",
            action="store_true",
            help="Send them again, after a question: what was sent before may run twice.",
        )
        parser.add_argument("--yes", action="store_true", help="Do not ask.")

    def handle(
        self,
        *,
        older_than: timedelta,
        json: bool,
        send_again: bool,
        yes: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        """List the runs, send them again if that was asked for; exit with 1 if there are any."""
        if send_again and json and not yes:
            raise CommandError("--send-again asks first: with --json, say --yes too.")
        stale = all_runs().stale_scheduled(timezone.now(), older_than=older_than)
        try:
            action = self._send_again(stale, yes=yes) if send_again else None
            listing = Listing(stale, _described, action)
            if json:
                listing.write_json(self.stdout)
            else:
                listing.write_lines(self.stdout, LINE)
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(f"The database can't be asked: {error}") from error
        if verbosity and not json:
            self.stdout.write(_summary(listing))
        if listing.found:
            sys.exit(1)

    def _send_again(self, stale: TaskRunRecordQuerySet, *, yes: bool) -> Action | None:
        """Return what sends a run again; None if the answer is no, or there are none."""
        number = 0 if yes else stale.count()
        again = "this run" if number == 1 else f"these {number:,} runs"
        question = f"What was sent before may run twice. Send {again} again?"
        if number and not is_confirmed(question, self.stdout):
            return None
        runner = TaskRunner()
        return lambda run: send(runner, run)


def _described(run: TaskRunRecord) -> dict[str, str]:
    due_at = run.eta or run.due_at
    return {
        "id": run.task_id,
        "task": run.task_name,
        "due": "" if due_at is None else local_text(due_at),
        "claimed": "" if run.claimed_at is None else local_text(run.claimed_at),
        "queue": run.queue,
    }


def _summary(listing: Listing) -> str:
    """Tell how many there are, and what to do next."""
    if not listing.found:
        return "No stale scheduled runs."
    number = f"{listing.found:,} stale scheduled {'run' if listing.found == 1 else 'runs'}"
    if listing.action is None:
        return f"{number}. {ADVICE}"
    return f"{number}, {listing.done:,} of them sent again."
