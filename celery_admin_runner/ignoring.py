"""Calls that are ignored for a while, because the same call has succeeded."""

from __future__ import annotations

from datetime import datetime

from celery_admin_runner.models import TaskRunRecord

#: What is kept as the exception of a call that was ignored.
IGNORED = "Skipped: the same call succeeded at {at}, and is ignored until {until}."


def open_window(key: str, now: datetime, using: str) -> TaskRunRecord | None:
    """Return the run since whose success calls of this key are ignored; None: they are not."""
    rows = TaskRunRecord.objects.using(using).filter(unique_key=key, ignore_until__gt=now)
    return rows.order_by("-ignore_until").first()
