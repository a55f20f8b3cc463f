"""Which of their runs users ask for, and may: their own, whatever else they may see.

That a run is another's, and that there is none, is the same answer after the same queries.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from django.core.exceptions import PermissionDenied
from django.db import router

from celery_admin_runner.live.payload import RUNS_MAX, SeenMessage, with_shown_columns
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.runner import TaskRunner

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

#: The largest id of a run that a database holds.
ID_MAX = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is asked for: RUNS_MAX runs by their ids at most, all that are for display, or both."""

    ids: frozenset[int] = frozenset()
    display: bool = False


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The runs that are shown, the newest first, RUNS_MAX at most; whether there are more."""

    runs: list[TaskRunRecord]
    more: bool = False


def select(user: AnyUser, selection: Selection, now: datetime) -> Selected:
    """Return the runs that the user asks for; raises PermissionDenied for one not one's own.

    One query for the ids, one for display. Where both are more than RUNS_MAX, the ids are all
    there.
    """
    runs = _written_runs()
    named = list(with_shown_columns(own(runs, user, selection.ids)))
    if len(named) != len(selection.ids):
        raise PermissionDenied
    shown: list[TaskRunRecord] = []
    if selection.display:
        newest = with_shown_columns(runs.for_display(user, now=now))[: RUNS_MAX + 1]
        shown = [run for run in newest if run.pk not in selection.ids]
    room = RUNS_MAX - len(named)
    found = sorted([*named, *shown[:room]], key=lambda run: -run.pk)
    return Selected(runs=found, more=len(shown) > room)


def mark_seen(user: AnyUser, ids: Collection[int]) -> SeenMessage:
    """Mark these runs as seen, and tell which of them are; raises PermissionDenied.

    None is marked if one of them is not the user's own. Those that are unfinished are not seen,
    those that were seen before are: it may be asked for again.
    """
    runs = own(_written_runs(), user, ids)
    if runs.count() != len(set(ids)):
        raise PermissionDenied
    TaskRunner(user).mark_seen(ids)
    seen = runs.exclude(seen_at=None).values_list("pk", flat=True)
    return SeenMessage(type="seen", ids=sorted(seen))


def own(runs: TaskRunRecordQuerySet, user: AnyUser, ids: Collection[int]) -> TaskRunRecordQuerySet:
    """Return those of the runs with these ids that are the user's own."""
    return runs.for_user(user).filter(pk__in=ids)


def _written_runs() -> TaskRunRecordQuerySet:
    """Return the runs from where they are written.

    A replica that is behind would refuse a run that was started just now.
    """
    return TaskRunRecord.objects.using(router.db_for_write(TaskRunRecord))
