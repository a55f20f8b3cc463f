"""Tell whether the journal is in good health."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, router
from django.db.models import F
from django.utils import timezone

from celery_admin_runner.models import RecordingFault, TaskRunRecord
from celery_admin_runner.querysets import Unfinished


@dataclass(frozen=True, kw_only=True)
class Health:
    """What is known of the journal."""

    now: datetime
    #: A row a worker, the latest fault first.
    faults: list[RecordingFault]
    unfinished: list[Unfinished]
    #: How many runs are stale.
    stale: int
    #: How many scheduled runs a dispatcher took and never reported as sent.
    stale_scheduled: int

    @property
    def total_faults(self) -> int:
        """How often something could not be recorded."""
        return sum(fault.count for fault in self.faults)

    @property
    def is_good(self) -> bool:
        """Tell whether nobody has to look."""
        return not self.faults and not self.stale and not self.stale_scheduled


class Command(BaseCommand):
    """``manage.py check_taskruns``."""

    help = (
        "Tells how often workers could not write to the journal, the age of the oldest unfinished "
        "run by state and queue, and how many runs are stale. Exit code 1 if there are faults or "
        "stale runs or the database does not answer, else 0."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Describe the options."""
        parser.add_argument("--json", action="store_true", help="Write one JSON object.")
        parser.add_argument(
            "--reset",
            action="store_true",
            help="Forget the faults after they were told, so that the next check tells new ones.",
        )

    def handle(self, *, json: bool, reset: bool, verbosity: int, **options: Any) -> None:
        """Tell, and exit with 1 if somebody has to look."""
        try:
            health = _examine(timezone.now())
            if json:
                self.stdout.write(_as_json(health))
            elif verbosity or not health.is_good:
                self.stdout.write(_as_text(health))
            if reset:
                _forget(health.faults)
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(
                f"The database can't be asked: {error}\nWorkers run on without it; what they "
                "can't record is counted, and told here once it answers."
            ) from error
        if not health.is_good:
            sys.exit(1)


def _examine(now: datetime) -> Health:
    """Ask the database: four queries."""
    using = router.db_for_write(TaskRunRecord)
    runs = TaskRunRecord.objects.using(using)
    return Health(
        now=now,
        faults=list(RecordingFault.objects.using(using).order_by("-happened_at", "pk")),
        unfinished=runs.unfinished_ages(),
        stale=runs.stale(now).count(),
        stale_scheduled=runs.stale_scheduled(now).count(),
    )


def _forget(faults: list[RecordingFault]) -> None:
    """Forget these faults, and none that was counted since they were read."""
    rows = RecordingFault.objects.using(router.db_for_write(TaskRunRecord))
    for fault in faults:
        row = rows.filter(pk=fault.pk)
        row.update(count=F("count") - fault.count)
        row.filter(count=0).delete()


def _as_json(health: Health) -> str:
    """Return one object for machines; moments are ISO 8601, ages in seconds."""
    faults = [
        {
            "worker": fault.worker,
            "count": fault.count,
            "latest_id": fault.task_id,
            "latest_error": fault.error,
            "latest_at": fault.happened_at.isoformat(),
        }
        for fault in health.faults
    ]
    unfinished = [
        {
            **asdict(group),
            "oldest_at": group.oldest_at.isoformat(),
            "oldest_age": (health.now - group.oldest_at).total_seconds(),
        }
        for group in health.unfinished
    ]
    return json.dumps(
        {
            "good": health.is_good,
            "faults": {"total": health.total_faults, "workers": faults},
            "unfinished": unfinished,
            "stale": health.stale,
            "stale_scheduled": health.stale_scheduled,
        },
        indent=2,
    )


def _as_text(health: Health) -> str:
    """Return lines for people."""
    lines = ["Recording faults: none."]
    if health.faults:
        lines = [f"Recording faults: {health.total_faults:,}. The workers' logs name each run."]
    lines += [
        f"  {fault.worker or 'outside workers'}: {fault.count:,}, the latest of run "
        f"{fault.task_id} at {_moment(fault.happened_at)}: {fault.error}"
        for fault in health.faults
    ]
    lines.append("Unfinished runs:" if health.unfinished else "Unfinished runs: none.")
    lines += [
        f"  {group.state.value}, queue {group.queue or '-'}: {group.runs:,}, "
        f"the oldest is {_age(health.now - group.oldest_at)} old"
        for group in health.unfinished
    ]
    if health.stale:
        lines.append(f"Stale runs: {health.stale:,}. manage.py find_stale_taskruns lists them.")
    else:
        lines.append("Stale runs: none.")
    if health.stale_scheduled:
        lines.append(
            f"Scheduled runs that may have been sent, or not: {health.stale_scheduled:,}. "
            "manage.py find_stale_scheduled_taskruns lists them."
        )
    return "\n".join(lines)


def _age(age: timedelta) -> str:
    """Return an age in whole seconds; none below zero, where clocks differ."""
    return str(timedelta(seconds=max(int(age.total_seconds()), 0)))


def _moment(moment: datetime) -> str:
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return local.isoformat(" ", "seconds")
