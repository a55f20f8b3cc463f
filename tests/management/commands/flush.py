"""Empty the database after a test, though a worker may still write a last row into it."""

from __future__ import annotations

from collections.abc import Iterator

from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management import CommandError
from django.core.management.color import no_style
from django.core.management.commands import flush
from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

#: One is enough for a deadlock; more come of several processes of a worker.
ATTEMPTS = 5
#: What migrations write into a database, nothing else does.
WRITTEN = (ContentType, Permission)
#: What they wrote into each database, by its name.
known: dict[str, list[object]] = {}


class Command(flush.Command):
    """Django's own command, which a deadlock does not stop; and quicker after each test.

    It locks every table, one after the other. A worker of the test that has just ended may
    write a row meanwhile, and hold one table while it waits for another: then the database
    ends one of the two, and it may be this one.

    Django's also takes away what migrations wrote, and writes it anew: that takes longer than
    most tests. It is only done when a test has changed some of it.
    """

    def handle(self, **options: object) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self.empty(**options)
                return
            except (CommandError, OperationalError) as error:
                cause = error if isinstance(error, OperationalError) else error.__cause__
                if attempt == ATTEMPTS or not isinstance(cause, OperationalError):
                    raise

    def empty(self, **options: object) -> None:
        connection = connections[str(options["database"])]
        name = str(connection.settings_dict["NAME"])
        if known.get(name) == rows_of_migrations(connection):
            connection.ops.execute_sql_flush(list(emptying(connection)))
            # As Django does when it writes them anew.
            ContentType.objects.clear_cache()
        else:
            super().handle(**options)
            known[name] = rows_of_migrations(connection)


def rows_of_migrations(connection: BaseDatabaseWrapper) -> list[object]:
    """Return what is in the tables that migrations fill."""
    return [
        list(model.objects.using(connection.alias).order_by("pk").values_list())
        for model in WRITTEN
    ]


def emptying(connection: BaseDatabaseWrapper) -> Iterator[str]:
    """Yield the statements that empty the other tables."""
    tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
    tables = sorted({*tables} - {model._meta.db_table for model in WRITTEN})
    if connection.vendor != "postgresql":
        yield from connection.ops.sql_flush(no_style(), tables)
        return
    # TRUNCATE, which Django takes here, makes new files for each table and each index, and
    # waits for the disk. It also locks all tables, and so do we.
    names = [connection.ops.quote_name(table) for table in tables]
    yield f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE"
    yield from (f"DELETE FROM {name}" for name in names)
