"""The run that the code at hand belongs to: what a task can tell of it, and ask of it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from math import inf
from time import monotonic
from types import NoneType
from typing import Any, TypeVar

from celery.app.task import Context, Task
from django.db import connections, transaction
from django.db.models import Q
from django.utils import timezone

from celery_admin_runner import capture, pulse, tracking
from celery_admin_runner.calls import secrets_of
from celery_admin_runner.conf import settings
from celery_admin_runner.exceptions import RunCancelled
from celery_admin_runner.messages import row_of
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.output import Output
from celery_admin_runner.progress import Progress, Step
from celery_admin_runner.recording import (
    FAULTS,
    OWN_ALIAS,
    database,
    is_worker,
    journal,
    record,
    report,
)
from celery_admin_runner.redaction import scrub
from celery_admin_runner.signals import run_progressed
from celery_admin_runner.states import State

#: A run that goes on for longer gives a sign of life, and again after as long; in seconds.
HEARTBEAT_INTERVAL = 30.0
#: ``cancel_requested`` asks the database again after so many seconds.
ASK_INTERVAL = 1.0
#: What could not be written at the end of a run is tried again for so many seconds.
KEEP_TRYING = 600.0
#: ... and for so many runs of a process: the latest.
UNWRITTEN_MAX = 16
#: How long output and progress wait for SQLite's lock before they are tried again later; in
#: seconds. A task that holds it in a transaction of its own is not to be waited for.
SQLITE_PATIENCE = 0.1

#: Arguments of these types are at the end what they were in the beginning.
_LASTING = (bool, float, int, str, NoneType)

logger = logging.getLogger("celery_admin_runner")

Done = TypeVar("Done")


class CurrentRun:
    """The run of the task that asks, in the attempt that runs now."""

    def __init__(self, task: Task, request: Context) -> None:
        self.task_id = str(request.id)
        row = row_of(request.headers)
        self._pk = row.pk if row else None
        self._user_pk = row.run_by if row else ""
        self._task = task
        self._args, self._kwargs = tuple(request.args or ()), dict(request.kwargs or {})
        self._secrets: set[str] | None = None
        if not all(type(value) in _LASTING for value in (*self._args, *self._kwargs.values())):
            # The task may take a secret out of them before it prints it.
            self._find_secrets()
        self._progress = Progress(
            self.task_id,
            attempt=request.retries or 0,
            scrub=lambda text: scrub(text, self._find_secrets()),
            tell=self._tell_of_progress,
        )
        self._is_cancelled = False
        self._ask_at = 0.0
        #: Who cares for it while it runs in a worker.
        self._attempt: _Attempt | None = None
        #: The run of the task that called this one in eager mode.
        self._outer: CurrentRun | None = None

    @property
    def pk(self) -> int | None:
        """The primary key of its row; None if it has none."""
        if self._pk is None:
            keys = journal().filter(task_id=self.task_id).values_list("pk", flat=True)
            self._pk = keys.first()
        return self._pk

    def progress(self, current: float, total: float | None = None, message: str = "") -> None:
        """Tell how far the run is: ``current`` of ``total``, None if that is not known.

        It never goes backwards. Shown within half a second, and written down twice a second
        at most, so that it can be told in every turn of a loop. Raises TypeError for what
        is no number; numbers are clamped.
        """
        is_news = self._progress.advance(current, total, message)
        if self._attempt is None:
            if monotonic() >= self._progress.due_at:
                report("the progress", self.task_id, lambda: self._progress.write(monotonic()))
        elif is_news:
            pulse.wake()

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked to cancel the run; asks the database once a second at most."""
        if not self._is_cancelled and monotonic() >= self._ask_at:
            self._is_cancelled = bool(_tried(self._ask))
            self._ask_at = monotonic() + ASK_INTERVAL
        return self._is_cancelled

    def raise_if_cancelled(self) -> None:
        """Raise RunCancelled, which ends the task, if somebody asked to cancel the run."""
        if self.cancel_requested:
            raise RunCancelled(f"The run {self.task_id} was cancelled while it ran.")

    def _find_secrets(self) -> set[str]:
        """Return the texts of the secrets in the call; most runs never need them."""
        if self._secrets is None:
            self._secrets = secrets_of(self._task, self._args, self._kwargs)
        return self._secrets

    def _tell_of_progress(self, step: Step) -> None:
        """Send ``run_progressed`` once the step can be seen."""
        if run_progressed.has_listeners(TaskRunRecord):
            send = partial(
                run_progressed.send_robust,
                sender=TaskRunRecord,
                task_id=self.task_id,
                run_pk=self.pk,
                user_pk=self._user_pk,
                current=step.current,
                total=step.total,
                message=step.message,
            )
            transaction.on_commit(send, using=database(), robust=True)

    def _ask(self) -> bool:
        asked = Q(cancel_requested_at__isnull=False) | Q(state=State.CANCELLING)
        return journal().filter(asked, task_id=self.task_id).exists()


