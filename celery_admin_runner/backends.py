"""The result backend: what a task returned lives in the row of its run.

Groups and chords stay in the tables of django-celery-results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from celery import states
from celery.app.task import Context
from celery.backends.base import EXCEPTION_ABLE_CODECS
from celery.canvas import Signature
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import ResultBase
from celery.utils.serialization import ensure_serializable
from django.db import InterfaceError, OperationalError, connections
from django.utils import timezone
from django_celery_results.backends.database import DatabaseBackend as GroupBackend
from kombu.exceptions import EncodeError

from celery_admin_runner import ignoring, tracking
from celery_admin_runner.calls import secrets_of
from celery_admin_runner.conf import settings
from celery_admin_runner.encoding import to_plain
from celery_admin_runner.exceptions import NotEncodable
from celery_admin_runner.headers import marks_run
from celery_admin_runner.late import report_or_keep
from celery_admin_runner.outcomes import REPORTS, Outcome, new_row, store
from celery_admin_runner.publishing import due
from celery_admin_runner.recording import database, journal, record, report
from celery_admin_runner.results import (
    StoredResult,
    exception_text,
    stored_result,
    task_text,
)
from celery_admin_runner.retention import Selection, cutoff_before, prune
from celery_admin_runner.runs import end
from celery_admin_runner.task_meta import FORGOTTEN, META_FIELDS, READY_STATES, task_meta

#: What Celery itself reports with STARTED (``task_track_started``).
STARTED_KEYS = {"pid", "hostname"}
#: The longest custom state that is kept.
CUSTOM_STATE_MAX = 64


@dataclass(frozen=True, kw_only=True)
class _Told:
    """That Celery itself tells of an end or a retry, and of which task."""

    task_id: str
    request: Any


#: What Celery tells at the moment; None where a task itself sets a state.
_told: ContextVar[_Told | None] = ContextVar("celery_admin_runner_told", default=None)


class DatabaseBackend(GroupBackend):  # type: ignore[misc]
    """Keeps result, state, traceback and children of a task in the row of its run.

    A task whose message belongs to no run gets a row when it ends. What is stored is JSON,
    whatever ``result_serializer`` says; see FORCE_JSON and RESULT_MAX_BYTES. What REDACT
    hides is stored nowhere: ``get()`` gives the mask in its place.
    """

    #: Whoever ends a task by its id ends the row of its run.
    keeps_runs = True
    READY_STATES = READY_STATES
    UNREADY_STATES = states.UNREADY_STATES - {states.IGNORED}

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Tell Celery what to try again if ``result_backend_always_retry`` is set; reconnects."""
        if not isinstance(exc, OperationalError | InterfaceError):
            return False
        connection = connections[database()]
        if not connection.in_atomic_block:
            connection.close()
        return True

    def encode_result(self, result: Any, state: str) -> Any:
        """Return the result as it is: to encode it, the secrets of its call must be known."""
        return result.as_tuple() if isinstance(result, ResultBase) else result

    def prepare_exception(self, exc: BaseException, serializer: str | None = None) -> Any:
        """Return what ``exception_to_python`` makes the exception of again; never a pickle.

        Celery 5.7 asks for what can be pickled where it reports an error of its own.
        """
        if serializer in EXCEPTION_ABLE_CODECS:
            return super().prepare_exception(exc, serializer)
        kind = type(exc)
        return {
            "exc_type": kind.__qualname__,
            "exc_message": ensure_serializable(exc.args, to_plain),
            "exc_module": kind.__module__,
        }

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Record that a task returned."""
        with _telling(task_id, request):
            super().mark_as_done(task_id, result, request, *args, **kwargs)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Record that a task failed, and with it the rest of its chain."""
        with _telling(task_id, request):
            super().mark_as_failure(task_id, exc, traceback, request, *args, **kwargs)

    def mark_as_retry(
        self,
        task_id: str,
        exc: BaseException | None,
        traceback: Any = None,
        request: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Record that a task is to be tried again."""
        with _telling(task_id, request):
            return super().mark_as_retry(task_id, exc, traceback, request, *args, **kwargs)

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Record that a worker drops a task, or was told to."""
        with _telling(task_id, request):
            super().mark_as_revoked(task_id, reason, request, *args, **kwargs)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], Any] | None = None,
    ) -> dict[str, Any]:
        """Wait for a task to end, and return its meta; raises Celery's TimeoutError.

        Celery 5.7's own does not look at READY_STATES, and waits for ever for an ignored task.
        """
        self._ensure_not_eager()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            meta: dict[str, Any] = self.get_task_meta(task_id)
            if meta["status"] in self.READY_STATES:
                return meta
            if on_interval:
                on_interval()
            left = interval if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise CeleryTimeoutError("The operation timed out.")
            time.sleep(min(interval, left))

    def cleanup(self) -> None:
        """Delete the groups that have expired, and the runs that RETENTION lets go.

        ``result_expires`` is about results, the journal about who did what: a run goes when
        both have passed, and not by this where PRUNE_ON_STARTUP says that others prune.
        """
        if not self.expires:
            return
        self.GroupModel._default_manager.delete_expired(self.expires)
        if settings.PRUNE_ON_STARTUP and settings.RETENTION is not None:
            age = max(settings.RETENTION, timedelta(seconds=self.expires))
            for _number in prune(Selection(cutoff=cutoff_before(timezone.now(), age))):
                pass

    def chord_error_from_stack(self, callback: Signature, exc: BaseException | None = None) -> Any:
        """Let the body of a chord fail, which was never sent; its row learns the task's name."""
        info = super().chord_error_from_stack(callback, exc)
        if callback.id:
            rows = journal().filter(task_id=callback.id, task_name="")
            report("the name", callback.id, partial(rows.update, task_name=callback.task))
        return info

    def _store_result(
        self,
        task_id: str,
        result: Any,
        status: str,
        traceback: Any = None,
        request: Context | None = None,
        using: str | None = None,
    ) -> None:
        """Record what became of a task, by one guarded UPDATE where its run has a row.

        Raises kombu's EncodeError, for which Celery lets the task fail, if the result is no
        JSON and FORCE_JSON is off. A database that does not answer breaks no task, unless
        ``result_backend_always_retry`` asks to wait for it.
        """
        told, request = request, _context(task_id, request)
        if _is_left_to_signal(result, status, request):
            self._prepare_for_signal(task_id, told, request)
            return
        secrets = self._secrets(request)
        is_end = self._is_end(task_id, status)
        shown = status if is_end else task_text(str(status or ""), secrets)[:CUSTOM_STATE_MAX]
        outcome = self._outcome(task_id, result, shown, traceback, request, secrets, is_end)
        if request is not None and is_end:
            progress = end(task_id, traceback=outcome.traceback)
            outcome = replace(outcome, fields={**outcome.fields, **progress})
        statement = partial(store, outcome, request)
        if self.always_retry:
            recorded: object = record(statement)
        else:
            # What a task says while it runs may be out of date when the database is back.
            reported = report_or_keep if is_end else report
            recorded = reported(f"{shown}, by its result,", task_id, statement)
        if recorded and told is not None:
            setattr(told, tracking.RECORDED if is_end else tracking.HAS_ROW, True)

    def _prepare_for_signal(self, task_id: str, told: Any, request: Context | None) -> None:
        """Make the row of a task that is not tracked, for the receiver that knows the signal."""
        if request is None or marks_run(request.headers, task_id):
            return
        row = new_row(task_id, request, now=timezone.now(), is_running=True)
        made = partial(journal().bulk_create, [row], ignore_conflicts=True)
        if report("the row", task_id, made) is not None:
            setattr(told, tracking.HAS_ROW, True)

    def _is_end(self, task_id: str, status: Any) -> bool:
        """Tell whether a state is what became of an attempt; else it is one of the task's own.

        A task that runs may give its state a name of Celery's (``update_state("FAILURE")``):
        only Celery tells of its end. Whoever else sets the state of a task ends it.
        """
        if not isinstance(status, str) or status not in REPORTS:
            return False
        told, running = _told.get(), self.app.current_worker_task
        is_told = told is not None and told.task_id == task_id
        return is_told or running is None or running.request.id != task_id

    def _secrets(self, request: Context | None) -> Set[str]:
        """Return the texts of the secrets in the arguments that a result may hold.

        Those of the task itself; and of the one that runs here, or that Celery tells of: its
        exception stands for the rest of its chain too.
        """
        told, running = _told.get(), self.app.current_worker_task
        requests = [request, told and told.request, running and running.request]
        secrets: set[str] = set()
        for one in {id(one): one for one in requests if one is not None}.values():
            task = self.app.tasks.get(getattr(one, "task", None))
            if task is not None:
                secrets |= secrets_of(task, one.args or (), one.kwargs or {})
        return secrets

    def _outcome(
        self,
        task_id: str,
        result: Any,
        status: str,
        traceback: Any,
        request: Context | None,
        secrets: Set[str],
        is_end: bool,
    ) -> Outcome:
        stored = self._stored(result, secrets)
        fields = {"result": stored.shown, "whole_result": stored.whole, "custom_state": ""}
        if is_end and request is not None:
            fields["children"] = self.current_task_children(request)
        now = timezone.now()
        if is_end and request is not None and status == states.SUCCESS:
            task = self.app.tasks.get(getattr(request, "task", None))
            fields |= ignoring.arming(task, request, now)
        if is_end and status == states.RETRY:
            # Celery 5.7 tells of it while it handles the exception that asks for it.
            fields["eta"] = due(getattr(sys.exc_info()[1], "when", None), now)
        text = exception_text(result) if isinstance(result, BaseException) else ""
        why = _why_revoked(result) if is_end and status == states.REVOKED else None
        return Outcome(
            task_id=task_id,
            status=status,
            attempt=None if request is None else request.retries or 0,
            exception=task_text(why or text, secrets),
            traceback=task_text(traceback, secrets),
            now=now,
            is_end=is_end,
            fields=fields,
        )

    def _stored(self, result: Any, secrets: Set[str]) -> StoredResult:
        """Return what is stored of a result, or of an exception; raises EncodeError."""
        if isinstance(result, BaseException):
            return stored_result(self.prepare_exception(result), secrets)
        try:
            return stored_result(result, secrets, force_json=settings.FORCE_JSON)
        except NotEncodable as error:
            raise EncodeError(str(error)) from error

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        """Return what Celery's AsyncResult shows of a run; an unknown one is PENDING.

        Read by the connection that records too, so that a transaction of the caller, which
        may see the past, hides no result.
        """
        run = journal().filter(task_id=task_id).only(*META_FIELDS).first()
        if run is None:
            return {"task_id": task_id, "status": states.PENDING, "result": None}
        meta: dict[str, Any] = self.meta_from_decoded(task_meta(run))
        return meta

    def _forget(self, task_id: str) -> None:
        """Clear the result of a run, its traceback and its children; who did what stays."""
        runs = journal().filter(task_id=task_id)
        record(
            partial(
                runs.update,
                result=None,
                whole_result="",
                children=None,
                traceback="",
                custom_state=FORGOTTEN,
            )
        )

    def _delete_group(self, group_id: str) -> None:
        """Delete a group; django-celery-results 2.6 raises ValueError for an unknown one."""
        self.GroupModel._default_manager.filter(group_id=group_id).delete()


def _is_left_to_signal(result: Any, status: str, request: Context | None) -> bool:
    """Tell whether the receiver of a signal records this of a run, and knows more.

    Celery's own report of a start; and that a process was sent a signal, but not which one.
    """
    if request is None:
        return False
    if status == states.STARTED:
        is_start = isinstance(result, dict) and result.keys() == STARTED_KEYS
        return is_start and marks_run(request.headers, request.id)
    return status == states.REVOKED and _why_revoked(result) == tracking.TERMINATED


def _why_revoked(result: Any) -> str | None:
    return tracking.WHY_REVOKED.get(str(result)) if isinstance(result, TaskRevokedError) else None


@contextmanager
def _telling(task_id: str, request: Any) -> Iterator[None]:
    token = _told.set(_Told(task_id=task_id, request=request))
    try:
        yield
    finally:
        _told.reset(token)


def _context(task_id: str, request: Any) -> Context | None:
    """Return the request of a task; of one that its worker does not know, Celery 5.7 makes one
    with little in it.
    """
    if request is None or isinstance(request, Context):
        return request
    return Context(vars(request), id=task_id, task=request.name)
