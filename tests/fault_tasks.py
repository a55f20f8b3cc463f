"""Tasks for the tests of what goes wrong around them."""

from __future__ import annotations

import time
from pathlib import Path

from celery import shared_task
from django.db import connection, connections, transaction

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.recording import database


@shared_task(acks_late=True)
def wait_and_be_delivered_again(path: str) -> str:
    """Return the text of a file as soon as it exists; whoever comes after a killed one too."""
    while not Path(path).exists():
        time.sleep(0.02)
    return Path(path).read_text()


@shared_task
def close_own_connection() -> str:
    """Close the database connection that it works with, and then the journal's as well."""
    TaskRunRecord.objects.count()
    connection.close()
    connections[database()].close()
    return "closed"


@shared_task
def roll_back() -> None:
    """Fail in a transaction, which is rolled back."""
    with transaction.atomic():
        TaskRunRecord.objects.update(label="rolled back")
        raise ValueError("no")
