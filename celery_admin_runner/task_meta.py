"""A run as Celery's AsyncResult shows it: what Celery calls the meta of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import states

from celery_admin_runner import tracking
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.results import read_result
from celery_admin_runner.states import UNFINISHED, State

#: In these states of a task its result is waited for no longer: Celery's own, and that of
#: a task that asked to be ignored.
READY_STATES = states.READY_STATES | {states.IGNORED}
#: How Celery's results show the state of a run.
CELERY_STATES: Mapping[State, str] = {
    State.UNSENT: states.PENDING,
    State.SCHEDULED: states.PENDING,
    State.WAITING: states.PENDING,
    State.PENDING: states.PENDING,
    State.STARTED: states.STARTED,
    State.RETRY: states.RETRY,
    State.CANCELLING: states.STARTED,
    State.SUCCESS: states.SUCCESS,
    State.FAILURE: states.FAILURE,
    State.REVOKED: states.REVOKED,
    State.EXPIRED: states.REVOKED,
    State.IGNORED: states.IGNORED,
    # A late report may still tell what became of it.
    State.LOST: states.PENDING,
}
#: The custom state of a run whose result was forgotten: Celery shows what it has no result
#: of as PENDING.
FORGOTTEN: str = states.PENDING
#: Where a custom state is shown. It ends with the attempt, unless the task, having set it,
#: asked to be ignored.
KEEPING_CUSTOM_STATE = UNFINISHED | {State.IGNORED}
#: What is read of a run for Celery's results.
META_FIELDS = (
    *("task_id", "task_name", "args", "kwargs", "queue", "worker", "retries", "parent_id"),
    *("state", "custom_state", "result", "whole_result", "children", "exception", "traceback"),
    *("finished_at",),
)


def task_meta(run: TaskRunRecord) -> dict[str, Any]:
    """Return a run as Celery's AsyncResult shows it; its exception still as plain data."""
    status = _status(run)
    is_over = status in READY_STATES
    return {
        "task_id": run.task_id,
        "status": status,
        "result": _result(run, status),
        "traceback": run.traceback or None,
        "children": run.children,
        "date_done": run.finished_at if is_over else None,
        "name": run.task_name,
        "args": read_result(run.args),
        "kwargs": read_result(run.kwargs),
        "worker": run.worker or None,
        "retries": run.retries,
        "queue": run.queue or None,
        "parent_id": run.parent_id or None,
    }


def _status(run: TaskRunRecord) -> str:
    if run.custom_state == FORGOTTEN:
        return FORGOTTEN
    if run.custom_state and run.state in KEEPING_CUSTOM_STATE:
        return str(run.custom_state)
    return CELERY_STATES[State(run.state)]


def _result(run: TaskRunRecord, status: str) -> Any:
    """Return what the run returned, told with its custom state, or raised (as plain data)."""
    if status in states.EXCEPTION_STATES:
        return _exception(run, status)
    if status == states.STARTED and not run.custom_state:
        return {"hostname": run.worker}
    if status == states.SUCCESS or run.custom_state:
        return read_result(run.result, run.whole_result)
    return None


def _exception(run: TaskRunRecord, status: str) -> dict[str, Any]:
    """Return what ``exception_to_python`` makes an exception of.

    Where the backend was not told, since only a signal spoke of it, by the exception's text.
    """
    stored = read_result(run.result, run.whole_result)
    if run.custom_state and not (isinstance(stored, dict) and "exc_type" in stored):
        # The task's own word, with what it told of it.
        return {"exc_type": "Exception", "exc_message": [stored], "exc_module": "builtins"}
    if status == states.REVOKED and not run.custom_state:
        reasons = {text: reason for reason, text in tracking.WHY_REVOKED.items()}
        message = reasons.get(run.exception, run.exception)
        kind = "celery.exceptions.TaskRevokedError"
    elif isinstance(stored, dict) and "exc_type" in stored:
        return stored
    else:
        kind, _colon, message = run.exception.partition(": ")
    module, _dot, name = kind.rpartition(".")
    if not name.isidentifier():
        module, name, message = "", "Exception", run.exception
    return {"exc_type": name, "exc_message": [message], "exc_module": module or "builtins"}
