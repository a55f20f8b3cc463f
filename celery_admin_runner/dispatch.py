"""Hand runs to the broker."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from enum import Enum
from typing import Any
from uuid import uuid4

from celery.app.task import Task
from django.db import connections, router, transaction
from django.db.models import Q
from django.db.models.functions import Coalesce
from django.utils import timezone
from kombu.messaging import Producer

from celery_admin_runner import statements
from celery_admin_runner.attempts import Attempt
from celery_admin_runner.broker import (
    BROKER_TIMEOUT,
    RETRY_POLICY,
    UNUSABLE_ADDRESS,
    broker_errors,
    describe,
    describe_address,
    producers,
    shared_connection,
)
from celery_admin_runner.messages import Message, sent_options
from celery_admin_runner.models import NOT_CONFIRMED, TaskRunRecord
from celery_admin_runner.querysets import STALE_SCHEDULED_AFTER, TaskRunRecordQuerySet
from celery_admin_runner.recording import database, journal
from celery_admin_runner.redaction import has_mask
from celery_admin_runner.states import State

logger = logging.getLogger("celery_admin_runner")

#: A claim older than this belongs to nobody any more: who made it has died.
CLAIM_LASTS = timedelta(minutes=1)
#: What is kept as the exception of a run that was cancelled while its publisher had it.
CANCELLED = "Cancelled before it was sent."
#: And of one that expired before it was sent.
EXPIRED = "Expired before it was sent."

#: What a run that was never sent does not have yet, and so need not be read.
_LATER = (
    *("result", "whole_result", "children", "custom_state", "exception", "traceback", "worker"),
    *("progress_current", "progress_total", "progress_message", "seen_at", "started_at"),
    *("finished_at", "heartbeat_at", "cancel_requested_at", "cancel_requested_by"),
    *("active_key", "ignore_until"),
)


class Handover(Enum):
    """What came of the sending of one run."""

    SENT = 1
    #: The broker did not take it, and may be away.
    REFUSED = 2
    #: Its task, its router or its arguments raised an error; the broker may be well.
    FAILED = 3


def claim(run: TaskRunRecord, **fields: Any) -> bool:
    """Take the right to send an unsent run; of several callers one gets True.

    A run that somebody is sending just now, which takes seconds, can't be claimed. ``fields``
    are written with it.
    """
    now, token = timezone.now(), uuid4()
    is_free = Q(claimed_at=None) | Q(claimed_at__lt=now - CLAIM_LASTS)
    free = TaskRunRecord.objects.filter(is_free, pk=run.pk).in_state([State.UNSENT])
    claimed = bool(free.update(dispatch_id=token, claimed_at=now, publish_error="", **fields))
    if claimed:
        run.dispatch_id, run.claimed_at, run.publish_error = token, now, ""
    return claimed


def claim_stale(run: TaskRunRecord, now: datetime, **fields: Any) -> bool:
    """Take a stale scheduled run as one that was not sent; of several callers one gets True.

    Who gets True has claimed it, as by ``claim``.
    """
    token = uuid4()
    stale = TaskRunRecord.objects.filter(pk=run.pk, claimed_at__lt=now - STALE_SCHEDULED_AFTER)
    fields |= {"dispatch_id": token, "claimed_at": now, "due_at": None, "publish_error": ""}
    claimed = bool(stale.transition(sources=[State.SCHEDULED], target=State.UNSENT, **fields))
    if claimed:
        run.state, run.due_at = State.UNSENT, None
        run.dispatch_id, run.claimed_at, run.publish_error = token, now, ""
    return claimed


def keep_claim(run: TaskRunRecord) -> bool:
    """Tell whether the claim on ``run`` still stands, and prolong it if it has become old.

    It becomes old in a transaction that is committed long after its row was made.
    """
    now = timezone.now()
    if _is_young(run, now) and run.state == State.UNSENT:
        return True
    mine = _claimed(run).in_state([State.UNSENT])
    if mine.update(claimed_at=now):
        return True
    _end_cancelled(run)
    return False


def _is_young(run: TaskRunRecord, now: datetime) -> bool:
    return run.claimed_at is not None and now - run.claimed_at < CLAIM_LASTS / 2


def keep_claims(
    runs: Sequence[TaskRunRecord], number: int, *, must_look: bool
) -> Sequence[TaskRunRecord]:
    """Return those of these unsent runs that can be sent: their claims, made together, stand.

    Old claims are all prolonged. Young ones are looked at if ``must_look``: those of the first
    ``number`` runs. As by ``keep_claim``, what was asked to stop meanwhile ends.
    """
    now = timezone.now()
    if not _is_young(runs[-1], now):
        parts = [runs[start : start + number] for start in range(0, len(runs), number)]
        return [run for part in parts for run in _kept(part, now, must_prolong=True)]
    return [*_kept(runs[:number], now), *runs[number:]] if must_look else runs


def _kept(
    runs: Sequence[TaskRunRecord], now: datetime, *, must_prolong: bool = False
) -> Sequence[TaskRunRecord]:
    mine = _claimed_together(runs).in_state([State.UNSENT])
    if must_prolong:
        mine.update(claimed_at=now)
        for run in runs:
            run.claimed_at = now
    keys = set(mine.values_list("pk", flat=True))
    if len(keys) == len(runs):
        return runs
    _without_cancelled(runs)
    return [run for run in runs if run.pk in keys]


def publish(
    task: Task, run: TaskRunRecord, message: Message, *, may_be_out: bool = False
) -> Handover:
    """Send a claimed run, record what came of it, and return it.

    ``may_be_out``: perhaps it was sent before; a failure now does not end that doubt.
    The state in the database is never moved back: a worker may have begun, and
    even ended, the run before its publisher writes PENDING. Celery 5.7 with
    ``task_always_eager`` runs it right here, and what it raises then goes to the caller.
    """
    try:
        connection = shared_connection(task.app)
    except UNUSABLE_ADDRESS as error:
        record_failure(run, describe_address(error), may_be_out=may_be_out)
        return Handover.REFUSED
    errors = broker_errors(connection)
    attempt = Attempt(passing=(Exception,) if task.app.conf.task_always_eager else errors)
    try:
        with producers[connection].acquire(block=True, timeout=BROKER_TIMEOUT) as producer:
            producer.may_have_sent = False
            with attempt:
                post(task, run, message, producer, retry=True, retry_policy=RETRY_POLICY)
            may_be_out = may_be_out or (attempt.error is not None and producer.may_have_sent)
    except errors as error:
        record_failure(run, describe(error, connection), may_be_out=may_be_out)
        return Handover.REFUSED
    if attempt.error is not None:
        logger.error("Run %s could not be sent.", run.task_id, exc_info=attempt.error)
        has_secrets = message.argsrepr or message.kwargsrepr or has_mask(run.options)
        # What a project's code says of a secret must not be kept.
        text = type(attempt.error).__name__ if has_secrets else describe(attempt.error, connection)
        record_failure(run, text, may_be_out=may_be_out)
        return Handover.FAILED
    _record_handover(run)
    return Handover.SENT


def post(
    task: Task,
    run: TaskRunRecord,
    message: Message,
    producer: Producer,
    *,
    is_awaited: bool = True,
    **options: Any,
) -> None:
    """Send the message of a run by a producer; raises what task, router and broker raise.

    Celery 5.7 prepares the result backend for who may wait for the result here: with Redis, by
    a subscription that stays. ``is_awaited`` False: nobody does; the worker stores it as ever.
    """
    options = {**sent_options(run, message), **options}
    if not is_awaited and not task.app.conf.task_always_eager:
        is_ignored = options.get("ignore_result", task.ignore_result)
        options["headers"] = {**options["headers"], "ignore_result": is_ignored}
        options["ignore_result"] = True
    task.apply_async(
        tuple(message.args),
        dict(message.kwargs),
        task_id=run.task_id,
        producer=producer,
        **options,
    )


def is_anything_due(now: datetime) -> bool:
    """Tell, by one look at an index, whether a run is due that nobody has claimed."""
    due = journal().filter(due_at__lte=now, dispatch_id=None)
    return due.in_state([State.SCHEDULED]).exists()


def claim_due(now: datetime, limit: int) -> list[TaskRunRecord]:
    """Take the right to send up to ``limit`` runs that are due, the longest due first.

    Of several dispatchers at once each gets others. Where the database can, what another one
    is just claiming is passed over.
    """
    # Asked for again in the transaction, this would be another connection.
    using, token = database(), uuid4()
    rows = TaskRunRecord.objects.using(using)
    free = rows.filter(due_at__lte=now, dispatch_id=None).in_state([State.SCHEDULED])
    due = free.defer(*_LATER).order_by("due_at")[:limit]
    if connections[using].features.has_select_for_update_skip_locked:
        with transaction.atomic(using=using):
            runs = list(due.select_for_update(skip_locked=True))
            rows.filter(pk__in=[run.pk for run in runs]).update(dispatch_id=token, claimed_at=now)
    else:
        keys = list(due.values_list("pk", flat=True))
        # Nothing is claimed that can't be read then. It begins with the one that writes: on
        # SQLite who has only read before may not write any more.
        with transaction.atomic(using=using):
            free.filter(pk__in=keys).update(dispatch_id=token, claimed_at=now)
            claimed = rows.filter(pk__in=keys, dispatch_id=token)
            runs = list(claimed.defer(*_LATER).order_by("due_at"))
    for run in runs:
        run.dispatch_id, run.claimed_at = token, now
    return runs


def give_back(runs: Collection[TaskRunRecord], now: datetime) -> int:
    """Let claimed runs that were not tried be claimed again; return how many.

    Those that were asked to stop meanwhile end here.
    """
    free = _claimed_together(runs).in_state([State.SCHEDULED])
    given = free.update(dispatch_id=None, claimed_at=None)
    _end_cancelled_together(runs, now)
    return given


def record_sent(runs: Collection[TaskRunRecord], now: datetime) -> None:
    """Write that claimed runs were sent, if no worker was faster, in one statement."""
    journal().filter(pk__in=[run.pk for run in runs]).hand_over(now)


def record_expired(runs: Collection[TaskRunRecord], now: datetime) -> None:
    """End claimed runs that are not sent any more: their ``expires`` has passed."""
    _claimed_together(runs).transition(
        sources=[State.SCHEDULED], target=State.EXPIRED, finished_at=now, exception=EXPIRED
    )
    _end_cancelled_together(runs, now)


def record_unsent(
    runs: Sequence[TaskRunRecord], text: str, now: datetime, *, may_be_out: bool
) -> int:
    """Keep why runs that were claimed together were not sent: they wait for a person, as UNSENT.

    ``may_be_out``: the connection was lost before the broker confirmed them. Their token stays:
    who cancels one tells the workers too.
    """
    fields = _failure(runs[0], text, may_be_out=may_be_out)
    moved = _claimed_together(runs).transition(
        sources=[State.SCHEDULED], target=State.UNSENT, due_at=None, **fields
    )
    if moved < len(runs) and not may_be_out:
        _end_cancelled_together(runs, now)
    return moved


def record_failure(run: TaskRunRecord, text: str, *, may_be_out: bool = False) -> None:
    """Keep why a run was not sent, and let it be claimed again.

    ``may_be_out``: perhaps it was sent before, as for ``record_unsent``.
    """
    fields = _failure(run, text, may_be_out=may_be_out)
    if not _claimed(run).in_state([State.UNSENT]).update(**fields):
        _end_cancelled(run)
        return
    for name, value in fields.items():
        setattr(run, name, value)


def record_failures(
    runs: Sequence[TaskRunRecord], text: str, *, may_be_out: bool = False
) -> None:
    """Keep why unsent runs that were claimed together were not sent, as ``record_failure``."""
    fields = _failure(runs[0], text, may_be_out=may_be_out)
    failed = _claimed_together(runs).in_state([State.UNSENT]).update(**fields)
    for run in runs if failed == len(runs) else _without_cancelled(runs):
        for name, value in fields.items():
            setattr(run, name, value)


def _without_cancelled(runs: Sequence[TaskRunRecord]) -> Sequence[TaskRunRecord]:
    """End those of these that were asked to stop; return those that are unsent.

    The others are read again.
    """
    _end_cancelled_together(runs, timezone.now())
    rows = journal().filter(pk__in=[run.pk for run in runs]).in_state([State.UNSENT])
    unsent = set(rows.values_list("pk", flat=True))
    for run in runs:
        if run.pk not in unsent:
            _read_again(run)
    return [run for run in runs if run.pk in unsent]


def _failure(run: TaskRunRecord, text: str, *, may_be_out: bool) -> dict[str, Any]:
    """Return the fields that tell why a run was not sent."""
    if may_be_out:
        fields = {"publish_error": f"{NOT_CONFIRMED}{text}", "dispatch_id": run.dispatch_id}
    else:
        # Nobody waits for it: the same call may run.
        fields = {"publish_error": text, "dispatch_id": None, "active_key": None}
    return {**fields, "claimed_at": None}


def _claimed_together(runs: Collection[TaskRunRecord]) -> TaskRunRecordQuerySet:
    """Return the rows of runs that still have the claim that was made on them together."""
    claims = journal().alias(_claim=Coalesce("dispatch_id", "dispatch_id"))
    tokens = {run.dispatch_id for run in runs}
    return claims.filter(pk__in=[run.pk for run in runs], _claim__in=tokens)


def _end_cancelled_together(runs: Collection[TaskRunRecord], now: datetime) -> None:
    """End those of these claimed runs that were asked to stop before they were sent."""
    _claimed_together(runs).filter(published_at=None).transition(
        sources=[State.CANCELLING], target=State.REVOKED, finished_at=now, exception=CANCELLED
    )


def _claimed(run: TaskRunRecord) -> TaskRunRecordQuerySet:
    """Return the row of a run if it has our claim; no index is to serve that, as of the state."""
    claims = TaskRunRecord.objects.alias(_claim=Coalesce("dispatch_id", "dispatch_id"))
    return claims.filter(pk=run.pk, _claim=run.dispatch_id)


def _end_cancelled(run: TaskRunRecord) -> None:
    """End a run that was asked to stop while we had it in hand, and that we did not send."""
    _claimed(run).filter(published_at=None).transition(
        sources=[State.CANCELLING],
        target=State.REVOKED,
        finished_at=timezone.now(),
        exception=CANCELLED,
    )
    _read_again(run)


def _read_again(run: TaskRunRecord) -> bool:
    """Read a run that was moved meanwhile; False if it was deleted: it stays as it was read."""
    with suppress(TaskRunRecord.DoesNotExist):
        run.refresh_from_db(using=router.db_for_write(TaskRunRecord))
        return True
    return False


def _record_handover(run: TaskRunRecord) -> None:
    """Move a run that was sent to PENDING, if no worker was faster."""
    now, using = timezone.now(), str(router.db_for_write(TaskRunRecord))
    moved = statements.move(
        run.task_id,
        attempt=None,
        sources=[State.UNSENT],
        target=State.PENDING,
        using=using,
        published_at=now,
    )
    if moved or not _read_again(run):
        # Whoever deleted it meanwhile: it was sent.
        run.state, run.published_at = State.PENDING, now
    elif run.published_at is None:
        # No worker began it, which would have written that.
        TaskRunRecord.objects.filter(pk=run.pk, published_at=None).update(published_at=now)
        run.published_at = now
