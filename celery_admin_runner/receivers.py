"""Celery's signals in, our verbs out.

Only messages with our header are recorded: an untracked task pays one look-up.
Recording must never break a run.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from threading import current_thread, main_thread
from typing import Any

from celery import signals
from celery.app.task import Context, Task
from celery.exceptions import Reject
from celery.states import IGNORED, REJECTED
from django.core.signals import setting_changed
from django.utils import timezone

from celery_admin_runner import ignoring, publishing, runs, tracking
from celery_admin_runner.base import REFUSED, REPLACED, DjangoTask
from celery_admin_runner.calls import secrets_of
from celery_admin_runner.conf import SETTING, settings
from celery_admin_runner.encoding import text_of
from celery_admin_runner.exceptions import RunCancelled
from celery_admin_runner.headers import MASKED_ARGS_HEADER, MASKED_KWARGS_HEADER, marks_run
from celery_admin_runner.late import report_or_keep
from celery_admin_runner.recording import report
from celery_admin_runner.results import exception_text, storable_result, task_text
from celery_admin_runner.states import State

#: By this signal Celery 5.7 asks a task to stop as its soft time limit does: the task may
#: go on, and its process tells how it ended. Windows does not have it.
ASKS_ONLY = getattr(signal, "SIGUSR1", None)
#: The one receiver that is connected only where it is needed.
HANDOVER = "celery_admin_runner.on_after_publish"


def is_tracked(request: Context) -> bool:
    """Tell whether the message that a worker holds belongs to a run of ours, or got a row."""
    return marks_run(request.headers, request.id) or getattr(request, tracking.HAS_ROW, False)


def on_before_publish(sender: str, headers: dict[str, Any], **message: Any) -> None:
    """A message is about to be sent; most are not for us, and each call pays for this look."""
    if publishing.may_concern(sender, headers):
        keep_arguments_masked(headers)
        _track(sender, headers, **message)


def _track(
    sender: str,
    headers: dict[str, Any],
    body: Any,
    properties: Any = None,
    exchange: str = "",
    routing_key: str = "",
    declare: Any = None,
    **kwargs: Any,
) -> None:
    """Have the row of a message written, if it is one of a run."""
    publishing.track(
        sender,
        headers=headers,
        body=body,
        properties=properties or {},
        exchange=exchange,
        routing_key=routing_key,
        declare=declare,
    )


def on_after_publish(sender: str, headers: dict[str, Any], **kwargs: Any) -> None:
    """The broker took a message."""
    publishing.handed_over(headers)


def on_prerun(sender: Task, task_id: str, **kwargs: Any) -> None:
    """A worker begins an attempt."""
    request = sender.request
    if not is_tracked(request):
        return
    started = report("the start", task_id, lambda: _start(sender, request))
    if started is False:
        setattr(request, REFUSED, True)
    else:
        runs.begin(sender, request)


def on_success(sender: Task, result: Any, **kwargs: Any) -> None:
    """A task returned."""
    request = sender.request
    if _is_to_record(request):
        now = timezone.now()
        end = partial(
            tracking.record_success,
            request.id,
            attempt=request.retries,
            result=storable_result(result, _secrets(sender, request)),
            now=now,
            **ignoring.arming(sender, request, now),
            **runs.end(request.id),
        )
        report_or_keep("the success", request.id, end)


def on_failure(
    sender: Task, task_id: str, exception: BaseException, einfo: Any = None, **kwargs: Any
) -> None:
    """A task raised, or its process was lost or killed (then the worker's parent says so).

    Celery 5.7 gives the parent no request for a hard time limit; the guarded
    UPDATE then finds no row for an untracked task.
    """
    request = sender.request
    knows_request = request.id == task_id
    if knows_request and not _is_to_record(request):
        return
    secrets = secrets_of(sender, kwargs.get("args") or (), kwargs.get("kwargs") or {})
    traceback = task_text(getattr(einfo, "traceback", ""), secrets)
    end = partial(
        tracking.record_failure,
        task_id,
        attempt=request.retries if knows_request else None,
        exception=task_text(exception_text(exception), secrets),
        traceback=traceback,
        now=timezone.now(),
        **runs.end(task_id, traceback=traceback),
    )
    report_or_keep("the failure", task_id, end)


def on_retry(
    sender: Task, request: Context, reason: Any = None, einfo: Any = None, **kwargs: Any
) -> None:
    """An attempt failed, and Celery has sent the next one.

    Celery 5.7 gives no reason where a lost connection made it cancel the attempt.
    """
    if _is_to_record(request):
        secrets = _secrets(sender, request)
        now = timezone.now()
        error = getattr(reason, "exc", None) or reason
        traceback = task_text(getattr(einfo, "traceback", ""), secrets)
        retry = partial(
            tracking.record_retry,
            request.id,
            attempt=request.retries,
            exception="" if error is None else task_text(exception_text(error), secrets),
            traceback=traceback,
            now=now,
            eta=publishing.due(getattr(reason, "when", None), now),
            **runs.end(request.id, traceback=traceback),
        )
        report_or_keep("the retry", request.id, retry)


def on_revoked(
    sender: Task,
    request: Context,
    terminated: bool = False,
    signum: Any = None,
    expired: bool = False,
    **kwargs: Any,
) -> None:
    """A worker dropped a run: it was revoked, had expired, or was killed while it ran."""
    if not is_tracked(request) or (terminated and signum == ASKS_ONLY):
        return
    if terminated and signum == signal.SIGTERM:
        _report_terminated(request, tracking.record_terminated)
        return
    why = tracking.TERMINATED if terminated else tracking.REVOKED
    _report_end(
        request,
        State.EXPIRED if expired else State.REVOKED,
        tracking.EXPIRED if expired else why,
    )


def on_postrun(
    sender: Task, task_id: str, state: str | None, retval: Any = None, **kwargs: Any
) -> None:
    """An attempt is over; what no other signal tells of is recorded here."""
    request = sender.request
    progress = runs.end(task_id)
    if not _is_to_record(request):
        return
    if state == IGNORED:
        _report_ignored(sender, request, retval, progress)
    elif state == REJECTED:
        _report_rejected(sender, request, retval, progress)
    elif state is None and current_thread() is not main_thread():
        _report_exit(sender, request, sys.exc_info()[1], progress)
    elif state is None:
        _report_terminated(request, tracking.record_stopped, **progress)


def on_unknown(sender: Any, name: str, id: str, message: Any, **kwargs: Any) -> None:
    """A worker got a message for a task that it does not know."""
    if marks_run(message.headers, id):
        end = partial(
            tracking.record_failure,
            id,
            attempt=None,
            exception=f"NotRegistered: the worker {sender.hostname} knows no task {name!r}.",
            traceback="",
            now=timezone.now(),
        )
        report_or_keep("the failure", id, end)


def keep_arguments_masked(headers: dict[str, Any]) -> None:
    """Mask the arguments in the headers of a retry: Celery 5.7 makes their texts anew."""
    own = headers.get("headers") or headers
    if MASKED_ARGS_HEADER in own:
        headers["argsrepr"] = own[MASKED_ARGS_HEADER]
        headers["kwargsrepr"] = own[MASKED_KWARGS_HEADER]


def connect() -> None:
    """Connect every receiver, once."""
    for source, receiver in (
        (signals.beat_init, publishing.learn_that_this_is_beat),
        (signals.before_task_publish, on_before_publish),
        (signals.task_prerun, on_prerun),
        (signals.task_success, on_success),
        (signals.task_failure, on_failure),
        (signals.task_retry, on_retry),
        (signals.task_revoked, on_revoked),
        (signals.task_postrun, on_postrun),
        (signals.task_unknown, on_unknown),
    ):
        source.connect(receiver, dispatch_uid=f"celery_admin_runner.{receiver.__name__}")
    connect_handover()
    setting_changed.connect(on_setting_changed, dispatch_uid="celery_admin_runner.track")


def connect_handover() -> None:
    """Hear of what the broker took where TRACK names tasks; elsewhere no message pays for it."""
    if settings.TRACK:
        signals.after_task_publish.connect(on_after_publish, dispatch_uid=HANDOVER)
    else:
        signals.after_task_publish.disconnect(dispatch_uid=HANDOVER)


def on_setting_changed(setting: str, **kwargs: Any) -> None:
    """A test has other settings for a while."""
    if setting == SETTING:
        connect_handover()


def _start(task: Task, request: Context) -> bool:
    """Record the start of an attempt; False if the run was cancelled and must not start."""
    now = timezone.now()
    start = {"attempt": request.retries, "worker": request.hostname or "", "now": now}
    if tracking.record_start(request.id, **start):
        return True
    if isinstance(task, DjangoTask):
        return not tracking.refuse_start(request.id, now=now)
    tracking.record_start_of_cancelling(request.id, **start)
    return True


def _is_to_record(request: Context) -> bool:
    """Tell whether a report on this attempt is for us, and our result backend did not make it."""
    return is_tracked(request) and not getattr(request, tracking.RECORDED, False)


def _report_terminated(request: Context, record: Callable[..., int], **fields: Any) -> None:
    attempt = request.retries or 0
    end = partial(record, request.id, attempt=attempt, now=timezone.now(), **fields)
    report_or_keep("the end REVOKED", request.id, end)


def _report_ignored(
    task: Task, request: Context, retval: Any, progress: Mapping[str, Any]
) -> None:
    if isinstance(retval, RunCancelled):
        why = task_text(text_of(retval), _secrets(task, request))
        why = why or "Cancelled: it stopped itself."
        _report_end(request, State.REVOKED, why, **progress)
    elif not getattr(request, REPLACED, False):
        _report_end(request, State.IGNORED, "The task asked to be ignored.", **progress)


def _report_exit(
    task: Task, request: Context, error: BaseException | None, progress: Mapping[str, Any]
) -> None:
    """Record that a task raised what is meant for its process, in a thread of a worker.

    Celery 5.7 tells nobody of that: in a pool of processes the process is lost then.
    """
    end = partial(
        tracking.record_failure,
        request.id,
        attempt=request.retries,
        exception=""
        if error is None
        else task_text(exception_text(error), _secrets(task, request)),
        traceback="",
        now=timezone.now(),
        **progress,
    )
    report_or_keep("the failure", request.id, end)


def _report_rejected(
    task: Task, request: Context, retval: Any, progress: Mapping[str, Any]
) -> None:
    """Record that a task rejected its message: another worker may get it then.

    Celery 5.5 sends no other signal of that. Only with ``acks_late`` is there a message left
    to reject.
    """
    why = task_text(exception_text(retval), _secrets(task, request))
    fields: dict[str, Any] = {
        "attempt": request.retries,
        "exception": why,
        "traceback": "",
        "now": timezone.now(),
        **progress,
    }
    if isinstance(retval, Reject) and retval.requeue and task.acks_late:
        report_or_keep(
            "the rejection", request.id, partial(tracking.record_retry, request.id, **fields)
        )
    else:
        report_or_keep(
            "the rejection", request.id, partial(tracking.record_failure, request.id, **fields)
        )


def _report_end(request: Context, state: State, why: str, **fields: Any) -> None:
    end = partial(
        tracking.record_end,
        request.id,
        attempt=request.retries or 0,
        state=state,
        why=why,
        now=timezone.now(),
        **fields,
    )
    report_or_keep(f"the end {state}", request.id, end)


def _secrets(task: Task, request: Context) -> set[str]:
    return secrets_of(task, request.args or (), request.kwargs or {})
