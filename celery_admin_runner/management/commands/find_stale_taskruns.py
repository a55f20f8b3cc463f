"""Find unfinished runs of which nobody has heard for too long, and act on them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from celery_admin_runner.management.listing import (
    SENT,
    Action,
    Listing,
    all_runs,
    duration,
    local_text,
    send,
)
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import UNFINISHED, State

#: How a run is told of.
LINE = "{id}  {state}  {task}  since {since}  worker {worker}  queue {queue}"
#: What is told of a run that was dealt with, or that nobody may send without looking.
LOST = "marked as lost"
DOUBTFUL = "not sent: it may have been sent before; its page asks who wants to send it again"
#: What is told after the list if nothing was done.
ADVICE = (
    "See what became of their workers and of the broker. Then --send-again sends those that are "
    "UNSENT, and --mark-lost ends the others as LOST; a worker that reports after all corrects "
    "that."
)


class Command(BaseCommand):
    """``manage.py find_stale_taskruns``."""

    help = (
        "Lists unfinished task runs of which nobody has heard for longer than the setting "
        "STALE_AFTER says for their state. Exit code 1 if there are any, else 0."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Describe the options."""
        parser.add_argument(
            "--older-than",
            type=duration,
            metavar="DURATION",
            help="Silent for longer than this: 28d, 12h, 90m, 120s or ISO 8601 (PT12H). "
            "Default: the setting STALE_AFTER, by state.",
        )
        parser.add_argument(
            "--state",
            action="append",
            metavar="STATE",
            help=f"Only runs in this state: {', '.join(sorted(UNFINISHED))}. Can be repeated.",
        )
        parser.add_argument(
            "--json", action="store_true", help="Write a JSON array, an object for each run."
        )
        actions = parser.add_mutually_exclusive_group()
        actions.add_argument(
            "--mark-lost",
            action="store_true",
            help="End them as LOST. A worker that reports after all corrects that.",
        )
        actions.add_argument(
            "--send-again",
            action="store_true",
            help="Send those that are UNSENT and were never sent. Others are left alone: they may "
            "be running.",
        )

    def handle(
        self,
        *,
        older_than: timedelta | None,
        state: Sequence[str] | None,
        json: bool,
        mark_lost: bool,
        send_again: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        """List stale runs, do with them what was asked for, and exit with 1 if there are any."""
        if mark_lost and send_again:
            raise CommandError("--mark-lost and --send-again: choose one of them.")
        now = timezone.now()
        action = _mark_lost(now) if mark_lost else _send_again() if send_again else None
        states = _states(state, send_again=send_again)
        stale = all_runs().stale(now, older_than=older_than, states=states)
        outcomes = Listing(stale, _described, action, successes=(LOST, SENT))
        try:
            if json:
                outcomes.write_json(self.stdout)
            else:
                outcomes.write_lines(self.stdout, LINE)
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(f"The database can't be asked: {error}") from error
        if verbosity and not json:
            self.stdout.write(_summary(outcomes, mark_lost=mark_lost, send_again=send_again))
        if outcomes.found:
            sys.exit(1)


def _described(run: TaskRunRecord) -> dict[str, str]:
    return {
        "id": run.task_id,
        "task": run.task_name,
        "state": run.state,
        "since": local_text(run.heard_of_at),
        "worker": run.worker,
        "queue": run.queue,
    }


def _mark_lost(now: datetime) -> Action:
    def mark(run: TaskRunRecord) -> str:
        """Move a run to LOST, one at a time: a guarded UPDATE."""
        moved = all_runs().lose(run, now=now)
        return LOST if moved else "not marked: it was heard of meanwhile"

    return mark


def _send_again() -> Action:
    runner = TaskRunner()

    def send_if_certain(run: TaskRunRecord) -> str:
        """Send a run, or tell why not."""
        return DOUBTFUL if run.may_have_been_sent else send(runner, run)

    return send_if_certain


def _summary(outcomes: Listing, *, mark_lost: bool, send_again: bool) -> str:
    """Tell how many there are, and what to do next."""
    number = f"{outcomes.found:,} stale {'run' if outcomes.found == 1 else 'runs'}"
    if not outcomes.found:
        return "No stale runs."
    if mark_lost:
        return f"{number}, {outcomes.done:,} of them marked as lost."
    if send_again:
        return f"{number} unsent, {outcomes.done:,} of them sent."
    return f"{number}. {ADVICE}"


def _states(names: Sequence[str] | None, *, send_again: bool) -> frozenset[State] | None:
    """Return the states of these names; None if none is named."""
    wrong = [name for name in names or () if name.upper() not in UNFINISHED]
    if wrong:
        raise CommandError(
            f"--state {wrong[0]}: only unfinished runs can be stale, that is "
            f"{', '.join(sorted(UNFINISHED))}."
        )
    states = frozenset(State(name.upper()) for name in names or ())
    if not send_again:
        return states or None
    if states - {State.UNSENT}:
        raise CommandError(
            "--send-again sends runs that are UNSENT only: others may be running. End them with "
            "--mark-lost, and run them again from their pages."
        )
    return frozenset({State.UNSENT})
