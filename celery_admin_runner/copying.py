"""Runs as CSV that PostgreSQL writes itself (COPY): several times as fast as Python can.

It is the very same text. A row of which that is not certain is read and written by Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.models import Case, F, OuterRef, Subquery, When
from django.db.models.expressions import Combinable

from celery_admin_runner.cells import (
    KEY_PATHS,
    Column,
    Page,
    csv_text,
    expression_of,
    paths_of,
    rows_of,
)
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet

#: Python's csv module writes this for a row of one empty cell.
_EMPTY = b'""'


def can_copy(using: str, columns: Sequence[Column]) -> bool:
    """Tell whether a database writes these columns itself: PostgreSQL by way of psycopg 3.

    Only where the connection reads times in UTC. Python's difference of two times of another
    timezone is that of the clocks on the wall, and without USE_TZ it takes them for the current
    timezone's.
    """
    connection: Any = connections[using]
    has_copy = connection.vendor == "postgresql" and connection.Database.__name__ == "psycopg"
    is_certain = all(column.sql is not None for column in columns)
    return has_copy and connection.timezone is UTC and is_certain


def copied(
    runs: TaskRunRecordQuerySet, size: int, *, columns: Sequence[Column], enough: int
) -> Page:
    """Return the first of ``runs``: at most ``size``, and no more once they have ``enough`` bytes.

    It is one short statement: when it ends nothing of it is left on the server. What it sends
    beyond ``enough`` is thrown away as it comes; so no row that was not foreseen to be wide
    takes memory, however many there are.
    """
    connection: Any = connections[runs.db]
    try:
        first = runs.head(size)
        statement = _statement(connection, first, columns)
    except EmptyResultSet:
        return Page(text="", rows=0, last=None, is_end=True)
    lines: list[bytes] = []
    doubtful: dict[int, int] = {}
    discarded = length = 0
    pk = moment = b""
    with (
        connection.wrap_database_errors,
        connection.cursor() as cursor,
        cursor.copy(statement) as messages,
    ):
        # PostgreSQL sends each row in a message of its own.
        for message in messages:
            if length >= enough:
                discarded += 1
                continue
            line, doubt, pk, moment = bytes(message).rsplit(b",", 3)
            if doubt == b"t":
                doubtful[int(pk)] = len(lines)
            length += len(line)
            lines.append(line)
    is_end = not discarded and len(lines) < size and not first.is_cut_off
    if len(columns) == 1:
        lines = [line or _EMPTY for line in lines]
    if doubtful:
        lines = _without_doubt(runs, columns, lines, doubtful)
    return Page(
        text=b"\r\n".join([*lines, b""]).decode(),
        rows=len(lines),
        last=(_utc(moment), int(pk)) if pk else None,
        is_end=is_end,
    )


def _utc(moment: bytes) -> datetime:
    return datetime.fromisoformat(moment.decode().rstrip()).replace(tzinfo=UTC)


def _without_doubt(
    runs: TaskRunRecordQuerySet,
    columns: Sequence[Column],
    lines: list[bytes],
    doubtful: Mapping[int, int],
) -> list[bytes]:
    """Return the lines, those of the ``doubtful`` keys by Python, if they are there still."""
    keys, rows = rows_of(runs.filter(pk__in=doubtful), columns)
    certain = {key[1]: csv_text([row])[:-2].encode() for key, row in zip(keys, rows, strict=True)}
    instead = {number: certain.get(pk) for pk, number in doubtful.items()}
    found = [instead.get(number, line) for number, line in enumerate(lines)]
    return [line for line in found if line is not None]


def _statement(connection: Any, runs: TaskRunRecordQuerySet, columns: Sequence[Column]) -> str:
    """Return the COPY of what ``runs`` names: the cells, then doubt, primary key and time.

    What is read of a run stands in a query of its own, whose limit keeps the planner from
    merging the two: each JSON is made into a text once, however often that is looked at.
    """
    paths = paths_of(columns)
    names = {path: f"cell_{number}" for number, path in enumerate(paths)}
    read = runs.annotate(**{names[path]: _expression(path, runs.db) for path in paths})
    query = read.values(*names.values()).query
    runs_sql = connection.ops.compose_sql(*query.get_compiler(runs.db).as_sql())

    def over_read(sql: str, column: Column) -> str:
        return sql.format(*(names[path] for path in column.reads))

    doubts = [over_read(column.doubt, column) for column in columns if column.doubt]
    # psycopg could not read a time either if PostgreSQL wrote it in another style than ISO.
    created_at, pk = (names[path] for path in KEY_PATHS)
    cells = [
        *(over_read(column.sql or "NULL", column) for column in columns),
        " OR ".join(doubts) or "false",
        pk,
        f"{created_at} AT TIME ZONE 'UTC'",
    ]
    select = " ".join(["SELECT", ", ".join(cells), "FROM", f"({runs_sql}) AS runs"])
    return f"COPY ({select}) TO STDOUT (FORMAT csv, ENCODING 'UTF8')"


def _expression(path: str, using: str) -> Combinable:
    """Return what is read at a path, as an expression.

    What a foreign key refers to is looked up only where there is one: mostly there is none.
    """
    reference, _, name = path.partition("__")
    if name:
        model: Any = TaskRunRecord._meta.get_field(reference).related_model
        found = model._base_manager.filter(pk=OuterRef(reference)).values(name)
        return Case(When(**{f"{reference}__isnull": False}, then=Subquery(found)))
    expression = expression_of(path, using)
    return F(expression) if isinstance(expression, str) else expression
