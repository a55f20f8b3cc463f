"""TaskRunner.run_many: many calls of one task, all valid or none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from celery import shared_task
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from kombu.messaging import Producer

from celery_admin_runner import batches, dispatch
from celery_admin_runner.calls import InvalidCalls
from celery_admin_runner.exceptions import (
    AlreadyActive,
    InvalidArguments,
    TaskNotFound,
    TaskNotRunnable,
)
from celery_admin_runner.models import OpenDependency, TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.signals import TaskRunSignal, run_changed
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run, make_superuser, make_user
from tests.models import Report
from tests.publishes import messages_sent
from tests.unique_tasks import at_most_hourly, once
from tests.waiting import wait_for_state

ADD = "tests.tasks.add"
HOUR = 3600


@shared_task
def greet(user: User, text: str = "") -> str:
    """Greet a user."""
    return f"{text} {user}"


def pairs(number: int) -> list[tuple[tuple[int], dict[str, int]]]:
    """Return so many calls of ``tests.tasks.add``."""
    return [((n,), {"b": n}) for n in range(number)]


def states() -> dict[str, int]:
    """Return how many rows are in which state."""
    return {state: TaskRunRecord.objects.filter(state=state).count() for state in used()}


def used() -> set[str]:
    return set(TaskRunRecord.objects.order_by().values_list("state", flat=True))


@pytest.fixture
def queue() -> Iterator[str]:
    """A queue of the test's own."""
    name = f"many-{uuid4()}"
    yield name
    with app.connection_for_write() as broker:
        broker.default_channel.queue_delete(name)


def ids_in(queue: str) -> list[str]:
    """Return the ids of the messages in a queue, and take them out."""
    ids = []
    with app.connection_for_read() as broker:
        simple = broker.SimpleQueue(queue, queue_opts={"durable": True})
        while True:
            try:
                message = simple.get(block=False)
            except simple.Empty:
                return ids
            message.ack()
            ids.append(message.headers["id"])


@contextmanager
def wire_broken_after(number: int) -> Iterator[list[object]]:
    """Let the broker's connection break when so many messages were written."""
    written: list[object] = []
    publish = Producer._publish

    def broken(self: Producer, *args: Any, **kwargs: Any) -> Any:
        written.append(args)
        if len(written) > number:
            raise ConnectionResetError("gone")
        return publish(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Producer, "_publish", broken)
        yield written


def test_many_runs_succeed_on_a_real_worker(worker):
    user = make_user("run_celerytask")

    runs = TaskRunner(user, source="admin").run_many(
        ADD, [((1,), {"b": 41}), ((2,), {}), {"a": 3, "b": 4}], reason="why not", label="sums"
    )

    for run in runs:
        wait_for_state(run, State.SUCCESS)
    assert [run.result for run in runs] == [42, 4, 7]
    assert [(run.args, run.kwargs) for run in runs] == [
        ([1], {"b": 41}),
        ([2], {}),
        ([], {"a": 3, "b": 4}),
    ]
    assert {(run.run_by, run.source, run.reason, run.label) for run in runs} == {
        (user, "admin", "why not", "sums")
    }


@pytest.mark.django_db(transaction=True)
def test_the_row_and_the_message_are_those_of_a_single_run(queue):
    user = make_superuser()
    runner, options = TaskRunner(user), {"queue": queue, "priority": 3, "expires": HOUR}
    given = {"reason": "why", "label": "what", "obj": user, **options}
    with messages_sent() as sent:
        single = runner.run(ADD, (1,), {"b": 2}, **given)

        [many] = runner.run_many(ADD, [((1,), {"b": 2})], **given)

    own = {"id", "pk", "task_id", "dispatch_id", "created_at", "claimed_at", "published_at"}
    others = own | {"expires_at", "_state"}
    [theirs, ours] = (
        {name: value for name, value in vars(run).items() if name not in others}
        for run in (TaskRunRecord.objects.get(pk=run.pk) for run in (single, many))
    )
    assert ours == theirs
    assert ours["state"] == State.PENDING
    assert many.expires_at - many.created_at == single.expires_at - single.created_at
    [before, after] = (message["headers"] for message in sent)
    assert before.keys() == after.keys()
    assert after["id"] == after["celery_admin_runner_run"] == many.task_id
    assert after["celery_admin_runner_context"] == before["celery_admin_runner_context"]


