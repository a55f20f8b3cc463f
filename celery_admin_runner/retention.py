"""Prune: delete the finished runs that need no longer be kept."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

from django.db import connections, models, router, transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.forking import fork_waits
from celery_admin_runner.models import Lease, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.states import FINISHED, UNFINISHED, State

#: How many runs one transaction deletes, unless another number is asked for.
BATCH_SIZE = 5000
#: Pause after each batch where one writer holds the whole database. SQLite knocks every
#: 0.1 s at most: without a pause this long a waiting writer would find it locked until it
#: gives up.
BREATH_SECONDS = 0.11
#: The lease whose row a batch locks, so that of several prunes one deletes at a time.
TURN = "prune, a batch at a time"
#: What a foreign key can do when its run goes. PROTECT, RESTRICT, and what needs a value
#: in place of the run (SET_DEFAULT, SET), keep the run.
#: Django 6.1 has those beginning with DB, by which the database itself acts.
LETTING_GO = frozenset(
    getattr(models, name)
    for name in (
        "CASCADE",
        "SET_NULL",
        "DO_NOTHING",
        "DB_CASCADE",
        "DB_SET_NULL",
        "DB_SET_DEFAULT",
    )
    if hasattr(models, name)
)
#: The tables of this app have no rows of others below them.
OWN_APP = TaskRunRecord._meta.app_label


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
    order, beyond = ("-pk", "pk__lt") if newest_first else ("pk", "pk__gt")
    for part in _parts(selection):
        keys = part.order_by(order).values_list("pk", flat=True)
        pks = list(keys[:batch_size])
        while pks:
            yield pks
            pks = list(keys.filter(**{beyond: pks[-1]})[:batch_size])


def delete(selection: Selection, keys: Iterable[list[int]]) -> Iterator[int]:
    """Delete the runs with these primary keys that ``selection`` still names.

    Each list of ``keys`` is a transaction of its own; yields after each how many
    runs went. A run that is not finished any more when its turn comes (LOST, and
    then its worker reported) stays whole, and one that somebody else holds just
    now stays for the next time. Rows go by plain DELETEs: ``post_delete`` is not
    sent for runs.
    """
    runs = _eligible(selection)
    leases = Lease.objects.using(runs.db)
    leases.bulk_create([Lease(name=TURN, expires_at=selection.cutoff)], ignore_conflicts=True)
    for pks in keys:
        with fork_waits(connections[runs.db]), transaction.atomic(using=runs.db):
            # Prunes take turns, else each could hold what the other one waits for.
            # On SQLite this waits for the whole file: it refuses to write at once
            # after it read what has changed since.
            leases.filter(name=TURN).update(holder=None)
            number = sum(_delete_some(runs, chunk) for chunk in _chunks(pks, runs.db))
        yield number
        if not connections[runs.db].features.has_select_for_update:
            time.sleep(BREATH_SECONDS)


def _parts(selection: Selection) -> Iterator[TaskRunRecordQuerySet]:
    """Yield the runs of ``selection``: in one set, or one for each task if its newest stay."""
    runs = _eligible(selection)
    if not selection.tasks and not selection.keep_last:
        yield runs
        return
    names = _task_names(selection.tasks, using=runs.db)
    if not selection.keep_last:
        yield runs.filter(task_name__in=names)
        return
    finished = TaskRunRecord.objects.using(runs.db).finished().order_by("-pk")
    for name in names:
        newest = finished.of_task(name).values_list("pk", flat=True)
        oldest_kept = newest[selection.keep_last - 1 : selection.keep_last].first()
        if oldest_kept is not None:
            yield runs.of_task(name).filter(pk__lt=oldest_kept)


def _task_names(patterns: tuple[str, ...], *, using: str) -> list[str]:
    """Return the names of all tasks with runs, or of those that match one of ``patterns``."""
    runs = TaskRunRecord.objects.using(using).order_by("task_name")
    names = runs.values_list("task_name", flat=True).distinct()
    return [
        name
        for name in names
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def _eligible(selection: Selection) -> TaskRunRecordQuerySet:
    """Return the runs that have the age and the state, and that nobody still needs.

    An unfinished run looks at the end of those it depends on, so they stay. So does a success
    because of which the same call is still ignored.
    """
    using = router.db_for_write(TaskRunRecord)
    runs = TaskRunRecord.objects.using(using).older_than(selection.cutoff)
    waiting = TaskRunRecord.depends_on.through._base_manager.using(using).filter(
        to_taskrunrecord=OuterRef("pk"), from_taskrunrecord__state__in=list(UNFINISHED)
    )
    is_over = Q(ignore_until=None) | Q(ignore_until__lte=timezone.now())
    runs = runs.filter(is_over, ~Exists(waiting), state__in=list(selection.states))
    for relation in _relations():
        if relation.on_delete not in LETTING_GO:
            holders = relation.related_model._base_manager.using(using)
            runs = runs.filter(~Exists(holders.filter(**{relation.field.name: OuterRef("pk")})))
    return runs


def _delete_some(runs: TaskRunRecordQuerySet, pks: list[int]) -> int:
    """Delete those of ``pks`` that are still in ``runs``, and before them what refers to them.

    Rows are locked first, so that a run that comes back to life keeps its output.
    MySQL can't look at the table it deletes from: the DELETE itself names only
    keys and states.
    """
    features = connections[runs.db].features
    locked = runs.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
    pks = list(locked.filter(pk__in=pks).order_by("pk").values_list("pk", flat=True))
    pks = _without_awaited(pks, using=runs.db)
    if not pks:
        return 0
    for relation in _relations():
        _let_go(relation, pks, using=runs.db)
    return delete_by_key(TaskRunRecord.objects.using(runs.db).finished(), pks)


def delete_by_key(rows: models.QuerySet[Any], pks: Sequence[int]) -> int:
    """Delete those of these rows that have one of these keys, by a plain DELETE.

    MariaDB 10.11 reads all of a small table though the DELETE names keys, and waits for each
    row that somebody else holds. So there only the keys count: whoever gives them has locked
    what else ``rows`` asks for.
    """
    if connections[rows.db].vendor != "mysql":
        return rows.filter(pk__in=pks)._raw_delete(rows.db)
    quote = connections[rows.db].ops.quote_name
    table, key = quote(rows.model._meta.db_table), quote(rows.model._meta.pk.column or "")
    where = f"FORCE INDEX (PRIMARY) WHERE {table}.{key} IN ({', '.join(['%s'] * len(pks))})"
    with connections[rows.db].cursor() as cursor:
        cursor.execute(" ".join(["DELETE", table, "FROM", table, where]), pks)
        return int(cursor.rowcount)


def _without_awaited(pks: list[int], *, using: str) -> list[int]:
    """Return those of these locked runs that no unfinished run depends on.

    That was asked when they were chosen. Since then a run may have come that waits for one;
    from now on none can, for it would lock the same row. Rows are locked here only to be read
    as they are now, however a transaction is isolated.
    """
    links = TaskRunRecord.depends_on.through._base_manager.using(using)
    found = links.filter(to_taskrunrecord__in=pks).order_by("pk").select_for_update()
    dependents: dict[int, set[int]] = defaultdict(set)
    for dependency, dependent in found.values_list("to_taskrunrecord_id", "from_taskrunrecord_id"):
        dependents[dependent].add(dependency)
    if not dependents:
        return pks
    finished = TaskRunRecord.objects.using(using).finished()
    for chunk in _chunks(sorted(dependents), using):
        for pk in finished.filter(pk__in=chunk).values_list("pk", flat=True):
            del dependents[pk]
    awaited = set().union(*dependents.values())
    return [pk for pk in pks if pk not in awaited]


def _relations() -> list[Any]:
    """Return every foreign key to runs, those of other apps too."""
    return [
        field
        for field in TaskRunRecord._meta.get_fields(include_hidden=True)
        if field.auto_created and not field.concrete and (field.one_to_one or field.one_to_many)
    ]


def _let_go(relation: Any, pks: list[int], *, using: str) -> None:
    """Do what a foreign key asks for when the runs ``pks`` go.

    Rows of this app go by one plain DELETE. Those of other apps go as Django
    deletes them, with their signals and what hangs on them. Where the database
    itself acts, or nobody does, nothing is to be done.
    """
    model = relation.related_model
    rows = model._base_manager.using(using).filter(**{f"{relation.field.name}__in": pks})
    if relation.on_delete is models.SET_NULL:
        rows.update(**{relation.field.name: None})
    elif relation.on_delete is models.CASCADE and model._meta.app_label == OWN_APP:
        rows._raw_delete(using)
    elif relation.on_delete is models.CASCADE:
        rows.delete()


def _chunks(pks: list[int], using: str) -> Iterator[list[int]]:
    """Split ``pks`` into lists that one statement of the database can hold."""
    size = connections[using].ops.bulk_batch_size(["pk"], pks)
    for start in range(0, len(pks), size):
        yield pks[start : start + size]
