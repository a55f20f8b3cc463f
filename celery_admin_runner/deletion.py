"""Delete runs, with all that hangs on them: a batch at a time, each its own short transaction."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, cast

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Exists, F, Lookup, OuterRef, Q
from django.db.models.sql.compiler import SQLCompiler
from django.utils import timezone

from celery_admin_runner.deadlocks import written_together
from celery_admin_runner.forking import fork_waits
from celery_admin_runner.models import Lease, OpenDependency, TaskRunRecord
from celery_admin_runner.moments import exactly
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.states import FINISHED, UNFINISHED

#: How many runs one transaction deletes at most, unless another number is asked for.
BATCH_SIZE = 5000
#: So many keys are read at a time.
PAGE_SIZE = 5000
#: A transaction writes as many runs as take so long, in seconds: for so long others wait, for a
#: run that is about to go, and on SQLite for the whole file.
AIMS = {"postgresql": 0.02, "sqlite": 0.06}
OTHER_AIM = 0.025
#: The first one writes so many, and each at least: with fewer, what is asked once for each takes
#: longer than the rows. Where that needs no way to a server, fewer will do.
FIRST_SIZE = 250
FIRST_SIZES = {"sqlite": 100}
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

    Each list of ``keys`` goes in as many transactions as are needed for each to be short; yields
    after each list how many runs went. ``runs`` should be asked for so that no index but that on
    the keys serves. What is not in it any more (it was moved meanwhile) stays whole, and so does
    a run for which an unfinished one waits that does not go with it. One that somebody else
    holds just now stays for the next time. Rows go by plain DELETEs: ``post_delete`` is not sent
    for runs.
    """
    connection = connections[runs.db]
    leases = Lease.objects.using(runs.db)
    leases.bulk_create([Lease(name=TURN, expires_at=timezone.now())], ignore_conflicts=True)
    vendor = connection.vendor
    pace = Pace(AIMS.get(vendor, OTHER_AIM), FIRST_SIZES.get(vendor, FIRST_SIZE))
    begun_at = 0.0

    def delete(pks: list[int]) -> int:
        nonlocal begun_at
        # Prunes take turns, else each could hold what the other one waits for.
        # On SQLite this waits for the whole file: it refuses to write at once
        # after it read what has changed since.
        leases.filter(name=TURN).update(holder=None)
        begun_at = time.perf_counter()
        return _delete_some(runs, pks)

    for pks in keys:
        number = start = 0
        while start < len(pks):
            chunk = pks[start : start + pace.size]
            with fork_waits(connection):
                # A worker locks the index on the task id first, and then the row.
                number += written_together(partial(delete, chunk), using=runs.db)
            pace.wrote(len(chunk), time.perf_counter() - begun_at)
            start += len(chunk)
            if not connection.features.has_select_for_update:
                time.sleep(BREATH_SECONDS)
        yield number