@pytest.mark.django_db(transaction=True)
def test_calls_are_taken_from_a_generator_in_their_order(queue):
    runs = TaskRunner().run_many(ADD, (((n,), {}) for n in range(5)), queue=queue)

    assert [run.args for run in runs] == [[0], [1], [2], [3], [4]]
    assert [run.pk for run in runs] == sorted(run.pk for run in runs)
    assert {run.created_at for run in runs} == {runs[0].created_at}
    assert {run.state for run in runs} == {State.PENDING}
    assert sorted(ids_in(queue)) == sorted(run.task_id for run in runs)


@pytest.mark.django_db
def test_no_calls_are_no_runs(django_assert_num_queries):
    with django_assert_num_queries(0):
        assert TaskRunner().run_many(ADD, []) == []


@pytest.mark.django_db
@pytest.mark.parametrize("call", ["ab", 1, None, ((1,),), ((1,), {}, {}), ((1,), [2]), ("ab", {})])
def test_what_is_no_call_is_a_type_error(call):
    with pytest.raises(TypeError, match="Call 1 is"):
        TaskRunner().run_many(ADD, [((1,), {}), call])

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("calls", [{"x": 1}, "ab"])
def test_one_call_is_not_taken_for_many(calls):
    with pytest.raises(TypeError, match="Give many calls"):
        TaskRunner().run_many(ADD, calls)


@pytest.mark.django_db
@pytest.mark.parametrize("label", ["L" * 256, "a\0b"])
def test_a_label_that_not_every_database_takes_is_refused(label):
    with pytest.raises(ValueError, match="255 characters"):
        TaskRunner().run_many(ADD, [((1,), {})], label=label)
    with pytest.raises(ValueError, match="255 characters"):
        TaskRunner().run(ADD, [1], label=label)

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_one_wrong_call_leaves_nothing_and_is_named(queue):
    calls = [((1,), {}), (("x",), {}), ((1, 2, 3), {}), {"a": 1, "b": "y"}, {}]
    with messages_sent() as sent, pytest.raises(InvalidCalls) as caught:
        TaskRunner().run_many(ADD, calls, queue=queue)

    assert list(caught.value.errors) == ["1.a", "2", "3.b", "4.a"]
    assert sorted(caught.value.calls) == [1, 2, 3, 4]
    assert caught.value.calls[4].errors == {"a": ["Field required"]}
    assert not TaskRunRecord.objects.exists()
    assert not sent


@pytest.mark.django_db
def test_it_asks_once_for_the_permission_the_allowlist_and_the_reason(configure):
    with pytest.raises(TaskNotFound):
        TaskRunner().run_many("no.such.task", [])
    with pytest.raises(PermissionDenied):
        TaskRunner(make_user()).run_many(ADD, pairs(2))
    configure(RUNNABLE_TASKS={"tests.tasks.add": {"reason": True}})
    with pytest.raises(InvalidArguments):
        TaskRunner(make_superuser()).run_many(ADD, pairs(2))
    with pytest.raises(TaskNotRunnable):
        TaskRunner(make_superuser()).run_many("tests.tasks.fail", [])

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
def test_an_option_that_there_is_not_is_a_type_error():
    with pytest.raises(TypeError, match="producer"):
        TaskRunner().run_many(ADD, pairs(2), producer=None)


@pytest.mark.django_db
def test_the_objects_of_all_calls_are_asked_for_by_one_query(django_assert_max_num_queries):
    users = [make_user() for _ in range(20)]
    calls = [((user.pk,), {}) for user in users]

    with CaptureQueriesContext(connection) as one:
        TaskRunner().run_many(greet.name, calls[:1], countdown=HOUR)
    with django_assert_max_num_queries(len(one)):
        runs = TaskRunner().run_many(greet.name, calls, countdown=HOUR)

    assert [run.args for run in runs] == [[user.pk] for user in users]


