"""Journals of many runs, made fast: the database makes the rows itself.

They are like those of a site with 500 tasks and 200 users over a year: half of the runs are of
ten tasks, 2 % have failed, 4 % are of users, and of the newest 200 some are not finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from time import perf_counter
from typing import Any

from django.contrib.auth.models import User
from django.core.management.color import no_style
from django.db import connection, models

from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.states import State
from tests.benchmarks.measuring import say

TASKS, USERS, DAYS = 500, 200, 365
#: So many of the newest runs may be unfinished.
YOUNG = 200
#: Who may see and do everything in a journal that is made here.
ADMIN = "benchmark-admin"
#: Rows that one statement makes.
AT_ONCE = 500_000

_MINUTES = {
    "postgresql": "now() - ({minutes}) * interval '1 minute'",
    "mysql": "utc_timestamp(6) - interval round(({minutes}) * 60000000) microsecond",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-' || ({minutes}) || ' minutes')",
}
_NUMBERS = {
    "postgresql": "(SELECT generate_series({first}::bigint, {last}) AS n) AS numbers",
    "mysql": "(SELECT seq AS n FROM seq_{first}_to_{last}) AS numbers",
    "sqlite": (
        "(WITH RECURSIVE r(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM r WHERE n < {last}) "
        "SELECT n FROM r) AS numbers"
    ),
}


def task_id_of(number: int) -> str:
    """Return the task id of the run with this number, from 1 on; the largest is the newest."""
    return md5(str(number).encode(), usedforsecurity=False).hexdigest()


def task_name_of(number: int) -> str:
    """Return the name of one of the tasks, from 0 on; of the first ten are half of the runs."""
    return f"shop.area{number // 20}.task_{number}"


def user_name_of(number: int) -> str:
    """Return the name of one of the users, from 0 on."""
    return f"user{number}"


@contextmanager
def journal(rows: int, *, keep: bool = False) -> Iterator[None]:
    """Use a database of its own with so many runs; ``keep``: leave it, and take what was left.

    Everything goes through the default connection, which is another one afterwards.
    """
    settings = connection.settings_dict
    name, test_name = settings["NAME"], settings["TEST"]["NAME"]
    connection.close()
    settings["TEST"]["NAME"] = _name_beside(test_name or f"test_{name}", rows)
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False, keepdb=keep)
    try:
        newest = TaskRunRecord.objects.order_by("-pk").values_list("pk", flat=True).first()
        if (newest or 0) != rows or not User.objects.filter(username=ADMIN).exists():
            fill(rows)
        yield
    finally:
        connection.creation.destroy_test_db(name, verbosity=0, keepdb=keep)
        settings["NAME"], settings["TEST"]["NAME"] = name, test_name


def _name_beside(name: str, rows: int) -> str:
    stem, dot, ending = name.rpartition(".") if connection.vendor == "sqlite" else (name, "", "")
    return f"{stem}_{rows}{dot}{ending}"


def fill(rows: int) -> None:
    """Empty the journal, and make so many runs in it, numbered by their primary keys."""
    begun_at = perf_counter()
    _empty()
    users = _make_users()
    model = TaskRunRecord
    with connection.schema_editor() as editor:
        for index in model._meta.indexes:
            editor.remove_index(model, index)
    _prepare()
    for first in range(1, rows + 1, AT_ONCE):
        _insert(first, min(first + AT_ONCE - 1, rows), rows, users)
        say(f"journal: {min(first + AT_ONCE - 1, rows):,} runs")
    for index in model._meta.indexes:
        with connection.schema_editor() as editor:
            editor.add_index(model, index)
    _drop_surplus_indexes()
    _settle()
    say(f"journal of {rows:,} runs: {perf_counter() - begun_at:.0f} s")


def _drop_surplus_indexes() -> None:
    """Drop what Django makes on MariaDB, where each foreign key has an index at any time."""
    kept = {index.name for index in TaskRunRecord._meta.indexes}
    with connection.cursor() as cursor:
        table = TaskRunRecord._meta.db_table
        found = connection.introspection.get_constraints(cursor, table)
    for name, about in found.items():
        if about["index"] and not about["unique"] and name not in kept:
            with connection.schema_editor() as editor:
                index = models.Index(name=name, fields=["id"])
                editor.execute(index.remove_sql(TaskRunRecord, editor))


def _empty() -> None:
    for model in (*_hanging_on(TaskRunRecord), TaskRunRecord):
        model._base_manager.all()._raw_delete(connection.alias)


def _hanging_on(model: type[models.Model]) -> list[Any]:
    fields = model._meta.get_fields(include_hidden=True)
    relations = [field for field in fields if field.auto_created and not field.concrete]
    return [each.related_model for each in relations if each.related_model is not model]


def _make_users() -> int:
    """Make the users, and return the primary key of the first; each next has the next one."""
    User.objects.all().delete()
    first = 1
    User.objects.bulk_create(
        User(pk=first + n, username=user_name_of(n), is_staff=True) for n in range(USERS)
    )
    User.objects.bulk_create(
        [User(pk=first + USERS, username=ADMIN, is_staff=True, is_superuser=True)]
    )
    return first


def _prepare() -> None:
    """Let the connection write fast; nothing here has to survive a crash."""
    if connection.vendor == "sqlite":
        connection.ensure_connection()
        connection.connection.create_function(
            "md5", 1, lambda n: task_id_of(n), deterministic=True
        )
    statements = {
        "postgresql": ["SET synchronous_commit = off"],
        "mysql": ["SET unique_checks = 0", "SET foreign_key_checks = 0"],
        "sqlite": ["PRAGMA synchronous = OFF", "PRAGMA cache_size = -200000"],
    }
    with connection.cursor() as cursor:
        for statement in statements[connection.vendor]:
            cursor.execute(statement)


def _settle() -> None:
    """Let the database tidy up, and learn what is in the tables."""
    table = connection.ops.quote_name(TaskRunRecord._meta.db_table)
    statements = {
        "postgresql": [
            f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}",
            "VACUUM ANALYZE",
            "RESET synchronous_commit",
        ],
        "mysql": [
            "SET unique_checks = 1",
            "SET foreign_key_checks = 1",
            f"ANALYZE TABLE {table}",
        ],
        "sqlite": ["PRAGMA synchronous = FULL"],
    }
    # The users were numbered by hand.
    resets = connection.ops.sequence_reset_sql(no_style(), [User])
    with connection.cursor() as cursor:
        for statement in (*statements[connection.vendor], *resets):
            cursor.execute(statement)


def _insert(first: int, last: int, rows: int, first_user: int) -> None:
    """Make the runs of these numbers, of a journal of ``rows``."""
    values = _values(rows, first_user)
    fields = TaskRunRecord._meta.concrete_fields
    written = {field.column: values.get(field.name, _default(field)) for field in fields}
    quote = connection.ops.quote_name
    numbers = _NUMBERS[connection.vendor].format(first=first, last=last)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {quote(TaskRunRecord._meta.db_table)} "
            f"({', '.join(map(quote, written))}) SELECT {', '.join(written.values())} "
            f"FROM {numbers}"
        )


def _default(field: models.Field[Any, Any]) -> str:
    """Return the default of a field as SQL."""
    if field.null:
        return "NULL"
    default = field.get_default()
    if isinstance(default, list | dict):
        return "'[]'" if isinstance(default, list) else "'{}'"
    return str(default) if isinstance(default, int) else f"'{default}'"


def _values(rows: int, first_user: int) -> dict[str, str]:
    """Return what stands in the columns, as SQL over the row's number ``n``, by field."""
    vendor = connection.vendor

    def join(*parts: str) -> str:
        return f"({' || '.join(parts)})" if vendor != "mysql" else f"CONCAT({', '.join(parts)})"

    def divided(number: str, by: int) -> str:
        return f"({number} {'DIV' if vendor == 'mysql' else '/'} {by})"

    def random(below: int, salt: int) -> str:
        """Return a number that looks random, from 0 on."""
        return f"((((n + {salt}) * 7919) + {divided(f'(n + {salt})', 13)}) % {below})"

    number = "CAST(n AS CHAR)" if vendor == "mysql" else "CAST(n AS TEXT)"
    chance, is_users = random(1000, 3), f"({random(100, 7)} < 4)"
    task = f"(CASE WHEN n % 2 = 0 THEN {random(10, 5)} ELSE {random(TASKS, 11)} END)"
    user = random(USERS, 17)
    state = (
        f"(CASE WHEN n > {rows - YOUNG} AND n % 4 = 0 THEN '{State.PENDING}' "
        f"WHEN n > {rows - YOUNG} AND n % 4 = 1 THEN '{State.STARTED}' "
        f"WHEN {chance} < 20 THEN '{State.FAILURE}' WHEN {chance} < 24 THEN '{State.REVOKED}' "
        f"WHEN {chance} < 26 THEN '{State.EXPIRED}' WHEN {chance} < 27 THEN '{State.LOST}' "
        f"ELSE '{State.SUCCESS}' END)"
    )
    age = f"({rows} - n) * {DAYS * 1440.0 / max(rows, 1):.9f} + 2"

    def ago(seconds: str) -> str:
        return _MINUTES[vendor].format(minutes=f"{age} - ({seconds}) / 60.0")

    is_young = f"n > {rows - YOUNG} AND n % 4 < 2"
    has_started = f"NOT (n > {rows - YOUNG} AND n % 4 = 0)"
    has_failed = f"({state} = '{State.FAILURE}')"
    repeat = "replace(hex(zeroblob(20)), '0', {})" if vendor == "sqlite" else "repeat({}, 40)"
    line = "'  File \"shop/tasks.py\", line 10, in run'"
    cast = "::jsonb" if vendor == "postgresql" else ""
    kwargs = join("'{\"order\": '", number, '\', "note": "as asked for"}\'')
    label, user_name = join("'Order '", number), join("'user'", user)
    return {
        "id": "n",
        "task_id": f"md5({number})" if vendor != "sqlite" else "md5(n)",
        "task_name": join("'shop.area'", divided(task, 20), "'.task_'", task),
        "label": f"CASE WHEN n % 10 = 0 THEN {label} ELSE '' END",
        "args": f"'[17, \"a text\"]'{cast}",
        "kwargs": f"{kwargs}{cast}",
        "queue": "'celery'",
        "run_by": f"CASE WHEN {is_users} THEN {user} + {first_user} END",
        "run_by_name": f"CASE WHEN {is_users} THEN {user_name} ELSE '' END",
        "source": f"CASE WHEN {is_users} THEN '{Source.ADMIN}' WHEN n % 5 = 0 "
        f"THEN '{Source.PERIODIC}' ELSE '{Source.CODE}' END",
        "state": state,
        "created_at": ago("0"),
        "published_at": ago("0.01"),
        "started_at": f"CASE WHEN {has_started} THEN {ago('1')} END",
        "finished_at": f"CASE WHEN NOT ({is_young}) THEN {ago(f'2 + {random(60, 23)}')} END",
        "result": f"CASE WHEN {state} = '{State.SUCCESS}' THEN '{{\"sent\": 3}}'{cast} END",
        "exception": f"CASE WHEN {has_failed} THEN 'ValueError: no such order' ELSE '' END",
        "traceback": f"CASE WHEN {has_failed} THEN {repeat.format(line)} ELSE '' END",
        "worker": "'celery@worker1'",
    }
