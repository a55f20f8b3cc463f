"""The same small question about each of many values, in a statement for hundreds of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.db import connections
from django.db.models import QuerySet
from django.db.models.expressions import RawSQL

#: So many values one statement asks about where it grows with them: SQLite takes 500 parts, and
#: 999 parameters.
PARTS_MAX = 300
#: PostgreSQL plans this once; the parts of the other it plans one by one.
_LATERAL = (
    "SELECT answer.*, asked.n - 1 FROM unnest(%s::text[]) WITH ORDINALITY AS asked (value, n) "
    "CROSS JOIN LATERAL ({text}) AS answer"
)
#: SQLite cuts off no part that is not put into another.
_PART = "SELECT answer.*, {number} FROM ({text}) AS answer"


def of_each(
    values: Sequence[str],
    question: Callable[[RawSQL], QuerySet[Any, Any]],
    *,
    using: str,
    wrapped: str = "{}",
) -> Iterator[tuple[Any, ...]]:
    """Yield the answers to ``question`` for each value: the value, and the columns it asks for.

    ``question`` makes a query set for a value that stands for each; in its columns there is no
    FROM, be it that of a subquery or of EXTRACT. Cut off, it reads of an index that begins with
    the value only so much. No index serves "the first of each group" otherwise: all rows of the
    group are read, and MariaDB and MySQL take from a value that another row gives no range but
    the whole group. ``wrapped`` is SQL around it.
    """
    if not values:
        return
    if connections[using].vendor == "postgresql":
        text, parameters = _compiled(question(RawSQL("asked.value", ())), using)
        sql = _LATERAL.format(text=wrapped.format(text))
        yield from _answers(values, sql, [list(values), *parameters], using=using)
        return
    place = object()
    text, parameters = _compiled(question(RawSQL("%s", (place,))), using)
    for start in range(0, len(values), PARTS_MAX):
        some = values[start : start + PARTS_MAX]
        parts = (_part(wrapped.format(text), number, using) for number in range(len(some)))
        given = [value if each is place else each for value in some for each in parameters]
        yield from _answers(some, " UNION ALL ".join(parts), given, using=using)


def _part(text: str, number: int, using: str) -> str:
    """Return the question with a number behind its columns.

    MariaDB writes a table for each part that is put into another, which takes longer than to
    answer it. The first FROM is behind the columns: in these none stands.
    """
    if connections[using].vendor == "sqlite":
        return _PART.format(text=text, number=number)
    columns, _from, rest = text.partition(" FROM ")
    return f"({columns}, {number} FROM {rest})"


def _compiled(rows: QuerySet[Any, Any], using: str) -> tuple[str, tuple[Any, ...]]:
    text, parameters = rows.query.get_compiler(using).as_sql()
    return text, tuple(parameters)


def _answers(
    values: Sequence[str], sql: str, parameters: list[Any], *, using: str
) -> Iterator[tuple[Any, ...]]:
    with connections[using].cursor() as cursor:
        cursor.execute(sql, parameters)
        for *answer, number in cursor.fetchall():
            yield (values[number], *answer)