@pytest.mark.django_db
def test_the_objects_must_exist_and_the_user_may_view_them():
    user = make_user("run_celerytask")
    with pytest.raises(InvalidCalls) as caught:
        TaskRunner().run_many(greet.name, [((user.pk,), {}), {"user": 10**6, "text": "a"}])
    assert list(caught.value.errors) == ["1.user"]

    with pytest.raises(InvalidCalls) as caught:
        TaskRunner(user).run_many(greet.name, [((user.pk,), {})])

    assert list(caught.value.errors) == ["0.user"]
    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_what_is_not_due_is_scheduled():
    eta = timezone.now() + timedelta(hours=1)
    with messages_sent() as sent:
        runs = TaskRunner().run_many(ADD, pairs(3), eta=eta)

    assert not sent
    assert {(run.state, run.eta, run.due_at, run.dispatch_id) for run in runs} == {
        (State.SCHEDULED, eta, eta, None)
    }
    assert states() == {State.SCHEDULED: 3}


@pytest.mark.django_db(transaction=True)
def test_what_waits_for_others_is_kept_until_they_have_succeeded():
    unfinished, done = make_run(state=State.STARTED), make_run()

    waiting = TaskRunner().run_many(ADD, pairs(3), depends_on=[unfinished, done])
    ready = TaskRunner().run_many(ADD, pairs(2), depends_on=[done])

    rows = TaskRunRecord.objects.in_bulk([run.pk for run in (*waiting, *ready)])
    assert {rows[run.pk].state for run in waiting} == {State.WAITING}
    assert {rows[run.pk].state for run in ready} == {State.SCHEDULED}
    assert all(set(run.depends_on.all()) == {unfinished, done} for run in waiting)
    open_ones = OpenDependency.objects.values_list("dependent_id", "dependency_id")
    assert set(open_ones) == {(run.pk, unfinished.pk) for run in waiting}


@pytest.mark.django_db(transaction=True)
def test_secrets_are_masked_and_sent_but_never_kept(queue):
    calls = [("a", "hush-1"), ("b", "hush-2")]
    task_name = "tests.tasks.tell_secret"
    with messages_sent() as sent:
        runs = TaskRunner().run_many(task_name, [(call, {}) for call in calls], queue=queue)

    assert [run.args for run in runs] == [["a", MASK], ["b", MASK]]
    assert [message["body"][0] for message in sent] == [("a", "hush-1"), ("b", "hush-2")]
    assert all("hush" not in str(message["headers"]) for message in sent)
    assert states() == {State.PENDING: 2}
    with pytest.raises(InvalidCalls) as caught:
        TaskRunner().run_many(task_name, [(calls[0], {})], countdown=HOUR)
    assert list(caught.value.errors) == ["0"]


@pytest.mark.django_db(transaction=True)
def test_in_a_transaction_the_messages_wait_for_the_commit(queue):
    with messages_sent() as sent, transaction.atomic():
        runs = TaskRunner().run_many(ADD, pairs(3), queue=queue)

        assert {run.state for run in runs} == {State.UNSENT}
        assert not sent

    assert len(sent) == 3
    assert states() == {State.PENDING: 3}


@pytest.mark.django_db(transaction=True)
def test_a_rollback_leaves_neither_rows_nor_messages(queue):
    with messages_sent() as sent, transaction.atomic():
        TaskRunner().run_many(ADD, pairs(3), queue=queue)
        transaction.set_rollback(True)

    assert not sent
    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_is_away_is_waited_for_once():
    begun_at = time.monotonic()
    with broker_away():
        runs = TaskRunner().run_many(ADD, pairs(300))
    took = time.monotonic() - begun_at

    assert took < 60
    assert {run.state for run in runs} == {State.UNSENT}
    rows = TaskRunRecord.objects.all()
    assert rows.filter(state=State.UNSENT, claimed_at=None, dispatch_id=None).count() == 300
    assert not rows.filter(publish_error="").exists()
    assert [run.publish_error for run in runs] == [
        row.publish_error for row in rows.order_by("pk")
    ]


