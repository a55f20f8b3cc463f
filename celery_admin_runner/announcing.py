"""Calls that wait for a commit: their row is in the transaction, and is sent after it.

So a crash between the commit and the message leaves a row that shows it: not sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from uuid import uuid4

from celery.result import AsyncResult
from django.db import IntegrityError, router, transaction
from django.utils import timezone

from celery_admin_runner import holding, ignoring, insertion, invocations, unique
from celery_admin_runner.base import Invocation, announce
from celery_admin_runner.dispatch import keep_claim
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.publishing import is_tracked_by_name
from celery_admin_runner.recording import database, record
from celery_admin_runner.sameness import Sameness
from celery_admin_runner.storing import StoredCall

#: What is kept as the exception of a call that found, at the commit, the same one active.
JOINED = "Joined: the same call was active already, as the run {task_id}."

#: What is to be done when the transaction is committed.
Send = Callable[[], AsyncResult]


def connect() -> None:
    """Keep the calls of DjangoTasks that wait for a commit from now on."""
    announce(keep)


def keep(invocation: Invocation, using: str) -> Send | None:
    """Write a call into the transaction of the database ``using``, and return what sends it.

    None: it has no row, or that is in another database; it is to be invoked on commit. A call
    that is kept for later is kept at once. Raises DatabaseError.
    """
    if using != router.db_for_write(TaskRunRecord):
        return None
    is_tracked = is_tracked_by_name(invocation.task.name)
    if not is_tracked and not invocations.has_row(invocation):
        held = holding.hold(invocation)
        return None if held is None else lambda: held
    same = invocations.sameness(invocation)
    invocation = invocations.with_override(invocation)
    return _held(invocation, same, using) or _announced(invocation, same, using)


def _held(invocation: Invocation, same: Sameness, using: str) -> Send | None:
    """Keep a call for later, as without a transaction; None: it is to be sent on commit."""
    is_member, now = invocations.is_in_canvas(invocation), timezone.now()
    if same.is_ignoring and not is_member and _is_for_later(invocation):
        success = ignoring.open_window(same.key, now, using)
        if success is not None:
            return partial(invocations.ignore, invocation, same, success, now)
    fields = invocations.fields_of(invocation, same)
    try:
        held = holding.hold(invocation, fields, limit=same.limit)
    except unique.KeyTaken as error:
        if is_member:
            return _held(invocation, replace(same, limit=None), using)
        return partial(invocations.join, invocation, error.holder)
    return None if held is None else lambda: held


def _is_for_later(invocation: Invocation) -> bool:
    options = invocation.options
    return bool(invocation.own.depends_on or options.get("eta") or options.get("countdown"))


def _announced(invocation: Invocation, same: Sameness, using: str) -> Send | None:
    """Write the row of a call that is sent on commit; None: the database refuses it.

    It does not have its key yet: whether the same call is active is asked then.
    """
    now = timezone.now()
    fields = {
        **invocations.fields_of(invocation, same),
        **{"active_key": None, "dispatch_id": uuid4(), "claimed_at": now},
    }
    run, call = invocations.new_row(invocation, now, fields)
    holding.forget_deleted_user(run, using)
    try:
        with transaction.atomic(using=using):
            insertion.insert([run], using=using)
    except IntegrityError:
        # There is a row of this id, perhaps.
        return None
    return partial(_send, invocation, same, run, call)


def _send(
    invocation: Invocation, same: Sameness, run: TaskRunRecord, call: StoredCall
) -> AsyncResult:
    """Send a call that was announced, unless another run answers for it; raises what Celery does.

    Who was faster, by "Send again", has sent it: a transaction may last longer than a claim.
    """
    if not keep_claim(run):
        return invocation.task.AsyncResult(run.task_id)
    now, is_member = timezone.now(), invocations.is_in_canvas(invocation)
    must_look = same.is_ignoring and not is_member
    if must_look and invocations.end_ignored(run, same, now):
        return invocations.ignored_result(invocation, run)
    try:
        _take_key(run, same, now)
    except unique.KeyTaken as error:
        why = JOINED.format(task_id=error.holder.task_id)
        fields = {"finished_at": now, "exception": why}
        if not is_member and invocations.end_unsent(run, fields):
            return invocations.join(invocation, error.holder)
    # The run that had the key until now may have opened a window with its end.
    if must_look and same.limit is not None and invocations.end_ignored(run, same, now):
        return invocations.ignored_result(invocation, run)
    return invocations.hand_over(invocation, run, call)


def _take_key(run: TaskRunRecord, same: Sameness, now: datetime) -> None:
    """Give the run the key by which it is the only one of its call; raises KeyTaken."""
    limit = same.limit
    if limit is None:
        return

    def take() -> int:
        return invocations.unsent(run).update(active_key=same.key)

    record(lambda: unique.take(same.key, take, limit=limit, now=now, using=database()))
    run.active_key = same.key
