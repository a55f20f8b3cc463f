"""What frees the key of a unique run, and what keeps it: each end, and each way not to begin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from celery_admin_runner import tracking
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.exceptions import AlreadyActive, NotSendable
from celery_admin_runner.models import NOT_CONFIRMED, TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import KEPT, UNFINISHED, State
from tests.brokers import NO_BROKER, broker_away
from tests.celery_app import app
from tests.unique_tasks import once

pytestmark = pytest.mark.django_db
ON_COMMIT = pytest.mark.django_db(transaction=True)
HOUR = 3600


def called(**options):
    """Make the call; return the run that answers for it."""
    return TaskRunRecord.objects.get(task_id=once.apply_async([1], **options).id)


def holds(run):
    """Tell whether the same call joins this run."""
    is_joined = called().pk == run.pk
    run.refresh_from_db()
    assert is_joined == (run.active_key is not None)
    return is_joined


REPORTS = {
    "success": lambda run, now: tracking.record_success(run.task_id, attempt=0, result=1, now=now),
    "failure": lambda run, now: tracking.record_failure(
        run.task_id, attempt=0, exception="no", traceback="", now=now
    ),
    "lost worker": lambda run, now: tracking.record_failure(
        run.task_id, attempt=None, exception="WorkerLostError", traceback="", now=now
    ),
    "terminated": lambda run, now: tracking.record_terminated(run.task_id, attempt=0, now=now),
    "expired in the queue": lambda run, now: tracking.record_end(
        run.task_id, attempt=0, state=State.EXPIRED, why="", now=now
    ),
    "ignored": lambda run, now: tracking.record_end(
        run.task_id, attempt=0, state=State.IGNORED, why="", now=now
    ),
    "cancelled": lambda run, now: TaskRunner().cancel(run),
}


@pytest.mark.parametrize("end", REPORTS)
def test_each_end_frees_the_key(end):
    run = called()
    assert holds(run)

    REPORTS[end](run, timezone.now())

    assert not holds(run)
    assert run.is_finished


@pytest.mark.parametrize("state", sorted(UNFINISHED - KEPT))
def test_a_run_that_has_not_ended_keeps_it(state):
    run = called()

    TaskRunRecord.objects.update(state=state)

    assert holds(run)


def test_a_retry_keeps_it():
    run, now = called(), timezone.now()
    tracking.record_start(run.task_id, attempt=0, worker="w", now=now)

    tracking.record_retry(run.task_id, attempt=0, exception="", traceback="", now=now)

    assert holds(run)
    tracking.record_start(run.task_id, attempt=1, worker="w", now=now)
    assert holds(run)


def test_a_message_that_is_delivered_again_changes_nothing():
    run, now = called(), timezone.now()
    tracking.record_start(run.task_id, attempt=0, worker="w", now=now)
    tracking.record_start(run.task_id, attempt=0, worker="other", now=now)

    assert holds(run)

    tracking.record_success(run.task_id, attempt=0, result=1, now=now)
    again = called()
    tracking.record_start(run.task_id, attempt=0, worker="other", now=now)
    assert not holds(run)
    assert holds(again)


def grow_old(run):
    long_ago = timezone.now() - timedelta(days=9)
    TaskRunRecord.objects.filter(pk=run.pk).update(
        created_at=long_ago, claimed_at=None, published_at=long_ago
    )


def test_a_lost_run_frees_it_and_does_not_get_it_back_when_it_is_heard_of():
    run, now = called(), timezone.now()
    grow_old(run)
    with pytest.raises(SystemExit):
        call_command("find_stale_taskruns", "--mark-lost", verbosity=0)
    other = called()
    assert other.pk != run.pk

    # A worker has it after all: both run, and the journal shows both.
    tracking.record_start(run.task_id, attempt=0, worker="w", now=now)

    run.refresh_from_db()
    assert (run.state, run.active_key) == (State.STARTED, None)
    assert holds(other)


def test_a_call_that_can_not_be_sent_raises_and_frees_it():
    nowhere = app.connection_for_write(NO_BROKER, transport_options={"max_retries": 1})

    with pytest.raises(OperationalError):
        once.apply_async([1], connection=nowhere, retry=False)

    run = TaskRunRecord.objects.get()
    assert (run.state, run.dispatch_id, run.claimed_at) == (State.UNSENT, None, None)
    assert "OperationalError" in run.publish_error
    assert not holds(run)


@ON_COMMIT
def test_a_run_that_a_runner_can_not_send_frees_it():
    with broker_away():
        run = TaskRunner().run(once.name, [1])

    assert (run.state, run.active_key) == (State.UNSENT, None)
    assert not holds(run)


@pytest.mark.parametrize("is_expired", [True, False])
def test_a_run_that_a_dispatcher_does_not_send_frees_it(is_expired, monkeypatch):
    run = called(countdown=HOUR, expires=HOUR + 60)
    assert run.state == State.SCHEDULED
    later = timezone.now() + timedelta(seconds=HOUR + (70 if is_expired else 10))
    if not is_expired:
        monkeypatch.setitem(app.conf, "task_create_missing_queues", False)
        TaskRunRecord.objects.update(options={"queue": "nobody knows it"})
        vars(app).pop("amqp", None)

    Dispatcher(app).dispatch(later)

    monkeypatch.undo()
    vars(app).pop("amqp", None)
    run.refresh_from_db()
    assert run.state == (State.EXPIRED if is_expired else State.UNSENT)
    assert not holds(run)


def test_a_run_that_is_kept_holds_it_and_a_cancelled_one_does_not():
    run = called(countdown=HOUR)
    assert holds(run)

    TaskRunner().cancel(run)

    assert not holds(run)


def unsent(**fields):
    """Return a run that could not be sent."""
    with broker_away():
        run = TaskRunner().run(once.name, [1])
    TaskRunRecord.objects.filter(pk=run.pk).update(**fields)
    run.refresh_from_db()
    return run


@ON_COMMIT
def test_a_run_that_is_sent_again_takes_it_anew():
    run = unsent()

    TaskRunner().send_again(run)

    run.refresh_from_db()
    assert run.state == State.PENDING
    assert holds(run)


@ON_COMMIT
def test_a_run_is_not_sent_again_beside_the_same_call():
    run = unsent()
    other = called()

    for verb in (TaskRunner().check_can_send_again, TaskRunner().send_again):
        with pytest.raises(NotSendable, match="active already"):
            verb(run)

    run.refresh_from_db()
    assert (run.state, run.active_key) == (State.UNSENT, None)
    assert holds(other)


@ON_COMMIT
def test_a_run_that_may_be_out_keeps_it_and_can_be_sent_again():
    run = called()
    TaskRunRecord.objects.update(
        state=State.UNSENT, publish_error=f"{NOT_CONFIRMED}lost", claimed_at=None
    )
    assert holds(run)

    TaskRunner().send_again(run)

    assert holds(run)
    assert run.state == State.PENDING


def test_a_runner_does_not_start_what_is_active():
    run = TaskRunner().run(once.name, [1])

    with pytest.raises(AlreadyActive) as raised:
        TaskRunner().run(once.name, [], {"a": 1})

    assert raised.value.run == run
    assert run.task_id not in str(raised.value)
    assert called().pk == run.pk
    assert TaskRunRecord.objects.count() == 1


def test_a_run_is_not_run_again_beside_the_same_call():
    run = TaskRunner().run(once.name, [1])
    tracking.record_success(run.task_id, attempt=0, result=1, now=timezone.now())
    run.refresh_from_db()

    again = TaskRunner().retry(run)

    assert again.active_key == run.unique_key
    with pytest.raises(AlreadyActive):
        TaskRunner().retry(run)


def test_a_periodic_task_is_not_run_beside_the_same_call():
    texts = {"args": "[1]", "kwargs": "{}", "headers": "{}"}
    nothing = dict.fromkeys(["queue", "exchange", "routing_key", "priority", "expires_"])
    periodic = SimpleNamespace(name="hourly", task=once.name, **texts, **nothing)
    run = TaskRunner().run_periodic(periodic)

    with pytest.raises(AlreadyActive):
        TaskRunner().run_periodic(periodic)

    assert holds(run)


@ON_COMMIT
def test_a_refusal_leaves_the_transaction_of_who_asked_as_it_was():
    first = called()

    with transaction.atomic():
        with pytest.raises(AlreadyActive):
            TaskRunner().run(once.name, [1])
        second = called()
        other = TaskRunner().run(once.name, [2])

    assert second == first
    assert TaskRunRecord.objects.filter(pk=other.pk).exists()


@ON_COMMIT
def test_who_ends_a_stale_run_and_calls_again_in_one_transaction_waits_for_nobody():
    first = called()
    long_ago = timezone.now() - timedelta(days=1)
    times = dict.fromkeys(["created_at", "claimed_at", "published_at"], long_ago)
    TaskRunRecord.objects.update(**times)
    first.refresh_from_db()

    with transaction.atomic():
        TaskRunner().cancel(first)
        once.delay(1)
        late = once.delay_on_commit(1)

    # What calls at once does not see the end that is not committed yet.
    answer = TaskRunRecord.objects.get(task_id=late.id)
    assert (answer.state, bool(answer.active_key)) == (State.PENDING, True)
    first.refresh_from_db()
    assert (first.state, first.active_key) == (State.REVOKED, None)


#: Makes a call, and is killed before its message is out.
SCRIPT = """
import os, signal
import django
django.setup()
from celery import signals
from tests.unique_tasks import once
def die(**kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
signals.before_task_publish.connect(die, weak=False)
once.delay(1)
"""


@ON_COMMIT
def test_a_caller_that_dies_leaves_a_run_that_shows_and_holds_it_until_it_is_stale():
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"])},
        timeout=60,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    run = TaskRunRecord.objects.get()

    assert (run.state, run.published_at) == (State.UNSENT, None)
    assert run.may_have_been_sent
    assert holds(run)

    grow_old(run)
    assert not holds(run)