@pytest.mark.django_db(transaction=True)
def test_after_a_broker_was_away_the_same_runner_does_not_try_at_once():
    runner = TaskRunner()
    with broker_away():
        runner.run(ADD, [1])
    with messages_sent() as sent:
        runs = runner.run_many(ADD, pairs(3))

    assert not sent
    assert {run.publish_error for run in runs} == {
        "The broker did not take the run before this one."
    }


@pytest.mark.django_db(transaction=True)
def test_when_the_broker_is_lost_in_the_middle_the_rest_stays_unsent_at_once(queue):
    with wire_broken_after(2) as written:
        runs = TaskRunner().run_many(ADD, pairs(6), queue=queue)

    assert len(written) == 3
    rows = [TaskRunRecord.objects.get(pk=run.pk) for run in runs]
    assert [run.state for run in runs] == [row.state for row in rows]
    # What was written and not confirmed before it broke may be out as well.
    assert {row.state for row in rows[:2] if not row.may_have_been_sent} <= {State.PENDING}
    assert rows[2].may_have_been_sent
    assert [(row.state, row.may_have_been_sent) for row in rows[3:]] == [(State.UNSENT, False)] * 3
    assert all("gone" in row.publish_error for row in rows[2:])
    assert set(ids_in(queue)) <= {row.task_id for row in rows[:2]}
    again = TaskRunner().send_again(rows[3])
    assert again.state == State.PENDING


@pytest.mark.django_db(transaction=True)
def test_who_listens_hears_of_what_was_sent_before_the_broker_was_lost(queue):
    heard: list[str] = []

    def hear(run: TaskRunRecord, **kwargs: Any) -> None:
        heard.append(run.task_id)

    TaskRunSignal.connect(hear, sender=TaskRunner)
    try:
        with wire_broken_after(2):
            runs = TaskRunner().run_many(ADD, pairs(6), queue=queue)
    finally:
        TaskRunSignal.disconnect(hear, sender=TaskRunner)

    assert heard == [run.task_id for run in runs if run.state == State.PENDING]
    # RabbitMQ had not confirmed them yet.
    assert len(heard) == 2 or app.connection_for_write().transport.driver_type == "amqp"


@pytest.mark.django_db(transaction=True)
def test_a_message_that_can_not_be_made_fails_alone(queue, monkeypatch):
    real = dispatch.sent_options

    def options(run, message):
        if run.args == [1]:
            raise RuntimeError("no way")
        return real(run, message)

    monkeypatch.setattr(dispatch, "sent_options", options)

    runs = TaskRunner().run_many(ADD, pairs(3), queue=queue)

    assert [run.state for run in runs] == [State.PENDING, State.UNSENT, State.PENDING]
    assert TaskRunRecord.objects.get(pk=runs[1].pk).publish_error == "RuntimeError: no way"
    assert sorted(ids_in(queue)) == sorted([runs[0].task_id, runs[2].task_id])


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_is_faster_is_not_moved_back(queue, monkeypatch):
    real = batches.record_sent

    def after_a_worker(runs, now):
        TaskRunRecord.objects.filter(pk=runs[0].pk).update(
            state=State.SUCCESS, finished_at=now, started_at=now, published_at=now
        )
        real(runs, now)

    monkeypatch.setattr(batches, "record_sent", after_a_worker)

    runs = TaskRunner().run_many(ADD, pairs(3), queue=queue)

    rows = [TaskRunRecord.objects.get(pk=run.pk).state for run in runs]
    assert rows == [State.SUCCESS, State.PENDING, State.PENDING]


