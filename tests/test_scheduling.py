"""Runs that are kept until later, and how they are moved."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.utils import timezone

from celery_admin_runner.dispatch import claim_due
from celery_admin_runner.exceptions import InvalidArguments, NotMovable
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import RUN_PERMISSION, TaskRunner
from celery_admin_runner.states import FINISHED, KEPT, State
from tests.factories import make_run, make_superuser, make_user

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def scheduled(**fields: object) -> TaskRunRecord:
    """Make a run that is kept for an hour."""
    later = timezone.now() + HOUR
    return make_run(**{"state": State.SCHEDULED, "eta": later, "due_at": later, **fields})


def stored(run: TaskRunRecord) -> TaskRunRecord:
    return TaskRunRecord.objects.get(pk=run.pk)


# Into the database


@pytest.mark.parametrize("name", ["eta", "expires"])
@pytest.mark.parametrize("year", [1, 9999])
def test_a_moment_that_not_every_database_can_give_back_is_refused(name: str, year: int) -> None:
    far = datetime(year, 12, 31, 23, 30, tzinfo=UTC)

    with pytest.raises(InvalidArguments):
        TaskRunner().run("tests.tasks.add", [1], **{"countdown": None, name: far})

    assert not TaskRunRecord.objects.exists()


def test_a_run_with_an_eta_is_kept_and_not_sent() -> None:
    eta = timezone.now() + HOUR

    run = stored(TaskRunner().run("tests.tasks.add", [1], eta=eta, priority=3))

    assert (run.state, run.eta, run.due_at) == (State.SCHEDULED, eta, eta)
    assert (run.published_at, run.dispatch_id, run.claimed_at) == (None, None, None)
    assert (run.args, run.options) == ([1], {"priority": 3})


def test_a_run_with_a_countdown_is_kept_until_it_has_passed() -> None:
    run = stored(TaskRunner().run("tests.tasks.add", [1], countdown=90))

    assert run.state == State.SCHEDULED
    assert run.due_at == run.eta == run.created_at + timedelta(seconds=90)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("countdown", [0, -5])
def test_a_run_whose_time_has_come_is_sent_at_once(countdown: int) -> None:
    run = stored(TaskRunner().run("tests.tasks.add", [1], countdown=countdown))

    assert (run.state, run.due_at) == (State.PENDING, None)
    assert run.published_at is not None


@pytest.mark.django_db(transaction=True)
def test_a_rollback_leaves_no_scheduled_run() -> None:
    with transaction.atomic():
        TaskRunner().run("tests.tasks.add", [1], countdown=90)
        transaction.set_rollback(True)

    assert not TaskRunRecord.objects.exists()


# Moving


def test_a_scheduled_run_is_moved() -> None:
    run, eta = scheduled(), timezone.now() + 5 * HOUR

    answer = TaskRunner().reschedule(run, eta=eta)

    assert answer is run
    assert (run.eta, run.due_at) == (eta, eta)
    assert (stored(run).state, stored(run).eta, stored(run).due_at) == (State.SCHEDULED, eta, eta)


def test_a_run_is_moved_by_seconds() -> None:
    run, before = scheduled(), timezone.now()

    TaskRunner().reschedule(run, countdown=60)

    assert before + timedelta(seconds=60) <= stored(run).due_at <= run.due_at
    assert run.due_at < timezone.now() + timedelta(seconds=61)


def test_without_a_moment_a_scheduled_run_is_due_at_once() -> None:
    run, before = scheduled(), timezone.now()

    TaskRunner().reschedule(run)

    assert run.eta is None
    assert before <= stored(run).due_at <= timezone.now()


def test_what_has_passed_is_now() -> None:
    run, before = scheduled(), timezone.now()

    TaskRunner().reschedule(run, eta=before - 24 * HOUR)

    assert before <= stored(run).eta == run.due_at <= timezone.now()


def test_a_waiting_run_gets_an_earliest_start_and_is_not_due() -> None:
    run, eta = make_run(state=State.WAITING), timezone.now() + HOUR

    TaskRunner().reschedule(run, eta=eta)

    assert (stored(run).state, stored(run).eta, stored(run).due_at) == (State.WAITING, eta, None)


def test_a_waiting_run_without_an_earliest_start_still_waits() -> None:
    run = make_run(state=State.WAITING, eta=timezone.now() + HOUR)

    TaskRunner().reschedule(run)

    assert (stored(run).state, stored(run).eta, stored(run).due_at) == (State.WAITING, None, None)


def test_a_run_that_was_released_since_it_was_read_is_due_at_its_new_moment() -> None:
    run, now = make_run(state=State.WAITING), timezone.now()
    TaskRunRecord.objects.filter(pk=run.pk).update(state=State.SCHEDULED, due_at=now + HOUR)

    TaskRunner().reschedule(run, eta=now + 2 * HOUR)

    assert (run.state, stored(run).due_at) == (State.SCHEDULED, now + 2 * HOUR)


def test_a_run_that_is_due_and_not_yet_claimed_can_be_put_off() -> None:
    run = scheduled(due_at=timezone.now() - HOUR)

    TaskRunner().reschedule(run, countdown=60)

    assert stored(run).due_at > timezone.now()


def test_a_run_that_is_due_already_is_not_made_due_once_more() -> None:
    run = scheduled()
    TaskRunner().reschedule(run)
    due_at = stored(run).due_at

    with pytest.raises(NotMovable, match="on its way already"):
        TaskRunner().reschedule(run)

    assert stored(run).due_at == due_at


def test_a_claimed_run_is_not_moved() -> None:
    run = scheduled()
    TaskRunRecord.objects.filter(pk=run.pk).update(dispatch_id=uuid4(), claimed_at=timezone.now())

    with pytest.raises(NotMovable, match="a dispatcher has taken it"):
        TaskRunner().reschedule(run, countdown=60)

    assert stored(run).due_at == run.due_at


@pytest.mark.parametrize("state", sorted(set(State) - KEPT))
def test_what_is_not_kept_is_not_moved(state: State) -> None:
    run = scheduled(due_at=None)
    finished = {"finished_at": timezone.now()} if state in FINISHED else {}
    TaskRunRecord.objects.filter(pk=run.pk).update(state=state, **finished)

    with pytest.raises(NotMovable) as refused:
        TaskRunner().reschedule(run, countdown=60)

    assert str(refused.value)
    assert (stored(run).state, stored(run).eta, stored(run).due_at) == (state, run.eta, None)


def test_a_run_that_is_gone_is_not_moved() -> None:
    run = scheduled()
    TaskRunRecord.objects.all().delete()

    with pytest.raises(NotMovable, match="not in the journal"):
        TaskRunner().reschedule(run, countdown=60)


@pytest.mark.parametrize("task_name", ["gone", "celery.backend_cleanup"])
def test_a_run_whose_task_can_not_be_run_is_not_moved(task_name: str) -> None:
    with pytest.raises(NotMovable, match=task_name):
        TaskRunner().reschedule(scheduled(task_name=task_name), countdown=60)


def test_a_run_is_not_moved_to_where_it_has_expired() -> None:
    run = scheduled(expires_at=timezone.now() + 2 * HOUR)

    with pytest.raises(NotMovable, match="would expire"):
        TaskRunner().reschedule(run, countdown=7300)

    assert stored(run).due_at == run.due_at


def test_a_run_that_has_expired_is_not_made_due() -> None:
    run = scheduled(expires_at=timezone.now() - HOUR)

    with pytest.raises(NotMovable, match="would expire"):
        TaskRunner().reschedule(run)


@pytest.mark.parametrize(
    "when",
    [
        {"eta": datetime(2030, 1, 1, tzinfo=UTC), "countdown": 5},
        {"eta": datetime(2030, 1, 1)},
        {"countdown": 1e30},
    ],
)
def test_what_is_no_moment_is_refused(when: dict[str, object]) -> None:
    run = scheduled()

    with pytest.raises(InvalidArguments):
        TaskRunner().reschedule(run, **when)

    assert stored(run).due_at == run.due_at


def test_a_site_without_time_zones_moves_runs_too(settings) -> None:
    settings.USE_TZ = False
    run = scheduled()

    TaskRunner().reschedule(run, countdown=60)

    assert timezone.is_naive(stored(run).due_at)


# Who may


def test_who_may_run_the_task_and_sees_the_run_moves_it() -> None:
    user = make_user("run_celerytask")
    own, others = scheduled(run_by=user), scheduled()

    TaskRunner(user).reschedule(own, countdown=60)
    with pytest.raises(PermissionDenied):
        TaskRunner(user).reschedule(others, countdown=60)

    assert TaskRunner(user).may_move(own)
    assert not TaskRunner(user).may_move(others)
    assert stored(others).due_at == others.due_at


def test_who_sees_all_runs_moves_those_of_others() -> None:
    user = make_user("run_celerytask", "view_taskrunrecord")

    assert TaskRunner(user).may_move(scheduled())
    TaskRunner(user).reschedule(scheduled(), countdown=60)


def test_who_may_not_run_the_task_does_not_move_its_runs(configure) -> None:
    run = scheduled()
    viewer = make_user("view_taskrunrecord")
    operator = make_user("run_celerytask", "view_taskrunrecord")
    configure(RUNNABLE_TASKS={"tests.*": {"groups": ["Finance"]}})

    for user in (viewer, operator):
        assert not TaskRunner(user).may_move(run)
        with pytest.raises(PermissionDenied):
            TaskRunner(user).reschedule(run)

    assert TaskRunner(make_superuser()).may_move(run)
    assert stored(run).due_at == run.due_at
    assert operator.has_perm(RUN_PERMISSION)


@pytest.mark.parametrize(
    "fields",
    [
        {"task_name": "gone"},
        {"state": State.PENDING, "due_at": None},
        {"dispatch_id": uuid4()},
    ],
    ids=["gone", "sent", "claimed"],
)
def test_nobody_may_move_what_can_not_be_moved(fields: dict[str, object]) -> None:
    assert not TaskRunner().may_move(scheduled(**fields))


# Two at once


@pytest.mark.django_db(transaction=True)
def test_of_many_who_make_a_run_due_at_once_one_does() -> None:
    run, barrier, answers = scheduled(), threading.Barrier(4), []

    def make_due() -> None:
        own = stored(run)
        barrier.wait()
        try:
            TaskRunner().reschedule(own)
            answers.append("moved")
        except NotMovable:
            answers.append("refused")
        finally:
            connection.close()

    threads = [threading.Thread(target=make_due) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == ["moved", "refused", "refused", "refused"]


@pytest.mark.django_db(transaction=True)
def test_of_a_dispatcher_and_who_puts_a_run_off_one_gets_it() -> None:
    now = timezone.now()
    runs = [scheduled(due_at=now - HOUR) for _ in range(30)]
    barrier, moved, claimed = threading.Barrier(2), set(), set()

    def put_off() -> None:
        barrier.wait()
        for run in reversed(runs):
            with suppress(NotMovable):
                TaskRunner().reschedule(run, countdown=3600)
                moved.add(run.pk)
        connection.close()

    def dispatch() -> None:
        barrier.wait()
        while batch := claim_due(now, 3):
            claimed.update(run.pk for run in batch)
        connection.close()

    threads = [threading.Thread(target=each) for each in (put_off, dispatch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert moved.isdisjoint(claimed)
    assert moved | claimed == {run.pk for run in runs}
    rows = TaskRunRecord.objects.all()
    assert {row.pk for row in rows if row.due_at > now} == moved
    assert {row.pk for row in rows if row.dispatch_id is not None} == claimed
