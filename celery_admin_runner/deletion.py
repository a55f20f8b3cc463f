"""Delete runs, with all that hangs on them: a batch at a time, each its own short transaction."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from django.db import connections, models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from celery_admin_runner.deadlocks import written_together
from celery_admin_runner.forking import fork_waits
from celery_admin_runner.models import Lease, OpenDependency, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.states import UNFINISHED

#: How many runs one transaction deletes, unless another number is asked for.
BATCH_SIZE = 5000
#: Pause after each batch where one writer holds the whole database. SQLite knocks every
#: 0.1 s at most: without a pause this long a waiting writer would find it locked until it
#: gives up.
BREATH_SECONDS = 0.11
#: The lease whose row a batch locks, so that of several who delete one does at a time.
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


def delete_runs(runs: TaskRunRecordQuerySet, keys: Iterable[list[int]]) -> Iterator[int]:
    """Delete the runs with these primary keys that are still in ``runs`` when their turn comes.

    Each list of ``keys`` is a transaction of its own; yields after each how many runs went.
    What is not in ``runs`` any more (it was moved meanwhile) stays whole, and so does a run
    for which an unfinished one waits that does not go with it. One that somebody else holds
    just now stays for the next time. Rows go by plain DELETEs: ``post_delete`` is not sent for
    runs.
    """
    leases = Lease.objects.using(runs.db)
    leases.bulk_create([Lease(name=TURN, expires_at=timezone.now())], ignore_conflicts=True)

    def delete(pks: list[int]) -> int:
        # Prunes take turns, else each could hold what the other one waits for.
        # On SQLite this waits for the whole file: it refuses to write at once
        # after it read what has changed since.
        leases.filter(name=TURN).update(holder=None)
        return sum(_delete_some(runs, chunk) for chunk in _chunks(pks, runs.db))

    for pks in keys:
        with fork_waits(connections[runs.db]):
            # A worker locks the index on the task id first, and then the row.
            number = written_together(partial(delete, pks), using=runs.db)
        yield number
        if not connections[runs.db].features.has_select_for_update:
            time.sleep(BREATH_SECONDS)


def batches_of(
    runs: TaskRunRecordQuerySet, *, batch_size: int = BATCH_SIZE, newest_first: bool = False
) -> Iterator[list[int]]:
    """Yield the primary keys of these runs, ``batch_size`` at most at a time."""
    order, beyond = ("-pk", "pk__lt") if newest_first else ("pk", "pk__gt")
    keys = runs.order_by(order).values_list("pk", flat=True)
    pks = list(keys[:batch_size])
    while pks:
        yield pks
        pks = list(keys.filter(**{beyond: pks[-1]})[:batch_size])


def is_awaited(using: str) -> Exists:
    """Return the condition that an unfinished run waits for a run, or has waited for it."""
    waiting = TaskRunRecord.depends_on.through._base_manager.using(using).filter(
        to_taskrunrecord=OuterRef("pk"), from_taskrunrecord__state__in=list(UNFINISHED)
    )
    return Exists(waiting)


def is_protected(using: str) -> Q:
    """Return the condition that a row that refers to a run, of another app say, keeps it."""
    protected = Q(pk__in=[])
    for relation in _relations():
        if relation.on_delete not in LETTING_GO and relation.related_model is not OpenDependency:
            holders = relation.related_model._base_manager.using(using)
            protected |= Q(Exists(holders.filter(**{relation.field.name: OuterRef("pk")})))
    return protected


def _delete_some(runs: TaskRunRecordQuerySet, pks: list[int]) -> int:
    """Delete those of ``pks`` that are still in ``runs``, and before them what refers to them.

    Rows are locked first, so that a run that is moved meanwhile keeps its output.
    MySQL can't look at the table it deletes from: the DELETE itself names only keys.
    """
    features = connections[runs.db].features
    locked = runs.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
    pks = list(locked.filter(pk__in=pks).order_by("pk").values_list("pk", flat=True))
    pks = _without_awaited(pks, using=runs.db)
    if not pks:
        return 0
    for relation in _relations():
        _let_go(relation, pks, using=runs.db)
    return delete_by_key(TaskRunRecord.objects.using(runs.db), pks)


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
    """Return those of these locked runs that no unfinished run depends on that stays.

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
    going = set(pks)
    # What stays because one waits for it may be waiting for others in turn.
    staying = [pk for pk in dependents if pk not in going]
    while staying:
        needed = going & dependents.pop(staying.pop(), set())
        going -= needed
        staying += needed
    return [pk for pk in pks if pk in going]


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
    if relation.on_delete is models.RESTRICT and model is OpenDependency:
        _close_dependencies(pks, using=using)
        return
    rows = model._base_manager.using(using).filter(**{f"{relation.field.name}__in": pks})
    if relation.on_delete is models.SET_NULL:
        rows.update(**{relation.field.name: None})
    elif relation.on_delete is models.CASCADE and model._meta.app_label == OWN_APP:
        rows._raw_delete(using)
    elif relation.on_delete is models.CASCADE:
        rows.delete()


def _close_dependencies(pks: list[int], *, using: str) -> None:
    """Delete what still says that a run waits for one of these: that run has ended, or goes too.

    They are mostly none; then nothing is deleted, and nobody waited for.
    """
    rows = OpenDependency.objects.using(using)
    found = rows.filter(dependency__in=pks).order_by("pk").select_for_update()
    if keys := list(found.values_list("pk", flat=True)):
        delete_by_key(rows, keys)


def _chunks(pks: list[int], using: str) -> Iterator[list[int]]:
    """Split ``pks`` into lists that one statement of the database can hold."""
    size = connections[using].ops.bulk_batch_size(["pk"], pks)
    for start in range(0, len(pks), size):
        yield pks[start : start + size]
