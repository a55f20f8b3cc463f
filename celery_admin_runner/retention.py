"""Prune: which finished runs need no longer be kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import cache, partial

from django.db import router
from django.db.models import Exists, OuterRef, Q, Value
from django.db.models.functions import Coalesce
from django.utils import timezone

from celery_admin_runner.deletion import (
    BATCH_SIZE,
    Among,
    delete_runs,
    in_batches,
    is_awaited,
    is_protected,
    pages_of,
)
from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.models import OpenDependency, Source, TaskRunRecord
from celery_admin_runner.moments import exactly
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.skipping import values_in
from celery_admin_runner.states import FINISHED, State

#: What its user has seen goes when it ended longer ago than this, unless another age is asked
#: for: it is shown for 30 seconds more (``querysets.SECONDS_SINCE_SEEN``).
SEEN_AGE = timedelta(seconds=120)
#: When a run was created, and its primary key.
_Place = tuple[datetime, int]


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
    if selection.keep_last:
        return sum(map(len, batches(selection)))
    return sum(_unneeded(part, selection).count() for part, _along in _parts(selection))


def prune(selection: Selection, *, batch_size: int = BATCH_SIZE) -> Iterator[int]:
    """Delete the runs of ``selection``; yield after each batch how many went."""
    yield from delete(selection, batches(selection, batch_size=batch_size))


def batches(
    selection: Selection, *, batch_size: int = BATCH_SIZE, newest_first: bool = False
) -> Iterator[list[int]]:
    """Yield the primary keys of the runs of ``selection``, ``batch_size`` at most at a time."""
    yield from in_batches(_pages(selection, newest_first=newest_first), batch_size)


def _pages(selection: Selection, *, newest_first: bool) -> Iterator[list[int]]:
    """Yield the same keys as they are found.

    What is old is read by an index alone, and then it is asked which of that may go: no page
    depends on how the database guesses how many these are.
    """
    runs = TaskRunRecord.objects.using(router.db_for_write(TaskRunRecord))
    unneeded = _unneeded(runs, selection).order_by().values_list("pk", flat=True)
    oldest_kept = cache(partial(_oldest_kept, runs, number=selection.keep_last))
    columns = ("task_name", "created_at") if selection.keep_last else ()
    for part, along in _parts(selection):
        for page in pages_of(part, *columns, along=along, newest_first=newest_first):
            keys = [
                pk
                for pk, _, *more in page
                if not more or _is_below((more[1], pk), oldest_kept(more[0]), runs.db)
            ]
            if keys:
                going = set(unneeded.filter(Among("pk", keys)))
                yield [pk for pk in keys if pk in going]


def delete(selection: Selection, keys: Iterable[list[int]]) -> Iterator[int]:
    """Delete the runs with these primary keys that ``selection`` still names.

    As ``delete_runs`` does. A run that is not finished any more when its turn comes (LOST, and
    then its worker reported) stays, and one that began again: nobody has seen the end of that.
    """
    runs = TaskRunRecord.objects.using(router.db_for_write(TaskRunRecord))
    yield from delete_runs(_named(runs, selection), keys)


def _parts(selection: Selection) -> Iterator[tuple[TaskRunRecordQuerySet, str]]:
    """Yield among which runs those of ``selection`` are, and the column by which they are read.

    All by their end: where nothing is old nothing is read. Those that were seen by when: they
    are few. Those of some tasks task by task, by when they were created: no other task's are
    read, however many of those stay.
    """
    runs = TaskRunRecord.objects.using(router.db_for_write(TaskRunRecord))
    if selection.tasks:
        for name in task_names(selection.tasks, using=runs.db):
            yield runs.of_task(name), "created_at"
    elif selection.only_seen:
        yield runs.filter(seen_at__lte=timezone.now()), "seen_at"
    else:
        yield runs.filter(finished_at__lt=selection.cutoff), "finished_at"


def _is_below(place: _Place, oldest_kept: _Place | None, using: str) -> bool:
    """Tell whether a run stands below the last of those of its task that stay."""
    if oldest_kept is None:
        return False
    (created_at, pk), (kept_at, kept_pk) = place, oldest_kept
    return (exactly(created_at, using), pk) < (exactly(kept_at, using), kept_pk)


def _oldest_kept(runs: TaskRunRecordQuerySet, task_name: str, *, number: int) -> _Place | None:
    """Return where the last of a task's newest runs stands that stay; None: all stay."""
    finished = runs.of_task(task_name).in_state(FINISHED).order_by("-created_at", "-pk")
    newest = finished.values_list("created_at", "pk")[number - 1 : number]
    return newest.first()


def task_names(patterns: tuple[str, ...], *, using: str) -> list[str]:
    """Return the names of all tasks with runs, or of those that match one of ``patterns``."""
    return [
        name
        for name in values_in(TaskRunRecord, "task_name", using=using)
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def _unneeded(runs: TaskRunRecordQuerySet, selection: Selection) -> TaskRunRecordQuerySet:
    """Return the runs that ``selection`` names, and that nobody still needs.

    An unfinished run looks at the end of those it depends on, so they stay.
    """
    is_open = Exists(OpenDependency.objects.using(runs.db).filter(dependency=OuterRef("pk")))
    return _named(runs, selection).filter(~is_awaited(runs.db), ~is_open)


def _named(runs: TaskRunRecordQuerySet, selection: Selection) -> TaskRunRecordQuerySet:
    """Return the runs that have the age and the state, asked for so that no index serves that.

    See ``TaskRunRecordQuerySet.in_state``: for rows that their keys name MariaDB would lock
    another index first. And SQLite, which knows nothing of how many rows an index gives, would
    take that on the state. A success because of which the same call is still ignored stays.
    """
    is_over = Q(ignore_until=None) | Q(ignore_until__lte=timezone.now())
    runs = runs.in_state(selection.states).filter(is_over, ~is_protected(runs.db))
    runs = runs.alias(_finished_at=Coalesce("finished_at", "finished_at")).filter(
        _finished_at__lt=selection.cutoff
    )
    if not selection.only_seen:
        return runs
    runs = runs.alias(
        _seen_at=Coalesce("seen_at", "seen_at"), _source=Coalesce("source", Value(""))
    ).filter(_seen_at__isnull=False, _source=Source.CODE)
    first = TaskRunRecord.objects.using(runs.db).filter(task_id=OuterRef("root_id"))
    return runs.exclude(Exists(first.exclude(source=Source.CODE).order_by()))
