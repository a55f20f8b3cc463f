"""A process that makes runs and moves them, at an even pace, as web processes and workers do.

``python -m tests.benchmarks.moves``: reads what to do as a line of JSON, answers with a line that
it is ready, begins at the next line, and in the end writes, as JSON too, each change: ``[run,
user, rank, moment]``, the moment (monotonic, one clock for all processes) after the commit.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from celery.app.task import Context
from django.contrib.auth.models import User
from django.db.models.signals import post_save
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.contexts import RunContext
from celery_admin_runner.headers import ROW_HEADER, RUN_HEADER
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runs import CurrentRun
from celery_admin_runner.signals import run_changed, run_progressed
from celery_admin_runner.states import FINISHED, State
from tests.benchmarks.tasks import nothing_guarded

#: The steps of a run's progress.
STEPS = 8
#: A run is changed once in so many seconds; its progress can be written twice a second.
PAUSE = 1.0
#: What waits to be pushed when the last run has ended has so many seconds.
FLUSHED_WITHIN = 2.0
#: How far a run is, as one number; between the first two and the last its progress.
RANKS = {State.UNSENT: 0, State.PENDING: 1, State.STARTED: 2}
RANK_OF_END = 1000


def rank_of(state: str, current: int) -> int:
    """Return how far a run is: a later change of it has a higher rank."""
    if state in FINISHED:
        return RANK_OF_END
    return RANKS[State(state)] + (current if state == State.STARTED else 0)


class Load:
    """Moves runs of some users, and keeps in mind when."""

    def __init__(self, users: Sequence[User], rate: float) -> None:
        self.users = deque(users)
        self.rate = rate
        self.changes: list[tuple[int, int, int, float]] = []
        self.active: deque[Moved] = deque()

    def listen(self) -> None:
        """Hear of each change right after its commit."""
        post_save.connect(self._on_saved, sender=TaskRunRecord)
        run_changed.connect(self._on_changed, sender=TaskRunRecord)
        run_progressed.connect(self._on_progressed, sender=TaskRunRecord)

    def move(self, seconds: float) -> float:
        """Change runs for so long, then end all of them; return how many seconds it took."""
        begun_at = time.monotonic()
        wanted = max(1, round(self.rate * PAUSE))
        while time.monotonic() < begun_at + seconds:
            if len(self.active) < wanted:
                self._make()
            else:
                self._advance()
            self._keep_pace(begun_at)
        while self.active:
            self.active.popleft().end()
            self._keep_pace(begun_at)
        return time.monotonic() - begun_at

    def _make(self) -> None:
        user = self.users[0]
        self.users.rotate(-1)
        context = RunContext(user=user, label=user.get_username())
        task_id = nothing_guarded.apply_async(run_context=context).id
        self.active.append(Moved(task_id, self.changes[-1][0], user))

    def _advance(self) -> None:
        run = self.active.popleft()
        if not run.advance():
            self.active.append(run)

    def _keep_pace(self, begun_at: float) -> None:
        due_at = begun_at + len(self.changes) / self.rate
        time.sleep(max(0.0, due_at - time.monotonic()))

    def _on_saved(self, instance: TaskRunRecord, created: bool, **kwargs: Any) -> None:
        if created:
            self._keep(instance.pk, instance.run_by_id, rank_of(instance.state, 0))

    def _on_changed(self, run: TaskRunRecord, to_state: State, **kwargs: Any) -> None:
        self._keep(run.pk, run.run_by_id, rank_of(to_state, run.progress_current))

    def _on_progressed(self, run_pk: int, user_pk: str, current: int, **kwargs: Any) -> None:
        self._keep(run_pk, int(user_pk), rank_of(State.STARTED, current))

    def _keep(self, pk: int, user_pk: int | None, rank: int) -> None:
        self.changes.append((pk, user_pk or 0, rank, time.monotonic()))


class Moved:
    """A run, and what is to become of it next."""

    def __init__(self, task_id: str, pk: int, user: User) -> None:
        row = [pk, str(user.pk), user.get_username()]
        headers = {RUN_HEADER: task_id, ROW_HEADER: row}
        self.task_id = task_id
        self.current = CurrentRun(nothing_guarded, Context(id=task_id, headers=headers))
        self.step = 0

    def advance(self) -> bool:
        """Take the next step; tell whether it was the last."""
        if self.step == 0:
            self._start()
        elif self.step <= STEPS:
            self.current.progress(self.step, STEPS, f"Step {self.step} of {STEPS}")
        else:
            self.end()
        self.step += 1
        return self.step > STEPS + 1

    def end(self) -> None:
        """Let it succeed."""
        tracking.record_success(self.task_id, attempt=0, result=None, now=timezone.now())

    def _start(self) -> None:
        tracking.record_start(self.task_id, attempt=0, worker="moves", now=timezone.now())


def main() -> None:
    """Do what standard input says, and tell of it on standard output."""
    wanted = json.loads(sys.stdin.readline())
    load = Load(User.objects.filter(pk__in=wanted["users"]).order_by("pk"), wanted["rate"])
    load.listen()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    seconds = load.move(wanted["seconds"])
    json.dump({"changes": load.changes, "seconds": seconds}, sys.stdout)
    sys.stdout.flush()
    time.sleep(FLUSHED_WITHIN)


if __name__ == "__main__":
    main()
