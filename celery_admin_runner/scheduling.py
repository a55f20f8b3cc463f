"""Runs that are kept in the database until they may start."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Case, DateTimeField, Q, Value, When
from django.utils.translation import gettext as _

from celery_admin_runner.exceptions import NotMovable
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import KEPT, State

#: A dispatcher looks each second: what is due so soon can't be sent sooner. It also is by how
#: much the clocks of two who ask for that may differ.
DISPATCHERS_PAUSE = timedelta(seconds=1)


def kept_fields(
    eta: datetime | None, depends_on: Collection[TaskRunRecord], now: datetime
) -> dict[str, Any]:
    """Return the fields of a new run that may not start yet; {} for one that is sent at once."""
    if depends_on:
        return {"state": State.WAITING}
    if eta is not None and eta > now:
        return {"state": State.SCHEDULED, "due_at": eta}
    return {}


def move(run: TaskRunRecord, eta: datetime | None, *, now: datetime, using: str) -> None:
    """Give a kept run another earliest start, or none; what has passed is ``now``.

    One guarded UPDATE, so that of this and a dispatcher the first one counts; ``run`` has what
    it wrote. Raises NotMovable.
    """
    start = None if eta is None else max(eta, now)
    if run.expires_at is not None and run.expires_at <= (start or now):
        raise NotMovable(_("It would expire before it may start."))
    due_at = start or now
    rows = TaskRunRecord.objects.using(using).filter(pk=run.pk)
    movable = rows.filter(dispatch_id=None).in_state(KEPT)
    if due_at <= now:
        # What is due already can't come sooner.
        movable = movable.filter(Q(due_at=None) | Q(due_at__gt=now + DISPATCHERS_PAUSE))
    # What waits for other runs is due when they have succeeded, and not before.
    is_waiting = When(state=State.WAITING, then=Value(None, DateTimeField()))
    if not movable.update(eta=start, due_at=Case(is_waiting, default=Value(due_at))):
        raise NotMovable(obstacle(rows.first()) or _is_due_text())
    run.refresh_from_db(using=using, fields=["state", "eta", "due_at"])


def obstacle(run: TaskRunRecord | None) -> str:
    """Return why a run can't be moved, or ""."""
    if run is None:
        return _("This run is not in the journal any more.")
    if run.is_finished:
        return _("This run has ended: “%(state)s”.") % {"state": State(run.state).label}
    if run.state == State.CANCELLING:
        return _("This run was asked to stop.")
    if run.state not in KEPT:
        return _("This run is not kept any more: it was sent already.")
    if run.dispatch_id is not None:
        return _("This run is on its way already: a dispatcher has taken it.")
    return ""


def _is_due_text() -> str:
    return _("This run is on its way already: it is due, and the next dispatcher sends it.")
