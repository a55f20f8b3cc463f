"""Celery's signals in, our verbs out.

Only messages with our header are recorded: an untracked task pays one look-up.
Recording must never break a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from traceback import format_exception_only
from typing import Any

from celery import signals
from celery.app.task import Context, Task
from celery.states import IGNORED
from django.db import DatabaseError, InterfaceError, connections
from django.utils import timezone
from kombu.utils.encoding import safe_str

from celery_admin_runner import tracking
from celery_admin_runner.calls import secrets_of
from celery_admin_runner.dispatch import MASKED_ARGS_HEADER, MASKED_KWARGS_HEADER, RUN_HEADER
from celery_admin_runner.encoding import storable_text
from celery_admin_runner.redaction import scrub
from celery_admin_runner.states import State

logger = logging.getLogger("celery_admin_runner")

#: An attempt that no run reaches: for reports that do not know theirs.
ANY_ATTEMPT = 2**31 - 1


def recording(receiver: Callable[..., None]) -> Callable[..., None]:
    """Let a receiver fail without harm to the run: log that the database did not answer."""

    @wraps(receiver)
    def guarded(sender: Any = None, **kwargs: Any) -> None:
        try:
            receiver(sender=sender, **kwargs)
        except (DatabaseError, InterfaceError) as error:
            task_id = kwargs.get("task_id") or getattr(kwargs.get("request"), "id", "?")
            logger.exception(
                "The journal could not record %s of run %s: %s",
                receiver.__name__,
                task_id,
                error,
            )

    return guarded


def leaving_no_connection(receiver: Callable[..., None]) -> Callable[..., None]:
    """Close the database connections that a receiver used in a worker's parent process.

    Celery closes those of a task around the task; in the parent one would grow
    stale, whatever CONN_MAX_AGE says, and the next report would be lost by it. In
    eager mode the caller's transaction keeps its own.
    """

    @wraps(receiver)
    def closing(**kwargs: Any) -> None:
        try:
            receiver(**kwargs)
        finally:
            for connection in connections.all(initialized_only=True):
                if not connection.in_atomic_block:
                    connection.close()

    return closing


def is_tracked(request: Context) -> bool:
    """Tell whether the message that a worker holds belongs to a run of ours."""
    headers = request.headers
    return bool(headers) and headers.get(RUN_HEADER) == request.id


@recording
def on_prerun(sender: Task, task_id: str, **kwargs: Any) -> None:
    """A worker begins an attempt."""
    request = sender.request
    if is_tracked(request):
        tracking.record_start(
            task_id,
            attempt=request.retries,
            worker=request.hostname or "",
            now=timezone.now(),
        )


@recording
def on_success(sender: Task, result: Any, **kwargs: Any) -> None:
    """A task returned."""
    request = sender.request
    if is_tracked(request):
        tracking.record_success(
            request.id,
            attempt=request.retries,
            result=tracking.storable_result(result, _secrets(sender, request)),
            now=timezone.now(),
        )


@recording
@leaving_no_connection
def on_failure(
    sender: Task, task_id: str, exception: BaseException, einfo: Any, **kwargs: Any
) -> None:
    """A task raised, or its process was lost or killed (then the worker's parent says so).

    Celery 5.7 gives the parent no request for a hard time limit; the guarded
    UPDATE then finds no row for an untracked task.
    """
    request = sender.request
    knows_request = request.id == task_id
    if knows_request and not is_tracked(request):
        return
    secrets = secrets_of(sender, kwargs.get("args") or (), kwargs.get("kwargs") or {})
    tracking.record_failure(
        task_id,
        attempt=request.retries if knows_request else ANY_ATTEMPT,
        exception=_text(_exception_text(exception), secrets),
        traceback=_text(getattr(einfo, "traceback", ""), secrets),
        now=timezone.now(),
    )


@recording
def on_retry(sender: Task, request: Context, reason: Any, einfo: Any, **kwargs: Any) -> None:
    """An attempt failed, and Celery has sent the next one."""
    if is_tracked(request):
        secrets = _secrets(sender, request)
        tracking.record_retry(
            request.id,
            attempt=request.retries,
            exception=_text(_exception_text(getattr(reason, "exc", None) or reason), secrets),
            traceback=_text(getattr(einfo, "traceback", ""), secrets),
            now=timezone.now(),
        )


@recording
@leaving_no_connection
def on_revoked(
    sender: Task, request: Context, terminated: bool, signum: Any, expired: bool, **kwargs: Any
) -> None:
    """A worker dropped a run: it was revoked, had expired, or was killed while it ran."""
    if is_tracked(request):
        why = "Terminated while it ran." if terminated else "Revoked before it started."
        tracking.record_end(
            request.id,
            attempt=request.retries or 0,
            state=State.EXPIRED if expired else State.REVOKED,
            why="Expired before it started." if expired else why,
            now=timezone.now(),
        )


@recording
def on_postrun(sender: Task, task_id: str, state: str | None, **kwargs: Any) -> None:
    """A task said Ignore: no other signal tells of it."""
    if state == IGNORED and is_tracked(sender.request):
        tracking.record_end(
            task_id,
            attempt=sender.request.retries,
            state=State.IGNORED,
            why="The task asked to be ignored.",
            now=timezone.now(),
        )


@recording
@leaving_no_connection
def on_unknown(sender: Any, name: str, id: str, message: Any, **kwargs: Any) -> None:
    """A worker got a message for a task that it does not know."""
    if (message.headers or {}).get(RUN_HEADER) == id:
        tracking.record_failure(
            id,
            attempt=ANY_ATTEMPT,
            exception=f"NotRegistered: the worker {sender.hostname} knows no task {name!r}.",
            traceback="",
            now=timezone.now(),
        )


def keep_arguments_masked(sender: Any, headers: dict[str, Any], **kwargs: Any) -> None:
    """Mask the arguments in the headers of a retry: Celery 5.7 makes their texts anew."""
    own = headers.get("headers") or headers
    if MASKED_ARGS_HEADER in own:
        headers["argsrepr"] = own[MASKED_ARGS_HEADER]
        headers["kwargsrepr"] = own[MASKED_KWARGS_HEADER]


def connect() -> None:
    """Connect every receiver, once."""
    for signal, receiver in (
        (signals.before_task_publish, keep_arguments_masked),
        (signals.task_prerun, on_prerun),
        (signals.task_success, on_success),
        (signals.task_failure, on_failure),
        (signals.task_retry, on_retry),
        (signals.task_revoked, on_revoked),
        (signals.task_postrun, on_postrun),
        (signals.task_unknown, on_unknown),
    ):
        signal.connect(receiver, dispatch_uid=f"celery_admin_runner.{receiver.__name__}")


def _secrets(task: Task, request: Context) -> set[str]:
    return secrets_of(task, request.args or (), request.kwargs or {})


def _exception_text(exception: BaseException) -> str:
    """Return the type and the message, as the last line of a traceback shows them."""
    return "".join(format_exception_only(exception)).strip()


def _text(text: Any, secrets: set[str]) -> str:
    """Return a text of a task as it can be stored: without secrets."""
    return storable_text(scrub(safe_str(text or ""), secrets))