class _Attempt:
    """Writes down in a worker what a run tells while it runs; a member of the pulse."""

    def __init__(self, run: CurrentRun, now: float) -> None:
        self.task_id = run.task_id
        self.progress = run._progress
        self.output = Output(row=lambda: run.pk, secrets=run._find_secrets, on_due=pulse.wake)
        #: When it may write output again, after that failed.
        self.flush_at = 0.0
        self.beat_at = now + HEARTBEAT_INTERVAL
        #: When what is not written after the end is given up; None while the run runs.
        self.until: float | None = None

    def end(self, traceback: str) -> None:
        """Write down what waits; what can't be written now is tried again for a while."""
        if traceback:
            self.output.add(capture.TRACEBACK, traceback)
        self.output.close()
        if report("the output", self.task_id, self._flush):
            pulse.leave(self)
        else:
            self.until = monotonic() + KEEP_TRYING
            _keep_trying(self)

    def tick(self, now: float) -> float:
        """Write down what is due; return when something is due again."""
        _wait_little()
        if now >= self._output_due and not _tried(self._flush):
            self.flush_at = now + settings.OUTPUT_FLUSH_SECONDS
        if self.until is not None:
            return self._tick_after_end(now)
        if self.progress.waits and now >= self.progress.due_at:
            _tried(lambda: self.progress.write(now))
        if now >= self.beat_at:
            self.beat_at = now + HEARTBEAT_INTERVAL
            _tried(self._beat)
        progress_due = self.progress.due_at if self.progress.waits else inf
        return min(self._output_due, progress_due, self.beat_at)

    def _tick_after_end(self, now: float) -> float:
        if self.output.waits_since is None or now >= (self.until or 0):
            pulse.leave(self)
            return inf
        return self._output_due

    @property
    def _output_due(self) -> float:
        since = self.output.waits_since
        if since is None:
            return inf
        is_urgent = self.output.is_much or self.until is not None
        return max(self.flush_at, since + (0 if is_urgent else settings.OUTPUT_FLUSH_SECONDS))

    def _flush(self) -> bool:
        self.output.flush()
        return True

    def _beat(self) -> None:
        tracking.record_heartbeat(self.task_id, now=timezone.now())


_current: ContextVar[CurrentRun | None] = ContextVar("celery_admin_runner_run", default=None)
#: Attempts that have ended, and whose output is not all written.
_unwritten: deque[_Attempt] = deque()


def current_run() -> CurrentRun | None:
    """Return the run of the task that is running here; None outside of a tracked run."""
    return _current.get()


def begin(task: Task, request: Context) -> None:
    """Make a run the current one; in a worker its output is captured from now on."""
    run = CurrentRun(task, request)
    outer = _current.get()
    if request.is_eager:
        run._outer = outer
    elif outer is not None:
        # Nobody told of its end.
        end(outer.task_id)
    if is_worker() and not request.is_eager:
        run._attempt = _Attempt(run, monotonic())
        if settings.OUTPUT_MAX_BYTES > 0:
            capture.install()
            capture.listen(run._attempt.output)
        pulse.join(run._attempt)
    _current.set(run)


def end(task_id: str, *, traceback: str = "") -> dict[str, Any]:
    """End the attempt of the current run, before its end is recorded; does nothing twice.

    Writes down its output, with ``traceback`` as the last of it. Returns the fields of its
    progress that wait to be written, for the UPDATE that records the end. Never raises.
    """
    run = _current.get()
    if run is None or run.task_id != task_id:
        return {}
    _current.set(run._outer)
    if run._attempt is not None:
        capture.listen(None)
        run._attempt.end(traceback)
    return run._progress.fields()


def _keep_trying(attempt: _Attempt) -> None:
    """Let the pulse write down later what could not be written at the end, for a few runs."""
    _unwritten.append(attempt)
    if len(_unwritten) > UNWRITTEN_MAX:
        pulse.leave(_unwritten.popleft())


def _tried(statement: Callable[[], Done]) -> Done | None:
    """Return what a statement gives that is tried again soon; None if it could not be executed."""
    try:
        return record(statement)
    except FAULTS as error:
        logger.debug("Tried again later: %s", error)
        return None


def _wait_little() -> None:
    """Let the pulse's connection wait for SQLite's lock only shortly."""
    alias = database()
    connection = connections[alias]
    if alias == OWN_ALIAS and connection.vendor == "sqlite":
        connection.settings_dict["OPTIONS"]["timeout"] = SQLITE_PATIENCE
