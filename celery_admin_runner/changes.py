"""Tell of each move of a run: which run, from which state, to which; where somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections, router, transaction
from django.db.models import F
from django.dispatch import Signal

from celery_admin_runner.signals import run_changed
from celery_admin_runner.states import State

if TYPE_CHECKING:
    from celery_admin_runner.models import TaskRunRecord
    from celery_admin_runner.querysets import TaskRunRecordQuerySet

#: Whose a run is: the primary key of its user, and that of the run.
Owner = tuple[Any, int]
#: Sent within the package after runs of users were moved, after the commit, with ``owners``, a
#: list of Owner: for who only wants to know where to look. Of what did not move, it may tell too.
touched = Signal()


def told(
    runs: Callable[[], TaskRunRecordQuerySet],
    *,
    sender: type[TaskRunRecord],
    sources: Iterable[State],
    target: State,
    update: Callable[[Collection[int] | None], int],
    owners: Callable[[], Iterable[Owner]],
) -> int:
    """Execute ``update``, which moves those of ``runs`` that are in ``sources`` to ``target``.

    Returns what ``update`` does. Where nobody listens to ``run_changed``, that is all, and it
    gets None. Else it happens in a transaction in which the rows were locked before, so that for
    each run it is certain from which state it came, and each is told of after the commit. Then
    ``update`` gets the primary keys of those rows, and must move no others: what came into one
    of ``sources`` only after they were locked came from nobody knows where.

    ``owners`` gives whose these runs are, asked before they are moved, where somebody listens
    to ``touched`` alone: that costs no transaction, and one statement.
    """
    if not run_changed.has_listeners(sender):
        return _touching(runs, sender, update, owners)
    rows = runs()
    # Where ``update`` writes: a router may have another database to read from.
    rows = rows.using(rows.select_for_update().db)
    with transaction.atomic(using=rows.db, savepoint=False):
        before = _locked_states(rows, sources)
        number = update(before.keys())
        _tell_on_commit(rows.db, before, target, sender)
    return number


def _touching(
    runs: Callable[[], TaskRunRecordQuerySet],
    sender: type[TaskRunRecord],
    update: Callable[[Collection[int] | None], int],
    owners: Callable[[], Iterable[Owner]],
) -> int:
    """Execute ``update``, and send ``touched`` if somebody listens to it."""
    if not touched.has_listeners(sender):
        return update(None)
    owned = [owner for owner in owners() if owner[0] is not None]
    number = update(None)
    if number and owned:
        using = runs().select_for_update().db
        _touch_on_commit(using, owned, sender)
    return number


def _touch_on_commit(using: str, owned: list[Owner], sender: type[TaskRunRecord]) -> None:
    send = partial(touched.send_robust, sender=sender, owners=owned)
    transaction.on_commit(send, using=using, robust=True)


def _locked_states(runs: TaskRunRecordQuerySet, sources: Iterable[State]) -> dict[int, str]:
    """Return the states of those of these runs that are in ``sources``, by primary key.

    Until the end of the transaction nobody else changes them. On SQLite, which knows no locks of
    rows, a statement that changes nothing waits for the file: it refuses to write at once after
    it read what has changed since.
    """
    movable = runs.in_state(sources)
    features = connections[runs.db].features
    if features.has_select_for_update:
        no_key = features.has_select_for_no_key_update
        movable = movable.select_for_update(no_key=no_key)
    else:
        # A column without an index.
        movable.update(retries=F("retries"))
    return dict(movable.order_by("pk").values_list("pk", "state"))


def _tell_on_commit(
    using: str, before: dict[int, str], target: State, sender: type[TaskRunRecord]
) -> None:
    """Tell of these runs, as they are now, when the transaction is committed."""
    if not before:
        return
    # The whole result may be many megabytes; who asks for it reads it.
    runs = sender._base_manager.using(using).defer("whole_result").in_bulk(list(before))
    for pk, state in before.items():
        if state == target:
            # Begun again, say: no move, but something to look at.
            continue
        # Our own connection is for us alone.
        runs[pk]._state.db = router.db_for_write(sender)
        send = partial(
            run_changed.send_robust,
            sender=sender,
            run=runs[pk],
            from_state=State(state),
            to_state=target,
        )
        transaction.on_commit(send, using=using, robust=True)
    owned = [(run.run_by_id, run.pk) for run in runs.values() if run.run_by_id is not None]
    if owned:
        _touch_on_commit(using, owned, sender)
