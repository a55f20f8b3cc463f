"""Asking runs to stop: what becomes of the row, and who may ask."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from time import monotonic

import pytest
from celery import signals
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.dispatch import claim, keep_claim, publish, record_failure
from celery_admin_runner.exceptions import NotCancellable, NotSendable
from celery_admin_runner.messages import Message
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import FINISHED, UNFINISHED, State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run, make_user
from tests.stoppable_tasks import unguarded

GUARDED = "tests.stoppable_tasks.guarded"
UNGUARDED = "tests.stoppable_tasks.unguarded"
ROUNDS = 30


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("state", [State.UNSENT, State.SCHEDULED, State.WAITING])
def test_a_run_that_no_worker_has_is_cancelled_at_once_and_nobody_told(state):
    run = make_run(state=state, task_name=UNGUARDED, active_key="only one")
    user = make_user("cancel_taskrunrecord", "view_taskrunrecord")

    with broker_away():
        cancellation = TaskRunner(user).cancel(run)

    assert (cancellation.state, cancellation.answers) == (State.REVOKED, ())
    run.refresh_from_db()
    assert run.state == State.REVOKED
    assert run.finished_at == run.cancel_requested_at
    assert run.cancel_requested_by == user
    assert run.exception == "Cancelled before it started."
    assert run.active_key is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("state", [State.PENDING, State.RETRY])
@pytest.mark.parametrize(
    ("name", "target"), [(GUARDED, State.REVOKED), (UNGUARDED, State.CANCELLING)]
)
def test_a_run_that_waits_for_a_worker_is_cancelled_at_once_only_if_its_start_is_guarded(
    state, name, target
):
    run = make_run(state=state, task_name=name)

    with broker_away():
        cancellation = TaskRunner().cancel(run)

    [answer] = cancellation.answers
    assert (answer.worker, answer.is_ok) == ("", False)
    assert answer.text.startswith("The workers could not be told: ")
    run.refresh_from_db()
    assert cancellation.state == run.state == target
    assert run.cancel_requested_at is not None


@pytest.mark.django_db(transaction=True)
def test_a_run_of_a_task_that_is_not_known_here_is_cancelled_by_its_worker_only():
    run = make_run(state=State.PENDING, task_name="gone.task")

    with broker_away():
        assert TaskRunner().cancel(run).state == State.CANCELLING


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", [GUARDED, UNGUARDED])
def test_a_running_run_is_asked_to_stop_and_no_worker_told(name):
    run = make_run(state=State.STARTED, task_name=name, started_at=timezone.now())

    with broker_away():
        cancellation = TaskRunner().cancel(run)

    assert (cancellation.state, cancellation.answers) == (State.CANCELLING, ())
    run.refresh_from_db()
    assert run.state == State.CANCELLING


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("state", sorted(FINISHED))
@pytest.mark.parametrize("how", [{}, {"terminate": True}, {"kill": True}])
def test_a_finished_run_is_never_cancelled(state, how):
    run = make_run(state=state)

    with pytest.raises(NotCancellable):
        TaskRunner().cancel(run, **how)

    run.refresh_from_db()
    assert (run.state, run.cancel_requested_at) == (state, None)


@pytest.mark.django_db(transaction=True)
def test_a_run_that_has_ended_meanwhile_is_not_cancelled():
    run = make_run(state=State.PENDING, task_name=GUARDED)
    seen_before = TaskRunRecord.objects.get()
    tracking.record_success(run.task_id, attempt=0, result=1, now=timezone.now())

    with broker_away(), pytest.raises(NotCancellable):
        TaskRunner().cancel(seen_before)

    assert seen_before.state == TaskRunRecord.objects.get().state == State.SUCCESS


@pytest.mark.django_db(transaction=True)
def test_a_run_that_has_begun_meanwhile_is_asked_to_stop():
    run = make_run(state=State.PENDING, task_name=GUARDED)
    seen_before = TaskRunRecord.objects.get()
    tracking.record_start(run.task_id, attempt=0, worker="w", now=timezone.now())

    cancellation = TaskRunner().cancel(seen_before)

    assert cancellation.state == TaskRunRecord.objects.get().state == State.CANCELLING


@pytest.mark.django_db(transaction=True)
def test_who_asked_first_stays_the_one_who_asked():
    user = make_user("cancel_taskrunrecord", "view_taskrunrecord")
    run = make_run(state=State.STARTED, started_at=timezone.now())
    TaskRunner(user).cancel(run)
    asked_at = run.cancel_requested_at

    with broker_away():
        cancellation = TaskRunner().cancel(run, terminate=True)

    assert cancellation.state == State.CANCELLING
    run.refresh_from_db()
    assert (run.cancel_requested_by, run.cancel_requested_at) == (user, asked_at)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "fields",
    [
        {"state": State.STARTED, "started_at": timezone.now()},
        {"state": State.CANCELLING, "started_at": None},
        {"state": State.PENDING},
    ],
    ids=["running", "asked-before-it-began", "queued"],
)
def test_killing_is_the_second_step(fields):
    run = make_run(**fields)

    with broker_away(), pytest.raises(NotCancellable):
        TaskRunner().cancel(run, kill=True)

    run.refresh_from_db()
    assert run.state == fields["state"]


# Cancelling what is being sent


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("name", "target"), [(GUARDED, State.REVOKED), (UNGUARDED, State.CANCELLING)]
)
def test_a_run_that_is_being_sent_just_now_is_handed_over_and_stays_as_it_was_asked(name, target):
    nobody = f"{app.conf.task_default_queue}-nobody"
    run = make_run(state=State.UNSENT, task_name=name, options={"queue": nobody})
    assert claim(run)

    cancellation = TaskRunner().cancel(TaskRunRecord.objects.get())
    publish(unguarded, run, Message(args=["/dev/null"], kwargs={}))

    assert cancellation.state == run.state == target
    assert run.published_at is not None


@pytest.mark.django_db(transaction=True)
def test_a_run_that_somebody_claimed_meanwhile_is_not_cancelled_at_once():
    run = make_run(state=State.UNSENT, task_name=UNGUARDED)
    assert claim(TaskRunRecord.objects.get())

    with broker_away():
        assert TaskRunner().cancel(run).state == State.CANCELLING


@pytest.mark.django_db(transaction=True)
def test_a_run_that_could_not_be_sent_meanwhile_is_cancelled_at_once():
    run = make_run(state=State.UNSENT, task_name=UNGUARDED)
    assert claim(run)
    record_failure(TaskRunRecord.objects.get(), "no broker")

    assert TaskRunner().cancel(run).state == State.REVOKED


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fails", [True, False])
def test_a_run_that_was_asked_to_stop_and_could_not_be_sent_has_ended(fails):
    run = make_run(state=State.UNSENT, task_name=UNGUARDED)
    assert claim(run)
    with broker_away():
        assert TaskRunner().cancel(TaskRunRecord.objects.get()).state == State.CANCELLING

    if fails:
        record_failure(run, "no broker")
    else:
        run.claimed_at -= timedelta(seconds=45)
        assert not keep_claim(run)

    stored = TaskRunRecord.objects.get()
    assert run.state == stored.state == State.REVOKED
    assert stored.exception == "Cancelled before it was sent."


@pytest.mark.django_db(transaction=True)
def test_a_run_whose_publisher_died_is_cancelled_at_once_and_the_workers_told_all_the_same():
    claimed_at = timezone.now() - timedelta(minutes=2)
    run = make_run(state=State.UNSENT, task_name=UNGUARDED, claimed_at=claimed_at)

    with broker_away():
        cancellation = TaskRunner().cancel(run)

    assert cancellation.state == State.REVOKED
    assert cancellation.answers


@pytest.mark.django_db(transaction=True)
def test_a_run_whose_publisher_died_after_it_was_asked_to_stop_ends_when_asked_again():
    run = make_run(state=State.UNSENT, task_name=UNGUARDED)
    assert claim(run)
    with broker_away():
        assert TaskRunner().cancel(run).state == State.CANCELLING
        TaskRunRecord.objects.update(claimed_at=timezone.now() - timedelta(minutes=2))
        run.refresh_from_db()

        assert TaskRunner().cancel(run).state == State.REVOKED


@pytest.mark.django_db(transaction=True)
def test_a_run_that_was_cancelled_before_it_was_sent_can_not_be_sent_again():
    with broker_away():
        run = TaskRunner().run(UNGUARDED, ["/dev/null"])
    TaskRunner().cancel(run)

    with pytest.raises(NotSendable):
        TaskRunner().send_again(run)

    assert TaskRunRecord.objects.get().state == State.REVOKED


# Transactions, and a broker that is away


@pytest.mark.django_db(transaction=True)
def test_in_a_transaction_the_workers_are_told_on_commit():
    run = make_run(state=State.PENDING, task_name=UNGUARDED)

    with broker_away(), transaction.atomic():
        begin = timezone.now()
        cancellation = TaskRunner().cancel(run)
        told_in = timezone.now() - begin

    assert (cancellation.state, cancellation.answers) == (State.CANCELLING, ())
    assert told_in < timedelta(seconds=1)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", [GUARDED, UNGUARDED])
def test_a_run_that_is_cancelled_in_the_transaction_that_made_it_is_never_sent(name):
    sent = []

    def look(**kwargs: object) -> None:
        sent.append(kwargs)

    signals.before_task_publish.connect(look)
    try:
        with transaction.atomic():
            run = TaskRunner().run(name, ["/dev/null"])
            TaskRunner().cancel(run)
    finally:
        signals.before_task_publish.disconnect(look)

    assert sent == []
    assert TaskRunRecord.objects.get().state == State.REVOKED


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("state", "statements"), [(State.SCHEDULED, 1), (State.STARTED, 1), (State.PENDING, 2)]
)
def test_asking_costs_an_update_and_a_look_before_workers_are_told(
    django_assert_num_queries, state, statements
):
    run = make_run(state=state, task_name=UNGUARDED, started_at=timezone.now())

    with broker_away(), django_assert_num_queries(statements):
        TaskRunner().cancel(run)


@pytest.mark.django_db(transaction=True)
def test_a_rollback_leaves_the_run_as_it_was():
    run = make_run(state=State.PENDING, task_name=GUARDED)

    with transaction.atomic():
        TaskRunner().cancel(run)
        transaction.set_rollback(True)

    assert TaskRunRecord.objects.get().state == State.PENDING


@pytest.mark.django_db(transaction=True)
def test_of_many_runs_only_the_first_waits_for_a_broker_that_is_away():
    runs = [make_run(state=State.PENDING, task_name=UNGUARDED) for _ in range(20)]
    runner = TaskRunner()
    begin = timezone.now()

    with broker_away():
        cancellations = [runner.cancel(run, terminate=True) for run in runs]

    assert timezone.now() - begin < timedelta(seconds=15)
    assert {cancellation.state for cancellation in cancellations} == {State.CANCELLING}
    assert all(cancellation.answers for cancellation in cancellations)


@pytest.mark.django_db(transaction=True)
def test_of_many_running_runs_those_that_have_ended_meanwhile_are_not_terminated():
    runs = [make_run(state=State.STARTED, started_at=timezone.now()) for _ in range(2)]
    runner = TaskRunner()
    for run in runs:
        runner.cancel(run)
        tracking.record_success(run.task_id, attempt=0, result=1, now=timezone.now())

    with broker_away():
        answers = runner.terminate_many(runs)

    assert answers == []
    assert {run.state for run in runs} == {State.SUCCESS}


@pytest.mark.django_db(transaction=True)
def test_the_workers_are_told_of_many_runs_when_the_transaction_is_committed():
    run = make_run(state=State.STARTED, started_at=timezone.now())
    runner = TaskRunner()
    runner.cancel(run)

    with broker_away(), transaction.atomic():
        answers = runner.terminate_many([run])
        before = list(answers)

    assert before == []
    assert len(answers) == 1


# Rights


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("permissions", [[], ["view_taskrunrecord"], ["cancel_taskrunrecord"]])
def test_who_lacks_the_permission_or_does_not_see_the_run_is_refused(permissions):
    user = make_user(*permissions)
    run = make_run(state=State.UNSENT)

    assert not TaskRunner(user).may_cancel(run)
    with pytest.raises(PermissionDenied):
        TaskRunner(user).cancel(run)

    run.refresh_from_db()
    assert run.state == State.UNSENT


@pytest.mark.django_db
def test_who_is_inactive_or_nobody_is_refused():
    run = make_run(state=State.UNSENT)

    for user in (make_user(is_superuser=True, is_active=False), AnonymousUser()):
        with pytest.raises(PermissionDenied):
            TaskRunner(user).cancel(run)


@pytest.mark.django_db(transaction=True)
def test_a_user_may_cancel_his_or_her_own_run():
    user = make_user("cancel_taskrunrecord")
    run = make_run(state=State.UNSENT, run_by=user)

    assert TaskRunner(user).may_cancel(run)
    assert TaskRunner(user).cancel(run).state == State.REVOKED


@pytest.mark.django_db
@pytest.mark.parametrize("state", list(State))
def test_what_may_be_cancelled_has_not_ended(state):
    assert TaskRunner().may_cancel(make_run(state=state)) is (state in UNFINISHED)


# Races


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", [GUARDED, UNGUARDED])
def test_of_cancel_start_and_end_the_database_decides(name):
    rng = random.Random(4)
    with broker_away(), ThreadPoolExecutor(2) as threads:
        for _round in range(ROUNDS):
            run = make_run(state=State.PENDING, task_name=name)
            # In each round the canceller comes a little earlier or later.
            delay = rng.random() * 0.01
            together = Barrier(2)
            cancelled = threads.submit(cancel, run.pk, together, delay)
            began = threads.submit(start_and_end, run, together)
            check_outcome(run, cancelled.result(), began=began.result())


def cancel(pk: int, together: Barrier, delay: float) -> State | None:
    """Cancel a run; return the state that brought, None if it had ended."""
    run = TaskRunRecord.objects.get(pk=pk)
    runner = TaskRunner()
    # The broker is away, and that is known.
    runner._broker_away_at = float("inf")
    together.wait()
    pause(delay)
    try:
        return runner.cancel(run).state
    except NotCancellable:
        return None
    finally:
        connection.close()


def start_and_end(run: TaskRunRecord, together: Barrier) -> bool:
    """Report what a worker reports; tell whether it began the run."""
    together.wait()
    try:
        now = timezone.now()
        began = bool(tracking.record_start(run.task_id, attempt=0, worker="w", now=now))
        is_guarded = run.task_name == GUARDED
        if not began and not (is_guarded and tracking.refuse_start(run.task_id, now=now)):
            began = bool(
                tracking.record_start_of_cancelling(run.task_id, attempt=0, worker="w", now=now)
            )
        if began:
            tracking.record_success(run.task_id, attempt=0, result=1, now=now)
        return began
    finally:
        connection.close()


def check_outcome(run: TaskRunRecord, cancelled: State | None, *, began: bool) -> None:
    """Check that the row tells what has happened."""
    run.refresh_from_db()
    assert run.state == (State.SUCCESS if began else State.REVOKED)
    assert (cancelled is None) <= began
    assert (cancelled == State.REVOKED) <= (not began)
    assert (run.cancel_requested_at is not None) is (cancelled is not None)
    assert run.finished_at is not None


def pause(seconds: float) -> None:
    """Wait, busily: so short a sleep would be a longer one."""
    end = monotonic() + seconds
    while monotonic() < end:
        pass
