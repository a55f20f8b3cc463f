"""New rows of runs, many by one statement, written by hand.

Django builds the INSERT of all columns anew for each row, which takes longer than the database
takes to execute it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_save, pre_save

from celery_admin_runner.models import TaskRunRecord

#: So many rows one statement inserts at most; fewer where the database limits parameters.
BATCH_SIZE = 200

#: Stands for a value that is one.
_PLACE = "%s"


def insert(runs: Sequence[TaskRunRecord], *, using: str) -> None:
    """Insert new runs, all or none, and give each its primary key.

    As by ``run.save(force_insert=True)`` of each: it sends the same signals, and raises the same
    errors.
    """
    for run in runs:
        pre_save.send(TaskRunRecord, instance=run, raw=False, using=using, update_fields=None)
    batches = list(_batches(runs, using))
    if len(batches) == 1:
        _insert(batches[0], using)
    else:
        with transaction.atomic(using=using, savepoint=False):
            for batch in batches:
                _insert(batch, using)
    for run in runs:
        post_save.send(
            TaskRunRecord,
            instance=run,
            created=True,
            update_fields=None,
            raw=False,
            using=using,
        )


def _batches(runs: Sequence[TaskRunRecord], using: str) -> Iterator[Sequence[TaskRunRecord]]:
    parameters = connections[using].features.max_query_params
    fitting = BATCH_SIZE if parameters is None else parameters // len(_fields())
    size = max(min(fitting, BATCH_SIZE), 1)
    for start in range(0, len(runs), size):
        yield runs[start : start + size]


def _insert(runs: Sequence[TaskRunRecord], using: str) -> None:
    """Insert runs by one statement."""
    connection = connections[using]
    fields = _fields()
    columns = list(zip(*map(_values_of(), runs), strict=True))
    shape = tuple(map(_place, fields, columns))
    prepared = [
        _prepared(field, values, connection)
        for field, values, place in zip(fields, columns, shape, strict=True)
        if place == _PLACE
    ]
    sql = _statement(using, TaskRunRecord._meta.db_table, shape, len(runs))
    parameters = [value for row in zip(*prepared, strict=True) for value in row]
    with (
        transaction.mark_for_rollback_on_error(using=using),
        connection.cursor() as cursor,
    ):
        cursor.execute(sql, parameters)
        keys = _keys(cursor, runs, using)
    for run in runs:
        run.pk = keys[run.task_id]
        run._state.adding, run._state.db = False, using


def _place(field: Any, values: Sequence[Any]) -> str:
    """Return what stands for a column's values in the statement.

    Most hold nothing, which is no parameter then.
    """
    first = values[0]
    if first or values.count(first) < len(values):
        return _PLACE
    if first is None:
        return "NULL"
    if isinstance(field, models.CharField | models.TextField):
        return "''"
    return "0" if isinstance(field, models.IntegerField) else _PLACE


def _prepared(
    field: Any, values: Sequence[Any], connection: BaseDatabaseWrapper
) -> Sequence[Any]:
    """Return the values of a column as the database takes them."""
    first = values[0]
    if all(value is first for value in values):
        return [field.get_db_prep_save(first, connection)] * len(values)
    return [field.get_db_prep_save(value, connection) for value in values]


def _keys(cursor: Any, runs: Sequence[TaskRunRecord], using: str) -> Mapping[str, int]:
    """Return the primary keys of runs that were inserted just now, by their task ids."""
    connection = connections[using]
    meta = TaskRunRecord._meta
    if connection.features.can_return_rows_from_bulk_insert:
        # No database promises their order.
        return {task_id: pk for pk, task_id in cursor.fetchall()}
    if len(runs) == 1:
        pk = connection.ops.last_insert_id(cursor, meta.db_table, str(meta.pk.column))
        return {runs[0].task_id: pk}
    inserted = TaskRunRecord.objects.using(using).filter(task_id__in=[run.task_id for run in runs])
    return dict(inserted.order_by().values_list("task_id", "pk"))


@lru_cache(maxsize=64)
def _statement(using: str, table: str, shape: tuple[str, ...], number: int) -> str:
    """Return the statement that inserts so many rows of a shape."""
    connection = connections[using]
    quote = connection.ops.quote_name
    key = TaskRunRecord._meta.pk.column
    columns = ", ".join(quote(field.column) for field in _fields())
    row = f"({', '.join(shape)})"
    parts = ["INSERT INTO", quote(table), f"({columns})", "VALUES", ", ".join([row] * number)]
    if connection.features.can_return_rows_from_bulk_insert:
        parts.append(f"RETURNING {quote(str(key))}, {quote('task_id')}")
    return " ".join(parts)


@cache
def _values_of() -> attrgetter[tuple[Any, ...]]:
    """Return what gives the values of these fields of a run."""
    return attrgetter(*(field.attname for field in _fields()))


@cache
def _fields() -> tuple[Any, ...]:
    """Return the fields of a row that its writer gives."""
    fields: Sequence[models.Field[Any, Any]] = TaskRunRecord._meta.concrete_fields
    return tuple(field for field in fields if not field.primary_key)
