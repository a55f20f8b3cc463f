"""Write several rows in one transaction, and once more where a deadlock has ended it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from django.db import OperationalError, connections, transaction

#: So often what is to be written together is tried.
TRIES = 5

Written = TypeVar("Written")


def written_together(write: Callable[[], Written], *, using: str) -> Written:
    """Return what ``write`` does, in a transaction; again if a deadlock has ended that.

    Two who lock the same rows and indexes by different ways can wait for each other: MySQL and
    MariaDB lock what is between two keys too. In a transaction of the caller's the error is
    raised; and on SQLite, which knows one writer: it has waited for the other.
    """
    connection = connections[using]
    for tries_left in reversed(range(TRIES)):
        try:
            with transaction.atomic(using=using):
                return write()
        except OperationalError:
            if not tries_left or connection.in_atomic_block or connection.vendor == "sqlite":
                raise
    raise AssertionError("unreachable")
