"""The tasks of the measurements; the worker imports them by name."""

from __future__ import annotations

import sys
import time
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import shared_task
from django.db import connections

from celery_admin_runner.base import DjangoTask
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import run_fields


@shared_task
def nothing(a: int = 1, b: int = 2) -> None:
    """Do nothing."""


@shared_task(base=DjangoTask)
def nothing_guarded(a: int = 1, b: int = 2) -> None:
    """Do nothing, as a task that may have the journal's features, and has none."""


@shared_task(ignore_result=True)
def two_statements() -> None:
    """Insert a row into the journal and update it, and nothing else: no less could be done."""
    connection, insert, update, values = _statements()
    values["task_id"] = task_id = str(uuid4())
    with connection.cursor() as cursor:
        cursor.execute(insert, list(values.values()))
        cursor.execute(update, [State.SUCCESS, task_id])


@cache
def _statements() -> tuple[Any, str, str, dict[str, Any]]:
    """Return a connection of this process's own, that lasts, and what is executed by it."""
    connection = connections.create_connection("default")
    quote = connection.ops.quote_name
    table = quote(TaskRunRecord._meta.db_table)
    run = TaskRunRecord(**run_fields(state=State.STARTED))
    values = {
        field.column: field.get_db_prep_save(getattr(run, field.attname), connection)
        for field in TaskRunRecord._meta.concrete_fields
        if not field.primary_key
    }
    columns, places = ", ".join(map(quote, values)), ", ".join(["%s"] * len(values))
    insert = f"INSERT INTO {table} ({columns}) VALUES ({places})"
    ended = f"finished_at = {quote('created_at')}"
    update = f"UPDATE {table} SET state = %s, {ended} WHERE task_id = %s"
    return connection, insert, update, values


@shared_task(ignore_result=True)
def print_lines(path: str, number: int) -> None:
    """Write down the time, then print so many lines."""
    tell_time(path)
    for n in range(number):
        sys.stdout.write(f"{n:7} of {number} orders were sent to their customers by mail\n")


@shared_task(ignore_result=True)
def tell_time(path: str) -> None:
    """Write down the time, for who waits for it, in a file that appears at once."""
    part = Path(f"{path}.part")
    part.write_text(str(time.time()))
    part.rename(path)
