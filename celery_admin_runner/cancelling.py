"""Ask a run to stop: what that makes of its row. Here the database decides who was first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import Q
from django.utils.translation import gettext as _

from celery_admin_runner.base import DjangoTask
from celery_admin_runner.dispatch import CLAIM_LASTS
from celery_admin_runner.exceptions import NotCancellable, TaskNotFound
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import get_task
from celery_admin_runner.states import State
from celery_admin_runner.tracking import CANCELLED

#: Who sends such a run claims it before.
CLAIMABLE = frozenset({State.UNSENT, State.SCHEDULED})
#: A worker has such a run, or will get it, and does not run its code just now.
AWAITED = frozenset({State.PENDING, State.RETRY})
#: A run moves on while we look at it at most so often: sent, started, retried, ended.
TRIES = 10


def ask_to_stop(run: TaskRunRecord, *, by: int | str | None, now: datetime, using: str) -> State:
    """Move a run to REVOKED, or to CANCELLING where only a worker can confirm that it stops.

    Returns the state that it was in; CANCELLING stays as it is. ``run`` has the new one.
    Raises NotCancellable for a finished run; of this and its end the first one counts.
    """
    is_guarded = has_guarded_start(run.task_name)
    for _try in range(TRIES):
        if run.is_finished:
            raise NotCancellable(_("This run has ended: there is nothing to cancel."))
        was = State(run.state)
        if was == State.CANCELLING and not _was_left(run, now):
            return was
        target = _target(run, now, is_guarded=is_guarded)
        if _move(run, target, by=by, now=now, using=using):
            return was
        run.refresh_from_db(using=using)
    raise NotCancellable(_("This run does not stay in one state just now: try again."))


def expected_state(run: TaskRunRecord, now: datetime) -> State:
    """Return the state that asking an unfinished run to stop brings it to, as things are."""
    return _target(run, now, is_guarded=has_guarded_start(run.task_name))


def check_can_kill(run: TaskRunRecord) -> None:
    """Raise NotCancellable unless the run was asked to stop before, and a worker began it."""
    if not run.is_finished and (run.state != State.CANCELLING or run.started_at is None):
        raise NotCancellable(_("Killing is the second step: end the run before, and wait."))


def has_guarded_start(task_name: str) -> bool:
    """Tell whether a worker asks the journal before it begins a run of this task."""
    try:
        return isinstance(get_task(task_name), DjangoTask)
    except TaskNotFound:
        return False


def _target(run: TaskRunRecord, now: datetime, *, is_guarded: bool) -> State:
    """Return the state that asking to stop brings an unfinished run to."""
    if run.state in {State.WAITING, State.CANCELLING}:
        return State.REVOKED
    if run.state in CLAIMABLE and not _is_being_sent(run, now):
        return State.REVOKED
    if is_guarded and run.state in AWAITED | {State.UNSENT}:
        return State.REVOKED
    return State.CANCELLING


def _is_being_sent(run: TaskRunRecord, now: datetime) -> bool:
    """Tell whether somebody has the run in hand: its message may be out any moment."""
    return run.claimed_at is not None and now - run.claimed_at < CLAIM_LASTS


def _was_left(run: TaskRunRecord, now: datetime) -> bool:
    """Tell whether a run was asked to stop while it was being sent, and its publisher died."""
    is_unheard = run.published_at is None and run.started_at is None
    return is_unheard and run.claimed_at is not None and not _is_being_sent(run, now)


def _move(
    run: TaskRunRecord, target: State, *, by: int | str | None, now: datetime, using: str
) -> bool:
    """Move the run if it is still as it was seen; tell whether it was."""
    fields: dict[str, Any] = {"cancel_requested_at": now, "cancel_requested_by_id": by}
    if target == State.REVOKED:
        fields |= {"finished_at": now, "exception": CANCELLED}
    seen = Q(pk=run.pk)
    if run.state in CLAIMABLE:
        # Who claims a run, or gives the claim back, changes the token.
        seen &= Q(dispatch_id=run.dispatch_id)
    runs = TaskRunRecord.objects.using(using).filter(seen)
    moved = runs.transition(sources=[State(run.state)], target=target, **fields)
    if moved:
        run.state = target
        for name, value in fields.items():
            setattr(run, name, value)
    return bool(moved)
