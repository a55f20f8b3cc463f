"""The statement by which a worker moves a run, written by hand.

Django builds an UPDATE anew each time, which takes longer than the database takes to execute
it: of a task that does nothing, as much as all the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections, transaction

from celery_admin_runner.changes import Owner, told
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.recording import OWN_ALIAS, database
from celery_admin_runner.states import FINISHED, State

#: Tells PostgreSQL not to wait for its disk at the end of this statement's transaction; a
#: condition, so that it costs no statement of its own.
_WITHOUT_WAITING = "(SELECT set_config('synchronous_commit', 'off', true)) = 'off'"


@dataclass(frozen=True)
class IfUnset:
    """A value for a field that is null; one that is not keeps its own."""

    value: Any


@dataclass(frozen=True)
class Window:
    """A moment ``until``, unless a row of the same ``unique_key`` has a later one than ``now``.

    MySQL takes no subquery on the table that it updates, but one on what that gave.
    """

    key: str
    now: datetime
    until: datetime


def move(
    task_id: str,
    *,
    attempt: int | None,
    sources: Collection[State],
    target: State,
    must_last: bool = True,
    using: str | None = None,
    **fields: Any,
) -> int:
    """Move a run, if it is in no later attempt, as ``TaskRunRecordQuerySet.transition`` does.

    By the connection by which records are written, or that of the alias ``using``.

    What need not last is not waited for until it is on the disk, where the database can be
    told so for one statement: if its machine dies within a second, it is as if never said.
    """
    # Once: in the transaction in which it is told of a move the answer would be another one.
    alias = using or database()

    def runs() -> TaskRunRecordQuerySet:
        ours = TaskRunRecord.objects.using(alias).filter(task_id=task_id)
        return ours if attempt is None else ours.filter(retries__lte=attempt)

    def update(pks: Collection[int] | None) -> int:
        # One row: what is locked is still as it was seen.
        if pks is not None and not pks:
            return 0
        return _update(
            alias,
            task_id,
            attempt=attempt,
            sources=sources,
            must_last=must_last,
            state=target,
            **fields,
        )

    fields.setdefault("seen_at", None)
    if target in FINISHED:
        fields.setdefault("active_key", None)
    return told(
        runs,
        sender=TaskRunRecord,
        sources=sources,
        target=target,
        update=update,
        owners=lambda: _owners(alias, task_id),
    )


def hand_over(task_id: str, now: datetime, *, using: str) -> int:
    """Write that a run was sent, as ``TaskRunRecordQuerySet.hand_over`` does of many.

    Of one that its sender has recorded itself: so it was UNSENT, never kept, and has no
    ``due_at``.
    """
    connection = connections[using]
    quote = connection.ops.quote_name
    meta = TaskRunRecord._meta
    state, sent_at = quote("state"), quote("published_at")
    sql = " ".join(
        [
            *("UPDATE", quote(meta.db_table), "SET", state, "= CASE WHEN", state, "= %s THEN %s"),
            *("ELSE", state, "END,", sent_at, "= COALESCE(", sent_at, ", %s)"),
            *("WHERE", quote("task_id"), "= %s"),
        ]
    )
    moment: Any = meta.get_field("published_at")
    values = [
        *(State.UNSENT.value, State.PENDING.value),
        *(moment.get_db_prep_save(now, connection), task_id),
    ]
    return told(
        lambda: TaskRunRecord.objects.using(using).filter(task_id=task_id),
        sender=TaskRunRecord,
        sources=[State.UNSENT],
        target=State.PENDING,
        update=lambda pks: _executed(sql, values, using),
        owners=lambda: _owners(using, task_id),
    )


def _owners(alias: str, task_id: str) -> list[Owner]:
    """Return whose the run is: one row, or none."""
    connection = connections[alias]
    quote = connection.ops.quote_name
    meta = TaskRunRecord._meta
    user: Any = meta.get_field("run_by")
    columns = f"{quote(user.column)}, {quote(meta.pk.column or '')}"
    sql = " ".join(
        ["SELECT", columns, "FROM", quote(meta.db_table), "WHERE", quote("task_id"), "= %s"]
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [task_id])
        return [(user.target_field.to_python(key), pk) for key, pk in cursor.fetchall()]


def _update(
    alias: str,
    task_id: str,
    *,
    attempt: int | None,
    sources: Collection[State],
    must_last: bool,
    **fields: Any,
) -> int:
    """Execute the statement; returns how many rows it changed."""
    connection = connections[alias]
    quote = connection.ops.quote_name
    meta = TaskRunRecord._meta
    assignments: list[str] = []
    values: list[Any] = []
    for name, value in fields.items():
        field: Any = meta.get_field(name)
        column = quote(field.column)
        if isinstance(value, IfUnset):
            assignments.append(f"{column} = COALESCE({column}, %s)")
            given = [value.value]
        elif isinstance(value, Window):
            opened = " ".join(
                [
                    *("SELECT", column, "FROM", quote(meta.db_table)),
                    *("WHERE", quote("unique_key"), "= %s AND", column, "> %s LIMIT 1"),
                ]
            )
            is_open = " ".join(["EXISTS (SELECT 1 FROM (", opened, ") AS opened)"])
            assignments.append(f"{column} = CASE WHEN {is_open} THEN {column} ELSE %s END")
            values.append(value.key)
            given = [value.now, value.until]
        else:
            assignments.append(f"{column} = %s")
            given = [value]
        values += [field.get_db_prep_save(plain, connection) for plain in given]
    conditions = [f"{quote('task_id')} = %s"]
    values.append(task_id)
    if attempt is not None:
        conditions.append(f"{quote('retries')} <= %s")
        values.append(attempt)
    # No index is to serve the state, see ``TaskRunRecordQuerySet.in_state``.
    conditions.append(f"COALESCE({quote('state')}, '') IN ({', '.join(['%s'] * len(sources))})")
    values += [str(source) for source in sources]
    if not must_last and alias == OWN_ALIAS and connection.vendor == "postgresql":
        conditions.append(_WITHOUT_WAITING)
    sql = " ".join(
        [
            *("UPDATE", quote(meta.db_table), "SET", ", ".join(assignments)),
            *("WHERE", " AND ".join(conditions)),
        ]
    )
    return _executed(sql, values, alias)


def _executed(sql: str, values: Sequence[Any], using: str) -> int:
    """Execute a statement; returns how many rows it changed."""
    with (
        transaction.mark_for_rollback_on_error(using=using),
        connections[using].cursor() as cursor,
    ):
        cursor.execute(sql, values)
        return int(cursor.rowcount)
