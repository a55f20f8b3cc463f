"""What is due is sent once, never before its time, and no bad run holds up the others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Barrier, Event, Thread
from typing import Any

import pytest
from celery import signals
from django.db import OperationalError, connection
from django.utils import timezone
from kombu import Exchange, Queue

from celery_admin_runner import dispatcher
from celery_admin_runner.broker import (
    BROKEN_OFF,
    NACKED,
    BrokerAway,
    Outlet,
    bounded_connection,
    open_outlet,
)
from celery_admin_runner.dispatch import claim_due, record_sent
from celery_admin_runner.dispatcher import Dispatched, Dispatcher
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.publishing import is_tracked_by_name
from celery_admin_runner.registry import DISPATCH_TASK, rule_for
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.signals import TaskRunSignal
from celery_admin_runner.states import State
from celery_admin_runner.tasks import dispatch_due_runs
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run, make_runs, make_user
from tests.waiting import wait_for_state, wait_until

AT_ONCE = 4


def make_due(**fields: Any) -> TaskRunRecord:
    """Make a run that is due."""
    now = timezone.now()
    return make_run(**{"state": State.SCHEDULED, "due_at": now, "eta": now, "args": [1], **fields})


@pytest.fixture
def sent() -> Any:
    """The headers of the messages that are published here."""
    messages: list[dict[str, Any]] = []

    def look(headers: dict[str, Any], **kwargs: object) -> None:
        messages.append(headers)

    signals.before_task_publish.connect(look)
    yield messages
    signals.before_task_publish.disconnect(look)


def test_a_scheduled_run_is_sent_when_it_is_due_and_runs(worker):
    run = TaskRunner().run("tests.tasks.add", [1], countdown=3600)
    due = timezone.now() + timedelta(hours=1)

    early = Dispatcher(app).dispatch(due - timedelta(minutes=1))
    dispatched = Dispatcher(app).dispatch(due)

    assert (early.sent, dispatched.sent) == (0, 1)
    wait_for_state(run, State.SUCCESS)
    assert run.result == 3
    assert run.published_at is not None
    assert run.due_at is None


@pytest.mark.django_db(transaction=True)
def test_what_waited_for_a_run_is_sent_when_that_has_succeeded(sent):
    before = make_run(state=State.STARTED)
    run = TaskRunner().run("tests.tasks.add", [1], depends_on=[before])
    dispatcher = Dispatcher(app)
    dispatcher.dispatch()
    TaskRunRecord.objects.filter(pk=before.pk).transition(
        sources=[State.STARTED], target=State.SUCCESS, finished_at=timezone.now()
    )

    dispatcher.dispatch()

    run.refresh_from_db()
    assert run.state == State.PENDING
    assert [message["id"] for message in sent] == [run.task_id]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("poison", "error"),
    [
        ({"task_name": "gone.task"}, "gone.task"),
        ({"options": {"serializer": "nosuch"}}, "nosuch"),
        ({"args": [1, 2, 3]}, "TypeError"),
        ({"options": {"queue": "a/b"}}, "Error"),
    ],
)
def test_a_run_that_can_not_be_sent_does_not_hold_up_the_others(poison, error):
    if "queue" in poison.get("options", {}) and app.conf.broker_url != "filesystem://":
        pytest.skip("Other brokers take a queue of this name.")
    first, bad, last = make_due(), make_due(**poison), make_due()

    dispatched = Dispatcher(app).dispatch()

    assert dispatched == Dispatched(sent=2, failed=1)
    for run in (first, bad, last):
        run.refresh_from_db()
    assert (first.state, last.state) == (State.PENDING, State.PENDING)
    assert bad.state == State.UNSENT
    assert error in bad.publish_error
    assert not bad.may_have_been_sent


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_is_not_configured_is_told_of(monkeypatch):
    monkeypatch.setattr(app.amqp.queues, "create_missing", False)
    bad, good = make_due(options={"queue": "nowhere"}), make_due()

    assert Dispatcher(app).dispatch() == Dispatched(sent=1, failed=1)

    bad.refresh_from_db()
    good.refresh_from_db()
    assert (bad.state, good.state) == (State.UNSENT, State.PENDING)
    assert "nowhere" in bad.publish_error


@pytest.mark.django_db(transaction=True)
def test_a_run_is_not_claimed_while_the_broker_is_away():
    run = make_due()

    with broker_away():
        dispatched = Dispatcher(app).dispatch()

    run.refresh_from_db()
    assert dispatched.broker_error
    assert (run.state, run.claimed_at) == (State.SCHEDULED, None)
    assert Dispatcher(app).dispatch().sent == 1


@pytest.mark.django_db(transaction=True)
def test_of_a_lost_connection_only_what_is_not_confirmed_is_in_doubt():
    runs = [make_due() for _ in range(3)]

    with pytest.MonkeyPatch.context() as patch:
        lose_connection_at(2, patch)
        dispatched = Dispatcher(app).dispatch()

    for run in runs:
        run.refresh_from_db()
    # RabbitMQ had not confirmed the first one yet.
    is_in_doubt = app.connection_for_write().transport.driver_type == "amqp"
    first = State.UNSENT if is_in_doubt else State.PENDING
    assert [run.state for run in runs] == [first, State.UNSENT, State.SCHEDULED]
    assert [run.may_have_been_sent for run in runs] == [is_in_doubt, True, False]
    assert (dispatched.sent, dispatched.failed, dispatched.given_back) == (
        not is_in_doubt,
        1 + is_in_doubt,
        1,
    )


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_is_lost_before_a_message_was_written_leaves_its_run_for_later(
    monkeypatch,
):
    declare = Outlet.declare

    def break_down(self: Outlet, entity: Any) -> None:
        if entity.name == "elsewhere":
            raise ConnectionResetError("cut")
        declare(self, entity)

    monkeypatch.setattr(Outlet, "declare", break_down)
    first, second = make_due(), make_due(options={"queue": "elsewhere"})

    dispatched = Dispatcher(app).dispatch()

    first.refresh_from_db()
    second.refresh_from_db()
    assert (second.state, second.dispatch_id, dispatched.given_back) == (State.SCHEDULED, None, 1)
    # RabbitMQ had not confirmed the first one yet.
    is_in_doubt = app.connection_for_write().transport.driver_type == "amqp"
    assert first.state == (State.UNSENT if is_in_doubt else State.PENDING)
    assert first.may_have_been_sent == ("cut" in first.publish_error) == is_in_doubt


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_is_lost_while_others_are_waited_for_leaves_the_run_for_later(
    monkeypatch,
):
    def break_down(self: Outlet) -> None:
        raise BrokerAway("cut")

    monkeypatch.setattr(Outlet, "knows", lambda self, exchange: False)
    monkeypatch.setattr(Outlet, "finish", break_down)
    run = make_due()

    assert Dispatcher(app).dispatch() == Dispatched(given_back=1, broker_error="cut")

    run.refresh_from_db()
    assert (run.state, run.dispatch_id) == (State.SCHEDULED, None)


@pytest.mark.django_db(transaction=True)
def test_what_was_in_hand_when_it_was_broken_off_is_in_doubt_and_not_sent_again():
    runs = [make_due() for _ in range(3)]

    with pytest.MonkeyPatch.context() as patch:
        lose_connection_at(2, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            Dispatcher(app).dispatch()

    for run in runs:
        run.refresh_from_db()
    is_in_doubt = app.connection_for_write().transport.driver_type == "amqp"
    assert [run.may_have_been_sent for run in runs] == [is_in_doubt, True, False]
    assert (runs[1].state, runs[2].state) == (State.UNSENT, State.SCHEDULED)
    assert BROKEN_OFF in runs[1].publish_error
    assert runs[2].dispatch_id is None


@pytest.mark.django_db(transaction=True)
def test_what_was_claimed_too_long_ago_is_given_back_and_not_sent(sent, monkeypatch):
    run, stop = make_due(), Event()

    def claim_slowly(now: datetime, limit: int) -> list[TaskRunRecord]:
        stop.set()
        return claim_due(now, limit)

    monkeypatch.setattr(dispatcher, "claim_due", claim_slowly)
    monkeypatch.setattr(dispatcher, "CLAIM_SERVES", -1.0)

    assert Dispatcher(app).dispatch(stop=stop) == Dispatched(given_back=1)

    run.refresh_from_db()
    assert (run.state, run.claimed_at) == (State.SCHEDULED, None)
    assert sent == []


@pytest.mark.django_db(transaction=True)
def test_what_is_claimed_and_can_not_be_read_then_is_not_claimed():
    if connection.features.has_select_for_update_skip_locked:
        pytest.skip("This database reads what it claims before.")
    run, seen = make_due(), []

    def break_down(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if seen and sql.startswith("SELECT"):
            raise OperationalError("database is locked")
        seen.extend([1] if sql.startswith("UPDATE") else [])
        return execute(sql, params, many, context)

    with connection.execute_wrapper(break_down), pytest.raises(OperationalError):
        claim_due(timezone.now(), 1)

    run.refresh_from_db()
    assert seen
    assert (run.dispatch_id, run.claimed_at) == (None, None)


def test_redis_gets_no_message_twice_whatever_the_project_says():
    with broker_away(options={"retry_on_timeout": True}):
        options = bounded_connection(app).transport_options

    assert options["retry_on_timeout"] is False


def lose_connection_at(
    number: int, patch: pytest.MonkeyPatch, error: BaseException | None = None
) -> None:
    """Let the connection break with the message of this number, when it is written."""
    with app.connection_for_write() as broker:
        channel = type(broker.channel())
    written, publish = [], channel.basic_publish

    def break_down(self: Any, *args: Any, **kwargs: Any) -> Any:
        written.append(1)
        if len(written) == number:
            raise error or ConnectionResetError("cut")
        return publish(self, *args, **kwargs)

    patch.setattr(channel, "basic_publish", break_down)


@pytest.mark.django_db(transaction=True)
def test_a_run_that_has_expired_is_not_sent(sent):
    run = make_due(expires_at=timezone.now())

    assert Dispatcher(app).dispatch().sent == 0

    run.refresh_from_db()
    assert (run.state, run.due_at) == (State.EXPIRED, None)
    assert sent == []


@pytest.mark.django_db(transaction=True)
def test_of_several_dispatchers_at_once_each_run_is_sent_by_one(sent):
    make_runs(60, state=State.SCHEDULED, due_at=timezone.now(), args=[1])
    together = Barrier(AT_ONCE)

    def dispatch(_: int) -> int:
        together.wait()
        number, dispatcher = 0, Dispatcher(app, batch_size=7)
        try:
            while TaskRunRecord.objects.filter(state=State.SCHEDULED, dispatch_id=None).exists():
                number += dispatcher.dispatch().sent
            return number
        finally:
            connection.close()

    with ThreadPoolExecutor(AT_ONCE) as callers:
        numbers = list(callers.map(dispatch, range(AT_ONCE)))

    assert sum(numbers) == 60
    assert len({message["id"] for message in sent}) == len(sent) == 60
    assert set(TaskRunRecord.objects.values_list("state", flat=True)) == {State.PENDING}


@pytest.mark.django_db(transaction=True)
def test_a_run_that_was_cancelled_before_it_was_claimed_is_never_sent(sent):
    run = make_due()

    TaskRunner().cancel(run)

    assert Dispatcher(app).dispatch() == Dispatched()
    run.refresh_from_db()
    assert (run.state, run.due_at) == (State.REVOKED, None)
    assert sent == []


@pytest.mark.django_db(transaction=True)
def test_a_run_that_is_cancelled_while_it_is_being_sent_is_not_called_cancelled_yet():
    make_due()
    claimed = claim_due(timezone.now(), 1)
    run = TaskRunRecord.objects.get()

    with broker_away():
        cancellation = TaskRunner().cancel(run)

    assert cancellation.state == State.CANCELLING
    record_sent(claimed, timezone.now())
    run.refresh_from_db()
    assert (run.state, run.due_at) == (State.CANCELLING, None)
    assert run.published_at is not None


@pytest.mark.django_db(transaction=True)
def test_who_cancels_what_was_claimed_meanwhile_is_told_the_truth():
    read_before = make_due()
    claim_due(timezone.now(), 1)

    with broker_away():
        cancellation = TaskRunner().cancel(read_before)

    assert cancellation.state == State.CANCELLING


@pytest.mark.django_db(transaction=True)
def test_a_signal_tells_of_each_run_that_was_sent():
    user = make_user()
    run = make_due(run_by=user)
    heard = []

    def hear(**kwargs: Any) -> None:
        heard.append((kwargs["run"].pk, kwargs["user"], kwargs["args"], kwargs["run"].state))

    TaskRunSignal.connect(hear, sender=TaskRunner)
    try:
        Dispatcher(app).dispatch()
    finally:
        TaskRunSignal.disconnect(hear, sender=TaskRunner)

    assert heard == [(run.pk, user, [1], State.PENDING)]


@pytest.mark.django_db(transaction=True)
def test_who_can_not_be_told_of_what_was_sent_holds_up_nothing(sent):
    make_due(run_by=make_user())
    heard: list[Any] = []

    def hear(**kwargs: Any) -> None:
        heard.append(kwargs["run"].pk)

    def break_down(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("SELECT") and "auth_user" in sql:
            raise OperationalError("away")
        return execute(sql, params, many, context)

    TaskRunSignal.connect(hear, sender=TaskRunner)
    one = Dispatcher(app)
    try:
        with connection.execute_wrapper(break_down):
            with pytest.raises(OperationalError):
                one.dispatch()
            later = make_due()
            assert one.dispatch().sent == 1
    finally:
        TaskRunSignal.disconnect(hear, sender=TaskRunner)

    assert heard == [later.pk]
    assert len(sent) == 2


@pytest.mark.django_db(transaction=True)
def test_what_is_sent_is_no_child_of_who_sends_it(sent):
    run = make_due()

    Dispatcher(app).dispatch()

    assert (sent[0]["root_id"], sent[0]["parent_id"]) == (run.task_id, None)
    assert not sent[0]["ignore_result"]


@pytest.mark.django_db(transaction=True)
def test_an_idle_pass_asks_the_database_little(django_assert_max_num_queries):
    make_run(state=State.SCHEDULED, due_at=timezone.now() + timedelta(days=1))
    dispatcher = Dispatcher(app)
    dispatcher.dispatch()

    with django_assert_max_num_queries(2):
        dispatcher.dispatch()


@pytest.mark.django_db(transaction=True)
def test_a_batch_costs_the_same_queries_however_large(django_assert_max_num_queries):
    make_runs(20, state=State.SCHEDULED, due_at=timezone.now(), args=[1])
    dispatcher = Dispatcher(app)

    with django_assert_max_num_queries(16):
        assert dispatcher.dispatch().sent == 20


@pytest.mark.django_db(transaction=True)
def test_what_fails_alike_costs_the_same_queries_however_much(django_assert_max_num_queries):
    make_runs(20, state=State.SCHEDULED, due_at=timezone.now(), task_name="gone.task")
    dispatcher = Dispatcher(app)

    with django_assert_max_num_queries(16):
        assert dispatcher.dispatch() == Dispatched(failed=20)

    assert set(TaskRunRecord.objects.values_list("state", flat=True)) == {State.UNSENT}


@pytest.mark.django_db(transaction=True)
def test_a_dispatcher_outlives_a_broker_that_is_away(caplog):
    run, stop, dispatcher = make_due(), Event(), Dispatcher(app)
    away = Thread(target=dispatcher.run, args=[stop, 0.05])

    with broker_away():
        away.start()
        wait_until(lambda: "Due runs wait: the broker is away" in caplog.text)
    wait_for_state(run, State.PENDING)
    stop.set()
    away.join()

    assert caplog.text.count("Due runs wait") == 1


@pytest.mark.django_db(transaction=True)
def test_a_dispatcher_outlives_what_nobody_thought_of(caplog, monkeypatch):
    stop, dispatcher = Event(), Dispatcher(app)

    def break_down(now: datetime | None = None, stop: Event | None = None) -> Dispatched:
        if stop is not None and "broke off" in caplog.text:
            stop.set()
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(dispatcher, "dispatch", break_down)
    thread = Thread(target=dispatcher.run, args=[stop, 0.01])
    thread.start()
    thread.join(10)

    assert not thread.is_alive()
    assert "nobody thought of this" in caplog.text


def test_an_outlet_to_a_broker_that_is_away_does_not_open():
    with broker_away(), pytest.raises(BrokerAway), open_outlet(app):
        pass


@pytest.mark.django_db(transaction=True)
def test_what_the_database_was_not_told_is_written_by_the_next_pass(sent, monkeypatch):
    run, dispatcher = make_due(), Dispatcher(app)

    with connection.execute_wrapper(away_once_sent(sent)), pytest.raises(OperationalError):
        dispatcher.dispatch()
    run.refresh_from_db()
    assert (run.state, run.published_at) == (State.SCHEDULED, None)
    dispatcher.dispatch()

    run.refresh_from_db()
    assert run.state == State.PENDING
    assert len(sent) == 1


def away_once_sent(sent: list[Any]) -> Any:
    """Return what lets the database be away as soon as a message was sent."""

    def execute(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sent:
            raise OperationalError("away")
        return execute(sql, params, many, context)

    return execute


@pytest.mark.django_db(transaction=True)
def test_the_task_of_beat_sends_what_is_due_as_no_child_of_it(sent):
    run = make_due()

    dispatch_due_runs.apply()

    run.refresh_from_db()
    assert run.state == State.PENDING
    assert (sent[0]["root_id"], sent[0]["parent_id"]) == (run.task_id, None)


@pytest.mark.django_db(transaction=True)
def test_a_later_task_of_beat_marks_what_the_one_before_could_not(sent):
    run = make_due()
    with connection.execute_wrapper(away_once_sent(sent)), pytest.raises(OperationalError):
        dispatcher.dispatch_in_this_thread()

    dispatch_due_runs.apply()

    run.refresh_from_db()
    assert run.state == State.PENDING
    assert len(sent) == 1


@pytest.mark.django_db(transaction=True)
def test_a_task_of_beat_leaves_the_pass_to_the_one_that_makes_it():
    run = make_due()

    with dispatcher._process.lock:
        dispatch_due_runs.apply()

    run.refresh_from_db()
    assert run.state == State.SCHEDULED
    # As in a forked child, whose parent may just hold the lock.
    kept = dispatcher._process.dispatcher
    dispatcher._process.begin()
    assert dispatcher._process.dispatcher is not kept
    assert not dispatcher._process.lock.locked()


def test_our_own_tasks_are_neither_runnable_nor_tracked(configure):
    configure(RUNNABLE_TASKS=["*"], TRACK=["*"])

    assert rule_for(DISPATCH_TASK) is None
    assert not is_tracked_by_name(DISPATCH_TASK)


@pytest.fixture
def rabbitmq() -> None:
    """Skip a test of what only RabbitMQ does."""
    if app.connection_for_write().transport.driver_type != "amqp":
        pytest.skip("Only RabbitMQ confirms, and refuses, after a message was written.")


@pytest.mark.django_db(transaction=True)
def test_what_no_message_can_hold_leaves_no_other_run_in_doubt(rabbitmq):
    good = [make_due() for _ in range(20)]
    bad = make_due(options={"priority": 300})

    assert Dispatcher(app).dispatch() == Dispatched(sent=20, failed=1)

    for run in (*good, bad):
        run.refresh_from_db()
    assert {run.state for run in good} == {State.PENDING}
    assert bad.state == State.UNSENT


@pytest.mark.django_db(transaction=True)
def test_what_rabbitmq_refuses_concerns_no_other_run(rabbitmq):
    lost = {"options": {"exchange": "nosuch", "routing_key": "x"}}
    runs = [make_due(), make_due(**lost), make_due(), make_due(**lost), make_due()]

    assert Dispatcher(app).dispatch() == Dispatched(sent=3, failed=2)

    for run in runs:
        run.refresh_from_db()
    assert [run.state for run in runs] == [State.PENDING, State.UNSENT] * 2 + [State.PENDING]
    assert "NOT_FOUND" in runs[1].publish_error
    assert not runs[1].may_have_been_sent


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_takes_no_more_leaves_the_run_unsent(rabbitmq):
    name = f"{app.conf.task_default_queue}-full"
    with app.connection_for_write() as broker:
        limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
        queue = Queue(name, Exchange(name), name, queue_arguments=limits, expires=60)
        queue(broker.channel()).declare()
        app.amqp.queues.add(queue)
        runs = [make_due(options={"queue": name}) for _ in range(3)]

        dispatched = Dispatcher(app).dispatch()

    assert dispatched == Dispatched(sent=1, failed=2)
    refused = [TaskRunRecord.objects.get(pk=run.pk) for run in runs[1:]]
    assert {run.publish_error for run in refused} == {NACKED}
    assert not any(run.may_have_been_sent for run in refused)


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_exists_otherwise_concerns_only_its_runs(rabbitmq):
    name = f"{app.conf.task_default_queue}-other"
    with app.connection_for_write() as broker:
        Queue(name, Exchange(name), name, expires=60)(broker.channel()).declare()
        runs = [make_due(), make_due(options={"queue": name}), make_due()]

        assert Dispatcher(app).dispatch() == Dispatched(sent=2, failed=1)

    bad = TaskRunRecord.objects.get(pk=runs[1].pk)
    assert "PRECONDITION_FAILED" in bad.publish_error
    assert not bad.may_have_been_sent
