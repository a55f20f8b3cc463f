"""Runs that wait for other runs: what they wait for, and what becomes of them.

A WAITING run has an OpenDependency for each run that it still waits for. Only who has the row
of the waiting run locked takes these away, and releases or ends it, in one transaction: of
several who settle it at once one does, and no end of a dependency is overlooked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Any

from django.db import connections, models, router, transaction
from django.db.models import Case, F, Value, When
from django.utils import timezone
from django.utils.translation import gettext as _

from celery_admin_runner import insertion
from celery_admin_runner.deletion import delete_by_key
from celery_admin_runner.exceptions import (
    ALL,
    CircularDependency,
    InvalidArguments,
    NotMovable,
)
from celery_admin_runner.models import Lease, OpenDependency, TaskRunRecord
from celery_admin_runner.recording import database, record
from celery_admin_runner.states import FINISHED, State

#: How many waiting runs one transaction settles.
BATCH_SIZE = 500
#: For so long one call goes from what it skipped to what waits for that, in seconds: in a chain
#: of thousands each link is a transaction, and what is due meanwhile would wait for all of them.
#: What is left the next pass of a dispatcher settles: it begins with what ended just now.
CASCADE_LASTS = 2.0
#: What is kept as the exception of a run that was never sent, by how the run ended that it
#: waited for. It names no run: who sees this one may not see that one.
SKIPPED = {
    state: f"Skipped: a run that it waited for ended as {state.value}."
    for state in sorted(FINISHED - {State.SUCCESS})
}
#: The lease whose row is locked by who lets runs wait for more: two who do it at once could
#: close a circle of which neither sees the other's half.
TURN = "let a run wait for more runs"
#: How a row is kept from going. On PostgreSQL it can still be written; MySQL and MariaDB know
#: nothing weaker than what every foreign key to the row does there: who writes it waits.
_KEEP = {"postgresql": " FOR KEY SHARE", "mysql": " LOCK IN SHARE MODE"}


def awaited(depends_on: Any) -> list[TaskRunRecord]:
    """Return the runs to wait for, each once; raises TypeError for what is none."""
    if isinstance(depends_on, str) or not isinstance(depends_on, Iterable):
        raise TypeError(f"depends_on takes a list of runs of the journal, and not {depends_on!r}.")
    runs = list(depends_on)
    for run in runs:
        if not isinstance(run, TaskRunRecord) or run.pk is None:
            raise TypeError(f"depends_on takes runs of the journal, and not {run!r}.")
    return list({run.pk: run for run in runs}.values())


def record_waiting(runs: Sequence[TaskRunRecord], others: Iterable[TaskRunRecord]) -> None:
    """Write the rows of new runs that each wait for the same others; a transaction.

    These are kept from being pruned until they end. Raises InvalidArguments if one is gone.
    """
    using = str(router.db_for_write(TaskRunRecord))
    pks = [other.pk for other in others]
    with transaction.atomic(using=using):
        if connections[using].features.has_select_for_update:
            # While we wait for them nobody waits for us.
            pks = _keep(pks, using)
            insertion.insert(runs, using=using)
        else:
            # Who has only read before may not write any more.
            insertion.insert(runs, using=using)
            pks = _keep(pks, using)
        _link(runs, pks, using)


def await_more(run: TaskRunRecord, others: Iterable[TaskRunRecord], *, now: datetime) -> None:
    """Let a WAITING run wait for more runs; a transaction.

    Raises CircularDependency, NotMovable if the run does not wait any more, and
    InvalidArguments if one of the others is gone.
    """
    using = str(router.db_for_write(TaskRunRecord))
    leases = Lease.objects.using(using)
    with transaction.atomic(using=using):
        leases.bulk_create([Lease(name=TURN, expires_at=now)], ignore_conflicts=True)
        leases.filter(name=TURN).update(holder=None)
        if not _waiting([run.pk], using, skip_locked=False):
            raise NotMovable(_("This run does not wait any more."))
        pks = _keep([other.pk for other in others], using)
        _refuse_circles(run.pk, pks, using)
        links = TaskRunRecord.depends_on.through._base_manager.using(using)
        known = links.filter(from_taskrunrecord=run).values_list("to_taskrunrecord_id", flat=True)
        _link([run], sorted(set(pks) - set(known)), using)


def _keep(pks: Sequence[int], using: str) -> list[int]:
    """Keep these runs from being pruned while the transaction lasts; return their keys.

    On PostgreSQL a worker that reports one of them waits for nobody. In the order of their keys,
    so that of two who keep the same runs neither waits for the other.
    """
    connection = connections[using]
    kept: list[int] = []
    with connection.cursor() as cursor:
        for batch in _batches(pks):
            rows = TaskRunRecord.objects.using(using).filter(pk__in=batch).order_by("pk")
            sql, parameters = rows.values("pk").query.get_compiler(using).as_sql()
            cursor.execute(sql + _KEEP.get(connection.vendor, ""), parameters)
            kept += [pk for (pk,) in cursor.fetchall()]
    if len(kept) < len(set(pks)):
        text = _("A run that this one is to wait for is not in the journal any more.")
        raise InvalidArguments({ALL: [text]})
    return kept


def _link(runs: Sequence[TaskRunRecord], pks: Sequence[int], using: str) -> None:
    """Write down that each of these runs waits for these."""
    through = TaskRunRecord.depends_on.through
    through._base_manager.using(using).bulk_create(
        through(from_taskrunrecord_id=run.pk, to_taskrunrecord_id=pk)
        for run in runs
        for pk in pks
    )
    OpenDependency.objects.using(using).bulk_create(
        OpenDependency(dependent_id=run.pk, dependency_id=pk) for run in runs for pk in pks
    )


def _refuse_circles(pk: int, others: Iterable[int], using: str) -> None:
    """Raise CircularDependency if one of the others is this run, or waits for it."""
    links = TaskRunRecord.depends_on.through._base_manager.using(using)
    seen: set[int] = set()
    level = set(others)
    while level:
        if pk in level:
            raise CircularDependency(_("This run would wait for itself."))
        seen |= level
        level = {
            other
            for batch in _batches(level)
            for other in links.filter(from_taskrunrecord__in=batch).values_list(
                "to_taskrunrecord_id", flat=True
            )
        } - seen


def settle(runs: Iterable[TaskRunRecord], now: datetime | None = None) -> int:
    """Release those of these WAITING runs whose dependencies have all succeeded.

    Those with a dependency that ended otherwise are IGNORED, and so are the runs that wait for
    them. What is released is due at once, or at its ``eta``. Returns how many were settled;
    whoever settles the same runs meanwhile gets the others.
    """
    return _settle({run.pk for run in runs}, timezone.now() if now is None else now)


def settle_on_commit(runs: Sequence[TaskRunRecord]) -> None:
    """Look then what became of all that these runs wait for: that may have ended before.

    An error of the database is only logged: the dispatchers look too.
    """

    def settle_it() -> None:
        settle(runs)

    using = str(router.db_for_write(TaskRunRecord))
    transaction.on_commit(settle_it, using=using, robust=True)


def settle_finished(since: datetime, now: datetime) -> int:
    """Settle what waits for the runs that have finished from ``since`` on.

    One query by the index on ``finished_at`` where nothing is to be settled, however many runs
    wait. It overlooks what was locked just then: ask again for some time, and ``sweep``.
    """
    finished = TaskRunRecord.objects.using(database()).filter(
        finished_at__gte=since, open_dependents__isnull=False
    )
    dependents = finished.in_state(FINISHED).order_by()
    return _settle(dependents.values_list("open_dependents__dependent_id", flat=True), now)


def sweep(now: datetime) -> int:
    """Settle whatever can be settled: what a process that died has left, for instance."""
    open_dependencies = OpenDependency.objects.using(database())
    left = open_dependencies.exclude(dependent__state=State.WAITING)
    _close(left.values_list("pk", flat=True), database())
    ended = open_dependencies.filter(dependency__state__in=list(FINISHED))
    return _settle(ended.values_list("dependent_id", flat=True), now)


def _settle(pks: Iterable[int], now: datetime) -> int:
    """Settle these WAITING runs, and then those that wait for what was skipped among them.

    What comes after the first of these steps only as long as CASCADE_LASTS.
    """
    number, end = 0, monotonic() + CASCADE_LASTS
    level = list(pks)
    while level:
        skipped: list[int] = []
        for batch in _batches(level):
            released, ignored = record(partial(_settle_some, batch, now))
            number += released + len(ignored)
            skipped += ignored
        level = _dependents_of(skipped) if monotonic() < end else []
    return number


def _settle_some(pks: Sequence[int], now: datetime) -> tuple[int, list[int]]:
    """Settle some WAITING runs; return how many were released, and the keys of the skipped."""
    using = database()
    open_dependencies = OpenDependency.objects.using(using)
    ended = open_dependencies.filter(dependent_id__in=pks, dependency__state__in=list(FINISHED))
    states: dict[int, dict[int, str]] = defaultdict(dict)
    for pk, key, state in ended.order_by("dependent_id", "dependency_id").values_list(
        "dependent_id", "pk", "dependency__state"
    ):
        states[pk][key] = state
    if not states:
        return 0, []
    with transaction.atomic(using=using):
        held = _held(list(states), using)
        skipped = _skip({pk: states[pk] for pk in held}, now, using)
        others = open_dependencies.filter(dependent_id__in=skipped).values_list("pk", flat=True)
        _close([key for pk in held for key in states[pk]] + list(others), using)
        still_open = open_dependencies.filter(dependent_id__in=held)
        waiting = set(still_open.values_list("dependent_id", flat=True))
        released = _release(sorted(set(held) - set(skipped) - waiting), now, using)
    return released, skipped


def _close(keys: Iterable[int], using: str) -> None:
    """Delete these rows of OpenDependency."""
    rows = OpenDependency.objects.using(using)
    for batch in _batches(keys):
        delete_by_key(rows, batch)


def _held(pks: Sequence[int], using: str) -> list[int]:
    """Lock those of these runs that wait and that nobody else holds, as long as we need."""
    if not connections[using].features.has_select_for_update:
        # Whoever writes holds the whole file, and who has only read before may not write.
        waiting = TaskRunRecord.objects.using(using).filter(pk__in=pks)
        waiting.in_state([State.WAITING]).update(due_at=None)
    return _waiting(pks, using, skip_locked=True)


def _waiting(pks: Sequence[int], using: str, *, skip_locked: bool) -> list[int]:
    """Lock those of these runs that wait, and return them; others may still wait for them."""
    features = connections[using].features
    waiting = TaskRunRecord.objects.using(using).filter(pk__in=pks).in_state([State.WAITING])
    locked = waiting.select_for_update(
        skip_locked=skip_locked and features.has_select_for_update_skip_locked,
        no_key=features.has_select_for_no_key_update,
    )
    return list(locked.order_by("pk").values_list("pk", flat=True))


def _skip(states: dict[int, dict[int, str]], now: datetime, using: str) -> list[int]:
    """End those of these runs that wait for a run that has not succeeded; return their keys."""
    by_state: dict[State, list[int]] = defaultdict(list)
    for pk, ended in states.items():
        failed = next((state for state in ended.values() if state != State.SUCCESS), None)
        if failed is not None:
            by_state[State(failed)].append(pk)
    skipped = []
    for state, pks in by_state.items():
        runs = TaskRunRecord.objects.using(using).filter(pk__in=pks)
        runs.transition(
            sources=[State.WAITING],
            target=State.IGNORED,
            finished_at=now,
            exception=SKIPPED[state],
        )
        skipped += pks
    return skipped


def _release(pks: Sequence[int], now: datetime, using: str) -> int:
    """Hand these runs, which wait for nothing any more, to the dispatchers."""
    is_later = When(eta__gt=now, then=F("eta"))
    return (
        TaskRunRecord.objects.using(using)
        .filter(pk__in=pks)
        .transition(
            sources=[State.WAITING],
            target=State.SCHEDULED,
            due_at=Case(is_later, default=Value(now, models.DateTimeField())),
        )
    )


def _dependents_of(pks: Sequence[int]) -> list[int]:
    """Return the keys of the runs that wait for these."""
    rows = OpenDependency.objects.using(database())
    return [
        dependent
        for batch in _batches(pks)
        for dependent in rows.filter(dependency_id__in=batch).values_list(
            "dependent_id", flat=True
        )
    ]


def _batches(pks: Iterable[int]) -> Iterator[list[int]]:
    """Yield these keys in their order, each once, in lists for one statement each."""
    ordered = sorted(set(pks))
    for start in range(0, len(ordered), BATCH_SIZE):
        yield ordered[start : start + BATCH_SIZE]
