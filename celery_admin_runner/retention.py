"""Prune: which finished runs need no longer be kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from django.db import router
from django.db.models import Exists, OuterRef, Q, Value
from django.db.models.functions import Coalesce
from django.utils import timezone

from celery_admin_runner.deletion import (
    BATCH_SIZE,
    batches_of,
    delete_runs,
    is_awaited,
    is_protected,
)
from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.models import OpenDependency, Source, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.skipping import values_in
from celery_admin_runner.states import FINISHED, State

#: What its user has seen goes when it ended longer ago than this, unless another age is asked
#: for: it is shown for 30 seconds more (``querysets.SECONDS_SINCE_SEEN``).
SEEN_AGE = timedelta(seconds=120)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which runs are to go. ``cutoff`` stays fixed however long the deletion takes."""

    #: Runs that ended before this moment.
    cutoff: datetime
    #: Finished states only.
    states: frozenset[State] = FINISHED
    #: Names and glob patterns of tasks; empty: every task.
    tasks: tuple[str, ...] = ()
    #: The newest of each task that stay, whatever their age and state.
    keep_last: int = 0
    #: Only what the site's own code started for a user, and that user has seen the end of. Not
    #: what staff started in admin, in whichever way, nor what such a run started in turn: of
    #: that the journal is the audit.
    only_seen: bool = False

    def __post_init__(self) -> None:
        """Refuse states of runs that have not ended."""
        if unfinished := self.states - FINISHED:
            raise PruneError(
                f"{', '.join(sorted(unfinished))}: only finished runs are pruned, that is "
                f"{', '.join(sorted(FINISHED))}."
            )


def cutoff_before(now: datetime, age: timedelta) -> datetime:
    """Return the moment ``age`` before ``now``; raises PruneError where no calendar reaches."""
    try:
        return now - age
    except OverflowError as error:
        raise PruneError(f"{age} is too long: it reaches back before the year 1.") from error


def count(selection: Selection) -> int:
    """Return how many runs ``selection`` names now."""
    return sum(part.count() for part in _parts(selection))


def prune(selection: Selection, *, batch_size: int = BATCH_SIZE) -> Iterator[int]:
    """Delete the runs of ``selection``; yield after each batch how many went."""
    yield from delete(selection, batches(selection, batch_size=batch_size))


def batches(
    selection: Selection, *, batch_size: int = BATCH_SIZE, newest_first: bool = False
) -> Iterator[list[int]]:
    """Yield the primary keys of the runs of ``selection``, ``batch_size`` at most at a time."""
    for part in _parts(selection):
        yield from batches_of(part, batch_size=batch_size, newest_first=newest_first)


def delete(selection: Selection, keys: Iterable[list[int]]) -> Iterator[int]:
    """Delete the runs with these primary keys that ``selection`` still names.

    As ``delete_runs`` does. A run that is not finished any more when its turn comes (LOST, and
    then its worker reported) stays, and one that began again: nobody has seen the end of that.
    """
    yield from delete_runs(_eligible(selection), keys)


def _parts(selection: Selection) -> Iterator[TaskRunRecordQuerySet]:
    """Yield the runs of ``selection``: in one set, or one for each task if its newest stay."""
    runs = _chosen(selection)
    if not selection.tasks and not selection.keep_last:
        yield runs
        return
    names = task_names(selection.tasks, using=runs.db)
    if not selection.keep_last:
        yield runs.filter(task_name__in=names)
        return
    finished = TaskRunRecord.objects.using(runs.db).finished().order_by("-pk")
    for name in names:
        newest = finished.of_task(name).values_list("pk", flat=True)
        oldest_kept = newest[selection.keep_last - 1 : selection.keep_last].first()
        if oldest_kept is not None:
            yield runs.of_task(name).filter(pk__lt=oldest_kept)


def task_names(patterns: tuple[str, ...], *, using: str) -> list[str]:
    """Return the names of all tasks with runs, or of those that match one of ``patterns``."""
    return [
        name
        for name in values_in(TaskRunRecord, "task_name", using=using)
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def _chosen(selection: Selection) -> TaskRunRecordQuerySet:
    """Return the runs of ``_eligible``, asked for so that an index finds the few that were seen.

    By a query of its own, for no other index to look better: SQLite knows nothing of how many
    rows one would give. Nor has it any that serves "not null".
    """
    runs = _eligible(selection)
    if not selection.only_seen:
        return runs
    seen = TaskRunRecord.objects.using(runs.db).filter(seen_at__lte=timezone.now())
    return runs.filter(pk__in=seen.order_by().values("pk"))


def _eligible(selection: Selection) -> TaskRunRecordQuerySet:
    """Return the runs that have the age and the state, and that nobody still needs.

    An unfinished run looks at the end of those it depends on, so they stay. So does a success
    because of which the same call is still ignored.
    """
    using = router.db_for_write(TaskRunRecord)
    runs = TaskRunRecord.objects.using(using).older_than(selection.cutoff)
    is_over = Q(ignore_until=None) | Q(ignore_until__lte=timezone.now())
    is_open = Exists(OpenDependency.objects.using(using).filter(dependency=OuterRef("pk")))
    if selection.only_seen:
        # No index is to serve these, see ``TaskRunRecordQuerySet.in_state``.
        runs = runs.alias(
            _seen_at=Coalesce("seen_at", "seen_at"), _source=Coalesce("source", Value(""))
        ).filter(_seen_at__isnull=False, _source=Source.CODE)
        first = TaskRunRecord.objects.using(using).filter(task_id=OuterRef("root_id"))
        runs = runs.exclude(Exists(first.exclude(source=Source.CODE).order_by()))
    return runs.filter(
        is_over, ~is_awaited(using), ~is_open, ~is_protected(using), state__in=selection.states
    )
