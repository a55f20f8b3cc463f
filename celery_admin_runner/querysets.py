"""Every question about runs, and ``transition``, the only writer of ``state``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from django.db import models
from django.db.models import Count, Max, Q

from celery_admin_runner.states import FAILED, FINISHED, UNFINISHED, State

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

    from celery_admin_runner.models import Lease, TaskRunRecord

    AnyUser = AbstractBaseUser | AnonymousUser


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
        if user.is_active and user.has_perm("celery_admin_runner.view_taskrunrecord"):  # type: ignore[union-attr]
            return self
        return self.filter(run_by=user.pk) if user.pk is not None else self.none()

    def of_task(self, task_name: str) -> Self:
        """Runs of one task."""
        return self.filter(task_name=task_name)

    def older_than(self, moment: datetime) -> Self:
        """Finished runs that ended before ``moment``."""
        return self.finished().filter(finished_at__lt=moment)

    def figures_by_task(self, *, since: datetime, task_names: Sequence[str] | None) -> Self:
        """Group by task: ``last_id``, and ``runs`` and ``failures`` created from ``since`` on.

        ``task_names`` None: every task. Answers rows of dicts.
        """
        runs = self if task_names is None else self.filter(task_name__in=task_names)
        recent = Q(created_at__gte=since)
        failed = recent & Q(state__in=list(FAILED))
        return (  # type: ignore[return-value]
            runs.order_by()
            .values("task_name")
            .annotate(
                last_id=Max("pk"),
                runs=Count("pk", filter=recent),
                failures=Count("pk", filter=failed),
            )
        )


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
