"""Every question about runs, and ``transition``, the only writer of ``state``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import UUID

from django.db import models
from django.db.models import Count, Max, Q, Window
from django.db.models.functions import RowNumber

from celery_admin_runner.states import FAILED, FINISHED, UNFINISHED, State

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser, AnonymousUser

    from celery_admin_runner.models import Lease, TaskRunRecord

    AnyUser = AbstractUser | AnonymousUser

#: What the task list shows of a task's last run.
_LAST_RUN_FIELDS = ("task_name", "state", "created_at", "run_by_name", "source")
#: A task's typical duration is the median of so many of its latest succeeded runs.
TYPICAL_OF = 20


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the journal tells of one task."""

    last_run: TaskRunRecord | None = None
    runs: int = 0
    failures: int = 0
    #: The median of the latest succeeded runs; None if there is none.
    typical_duration: timedelta | None = None


class TaskRunRecordQuerySet(models.QuerySet["TaskRunRecord"]):
    """Runs, and how they are asked for and moved."""

    def transition(self, *, sources: Iterable[State], target: State, **fields: Any) -> int:
        """Move the runs in this set that are in one of ``sources`` to ``target``.

        One guarded UPDATE that also writes ``fields``; returns how many rows it
        moved. Of any number of concurrent callers exactly one gets 1 for a row:
        who gets 1 acts, who gets 0 stops. A finished run gives up its
        ``active_key``, so that a unique task can run again.
        """
        if target in FINISHED:
            fields.setdefault("active_key", None)
        return self.filter(state__in=list(sources)).update(state=target, **fields)

    def finished(self) -> Self:
        """Runs that have ended."""
        return self.filter(state__in=list(FINISHED))

    def unfinished(self) -> Self:
        """Runs that have not ended yet."""
        return self.filter(state__in=list(UNFINISHED))

    def visible_to(self, user: AnyUser) -> Self:
        """Runs that ``user`` may see: all with ``view_taskrunrecord``, else his or her own."""
        if user.is_active and user.has_perm("celery_admin_runner.view_taskrunrecord"):
            return self
        return self.filter(run_by=user.pk) if user.pk is not None else self.none()

    def of_task(self, task_name: str) -> Self:
        """Runs of one task."""
        return self.filter(task_name=task_name)

    def older_than(self, moment: datetime) -> Self:
        """Finished runs that ended before ``moment``."""
        return self.finished().filter(finished_at__lt=moment)

    def figures_by_task(
        self, *, since: datetime, task_names: Sequence[str] | None = None
    ) -> dict[str, Figures]:
        """Return the figures of each task that has runs in this set.

        Runs and failures are those created from ``since`` on, and so are the runs
        whose durations count. ``task_names`` None: every task. Three queries, of
        which one is grouped, whatever the number of tasks.
        """
        runs = self.order_by()
        if task_names is not None:
            runs = runs.filter(task_name__in=task_names)
        grouped = runs.values("task_name").annotate(last_id=Max("pk"))
        recent = Q(created_at__gte=since)
        counted = list(
            grouped.annotate(
                runs=Count("pk", filter=recent),
                failures=Count("pk", filter=recent & Q(state__in=list(FAILED))),
            )
        )
        # So many ids as all tasks have are more than SQLite takes in one query.
        last_ids: Any = (
            grouped.values("last_id")
            if task_names is None
            else [row["last_id"] for row in counted]
        )
        latest = self.order_by().filter(pk__in=last_ids).only(*_LAST_RUN_FIELDS)
        last_runs = {run.pk: run for run in latest}
        durations = runs.filter(recent)._typical_durations()
        return {
            row["task_name"]: Figures(
                last_run=last_runs.get(row["last_id"]),
                runs=row["runs"],
                failures=row["failures"],
                typical_duration=durations.get(row["task_name"]),
            )
            for row in counted
        }

    def _typical_durations(self) -> dict[str, timedelta]:
        """Return the median duration of each task's latest succeeded runs in this set."""
        latest = (
            self.filter(state=State.SUCCESS, started_at__isnull=False)
            .annotate(nth=Window(RowNumber(), partition_by="task_name", order_by="-pk"))
            .filter(nth__lte=TYPICAL_OF)
        )
        rows = cast(
            "Iterable[tuple[str, datetime, datetime]]",
            latest.values_list("task_name", "started_at", "finished_at"),
        )
        durations = defaultdict(list)
        for name, started_at, finished_at in rows:
            durations[name].append(max(finished_at - started_at, timedelta()))
        return {name: median(values) for name, values in durations.items()}  # type: ignore[type-var]


class LeaseQuerySet(models.QuerySet["Lease"]):
    """Leases, and how one is taken."""

    def take(self, name: str, *, holder: UUID, now: datetime, until: datetime) -> bool:
        """Take the lease ``name`` until ``until`` if nobody holds it at ``now``.

        One guarded UPDATE after the row was made sure to exist; of any number
        of concurrent callers exactly one gets True.
        """
        self.bulk_create([self.model(name=name, expires_at=now)], ignore_conflicts=True)
        return bool(
            self.filter(name=name, expires_at__lte=now).update(holder=holder, expires_at=until)
        )
