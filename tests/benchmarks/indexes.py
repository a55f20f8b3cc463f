"""What the indexes of the journal cost: inserts into it, and into a table of only two indexes.

The floor is a copy of the table, with all of its runs, that has the primary key and the unique
task id alone. Both get the same statements in turn: single ones, each with its commit, as whoever
sends a run writes it, and a thousand in one transaction. What was inserted goes again.

The limit of the single statement is its commit, and that a row of fifty columns is read and
checked; each index adds an entry (and its share of the write-ahead log), most of them at the right
end, where all new runs are, so the pages they need are in memory whatever the size of the table.
``indexes on disk`` is their size beside that of the two of the floor.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any
from uuid import uuid4

from django.contrib.auth.models import User
from django.db import connection, transaction
from django.utils import timezone

from celery_admin_runner.models import Source, TaskRunRecord
from tests.benchmarks.journal import TASKS, journal, task_name_of, user_name_of
from tests.benchmarks.measuring import Figure, in_turns

TABLE = TaskRunRecord._meta.db_table
LEAN = "benchmark_lean_runs"
FIELDS = [field for field in TaskRunRecord._meta.concrete_fields if not field.primary_key]
#: So many single statements in each turn, and so many in the one transaction.
SINGLE, TOGETHER = 200, 1000
_numbers = count()


def add_arguments(parser: ArgumentParser) -> None:
    """Add nothing."""


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Compare inserts one by one, and in one transaction."""
    about = {"rows": arguments.rows}
    rounds = arguments.rounds if arguments.rows >= 1_000_000 else min(arguments.rounds, 3)
    with journal(arguments.rows, keep=arguments.keep), _lean_copy(arguments.rows):
        for what, action, at_most in (
            ("insert, one by one, each with its commit", _one_by_one, 1.5),
            (f"insert of {TOGETHER} in one transaction", _together, None),
        ):
            turns = in_turns(partial(action, TABLE), partial(action, LEAN), rounds=rounds)
            yield turns.figure("indexes", what, at_most=at_most, **about)
        sizes = [_size_of_indexes(name) for name in (TABLE, LEAN)]
        if all(sizes):
            yield Figure(
                benchmark="indexes",
                what="indexes on disk, beside primary key and task id",
                value=sizes[0] / sizes[1],
                ours=f"{sizes[0] / 2**20:.0f} MiB",
                floor=f"{sizes[1] / 2**20:.0f} MiB",
                database=connection.vendor,
                **about,
            )


def _one_by_one(table: str) -> float:
    rows, insert = _rows(SINGLE), _inserting(table)
    begun_at = perf_counter()
    for row in rows:
        insert(row)
    return perf_counter() - begun_at


def _together(table: str) -> float:
    rows, insert = _rows(TOGETHER), _inserting(table)
    begun_at = perf_counter()
    with transaction.atomic():
        for row in rows:
            insert(row)
    return perf_counter() - begun_at


def _inserting(table: str) -> Callable[[list[Any]], None]:
    quote = connection.ops.quote_name
    columns = ", ".join(quote(field.column) for field in FIELDS)
    places = ", ".join(["%s"] * len(FIELDS))
    sql = f"INSERT INTO {quote(table)} ({columns}) VALUES ({places})"

    def insert(values: list[Any]) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql, values)

    return insert


def _rows(number: int) -> list[list[Any]]:
    """Return what is written of runs that are about to be sent: 4 % of them by users."""
    users = list(User.objects.order_by("pk").values_list("pk", flat=True)[:200])
    return [_row(next(_numbers), users) for _ in range(number)]


def _row(number: int, users: list[int]) -> list[Any]:
    by = users[number % len(users)] if number % 25 == 0 else None
    now = timezone.now()
    run = TaskRunRecord(
        task_id=str(uuid4()),
        task_name=task_name_of(number * 7919 % TASKS),
        args=[17, "a text"],
        kwargs={"order": number, "note": "as asked for"},
        options={"queue": "celery"},
        queue="celery",
        run_by_id=by,
        run_by_name="" if by is None else user_name_of(number % len(users)),
        source=Source.CODE if by is None else Source.ADMIN,
        created_at=now,
    )
    return [
        field.get_db_prep_save(getattr(run, field.attname), connection)  # type: ignore[arg-type]
        for field in FIELDS
    ]


@contextmanager
def _lean_copy(rows: int) -> Iterator[None]:
    """Have a copy of the table with two indexes; afterwards nothing is as it was not."""
    statements = {"postgresql": _postgresql, "mysql": _mariadb, "sqlite": _sqlite}
    try:
        with connection.cursor() as cursor:
            for statement in statements[connection.vendor]():
                cursor.execute(statement)
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE IF EXISTS {LEAN}")
            cursor.execute(f"DELETE FROM {TABLE} WHERE id > {rows}")


def _postgresql() -> Iterator[str]:
    yield f"DROP TABLE IF EXISTS {LEAN}"
    yield (
        f"CREATE TABLE {LEAN} (LIKE {TABLE} "
        "INCLUDING DEFAULTS INCLUDING IDENTITY INCLUDING CONSTRAINTS)"
    )
    yield f"INSERT INTO {LEAN} SELECT * FROM {TABLE}"
    yield f"ALTER TABLE {LEAN} ADD PRIMARY KEY (id), ADD UNIQUE (task_id)"
    yield f"SELECT setval(pg_get_serial_sequence('{LEAN}', 'id'), max(id)) FROM {LEAN}"
    yield f"VACUUM ANALYZE {LEAN}"


def _mariadb() -> Iterator[str]:
    yield f"DROP TABLE IF EXISTS {LEAN}"
    yield f"CREATE TABLE {LEAN} LIKE {TABLE}"
    for name in _other_indexes():
        yield f"ALTER TABLE {LEAN} DROP INDEX {name}"
    yield f"INSERT INTO {LEAN} SELECT * FROM {TABLE}"
    yield f"ANALYZE TABLE {LEAN}"


def _sqlite() -> Iterator[str]:
    yield f"DROP TABLE IF EXISTS {LEAN}"
    with connection.cursor() as cursor:
        cursor.execute("SELECT sql FROM sqlite_master WHERE name = %s", [TABLE])
        sql = cursor.fetchone()[0]
    sql = re.sub(r', CONSTRAINT "taskrun_active_key_uniq" UNIQUE \("active_key"\)', "", sql)
    yield sql.replace(f'"{TABLE}" (', f'"{LEAN}" (', 1)
    yield f"INSERT INTO {LEAN} SELECT * FROM {TABLE}"


def _other_indexes() -> list[str]:
    with connection.cursor() as cursor:
        constraints = connection.introspection.get_constraints(cursor, TABLE)
    return [
        name
        for name, about in constraints.items()
        if about["index"] and not about["primary_key"] and about["columns"] != ["task_id"]
    ]


def _size_of_indexes(table: str) -> int:
    """Return how many bytes the indexes take; 0 where the database does not tell."""
    asks = {
        "postgresql": f"SELECT pg_indexes_size('{table}')",
        "mysql": (
            "SELECT index_length FROM information_schema.tables "
            f"WHERE table_schema = DATABASE() AND table_name = '{table}'"
        ),
    }
    if connection.vendor not in asks:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(asks[connection.vendor])
        return int(cursor.fetchone()[0])
