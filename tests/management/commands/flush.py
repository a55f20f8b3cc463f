"""Empty the database after a test, though a worker may still write a last row into it."""

from __future__ import annotations

from django.core.management import CommandError
from django.core.management.commands import flush
from django.db import OperationalError

#: One is enough for a deadlock; more come of several processes of a worker.
ATTEMPTS = 5


class Command(flush.Command):
    """Django's own command, which a deadlock does not stop.

    TRUNCATE locks every table, one after the other. A worker of the test that has just
    ended may write a row meanwhile, and hold one table while it waits for another: then
    the database ends one of the two, and it may be this one.
    """

    def handle(self, **options: object) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                super().handle(**options)
                return
            except CommandError as error:
                if attempt == ATTEMPTS or not isinstance(error.__cause__, OperationalError):
                    raise
