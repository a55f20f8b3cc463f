"""Calls that are ignored for a while, because the same call has succeeded."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from celery.app.task import Context, Task
from celery.result import EagerResult
from django.core.exceptions import ImproperlyConfigured

from celery_admin_runner.base import IGNORE_FOR, DjangoTask, OwnOptions
from celery_admin_runner.headers import IGNORE_HEADER, KEY_HEADER
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.statements import Window
from celery_admin_runner.states import State

#: What is kept as the exception of a call that was ignored.
IGNORED = "Skipped: the same call succeeded at {at}, and is ignored until {until}."


def is_ignoring(task: Task, own: OwnOptions | None = None) -> bool:
    """Tell whether a call is ignored in a window that an earlier one has opened.

    Raises ImproperlyConfigured if nobody says how long a window is.
    """
    if not isinstance(task, DjangoTask):
        return False
    after, window = task.ignore_task_after_success, task.ignore_task_timedelta
    if own is not None:
        window = window if own.ignore_task_timedelta is None else own.ignore_task_timedelta
        if own.ignore_task_after_success is not None:
            after = own.ignore_task_after_success
            window = window if after else None
    if after and window is None:
        raise ImproperlyConfigured(
            f"{task.name} is to be ignored after a success, and nothing says for how long: "
            "give ignore_task_timedelta."
        )
    return window is not None


def override_of(task: DjangoTask, own: OwnOptions) -> float | None:
    """Return what a caller said of the window after this run, in seconds, for IGNORE_HEADER."""
    if own.ignore_task_after_success is False:
        return 0
    window = own.ignore_task_timedelta
    if window is None and own.ignore_task_after_success:
        window = task.ignore_task_timedelta
    return None if window is None else window.total_seconds()


def open_window(key: str, now: datetime, using: str) -> TaskRunRecord | None:
    """Return the run since whose success calls of this key are ignored; None: they are not."""
    rows = TaskRunRecord.objects.using(using).filter(unique_key=key, ignore_until__gt=now)
    return rows.order_by("-ignore_until").first()


def ignored_fields(success: TaskRunRecord, now: datetime) -> dict[str, Any]:
    """Return the fields of the row of a call that is ignored since this run's success."""
    at, until = success.finished_at or now, success.ignore_until or now
    why = IGNORED.format(at=at.isoformat(" ", "seconds"), until=until.isoformat(" ", "seconds"))
    return {"state": State.IGNORED, "finished_at": now, "exception": why}


def result_of(run: TaskRunRecord) -> EagerResult:
    """Return the result of a call that was ignored: known, whatever the result backend is."""
    return EagerResult(run.task_id, None, State.IGNORED.value, name=run.task_name)


def arming(task: Task | None, request: Context, now: datetime) -> dict[str, Any]:
    """Return the field that opens a window with a success, if it is to open one.

    What the body asked for comes before what the caller said, and that before the task.
    """
    key = (request.headers or {}).get(KEY_HEADER)
    if not key or not isinstance(task, DjangoTask):
        return {}
    window = getattr(request, IGNORE_FOR, None)
    seconds = request.headers.get(IGNORE_HEADER)
    if window is None and seconds is not None:
        window = timedelta(seconds=seconds)
    if window is None and task.ignore_task_after_success:
        window = task.ignore_task_timedelta
    if not window:
        return {}
    return {"ignore_until": Window(key=key, now=now, until=now + window)}
