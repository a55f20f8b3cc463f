"""Scheduled runs that a dispatcher took and never reported as sent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from uuid import uuid4

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.exceptions import NotSendable
from celery_admin_runner.models import NOT_CONFIRMED, TaskRunRecord
from celery_admin_runner.querysets import STALE_SCHEDULED_AFTER
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run, make_user
from tests.waiting import wait_for_state

runs = TaskRunRecord.objects
NOW = timezone.now()
SECOND = timedelta(seconds=1)
LONG = timedelta(hours=1)
CALLERS = 4


def claimed_run(age: timedelta = LONG, **fields: object) -> TaskRunRecord:
    """Make a scheduled run that was due, and taken by a dispatcher, ``age`` ago."""
    moment = timezone.now() - age
    claim = {"claimed_at": moment, "dispatch_id": uuid4(), "due_at": moment, "eta": moment}
    return make_run(**{"state": State.SCHEDULED, "args": [1], **claim, **fields})


def state_of(run: TaskRunRecord) -> str:
    run.refresh_from_db()
    return run.state


# Which they are


@pytest.mark.django_db
def test_a_scheduled_run_that_was_taken_long_ago_is_stale():
    stale = claimed_run(STALE_SCHEDULED_AFTER + SECOND)
    young = claimed_run(STALE_SCHEDULED_AFTER - LONG / 60)

    assert list(runs.stale_scheduled()) == [stale]
    now = timezone.now()
    assert (stale.is_stale_scheduled(now), young.is_stale_scheduled(now)) == (True, False)


@pytest.mark.django_db
def test_a_run_that_nobody_took_is_late_and_not_stale():
    run = make_run(state=State.SCHEDULED, due_at=NOW - LONG, eta=NOW - LONG)

    assert not runs.stale_scheduled().exists()
    assert not run.is_stale_scheduled(NOW)
    assert not run.may_have_been_sent


@pytest.mark.django_db
@pytest.mark.parametrize("state", sorted(set(State) - {State.SCHEDULED}))
def test_runs_in_other_states_are_no_stale_scheduled_ones(state):
    run = claimed_run(state=state)

    assert not runs.stale_scheduled().exists()
    assert not run.is_stale_scheduled(timezone.now())


@pytest.mark.django_db
def test_another_age_and_another_moment_can_be_asked_for():
    run = claimed_run(timedelta(minutes=2))

    assert list(runs.stale_scheduled(older_than=timedelta(minutes=1))) == [run]
    assert not runs.stale_scheduled(older_than=timedelta(minutes=3)).exists()
    assert list(runs.stale_scheduled(timezone.now() + LONG)) == [run]


@pytest.mark.django_db
@pytest.mark.parametrize("age", [timedelta.max, timedelta(days=365 * 100)])
def test_an_age_that_no_calendar_reaches_finds_nothing(age):
    claimed_run()

    assert not runs.stale_scheduled(older_than=age).exists()


@pytest.mark.django_db
def test_stale_scheduled_runs_are_one_query(django_assert_num_queries):
    claimed_run()

    with django_assert_num_queries(1):
        assert len(runs.stale_scheduled()) == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"state": State.SCHEDULED, "claimed_at": NOW}, True),
        ({"state": State.UNSENT, "claimed_at": NOW}, True),
        ({"state": State.UNSENT, "publish_error": f"{NOT_CONFIRMED}timed out"}, True),
        ({"state": State.UNSENT, "publish_error": "refused"}, False),
        ({"state": State.UNSENT}, False),
        ({"state": State.SCHEDULED}, False),
        ({"state": State.PENDING, "claimed_at": NOW, "published_at": NOW}, False),
        ({"state": State.STARTED, "claimed_at": NOW}, False),
    ],
)
def test_it_is_known_of_which_runs_nobody_knows_whether_they_were_sent(fields, expected):
    assert make_run(**fields).may_have_been_sent is expected


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_got_the_message_ends_the_doubt():
    run = claimed_run()

    tracking.record_start(run.task_id, attempt=0, worker="w", now=timezone.now())

    assert state_of(run) == State.STARTED
    assert not runs.stale_scheduled().exists()


@pytest.mark.django_db(transaction=True)
def test_no_dispatcher_takes_a_stale_run():
    run = claimed_run()

    assert Dispatcher(app).dispatch().sent == 0

    assert state_of(run) == State.SCHEDULED
    assert list(runs.stale_scheduled()) == [run]


# Sent again


def test_a_stale_run_is_sent_again_under_its_own_id(worker):
    run = claimed_run(args=[40], options={"priority": 3})

    again = TaskRunner().send_again(run)

    wait_for_state(again, State.SUCCESS)
    assert (again.task_id, again.result, again.due_at) == (run.task_id, 42, None)
    assert runs.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_several_who_send_a_stale_run_again_one_sends_it():
    run = claimed_run()
    together = Barrier(CALLERS)

    def try_to_send(_: int) -> bool:
        mine = runs.get(pk=run.pk)
        together.wait()
        try:
            TaskRunner().send_again(mine)
        except NotSendable:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(CALLERS) as callers:
        sent = list(callers.map(try_to_send, range(CALLERS)))

    assert sum(sent) == 1
    assert state_of(run) == State.PENDING


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_stale", [True, False])
def test_a_broker_that_does_not_take_it_now_does_not_end_the_doubt(is_stale):
    run = claimed_run()
    if not is_stale:
        fields = {"state": State.UNSENT, "due_at": None, "claimed_at": None}
        runs.update(**fields, publish_error=f"{NOT_CONFIRMED}timed out")
        run.refresh_from_db()

    with broker_away():
        TaskRunner().send_again(run)

    assert state_of(run) == State.UNSENT
    assert "refused" in run.publish_error
    assert run.may_have_been_sent
    # By that, who cancels it tells the workers too.
    assert run.dispatch_id is not None
    TaskRunner().send_again(run)
    assert state_of(run) == State.PENDING
    assert run.publish_error == ""


@pytest.mark.django_db(transaction=True)
def test_what_was_not_confirmed_can_be_sent_again():
    run = make_run(state=State.UNSENT, args=[1], publish_error=f"{NOT_CONFIRMED}timed out")

    TaskRunner().send_again(run)

    assert state_of(run) == State.PENDING
    assert run.publish_error == ""


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"claimed_at": None, "dispatch_id": None}, "kept until it may start"),
        ({"state": State.WAITING, "claimed_at": None, "due_at": None}, "kept until it may start"),
        ({"age": timedelta()}, "being sent just now"),
        ({"state": State.STARTED}, "was sent"),
        ({"state": State.SUCCESS}, "was sent"),
        ({"args": ["********"]}, "secret"),
        ({"task_name": "gone.task"}, "No task named"),
        ({"args": [1, 2, 3]}, "do not fit the task any more"),
        ({"kwargs": {"nosuch": 1}}, "do not fit the task any more.* no parameter 'nosuch'"),
        ({"expires_at": NOW - SECOND}, "expired"),
    ],
)
def test_a_run_that_can_not_be_sent_again_says_why(fields, reason):
    run = claimed_run(**fields)

    with pytest.raises(NotSendable, match=reason):
        TaskRunner().check_can_send_again(run)
    with pytest.raises(NotSendable, match=reason):
        TaskRunner().send_again(run)

    assert state_of(run) == fields.get("state", State.SCHEDULED)


@pytest.mark.django_db
def test_who_may_not_run_the_task_can_not_send_its_run_again():
    run = claimed_run()

    with pytest.raises(PermissionDenied):
        TaskRunner(make_user()).send_again(run)

    assert state_of(run) == State.SCHEDULED


@pytest.mark.django_db
def test_a_stale_run_can_be_cancelled():
    run = claimed_run()

    TaskRunner().cancel(run)

    assert state_of(run) == State.REVOKED
    with pytest.raises(NotSendable):
        TaskRunner().send_again(run)
