"""Runs that are sent one after the other by one connection, and what became of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from celery import Celery
from django.utils import timezone
from kombu.messaging import Producer

from celery_admin_runner.attempts import Attempt
from celery_admin_runner.broker import BrokerAway, Outlet, open_outlet
from celery_admin_runner.dispatch import keep_claims, record_failures, record_sent
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State

#: So many runs are sent, and marked, together.
BATCH_SIZE = 200
#: So long a batch is sent, in seconds; what is left is looked at again, or given back.
BATCH_LASTS = 5.0

#: Sends the message of a run by a producer; raises whatever task, router and broker raise.
Post = Callable[[TaskRunRecord, Producer], None]


class Batch:
    """Runs that are sent by an outlet, each tried once, and what became of each."""

    def __init__(self, outlet: Outlet, runs: Sequence[TaskRunRecord], post: Post) -> None:
        self.outlet = outlet
        self.runs = runs
        self._post = post
        self._written: list[TaskRunRecord] = []
        self._refused: dict[str, str] = {}
        self._unclear: dict[str, str] = {}

    def send(self, end: float) -> None:
        """Send the runs until this moment of the monotonic clock; raises BrokerAway."""
        outlet = self.outlet
        outlet.refused, outlet.unclear = self._refused, self._unclear
        try:
            for run in self.runs:
                if monotonic() > end:
                    break
                self._send(run)
            outlet.finish()
        finally:
            outlet.give_up()

    def _send(self, run: TaskRunRecord) -> None:
        self.outlet.begin(run.task_id)
        attempt = Attempt()
        with attempt:
            self._post(run, self.outlet.producer)
        if attempt.error is None:
            self._written.append(run)
            self.outlet.posted()
        else:
            self.outlet.failed(attempt.error)

    @property
    def sent(self) -> list[TaskRunRecord]:
        """The runs that the broker has."""
        not_sent = self._refused.keys() | self._unclear.keys()
        return [run for run in self._written if run.task_id not in not_sent]

    @property
    def failed(self) -> Mapping[tuple[str, bool], Sequence[TaskRunRecord]]:
        """The runs that failed, by why, and whether they may be out all the same.

        Those that failed alike are recorded together: all may have been for a queue that
        nobody knows.
        """
        alike: dict[tuple[str, bool], list[TaskRunRecord]] = defaultdict(list)
        for run in self.runs:
            if run.task_id in self._unclear:
                alike[self._unclear[run.task_id], True].append(run)
            elif run.task_id in self._refused:
                alike[self._refused[run.task_id], False].append(run)
        return alike

    @property
    def untried(self) -> list[TaskRunRecord]:
        """The runs that were not begun with."""
        tried = {run.pk for run in self._written}
        tried.update(run.pk for runs in self.failed.values() for run in runs)
        return [run for run in self.runs if run.pk not in tried]


def send_all(
    app: Celery,
    runs: Sequence[TaskRunRecord],
    post: Post,
    *,
    tell: Callable[[Sequence[TaskRunRecord]], None],
) -> bool:
    """Send claimed, unsent runs, and record what came of each; False: the broker is away.

    Of each batch of 200 that is one statement. At the first sign that the broker is away
    what is left stays UNSENT, with the reason. What was asked to stop meanwhile is not sent.
    ``tell`` is called with those that were sent, also where the broker went away after them.
    Raises DatabaseError.
    """
    waiting: Sequence[TaskRunRecord] = runs
    try:
        with open_outlet(app) as outlet:
            while waiting:
                must_look = len(waiting) < len(runs)
                waiting = keep_claims(waiting, BATCH_SIZE, must_look=must_look)
                batch = Batch(outlet, waiting[:BATCH_SIZE], post)
                waiting = waiting[BATCH_SIZE:]
                try:
                    batch.send(monotonic() + BATCH_LASTS)
                finally:
                    waiting = [*batch.untried, *waiting]
                    _mark(batch)
                    tell(batch.sent)
    except BrokerAway as error:
        leave_unsent(waiting, str(error))
        return False
    return True


def leave_unsent(runs: Sequence[TaskRunRecord], text: str) -> None:
    """Keep why claimed runs were not tried: a statement for each batch of 200."""
    for start in range(0, len(runs), BATCH_SIZE):
        record_failures(runs[start : start + BATCH_SIZE], text)


def _mark(batch: Batch) -> None:
    """Write down what became of each run; raises DatabaseError."""
    now, sent = timezone.now(), batch.sent
    if sent:
        record_sent(sent, now)
    for run in sent:
        run.state, run.published_at = State.PENDING, now
    for (text, may_be_out), runs in batch.failed.items():
        record_failures(runs, text, may_be_out=may_be_out)
