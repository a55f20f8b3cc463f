"""Send the runs that are due: what one dispatcher does, and how it goes on doing it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from threading import Event, Lock
from time import monotonic

from celery import Celery
from django.contrib.auth import get_user_model
from django.db import close_old_connections, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from kombu.messaging import Producer

from celery_admin_runner import dependencies, recording
from celery_admin_runner.attempts import Attempt
from celery_admin_runner.batches import BATCH_LASTS, BATCH_SIZE, Batch
from celery_admin_runner.broker import BrokerAway, Outlet, open_outlet
from celery_admin_runner.dispatch import (
    CLAIM_LASTS,
    claim_due,
    give_back,
    is_anything_due,
    post,
    record_expired,
    record_sent,
    record_unsent,
)
from celery_admin_runner.exceptions import TaskNotFound
from celery_admin_runner.forking import fork_waits
from celery_admin_runner.messages import kept_message
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.recording import FAULTS
from celery_admin_runner.registry import celery_app, with_tasks
from celery_admin_runner.runner import TaskRunner, tell_of_handover
from celery_admin_runner.signals import TaskRunSignal
from celery_admin_runner.states import State

logger = logging.getLogger("celery_admin_runner")

#: Each pass asks what has finished since so long before the last one: clocks differ, reports
#: are committed later than they say. And now and then for whatever that overlooked.
LOOK_BACK = timedelta(seconds=10)
SWEEP_EVERY = timedelta(minutes=1)
#: While something is away, it is asked at least so often, in seconds.
LONGEST_PAUSE = 30.0
#: Nothing is sent so long after it was claimed, in seconds, whatever this process was busy
#: with: others take it for left behind after a minute (``dispatch.CLAIM_LASTS``).
CLAIM_SERVES = CLAIM_LASTS.total_seconds() / 2


@dataclass(frozen=True, kw_only=True)
class Dispatched:
    """What came of one pass."""

    sent: int = 0
    #: Runs that are UNSENT now, with the reason; and those that were given back to be sent later.
    failed: int = 0
    given_back: int = 0
    #: Why the broker could not be asked; "" if it could, or was not needed.
    broker_error: str = ""

    def __add__(self, other: Dispatched) -> Dispatched:
        return Dispatched(
            sent=self.sent + other.sent,
            failed=self.failed + other.failed,
            given_back=self.given_back + other.given_back,
            broker_error=other.broker_error or self.broker_error,
        )


class Dispatcher:
    """Sends the runs that are due; of any number of dispatchers each sends others."""

    def __init__(self, app: Celery | None = None, batch_size: int = BATCH_SIZE) -> None:
        """Bind it to a Celery app; by default to the one that the setting APP names."""
        self._given_app = app
        self.batch_size = batch_size
        #: Batches that were sent, and that the database could not be told of.
        self._unmarked: list[_Batch] = []
        #: When it last looked for runs whose dependencies have finished, and for all of them.
        self._looked_at: datetime | None = None
        self._swept_at: datetime | None = None

    @cached_property
    def app(self) -> Celery:
        """The app whose tasks are sent."""
        return celery_app() if self._given_app is None else with_tasks(self._given_app)

    def dispatch(self, now: datetime | None = None, stop: Event | None = None) -> Dispatched:
        """Send all that is due, batch by batch: claim, publish, mark; ``stop`` ends it between.

        Runs are claimed only when the broker's connection is open. Raises DatabaseError.
        """
        total = Dispatched()
        for batch in list(self._unmarked):
            total += self._mark(batch, now or timezone.now())
        connection = _connection()
        with fork_waits(connection):
            self._settle_dependencies(now or timezone.now())
            if not is_anything_due(now or timezone.now()):
                return total
        try:
            with open_outlet(self.app) as outlet:
                while not (stop and stop.is_set()):
                    begun_at = monotonic()
                    with fork_waits(connection):
                        runs = claim_due(now or timezone.now(), self.batch_size)
                    if not runs:
                        break
                    batch = _Batch(self.app, outlet, runs, claimed_at=begun_at)
                    self._unmarked.append(batch)
                    try:
                        batch.send(now or timezone.now())
                    finally:
                        total += self._mark(batch, now or timezone.now())
        except BrokerAway as error:
            total = replace(total, broker_error=str(error))
        return total

    def run(self, stop: Event, interval: float = 1.0) -> None:
        """Dispatch every ``interval`` seconds until ``stop`` is set, whatever happens.

        While the database or the broker is away it asks less and less often, and the log tells
        when that begins and ends.
        """
        pause, was_in_trouble = interval, False
        while not stop.is_set():
            trouble = self._trouble(stop)
            if trouble and not was_in_trouble:
                logger.warning("Due runs wait: %s", trouble)
            elif was_in_trouble and not trouble:
                logger.warning("Due runs are sent again.")
            was_in_trouble = bool(trouble)
            pause = min(2 * pause, max(LONGEST_PAUSE, interval)) if trouble else interval
            stop.wait(pause)
        _close_connections()

    def _trouble(self, stop: Event) -> str:
        """Make one pass, and return what stood in its way, or ""."""
        attempt = Attempt()
        with attempt:
            dispatched = self.dispatch(stop=stop)
            if dispatched.failed:
                logger.warning("%d due runs could not be sent.", dispatched.failed)
            return dispatched.broker_error and f"the broker is away: {dispatched.broker_error}"
        if not isinstance(attempt.error, FAULTS):
            logger.error("A pass of the dispatcher broke off.", exc_info=attempt.error)
        # What is broken is opened anew by the next pass.
        _close_connections()
        return f"{type(attempt.error).__name__}: {attempt.error}"

    def _mark(self, batch: _Batch, now: datetime) -> Dispatched:
        """Write down what became of a batch, and tell of it; raises DatabaseError."""
        with fork_waits(_connection()):
            dispatched = batch.mark(now)
        self._unmarked.remove(batch)
        _tell(batch.sent)
        return dispatched

    def _settle_dependencies(self, now: datetime) -> None:
        """Release what waited for runs that have finished since the last pass."""
        swept_at, looked_at = self._swept_at, self._looked_at
        if swept_at is None or looked_at is None or now - swept_at >= SWEEP_EVERY:
            dependencies.sweep(now)
            self._swept_at = now
        else:
            dependencies.settle_finished(looked_at - LOOK_BACK, now)
        self._looked_at = now


class _Process:
    """The one dispatcher of this process for the passes that beat asks for."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin anew, as a forked child: what its parent has in hand is the parent's."""
        self.lock = Lock()
        self.dispatcher = Dispatcher()