class Pace:
    """How many rows a transaction is to write for it to take as long as it may, in seconds."""

    def __init__(self, aim: float, least: int) -> None:
        self.size = self._least = least
        self._aim = aim

    def wrote(self, rows: int, seconds: float) -> None:
        """Learn from a transaction.

        One that took long may have met with something that is over, so the next has half as
        many at least; and what the few rows of a small one took says little about many.
        """
        if rows < self.size and seconds < self._aim:
            return
        fitting = int(rows * self._aim / max(seconds, 1e-6))
        self.size = max(self._least, min(max(fitting, self.size // 2), self.size * 2))


class Among(Lookup):
    """The condition that a column holds one of these keys, see ``_keys``."""

    prepare_rhs = False

    def __init__(self, column: str, keys: Sequence[int]) -> None:
        super().__init__(F(column), keys)

    def as_sql(  # type: ignore[override]
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper
    ) -> tuple[str, list[Any]]:
        """Write the column, and then the keys."""
        column, parameters = self.process_lhs(compiler, connection)
        keys, more = _keys(self.rhs, connection.alias)
        return f"{column} {keys}", [*parameters, *more]


def pages_of(
    runs: TaskRunRecordQuerySet, *columns: str, along: str, newest_first: bool = False
) -> Iterator[list[Any]]:
    """Yield these runs as tuples that begin with the primary key, PAGE_SIZE at most at a time.

    In the order of the column ``along``, and of the key: each page goes on where the last one
    ended, so that nothing is read twice, not even what the database still knows of rows that are
    gone. Nothing else should be asked of ``runs``, for only the index on ``along`` to serve.
    """
    order, beyond = ("-", "lt") if newest_first else ("", "gt")
    ordered = runs.order_by(*dict.fromkeys([f"{order}{along}", f"{order}pk"]))
    rows = ordered.values_list("pk", along, *columns)
    page: list[Any] = list(rows[:PAGE_SIZE])
    while page:
        yield page
        key, value = page[-1][0], exactly(page[-1][1], runs.db)
        after = Q(**{f"{along}__{beyond}": value}) | Q(**{f"pk__{beyond}": key})
        page = list(rows.filter(after, **{f"{along}__{beyond}e": value})[:PAGE_SIZE])


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


def in_batches(keys: Iterable[list[int]], size: int) -> Iterator[list[int]]:
    """Yield the same keys, ``size`` at a time; the last ones may be fewer."""
    batch: list[int] = []
    for some in keys:
        batch += some
        while len(batch) >= size:
            yield batch[:size]
            batch = batch[size:]
    if batch:
        yield batch


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

    Rows are locked first, so that a run that is moved meanwhile keeps its output; from then on
    nobody can refer to them anew. A transaction of our own sees them as they are now: so one
    question, which only indexes answer, tells which statements would find anything. Mostly only
    that on the output would.
    MySQL can't look at the table it deletes from: the DELETE itself names only keys.
    """
    connection = connections[runs.db]
    skip_locked = connection.features.has_select_for_update_skip_locked
    locked = runs.select_for_update(skip_locked=skip_locked)
    pks = list(locked.filter(Among("pk", pks)).order_by("pk").values_list("pk", flat=True))
    if not pks:
        return 0
    references = _references(runs.db)
    is_one_awaited, are_found = True, [True] * len(references)
    # In a transaction of the caller's it would be a savepoint, and what is seen may be old.
    if not connection.savepoint_ids:
        is_one_awaited, *are_found = _answers(references, pks, using=runs.db)
    if is_one_awaited:
        pks = _without_awaited(pks, using=runs.db)
    for reference in compress(references, are_found) if pks else ():
        reference.let_go(pks)
    return delete_by_key(TaskRunRecord.objects.using(runs.db), pks) if pks else 0


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """A foreign key to runs, and what is done to its rows when their runs go."""

    using: str
    model: type[models.Model]
    field: models.ForeignKey[Any, Any]
    on_delete: Any

    def let_go(self, pks: list[int]) -> None:
        """Do what the foreign key asks for.

        Rows of this app go by one plain DELETE. Those of other apps go as Django deletes them,
        with their signals and what hangs on them.
        """
        rows = self.model._base_manager.using(self.using).filter(Among(self.field.name, pks))
        if self.on_delete is models.SET_NULL:
            rows.update(**{self.field.name: None})
        elif self.model is OpenDependency:
            _close_dependencies(rows)
        elif self.model._meta.app_label == OWN_APP:
            rows._raw_delete(self.using)
        else:
            rows.delete()


def _references(using: str) -> list[_Reference]:
    """Return the foreign keys that are to be seen to before runs go.

    Where the database itself acts, or nobody does, nothing is to be done.
    """
    return [
        _Reference(
            using=using,
            model=relation.related_model,
            field=relation.field,
            on_delete=relation.on_delete,
        )
        for relation in _relations()
        if relation.on_delete in {models.CASCADE, models.SET_NULL}
        or relation.related_model is OpenDependency
    ]


def _answers(references: list[_Reference], pks: list[int], *, using: str) -> Sequence[bool]:
    """Tell whether an unfinished run depends on one of these, and who has rows that refer to one.

    One question, written by hand: Django would need longer for it than the database. No index
    is to serve what it asks of states, for many runs can be unfinished.
    """
    quote = connections[using].ops.quote_name
    links, runs = TaskRunRecord.depends_on.through._meta.db_table, TaskRunRecord._meta.db_table
    keys, parameters = _keys(pks, using)
    names = ", ".join(["%s"] * len(FINISHED))
    is_one_awaited = [
        *("SELECT 1 FROM", quote(links), "AS link JOIN", quote(runs), "AS dependent"),
        "ON dependent.id = link.from_taskrunrecord_id",
        *("WHERE link.to_taskrunrecord_id", keys, "AND dependent.state NOT IN (", names, ")"),
    ]
    are_found = [
        ["SELECT 1 FROM", quote(table), "WHERE", quote(each.field.column), keys]
        for each in references
        for table in [each.model._meta.db_table]
    ]
    asked = ", ".join(f"EXISTS ({' '.join(each)})" for each in [is_one_awaited, *are_found])
    with connections[using].cursor() as cursor:
        all_parameters = [*parameters, *sorted(FINISHED), *parameters * len(references)]
        cursor.execute(f"SELECT {asked}", all_parameters)
        return cast("Sequence[bool]", cursor.fetchone())


def _keys(pks: Sequence[int], using: str) -> tuple[str, list[Any]]:
    """Return what follows a column that is to hold one of these keys, and its parameters.

    Written so that thousands are read as fast as few: for each parameter of an ``in`` Python
    needs longer than the database for the row. PostgreSQL gets one array, others the numbers.
    """
    if connections[using].vendor == "postgresql":
        return "= ANY(%s)", [list(pks)]
    return f"IN ({', '.join(map(str, map(int, pks)))})", []


def delete_by_key(rows: models.QuerySet[Any], pks: Sequence[int]) -> int:
    """Delete those of these rows that have one of these keys, by a plain DELETE.

    MariaDB 10.11 reads all of a small table though the DELETE names keys, and waits for each
    row that somebody else holds. So there only the keys count: whoever gives them has locked
    what else ``rows`` asks for.
    """
    if connections[rows.db].vendor != "mysql":
        return rows.filter(Among("pk", pks))._raw_delete(rows.db)
    quote = connections[rows.db].ops.quote_name
    table, key = quote(rows.model._meta.db_table), quote(rows.model._meta.pk.column or "")
    keys, parameters = _keys(pks, rows.db)
    where = f"FORCE INDEX (PRIMARY) WHERE {table}.{key} {keys}"
    with connections[rows.db].cursor() as cursor:
        cursor.execute(" ".join(["DELETE", table, "FROM", table, where]), parameters)
        return int(cursor.rowcount)


def _without_awaited(pks: list[int], *, using: str) -> list[int]:
    """Return those of these locked runs that no unfinished run depends on that stays.

    That was asked when they were chosen. Since then a run may have come that waits for one;
    from now on none can, for it would lock the same row. Rows are locked here only to be read
    as they are now, however a transaction is isolated.
    """
    links = TaskRunRecord.depends_on.through._base_manager.using(using)
    found = links.filter(Among("to_taskrunrecord", pks)).order_by("pk").select_for_update()
    dependents: dict[int, set[int]] = defaultdict(set)
    for dependency, dependent in found.values_list("to_taskrunrecord_id", "from_taskrunrecord_id"):
        dependents[dependent].add(dependency)
    if not dependents:
        return pks
    finished = TaskRunRecord.objects.using(using).finished()
    ended = finished.filter(Among("pk", sorted(dependents))).order_by()
    for pk in ended.values_list("pk", flat=True):
        del dependents[pk]
    going = set(pks)
    # What stays because one waits for it may be waiting for others in turn.
    staying = [pk for pk in dependents if pk not in going]
    while staying:
        needed = going & dependents.pop(staying.pop(), set())
        going -= needed
        staying += needed
    return [pk for pk in pks if pk in going]
def _close_dependencies(rows: models.QuerySet[Any]) -> None:
    """Delete what says that a run waits for another one: one of the two goes.

    They are mostly none; then nothing is deleted, and nobody waited for.
    """
    found = rows.order_by("pk").select_for_update()
    if keys := list(found.values_list("pk", flat=True)):
        delete_by_key(OpenDependency.objects.using(rows.db), keys)


def _relations() -> list[Any]:
    """Return every foreign key to runs, those of other apps too."""
    return [
        field
        for field in TaskRunRecord._meta.get_fields(include_hidden=True)
        if field.auto_created and not field.concrete and (field.one_to_one or field.one_to_many)
    ]
