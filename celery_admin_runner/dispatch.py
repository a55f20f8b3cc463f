"""Hand runs to the broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.app.task import Task
from celery.exceptions import QueueNotFound
from django.db import router
from django.utils import timezone
from kombu import pools
from kombu.connection import Connection
from kombu.exceptions import KombuError

from celery_admin_runner.encoding import from_plain, storable_text
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import scrub
from celery_admin_runner.states import State

#: The message header that marks a run of ours; its value is the task id, so that
#: a copy of the headers on another message marks nothing.
RUN_HEADER = "celery_admin_runner_run"
#: The message headers with the masked texts of a call that holds a secret.
MASKED_ARGS_HEADER = "celery_admin_runner_args"
MASKED_KWARGS_HEADER = "celery_admin_runner_kwargs"

#: How long a connection, and an answer, of the broker is waited for, in seconds.
#: Two tries and what lies between them stay within five seconds.
BROKER_TIMEOUT = 1.5
#: kombu would try for ever; a user waits for the answer.
RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
#: The timeouts that a transport wants among its options.
TRANSPORT_TIMEOUTS: Mapping[str, Mapping[str, float]] = {
    "redis": {"socket_connect_timeout": BROKER_TIMEOUT, "socket_timeout": BROKER_TIMEOUT},
    "amqp": {"read_timeout": BROKER_TIMEOUT, "write_timeout": BROKER_TIMEOUT},
}
#: What kombu 5.7 raises for a broker's address that it can't read or has no library for.
UNUSABLE_ADDRESS = (ImportError, LookupError, TypeError, ValueError)
#: By these kombu's file system transport stumbles over an error of its own: kombu 5.7
#: tries again on a channel that is closed, 5.5 tidies up what it never opened.
STUMBLES = (AttributeError, UnboundLocalError)
#: A claim older than this belongs to nobody any more: who made it has died.
CLAIM_LASTS = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class Message:
    """What is sent for a run."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    #: Texts for Celery to show in place of the arguments; "" lets Celery make them.
    argsrepr: str = ""
    kwargsrepr: str = ""

    def headers(self, task_id: str) -> dict[str, str]:
        """Return the message headers that are ours."""
        headers = {RUN_HEADER: task_id}
        if self.argsrepr or self.kwargsrepr:
            headers[MASKED_ARGS_HEADER] = self.argsrepr
            headers[MASKED_KWARGS_HEADER] = self.kwargsrepr
        return headers


def kept_message(run: TaskRunRecord) -> Message:
    """Return the message of a run as the database keeps it; only for runs without secrets."""
    return Message(args=from_plain(run.args), kwargs=from_plain(run.kwargs))


def claim(run: TaskRunRecord) -> bool:
    """Take the right to send an unsent run; of several callers one gets True.

    A run that somebody is sending just now, which takes seconds, can't be claimed.
    """
    now, token = timezone.now(), uuid4()
    runs = TaskRunRecord.objects.filter(pk=run.pk, state=State.UNSENT)
    free = runs.filter(claimed_at=None) | runs.filter(claimed_at__lt=now - CLAIM_LASTS)
    claimed = bool(free.update(dispatch_id=token, claimed_at=now, publish_error=""))
    if claimed:
        run.dispatch_id, run.claimed_at, run.publish_error = token, now, ""
    return claimed


def keep_claim(run: TaskRunRecord) -> bool:
    """Tell whether the claim on ``run`` still stands, and prolong it if it has become old.

    It becomes old in a transaction that is committed long after its row was made.
    """
    now = timezone.now()
    if run.claimed_at is not None and now - run.claimed_at < CLAIM_LASTS / 2:
        return True
    mine = TaskRunRecord.objects.filter(pk=run.pk, state=State.UNSENT, dispatch_id=run.dispatch_id)
    return bool(mine.update(claimed_at=now))


def publish(task: Task, run: TaskRunRecord, message: Message) -> bool:
    """Send a claimed run, record what came of it, and tell whether it was handed over.

    The state in the database is never moved back: a worker may have begun, and
    even ended, the run before its publisher writes PENDING. Celery 5.7 with
    ``task_always_eager`` runs it right here.
    """
    options = from_plain(run.options)
    headers = {**options.pop("headers", {}), **message.headers(run.task_id)}
    options.update(eta=_aware(run.eta), expires=_aware(run.expires_at))
    try:
        connection = bounded_connection(task.app)
    except UNUSABLE_ADDRESS as error:
        record_failure(run, describe_address(error))
        return False
    try:
        with pools.producers[connection].acquire(block=True, timeout=BROKER_TIMEOUT) as producer:
            task.apply_async(
                tuple(message.args),
                dict(message.kwargs),
                task_id=run.task_id,
                producer=producer,
                retry=True,
                retry_policy=RETRY_POLICY,
                headers=headers,
                argsrepr=message.argsrepr or None,
                kwargsrepr=message.kwargsrepr or None,
                **options,
            )
    except broker_errors(connection) as error:
        record_failure(run, describe(error, connection))
        return False
    _record_handover(run)
    return True


def broker_errors(connection: Connection) -> tuple[type[Exception], ...]:
    """Return the errors by which a broker says that it did not take a message."""
    return (
        KombuError,
        OSError,
        QueueNotFound,
        *STUMBLES,
        *connection.connection_errors,
        *connection.channel_errors,
    )


def bounded_connection(app: Celery) -> Connection:
    """Return an unopened connection to the app's broker that waits for nothing long."""
    plain = app.connection_for_write()
    timeouts = TRANSPORT_TIMEOUTS.get(plain.transport.driver_type, {})
    bounded: Connection = app.connection_for_write(
        connect_timeout=BROKER_TIMEOUT,
        transport_options={
            **timeouts,
            **RETRY_POLICY,
            "connect_retries_timeout": 2 * BROKER_TIMEOUT,
        },
    )
    return bounded


def describe(error: Exception, connection: Connection) -> str:
    """Return what a broker's error says, without the broker's password."""
    secrets = [connection.password] if connection.password else []
    return storable_text(scrub(f"{type(error).__name__}: {error}", secrets))


def describe_address(error: Exception) -> str:
    """Return what is wrong with a broker's address, without quoting it: it holds a password."""
    detail = f": {error}" if isinstance(error, ImportError) else ""
    return f"The settings name a broker that can't be used: {type(error).__name__}{detail}."


def record_failure(run: TaskRunRecord, text: str) -> None:
    """Keep why a run was not sent, and let it be claimed again."""
    TaskRunRecord.objects.filter(
        pk=run.pk, state=State.UNSENT, dispatch_id=run.dispatch_id
    ).update(publish_error=text, dispatch_id=None, claimed_at=None)
    run.publish_error, run.dispatch_id, run.claimed_at = text, None, None


def _record_handover(run: TaskRunRecord) -> None:
    """Move a run that was sent to PENDING, if no worker was faster."""
    now = timezone.now()
    moved = TaskRunRecord.objects.filter(pk=run.pk).transition(
        sources=[State.UNSENT], target=State.PENDING, published_at=now
    )
    if moved:
        run.state, run.published_at = State.PENDING, now
    else:
        TaskRunRecord.objects.filter(pk=run.pk, published_at=None).update(published_at=now)
        run.refresh_from_db(using=router.db_for_write(TaskRunRecord))


def _aware(moment: datetime | None) -> datetime | None:
    """Return a moment with its time zone: Celery takes those without one for UTC."""
    if moment is None or timezone.is_aware(moment):
        return moment
    return timezone.make_aware(moment, timezone.get_default_timezone())
