"""The values that stand in a column, found by skipping from one to the next in its index."""

from __future__ import annotations

from typing import Any

from django.db import connections, models

#: The least value, after it the least of those above it, and so on; null where there is no more.
_SKIPPED = """
WITH RECURSIVE skipped (step, value) AS (
    SELECT 1, MIN({column}) FROM {table}
    UNION ALL
    SELECT step + 1, (SELECT MIN({column}) FROM {table} WHERE {column} > skipped.value)
    FROM skipped WHERE value IS NOT NULL
)
SELECT value FROM skipped WHERE value IS NOT NULL ORDER BY step
"""


def values_in(model: type[models.Model], name: str, *, using: str) -> list[str]:
    """Return the values in a column of texts that are never null, each once and in order.

    One statement, and of that each value is one look into the index that begins with the
    column, however many rows have it. MariaDB and MySQL do that by themselves for DISTINCT
    ("Using index for group-by"), for which PostgreSQL and SQLite read all rows. As the database
    compares them: for MariaDB two that differ in case only are often one.
    """
    connection = connections[using]
    if connection.vendor not in {"postgresql", "sqlite"}:
        rows = model._base_manager.using(using).order_by(name)
        return list(rows.values_list(name, flat=True).distinct())
    quote = connection.ops.quote_name
    field: Any = model._meta.get_field(name)
    column, table = quote(field.column), quote(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(_SKIPPED.format(column=column, table=table))
        return [value for (value,) in cursor.fetchall()]
