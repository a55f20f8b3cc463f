"""Clear: delete runs in whatever state they are, because somebody says so."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from django.contrib.auth import get_user_model
from django.db import router
from django.db.models import Count, Q

from celery_admin_runner.deletion import (
    batches_of,
    delete_runs,
    is_awaited,
    is_protected,
)
from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.retention import task_names
from celery_admin_runner.states import State

#: How many runs one transaction deletes, unless another number is asked for: fewer than of what
#: has long ended, for workers may want to write to these.
BATCH_SIZE = 1000
#: What somebody else holds is tried again after so many seconds each: a worker writes down what
#: a run tells within milliseconds, and often.
PAUSES = (0.1, 0.3, 0.6)


@dataclass(frozen=True, kw_only=True)
class Clearance:
    """Which runs are to go: of those that there were when it was asked for."""

    #: The primary key of the newest run there was; what came later stays.
    newest: int
    states: frozenset[State] = frozenset(State)
    #: None: every task.
    task_names: tuple[str, ...] | None = None
    #: Whose; None: everybody's.
    asked_by: Q | None = None


@dataclass(frozen=True, kw_only=True)
class Remainder:
    """How many runs stay that were to go, and why."""

    #: An unfinished run that stays waits for them, or has waited for them.
    awaited: int
    #: A row of another app protects them.
    protected: int
    #: Somebody else holds them just now, or they came into their state only now.
    busy: int

    @property
    def total(self) -> int:
        """How many they are together."""
        return self.awaited + self.protected + self.busy


def clearance(
    *,
    states: frozenset[State] = frozenset(State),
    tasks: tuple[str, ...] = (),
    user_name: str | None = None,
) -> Clearance:
    """Return what these words mean now; ``tasks`` are names and glob patterns, empty: every task.

    Raises PruneError for a user of whom nothing is known.
    """
    runs = _all_runs()
    return Clearance(
        newest=runs.order_by("-pk").values_list("pk", flat=True).first() or 0,
        states=states,
        task_names=tuple(task_names(tasks, using=runs.db)) if tasks else None,
        asked_by=None if user_name is None else _asked_by(user_name),
    )


def count_by_state(clearance: Clearance) -> Mapping[State, int]:
    """Return how many runs are to go, by state."""
    groups = _chosen(clearance).order_by("state").values_list("state").annotate(Count("pk"))
    return {State(state): number for state, number in groups}


def clear(clearance: Clearance, *, batch_size: int = BATCH_SIZE) -> Iterator[int]:
    """Delete the runs of ``clearance``; yield after each batch how many went.

    A run that is in none of its states any more when its turn comes stays. The newest go first,
    for mostly these wait for the others; and as long as any go, those are tried again for which
    one waited that went only then. What somebody else holds is tried again for a while.
    """
    runs = _guarded(clearance)
    chosen = _chosen(clearance).exclude(is_protected(runs.db))
    pauses = iter(PAUSES)
    while True:
        went = False
        keys = batches_of(chosen, batch_size=batch_size, newest_first=True)
        for number in delete_runs(runs.exclude(is_protected(runs.db)), keys):
            went = went or number > 0
            yield number
        if not went:
            pause = next(pauses, None)
            if pause is None or not remainder(clearance).busy:
                return
            time.sleep(pause)


def remainder(clearance: Clearance) -> Remainder:
    """Return how many runs are left of ``clearance``: three queries."""
    left = _chosen(clearance)
    awaited = left.filter(is_awaited(left.db))
    protected = left.filter(is_protected(left.db)).exclude(is_awaited(left.db))
    total, waited_for, kept = left.count(), awaited.count(), protected.count()
    return Remainder(awaited=waited_for, protected=kept, busy=max(total - waited_for - kept, 0))


def _all_runs() -> TaskRunRecordQuerySet:
    return TaskRunRecord.objects.using(router.db_for_write(TaskRunRecord))


def _guarded(clearance: Clearance) -> TaskRunRecordQuerySet:
    """Return the runs that are to go, asked for so that only their keys find them."""
    runs = _all_runs().filter(pk__lte=clearance.newest).in_state(clearance.states)
    if clearance.task_names is not None:
        runs = runs.filter(task_name__in=clearance.task_names)
    return runs if clearance.asked_by is None else runs.filter(clearance.asked_by)


def _chosen(clearance: Clearance) -> TaskRunRecordQuerySet:
    """Return the same runs, asked for so that an index finds those in a few states."""
    runs = _guarded(clearance)
    if clearance.states >= frozenset(State):
        return runs
    return runs.filter(state__in=clearance.states)


def _asked_by(user_name: str) -> Q:
    """Return the condition that a user of this name asked for a run; raises PruneError.

    Who is gone is known by the name alone that the journal has kept.
    """
    model = get_user_model()
    users = model._base_manager.filter(**{model.USERNAME_FIELD: user_name})
    if pks := list(users.values_list("pk", flat=True)):
        return Q(run_by__in=pks)
    is_former = Q(run_by=None, run_by_name=user_name)
    if not user_name or not _all_runs().filter(is_former).exists():
        raise PruneError(f"There is no user {user_name!r}, and no run of a former one.")
    return is_former
