"""Record what a worker reports of a run: each report is one guarded UPDATE.

Reports can cross: Celery 5.7 starts attempt n + 1 before it reports the retry of
attempt n. So a report also names its attempt, and an older one changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from celery_admin_runner.recording import journal
from celery_admin_runner.statements import IfUnset, move
from celery_admin_runner.states import REPORTABLE, State

#: Longest exception text and traceback that is kept, in characters; of a
#: traceback its end, where the error stands.
EXCEPTION_MAX_LENGTH = 16 * 1024
TRACEBACK_MAX_LENGTH = 256 * 1024
#: Set on a task's request by our result backend when it has recorded the end of the
#: attempt, or its retry: the receivers of Celery's signals then need not.
RECORDED = "celery_admin_runner_recorded"
#: Set on the request of a task that is not tracked, by our result backend, when it has made
#: its row: the receivers then record what the backend is not told.
HAS_ROW = "celery_admin_runner_has_row"
#: What is kept as the exception of a run whose process was ended.
TERMINATED = "Terminated while it ran."
REVOKED = "Revoked before it started."
EXPIRED = "Expired before it started."
CANCELLED = "Cancelled before it started."
#: The same, by the reason that a worker gives of a revocation.
WHY_REVOKED = {"expired": EXPIRED, "terminated": TERMINATED, "revoked": REVOKED}
#: A run that was asked to stop stays so until it ends.
_MOVABLE = REPORTABLE - {State.CANCELLING}


def record_start(task_id: str, *, attempt: int, worker: str, now: datetime) -> int:
    """Move a run to STARTED; a message that is delivered again starts it again.

    A run that was asked to stop is left alone: ``record_start_of_cancelling`` or
    ``refuse_start`` is for that one.
    """
    return _report(
        task_id,
        attempt,
        State.STARTED,
        sources=_MOVABLE,
        # The end tells the same, and is waited for.
        must_last=False,
        **_start_fields(attempt, worker, now),
    )


def record_start_of_cancelling(task_id: str, *, attempt: int, worker: str, now: datetime) -> int:
    """Record that a run started though it was asked to stop: it stays CANCELLING."""
    return _report(
        task_id,
        attempt,
        State.CANCELLING,
        sources=[State.CANCELLING],
        **_start_fields(attempt, worker, now),
    )


def refuse_start(task_id: str, *, now: datetime) -> bool:
    """Tell whether a run was cancelled and must not start; it is REVOKED then."""
    run = journal().filter(task_id=task_id)
    stopped = run.transition(
        sources=[State.CANCELLING], target=State.REVOKED, finished_at=now, exception=CANCELLED
    )
    return bool(stopped) or run.filter(state=State.REVOKED).exists()


def record_retry(
    task_id: str,
    *,
    attempt: int,
    exception: str,
    traceback: str,
    now: datetime,
    eta: datetime | None = None,
    **fields: Any,
) -> int:
    """Move a run to RETRY, unless its next attempt has begun already.

    ``eta`` is when the next attempt is due; None: nobody knows. A run that was asked to
    stop stays CANCELLING.
    """
    if eta is not None:
        fields["eta"] = eta
    fields |= {
        "retries": attempt,
        "exception": _shortened(exception, EXCEPTION_MAX_LENGTH),
        "traceback": traceback[-TRACEBACK_MAX_LENGTH:],
        "heartbeat_at": now,
        "finished_at": None,
    }
    return _report(
        task_id, attempt, State.RETRY, sources=_MOVABLE - {State.RETRY}, **fields
    ) or _report(task_id, attempt, State.CANCELLING, sources=[State.CANCELLING], **fields)


def record_success(
    task_id: str, *, attempt: int | None, result: Any, now: datetime, **fields: Any
) -> int:
    """Move a run to SUCCESS; ``result`` is plain JSON data."""
    return _report(
        task_id,
        attempt,
        State.SUCCESS,
        **{**fields, "finished_at": now, "result": result, "exception": "", "traceback": ""},
    )


def record_failure(
    task_id: str,
    *,
    attempt: int | None,
    exception: str,
    traceback: str,
    now: datetime,
    **fields: Any,
) -> int:
    """Move a run to FAILURE; ``attempt`` None: whichever it is in."""
    return _report(
        task_id,
        attempt,
        State.FAILURE,
        **{
            **fields,
            "finished_at": now,
            "exception": _shortened(exception, EXCEPTION_MAX_LENGTH),
            "traceback": traceback[-TRACEBACK_MAX_LENGTH:],
        },
    )


def record_end(
    task_id: str, *, attempt: int | None, state: State, why: str, now: datetime, **fields: Any
) -> int:
    """Move a run to REVOKED, EXPIRED or IGNORED; ``why`` is kept as its exception."""
    return _report(
        task_id,
        attempt,
        state,
        **{**fields, "finished_at": now, "exception": _shortened(why, EXCEPTION_MAX_LENGTH)},
    )


def record_terminated(task_id: str, *, attempt: int, now: datetime, **fields: Any) -> int:
    """Move a run to REVOKED that a worker says to have ended by SIGTERM.

    Celery 5.7 says so as soon as it has sent the signal, and the task may go on. A run that
    was asked to stop stays CANCELLING until its process says so: ``record_stopped``.
    """
    return record_end(
        task_id,
        attempt=attempt,
        state=State.REVOKED,
        why=TERMINATED,
        now=now,
        **{**fields, "sources": _MOVABLE},
    )


def record_stopped(task_id: str, *, attempt: int, now: datetime, **fields: Any) -> int:
    """Move a run to REVOKED that was asked to stop, and has left its task without an end."""
    return record_end(
        task_id,
        attempt=attempt,
        state=State.REVOKED,
        why=TERMINATED,
        now=now,
        **{**fields, "sources": [State.CANCELLING]},
    )


def record_heartbeat(task_id: str, *, now: datetime) -> int:
    """Record that a run is being worked at; one that has ended is left alone."""
    running = journal().filter(task_id=task_id).in_state([State.STARTED, State.CANCELLING])
    return running.update(heartbeat_at=now)


def _start_fields(attempt: int, worker: str, now: datetime) -> dict[str, Any]:
    """Return what the start of an attempt writes: nothing of the one before is left."""
    return {
        "retries": attempt,
        # Whoever published it may not have come to write that down.
        "published_at": IfUnset(now),
        "started_at": now,
        "heartbeat_at": now,
        "finished_at": None,
        "worker": worker,
        "exception": "",
        "traceback": "",
        "custom_state": "",
        "progress_current": 0,
        "progress_total": None,
        "progress_message": "",
    }


def _report(
    task_id: str,
    attempt: int | None,
    target: State,
    *,
    sources: Iterable[State] = REPORTABLE,
    **fields: Any,
) -> int:
    """Move a run that has not ended, and is in no later attempt than ``attempt``."""
    if attempt is not None:
        fields.setdefault("retries", attempt)
    return move(task_id, attempt=attempt, sources=list(sources), target=target, **fields)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