@pytest.mark.django_db(transaction=True)
def test_what_is_cancelled_while_others_are_sent_is_not_sent(queue, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_SIZE", 2)

    def cancel_another(run: TaskRunRecord, **kwargs: Any) -> None:
        if run.args == [0]:
            TaskRunner().cancel(TaskRunRecord.objects.get(args=[3]))

    TaskRunSignal.connect(cancel_another)
    try:
        runs = TaskRunner().run_many(ADD, pairs(5), queue=queue)
    finally:
        TaskRunSignal.disconnect(cancel_another)

    assert [run.state for run in runs] == [*[State.PENDING] * 3, State.REVOKED, State.PENDING]
    assert [TaskRunRecord.objects.get(pk=run.pk).state for run in runs] == [
        run.state for run in runs
    ]
    assert sorted(ids_in(queue)) == sorted(run.task_id for run in runs if run.args != [3])


@pytest.mark.django_db(transaction=True)
def test_what_somebody_else_has_claimed_meanwhile_is_left_to_them(queue, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_SIZE", 2)
    theirs = uuid4()

    def claim_another(run: TaskRunRecord, **kwargs: Any) -> None:
        TaskRunRecord.objects.filter(args=[3]).update(dispatch_id=theirs)

    TaskRunSignal.connect(claim_another)
    try:
        runs = TaskRunner().run_many(ADD, pairs(5), queue=queue)
    finally:
        TaskRunSignal.disconnect(claim_another)

    row = TaskRunRecord.objects.get(pk=runs[3].pk)
    assert (row.state, row.dispatch_id) == (State.UNSENT, theirs)
    assert sorted(ids_in(queue)) == sorted(run.task_id for run in runs if run.args != [3])


@pytest.mark.django_db(transaction=True)
def test_old_claims_are_prolonged_before_what_they_are_for_is_sent(queue, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_SIZE", 2)
    monkeypatch.setattr(dispatch, "CLAIM_LASTS", timedelta())

    runs = TaskRunner().run_many(ADD, pairs(5), queue=queue)

    rows = TaskRunRecord.objects.order_by("pk")
    assert all(row.claimed_at > row.created_at for row in rows)
    assert {run.state for run in runs} == {State.PENDING}
    assert len(ids_in(queue)) == 5


@pytest.mark.django_db(transaction=True)
def test_who_listens_hears_of_each_run(queue):
    user, heard, moved = make_superuser(), [], []

    def hear(**kwargs: Any) -> None:
        heard.append(kwargs)

    def see(run: TaskRunRecord, from_state: State, to_state: State, **kwargs: Any) -> None:
        moved.append((run.task_id, from_state, to_state))

    TaskRunSignal.connect(hear, sender=TaskRunner)
    run_changed.connect(see, sender=TaskRunRecord)
    try:
        runs = TaskRunner(user).run_many(ADD, pairs(3), queue=queue)
    finally:
        TaskRunSignal.disconnect(hear, sender=TaskRunner)
        run_changed.disconnect(see, sender=TaskRunRecord)

    assert [(each["task_id"], each["user"], each["args"]) for each in heard] == [
        (run.task_id, user, [n]) for n, run in enumerate(runs)
    ]
    assert {each["run"].state for each in heard} == {State.PENDING}
    assert sorted(moved) == sorted((run.task_id, State.UNSENT, State.PENDING) for run in runs)


@pytest.mark.django_db(transaction=True)
def test_two_hundred_runs_are_written_and_moved_by_few_statements(queue):
    with CaptureQueriesContext(connection) as captured:
        TaskRunner().run_many(ADD, pairs(200), queue=queue)

    texts = [query["sql"].split(None, 1)[0] for query in captured]
    updates, inserts = texts.count("UPDATE"), texts.count("INSERT")
    limit = connection.features.max_query_params
    assert inserts <= 1 + (limit is not None) * 10
    # SQLite's UPDATE counts as one, whatever stands around it.
    assert updates <= 1 + (limit is not None) * 10
    assert len(texts) <= inserts + updates + 2


@pytest.mark.django_db(transaction=True)
def test_ten_thousand_calls_are_written_whatever_the_database_limits():
    runs = TaskRunner().run_many(ADD, pairs(10_000), countdown=HOUR)

    assert states() == {State.SCHEDULED: 10_000}
    assert len({run.pk for run in runs}) == 10_000


@pytest.mark.django_db(transaction=True)
def test_more_than_a_statement_takes_are_sent_and_moved(queue):
    runs = TaskRunner().run_many(ADD, pairs(1100), queue=queue)

    assert states() == {State.PENDING: 1100}
    assert {run.state for run in runs} == {State.PENDING}
    assert sorted(ids_in(queue)) == sorted(run.task_id for run in runs)


@pytest.mark.django_db(transaction=True)
def test_in_eager_mode_each_runs_right_here(monkeypatch):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    with broker_away():
        runs = TaskRunner().run_many(ADD, [((1,), {}), ((2,), {"b": 40})])

    rows = [TaskRunRecord.objects.get(pk=run.pk) for run in runs]
    assert [(row.state, row.result) for row in rows] == [(State.SUCCESS, 3), (State.SUCCESS, 42)]


@pytest.mark.django_db(transaction=True)
def test_unique_calls_take_their_keys(queue):
    runs = TaskRunner().run_many(once.name, [((n,), {}) for n in range(3)], queue=queue)

    assert len({run.active_key for run in runs}) == 3
    assert states() == {State.PENDING: 3}
    assert len(ids_in(queue)) == 3


@pytest.mark.django_db(transaction=True)
def test_of_unique_calls_of_which_one_is_active_none_is_recorded(queue):
    active = TaskRunner().run(once.name, [2], queue=queue)
    with messages_sent() as sent, pytest.raises(AlreadyActive) as caught:
        TaskRunner().run_many(once.name, [((n,), {}) for n in range(4)], queue=queue)

    assert caught.value.run == active
    assert list(caught.value.errors) == ["2"]
    assert not sent
    assert TaskRunRecord.objects.get() == active


@pytest.mark.django_db(transaction=True)
def test_the_same_unique_call_twice_in_one_list_leaves_nothing(queue):
    with messages_sent() as sent, pytest.raises(AlreadyActive) as caught:
        TaskRunner().run_many(once.name, [((1,), {}), ((2,), {}), {"a": 1}], queue=queue)

    assert list(caught.value.errors) == ["2"]
    assert not sent
    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_two_who_run_the_same_unique_calls_at_once_one_does(queue):
    barrier = Barrier(2)

    def run(order: Callable[[Any], Any]) -> str:
        try:
            barrier.wait(30)
            TaskRunner().run_many(
                once.name, order([((n,), {}) for n in range(10)]), queue=queue
            )
        except AlreadyActive:
            return "active"
        finally:
            connections.close_all()
        return "sent"

    with ThreadPoolExecutor(2) as pool:
        # Those who go through them by opposite ways wait for each other.
        came = sorted(pool.map(run, [list, lambda calls: list(reversed(calls))]))

    assert came == ["active", "sent"]
    assert states() == {State.PENDING: 10}
    assert len(ids_in(queue)) == 10


@pytest.mark.django_db(transaction=True)
def test_calls_that_are_ignored_for_a_while_are_recorded_as_such(queue):
    now = timezone.now()
    first = TaskRunner().run(at_most_hourly.name, [1], queue=queue)
    TaskRunRecord.objects.filter(pk=first.pk).update(
        state=State.SUCCESS, finished_at=now, ignore_until=now + timedelta(hours=1)
    )
    ids_in(queue)

    runs = TaskRunner().run_many(at_most_hourly.name, [((1,), {}), ((2,), {})], queue=queue)

    assert [run.state for run in runs] == [State.IGNORED, State.PENDING]
    assert ids_in(queue) == [runs[1].task_id]


@pytest.mark.django_db(transaction=True)
def test_methods_of_many_objects_wait_for_what_each_needs():
    reports = [Report.objects.create(title=f"r{n}") for n in range(3)]
    task_name = Report.verify.task.name

    with messages_sent() as sent:
        runs = TaskRunner().run_many(task_name, [((report.pk,), {}) for report in reports])

    assert [run.obj for run in runs] == reports
    assert {run.state for run in runs} == {State.WAITING}
    assert len(sent) == 3
    assert {message["sender"] for message in sent} == {Report.load.task.name}