_process = _Process()
# Windows has no forks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.begin)


def dispatch_in_this_thread() -> Dispatched:
    """Send all that is due, and leave no connection behind: the thread ends then.

    The same dispatcher makes each pass of this process. While it makes one, that sends what is
    due: another is not needed.
    """
    lock = _process.lock
    if not lock.acquire(blocking=False):
        return Dispatched()
    try:
        return _process.dispatcher.dispatch()
    finally:
        lock.release()
        _close_connections()


class _Batch:
    """Runs that were claimed together, and what became of each."""

    def __init__(
        self, app: Celery, outlet: Outlet, runs: Sequence[TaskRunRecord], *, claimed_at: float
    ) -> None:
        self.app = app
        self.outlet = outlet
        self.runs = runs
        self.batch = Batch(outlet, (), self._post)
        #: By the monotonic clock, and from before the database was asked.
        self.claimed_at = claimed_at
        self.expired: list[TaskRunRecord] = []
        #: Those that the broker has, as ``mark`` found.
        self.sent: list[TaskRunRecord] = []

    def send(self, now: datetime) -> None:
        """Send the runs, as far as time and broker allow; raises BrokerAway."""
        self.expired = [
            run for run in self.runs if run.expires_at is not None and run.expires_at <= now
        ]
        expired = {run.pk for run in self.expired}
        lasting = [run for run in self.runs if run.pk not in expired]
        self.batch = Batch(self.outlet, lasting, self._post)
        self.batch.send(min(monotonic() + BATCH_LASTS, self.claimed_at + CLAIM_SERVES))

    def mark(self, now: datetime) -> Dispatched:
        """Write down what became of each run; raises DatabaseError."""
        self.sent, alike = self.batch.sent, self.batch.failed
        failed = [run for runs in alike.values() for run in runs]
        settled = {run.pk for run in (*self.sent, *failed, *self.expired)}
        rest = [run for run in self.runs if run.pk not in settled]
        if self.sent:
            record_sent(self.sent, now)
        if self.expired:
            record_expired(self.expired, now)
        for (text, may_be_out), runs in alike.items():
            record_unsent(runs, text, now, may_be_out=may_be_out)
        given_back = give_back(rest, now) if rest else 0
        return Dispatched(sent=len(self.sent), failed=len(failed), given_back=given_back)

    def _post(self, run: TaskRunRecord, producer: Producer) -> None:
        task = self.app.tasks.get(run.task_name)
        if task is None:
            raise TaskNotFound(run.task_name)
        post(task, run, kept_message(run), producer, retry=False, is_awaited=False)


def _connection() -> BaseDatabaseWrapper:
    return connections[router.db_for_write(TaskRunRecord)]


def _close_connections() -> None:
    """Close all connections of this thread to databases."""
    recording.close()
    with fork_waits(_connection()):
        connections.close_all()


def _tell(runs: Sequence[TaskRunRecord]) -> None:
    """Tell whoever listens of runs that were sent; nobody pays for it where nobody does."""
    if not TaskRunSignal.has_listeners(TaskRunner):
        return
    alias = router.db_for_write(TaskRunRecord)
    keys = {run.run_by_id for run in runs} - {None}
    users = get_user_model()._base_manager.in_bulk(keys)
    for run in runs:
        # Our own connection is for us alone.
        run._state.db = alias
        run.state = State.PENDING
        tell_of_handover(run, users.get(run.run_by_id))
    close_old_connections()
