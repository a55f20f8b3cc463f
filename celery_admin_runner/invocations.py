"""What becomes of a call of a DjangoTask: it starts a run, joins one, or is ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import uuid4

from celery import current_app
from celery.result import AsyncResult, EagerResult
from django.db import connections, transaction
from django.utils import timezone

from celery_admin_runner import holding, ignoring, unique
from celery_admin_runner.base import Invocation, intercept
from celery_admin_runner.contexts import PlainContext
from celery_admin_runner.headers import CONTEXT_HEADER, ROW_HEADER, RUN_HEADER
from celery_admin_runner.messages import row_header
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.publishing import context_fields, origin
from celery_admin_runner.recording import database, journal, report
from celery_admin_runner.registry import CELERY_PREFIX, get_task_info
from celery_admin_runner.states import State
from celery_admin_runner.storing import stored_call

#: With these a call belongs to a canvas, of which somebody counts, or waits for, each member.
_CANVAS = ("group_id", "chord", "chain", "link")


def connect() -> None:
    """Answer for the calls of DjangoTasks from now on."""
    intercept(answer)


def answer(invocation: Invocation) -> AsyncResult | None:
    """Answer for a call that has something to do with the journal; None: it is just sent."""
    if not _has_row(invocation) or _goes_on(invocation):
        return holding.hold(invocation)
    task, now, using = invocation.task, timezone.now(), database()
    key = unique.key_of(task, invocation.args, invocation.kwargs)
    is_free = not _is_in_canvas(invocation)
    if is_free and _is_ignoring(invocation):
        success = ignoring.open_window(key, now, using)
        if success is not None:
            return _ignore(invocation, key, success, now)
    fields = {**_context_fields(invocation), "unique_key": key}
    if is_free and _is_unique(invocation):
        fields["active_key"] = key
    try:
        held = holding.hold(invocation, fields)
        return held if held is not None else _send(invocation, fields, now)
    except unique.KeyTaken as error:
        return _join(invocation, error.holder)


def _has_row(invocation: Invocation) -> bool:
    task, own = invocation.task, invocation.own
    return bool(
        own.run_context is not None
        or own.depends_on
        or task.track
        or _is_unique(invocation)
        or _is_ignoring(invocation)
    )


def _is_unique(invocation: Invocation) -> bool:
    given = invocation.own.unique
    return bool(invocation.task.unique if given is None else given)


def _is_ignoring(invocation: Invocation) -> bool:
    task, given = invocation.task, invocation.own.ignore_task_after_success
    if given is not None:
        return given
    return bool(task.ignore_task_after_success or task.ignore_task_timedelta is not None)


def _goes_on(invocation: Invocation) -> bool:
    """Tell whether a call takes the place of the task that makes it (``Task.replace``)."""
    running = current_app.current_worker_task
    is_replacement = running is not None and running.request.id == invocation.task_id
    return is_replacement or invocation.task.name.startswith(CELERY_PREFIX)


def _is_in_canvas(invocation: Invocation) -> bool:
    """Tell whether somebody may wait for just this call, so that it has to run in any case."""
    return invocation.is_id_given or any(name in invocation.options for name in _CANVAS)


def _context_fields(invocation: Invocation) -> dict[str, Any]:
    context = invocation.own.run_context
    return {} if context is None else context_fields(PlainContext.of(context))


def _row(invocation: Invocation, now: datetime, **fields: Any) -> TaskRunRecord:
    task = invocation.task
    call = stored_call(task.name, invocation.args, invocation.kwargs)
    return TaskRunRecord(
        **{
            "task_id": invocation.task_id,
            "task_name": task.name,
            "args": call.args,
            "kwargs": call.kwargs,
            "queue": str(invocation.options.get("queue") or get_task_info(task.name).queue)[:255],
            **origin({"id": invocation.task_id}),
            "created_at": now,
            **fields,
        }
    )


def _send(invocation: Invocation, fields: dict[str, Any], now: datetime) -> AsyncResult:
    """Record a call, send it, and record that."""
    using, key = database(), fields.get("active_key")
    run = _row(invocation, now, dispatch_id=uuid4(), claimed_at=now, **fields)

    def insert() -> None:
        if not connections[using].in_atomic_block:
            run.save(force_insert=True, using=using)
            return
        with transaction.atomic(using=using):
            run.save(force_insert=True, using=using)

    if key is None:
        insert()
    else:
        limit = unique.stale_after(invocation.task, invocation.own, invocation.options)
        unique.take(key, insert, limit=limit, now=now, using=using)
    headers: dict[str, Any] = {RUN_HEADER: run.task_id, ROW_HEADER: row_header(run)}
    if invocation.own.run_context is not None:
        headers[CONTEXT_HEADER] = PlainContext.of(invocation.own.run_context).values
    result = invocation.send(headers)
    report(
        "the handover",
        run.task_id,
        lambda: journal().filter(task_id=run.task_id).hand_over(timezone.now()),
    )
    return result


def _join(invocation: Invocation, holder: TaskRunRecord) -> AsyncResult:
    """Let a call be answered by the run that the same call has started."""
    result = invocation.task.AsyncResult(holder.task_id)
    invocation.task.on_invocation_unique(
        invocation.task_id,
        invocation.args,
        invocation.kwargs,
        holder.task_id,
        invocation.options,
        result,
    )
    return result


def _ignore(
    invocation: Invocation, key: str, success: TaskRunRecord, now: datetime
) -> AsyncResult:
    """Record that a call was ignored."""
    why = ignoring.IGNORED.format(at=success.finished_at, until=success.ignore_until)
    ends = {"state": State.IGNORED, "finished_at": now, "exception": why, "unique_key": key}
    run = _row(invocation, now, **{**_context_fields(invocation), **ends})
    run.save(force_insert=True, using=database())
    result = EagerResult(run.task_id, None, State.IGNORED.value, name=run.task_name)
    invocation.task.on_invocation_ignored(
        invocation.task_id,
        invocation.args,
        invocation.kwargs,
        run.task_id,
        invocation.options,
        result,
    )
    return result
