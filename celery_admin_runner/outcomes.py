"""What our result backend is told of a task, and how that gets into the row of its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import states
from celery.app.task import Context

from celery_admin_runner import tracking
from celery_admin_runner.encoding import storable_text
from celery_admin_runner.headers import PERIODIC_HEADER
from celery_admin_runner.models import NAME_MAX_LENGTH, Source, TaskRunRecord
from celery_admin_runner.recording import journal
from celery_admin_runner.states import UNFINISHED, State
from celery_admin_runner.storing import stored_call

#: Where a revocation that knows no message finds a run: Celery leaves those that run alone.
_NOT_STARTED = UNFINISHED - {State.STARTED, State.CANCELLING}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a task, or its worker, tells of it; secrets masked."""

    task_id: str
    #: In Celery's words, or the task's own.
    status: str
    #: None: not known.
    attempt: int | None
    #: As the last line of a traceback shows it.
    exception: str
    traceback: str
    now: datetime
    #: Whether the attempt is over; else the state is one of the task's own.
    is_end: bool
    #: Fields of the row that are written besides.
    fields: Mapping[str, Any]


def store(outcome: Outcome, request: Context | None) -> bool:
    """Record an outcome; make the row of a task that is not tracked. True: it is told."""
    report_of = REPORTS[outcome.status] if outcome.is_end else _record_custom_state
    if not report_of(outcome):
        request = request or Context()
        is_running = bool(request.id) and not outcome.is_end
        row = new_row(outcome.task_id, request, now=outcome.now, is_running=is_running)
        journal().bulk_create([row], ignore_conflicts=True)
        report_of(outcome)
    return True


def new_row(task_id: str, request: Context, *, now: datetime, is_running: bool) -> TaskRunRecord:
    """Return the row of a task that code started, as far as its message tells."""
    name = getattr(request, "task", None) or ""
    call = stored_call(name, request.args or (), request.kwargs or {})
    return TaskRunRecord(
        task_id=task_id,
        task_name=storable_text(name)[:NAME_MAX_LENGTH],
        args=call.args,
        kwargs=call.kwargs,
        queue=((request.delivery_info or {}).get("routing_key") or "")[:255],
        worker=(request.hostname or "")[:255],
        parent_id=request.parent_id or "",
        root_id=request.root_id or "",
        periodic_task_name=(getattr(request, PERIODIC_HEADER, None) or "")[:255],
        source=Source.PERIODIC if getattr(request, PERIODIC_HEADER, None) else Source.CODE,
        retries=request.retries or 0,
        state=State.STARTED if is_running else State.PENDING,
        started_at=now if is_running else None,
        created_at=now,
    )


def _record_success(outcome: Outcome) -> int:
    return tracking.record_success(
        outcome.task_id, attempt=outcome.attempt, now=outcome.now, **outcome.fields
    )


def _record_failure(outcome: Outcome) -> int:
    return tracking.record_failure(
        outcome.task_id,
        attempt=outcome.attempt,
        exception=outcome.exception,
        traceback=outcome.traceback,
        now=outcome.now,
        **outcome.fields,
    )


def _record_retry(outcome: Outcome) -> int:
    return tracking.record_retry(
        outcome.task_id,
        attempt=outcome.attempt or 0,
        exception=outcome.exception,
        traceback=outcome.traceback,
        now=outcome.now,
        **outcome.fields,
    )


def _record_revoked(outcome: Outcome) -> int:
    """Record what a worker says of a message that it dropped, or of an id that it was told."""
    if outcome.attempt is None:
        runs = journal().filter(task_id=outcome.task_id)
        return runs.transition(
            sources=_NOT_STARTED,
            target=State.REVOKED,
            finished_at=outcome.now,
            exception=outcome.exception,
            **outcome.fields,
        )
    is_expired = outcome.exception == tracking.EXPIRED
    return tracking.record_end(
        outcome.task_id,
        attempt=outcome.attempt,
        state=State.EXPIRED if is_expired else State.REVOKED,
        why=outcome.exception,
        now=outcome.now,
        **outcome.fields,
    )


def _record_custom_state(outcome: Outcome) -> int:
    """Write a state of the task's own (``Task.update_state``); the run stays in its state."""
    runs = journal().filter(task_id=outcome.task_id)
    if outcome.attempt is not None:
        runs = runs.filter(retries__lte=outcome.attempt)
    fields = {**outcome.fields, "custom_state": outcome.status, "heartbeat_at": outcome.now}
    return runs.in_state(UNFINISHED).update(**fields)


#: Who records which state; every other one is the task's own.
REPORTS: Mapping[str, Callable[[Outcome], int]] = {
    states.SUCCESS: _record_success,
    states.FAILURE: _record_failure,
    states.RETRY: _record_retry,
    states.REVOKED: _record_revoked,
}
