"""Calls of DjangoTasks that have a row: what is in it, when it is written, and if it can't be."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from celery import shared_task
from celery.beat import ScheduleEntry, Scheduler
from celery.exceptions import TimeoutError
from celery.schedules import schedule
from django.db import DatabaseError, connection, transaction
from django.db import utils as database_errors
from django.utils import timezone
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from celery_admin_runner import tracking, unique
from celery_admin_runner.base import DjangoTask
from celery_admin_runner.contexts import RunContext
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.exceptions import AlreadyActive, InvalidArguments
from celery_admin_runner.headers import (
    CONTEXT_HEADER,
    MASKED_KWARGS_HEADER,
    PERIODIC_HEADER,
    RUN_HEADER,
)
from celery_admin_runner.models import OpenDependency, Source, TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.brokers import NO_BROKER
from tests.celery_app import app
from tests.factories import make_run, make_user
from tests.publishes import attempt, messages_sent
from tests.unique_tasks import at_most_hourly, once, once_with_secret, plain, tracked

pytestmark = pytest.mark.django_db
ON_COMMIT = pytest.mark.django_db(transaction=True)
HOUR = 3600


def run_of(result):
    return TaskRunRecord.objects.get(task_id=result.id)


@contextmanager
def no_journal():
    """Let the database answer nothing about runs."""

    def fail(execute, sql, params, many, context):
        if TaskRunRecord._meta.db_table in sql:
            raise database_errors.OperationalError("gone")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail):
        yield


class Told(DjangoTask):
    """Writes down what it is told."""

    def on_invocation_apply(self, invocation_id, args, kwargs, options, result):
        TOLD.append(("apply", invocation_id, tuple(args), kwargs))

    def on_invocation_trigger(self, invocation_id, args, kwargs, task_id, options, result):
        TOLD.append(("trigger", invocation_id, task_id))

    def on_invocation_unique(self, invocation_id, args, kwargs, task_id, options, result):
        TOLD.append(("unique", invocation_id, task_id))

    def on_invocation_ignored(self, invocation_id, args, kwargs, task_id, options, result):
        TOLD.append(("ignored", invocation_id, task_id, result.id))

    def on_invocation_timeout(self, invocation_id, args, kwargs, task_id, ex, options, result):
        TOLD.append(("timeout", invocation_id, task_id, result.id))


TOLD: list[tuple[object, ...]] = []


@shared_task(base=Told, unique=True, stale_time_limit=60, ignore_task_timedelta=timedelta(hours=1))
def told(number: int = 1) -> None:
    """Tell what becomes of calls."""


# What is in the row


def test_a_row_holds_all_that_the_call_asked_for():
    expires = timezone.now() + timedelta(hours=2)
    user = make_user()

    result = tracked.apply_async(
        [1],
        queue=Queue("urgent-nobody", Exchange("urgent-nobody"), "urgent-nobody"),
        priority=3,
        expires=expires,
        time_limit=30,
        shadow="shown",
        headers={"shop": "north", "api_token": "Sesame4"},
        run_context=RunContext(user=user, obj=user, label="a label", reason="why"),
    )

    run = run_of(result)
    assert (run.task_name, run.args, run.kwargs) == (tracked.name, [1], {})
    assert (run.state, run.queue, run.source) == (State.PENDING, "urgent-nobody", Source.CODE)
    assert (run.eta, run.expires_at) == (None, expires)
    assert run.options.pop("expires")["__type__"] == "datetime"
    assert run.options == {
        "queue": "urgent-nobody",
        "priority": 3,
        "time_limit": 30,
        "shadow": "shown",
        "headers": {"shop": "north", "api_token": MASK},
    }
    assert (run.run_by, run.run_by_name, run.obj) == (user, user.username, user)
    assert (run.label, run.reason) == ("a label", "why")
    assert run.created_at <= run.published_at


def test_it_is_as_whole_as_that_of_a_message_that_is_tracked(configure):
    options = {"queue": "q-nobody", "priority": 2, "expires": 60, "soft_time_limit": 5}

    ours = run_of(tracked.apply_async([1], countdown=0.1, **options))
    configure(TRACK=[plain.name], SCHEDULE_ETA=False)
    theirs = run_of(plain.apply_async([1], countdown=0.1, **options))

    assert ours.options == theirs.options
    assert ours.queue == theirs.queue
    assert (ours.expires_at - ours.created_at) - (theirs.expires_at - theirs.created_at) < (
        timedelta(seconds=1)
    )
    for run in (ours, theirs):
        assert run.eta is not None


def test_a_call_that_the_broker_delays_shows_its_eta(configure):
    configure(SCHEDULE_ETA=False)
    eta = datetime(2030, 1, 2, 3, tzinfo=UTC)

    assert run_of(once.apply_async([1], eta=eta)).eta == eta
    assert run_of(once.apply_async([2], eta=eta.isoformat())).eta == eta
    counted = run_of(once.apply_async([3], countdown=60, expires=eta.isoformat()))
    assert counted.eta - counted.created_at == timedelta(seconds=60)
    assert counted.expires_at == eta


def test_a_secret_is_in_no_part_of_the_row_or_of_what_celery_shows():
    with messages_sent() as sent:
        run = run_of(once_with_secret.delay("a", password="Sesame4"))

    headers = sent[0]["headers"]
    assert run.kwargs == {"password": MASK}
    assert "Sesame4" not in str([vars(run), headers])
    assert headers["kwargsrepr"] == headers[MASKED_KWARGS_HEADER]
    assert sent[0]["body"][1] == {"password": "Sesame4"}


def test_a_call_that_was_not_sent_keeps_no_word_of_its_secret():
    nowhere = app.connection_for_write(NO_BROKER, transport_options={"max_retries": 1})

    with pytest.raises(OperationalError):
        once_with_secret.apply_async(["a", "Sesame4"], connection=nowhere, retry=False)

    run = TaskRunRecord.objects.get()
    assert run.publish_error == "OperationalError"
    assert "Sesame4" not in str(vars(run))


@ON_COMMIT
def test_a_run_of_code_can_be_run_again():
    options = {"queue": "q-nobody", "priority": 2, "expires": 60}
    run = run_of(once.apply_async([1], {"c": {1, 2}}, **options))
    tracking.record_failure(
        run.task_id, attempt=0, exception="no", traceback="", now=timezone.now()
    )
    run.refresh_from_db()

    with messages_sent() as sent:
        again = TaskRunner().retry(run)

    assert again.options == run.options
    assert again.unique_key == again.active_key == run.unique_key
    assert sent[0]["body"][0:2] == ((1,), {"c": {1, 2}})


def test_a_run_knows_the_task_that_started_it():
    parent = make_run(state=State.STARTED)

    @shared_task(base=DjangoTask, name=f"tests.inv.{uuid4()}")
    def starter():
        """Start another."""
        return once.delay(9).id

    result = attempt(starter, id=parent.task_id, root_id="the first")

    child = TaskRunRecord.objects.exclude(pk=parent.pk).get()
    assert result.retval == child.task_id
    assert (child.parent_id, child.root_id) == (parent.task_id, "the first")


@ON_COMMIT
def test_a_context_comes_back_to_the_body_from_every_way_of_sending():
    user = make_user()
    context = RunContext(user=user, label="L", reason="R")
    with messages_sent() as sent:
        plain.apply_async([1], run_context=context)
        plain.apply_async([1], run_context=context, countdown=HOUR)
        Dispatcher(app).dispatch(timezone.now() + timedelta(hours=2))
        TaskRunner(user=None).run(plain.name, [1], label="L", reason="R")

    values = [message["headers"][CONTEXT_HEADER] for message in sent]
    assert values[0] == values[1] == [str(user.pk), user.username, "", "", "L", "R"]
    assert values[2] == ["", "", "", "", "L", "R"]


# Who is told


def test_the_hooks_are_told_once_what_became_of_a_call():
    TOLD.clear()

    first, joined = told.delay(1), told.delay(1)

    [apply, trigger, second, unique] = TOLD
    assert (apply, trigger) == (("apply", first.id, (1,), {}), ("trigger", first.id, first.id))
    assert second[:1] == ("apply",)
    assert unique == ("unique", second[1], first.id)
    assert second[1] != first.id == joined.id


def test_who_waits_in_vain_for_a_run_that_was_joined_is_told_which():
    first = told.delay(1)
    TOLD.clear()

    with pytest.raises(TimeoutError):
        told.apply_async_and_get_result([1], timeout=0)

    [apply, unique_, timeout] = TOLD
    assert unique_ == ("unique", apply[1], first.id)
    assert timeout == ("timeout", apply[1], first.id, first.id)


@ON_COMMIT
def test_a_runner_tells_them_too():
    user = make_user(is_superuser=True)
    TOLD.clear()

    run = TaskRunner(user).run(told.name, [1])
    with pytest.raises(AlreadyActive):
        TaskRunner().run(told.name, [1])
    until = {"ignore_until": timezone.now() + timedelta(hours=1)}
    tracking.record_success(run.task_id, attempt=0, result=1, now=timezone.now(), **until)
    ignored = TaskRunner().run(told.name, [1])

    assert [name for name, *_rest in TOLD] == ["apply", "trigger", "apply", "apply", "ignored"]
    assert TOLD[:2] == [("apply", run.task_id, (1,), {}), ("trigger", run.task_id, run.task_id)]
    assert TOLD[-1] == ("ignored", ignored.task_id, ignored.task_id, ignored.task_id)


# In a transaction, from beat, eager


@ON_COMMIT
def test_a_plain_call_in_a_transaction_is_sent_at_once():
    with transaction.atomic(), messages_sent() as sent:
        first = once.delay(1)
        assert once.delay(1).id == first.id

    assert len(sent) == 1
    assert run_of(first).state == State.PENDING


@ON_COMMIT
@pytest.mark.skipif(
    connection.vendor == "sqlite", reason="on SQLite the row belongs to the caller's transaction"
)
def test_a_rollback_takes_neither_the_row_nor_the_key():
    with transaction.atomic():
        first = once.delay(1)
        transaction.set_rollback(True)

    assert once.delay(1).id == first.id


@ON_COMMIT
@pytest.mark.parametrize("is_kept", [True, False])
def test_a_call_joins_a_run_of_its_own_transaction(is_kept):
    # MariaDB locks the gap beside a key that it has deleted and not forgotten yet.
    call = [str(uuid4())]

    with transaction.atomic(), messages_sent() as sent:
        if is_kept:
            first = once.apply_async(call, countdown=HOUR).id
        else:
            first = TaskRunner().run(once.name, call).task_id
        second = once.delay(*call)
        member = once.apply_async(call, task_id=str(uuid4()))

    assert second.id == first != member.id
    assert [message["headers"]["id"] for message in sent] == [member.id]
    assert TaskRunRecord.objects.count() == 2


@ON_COMMIT
def test_a_user_of_the_transaction_is_in_the_row_after_it():
    with transaction.atomic():
        user = make_user()
        result = once.apply_async([1], run_context=RunContext(user=user))

    run = run_of(result)
    assert (run.run_by, run.run_by_name) == (user, user.username)
    assert run.active_key == run.unique_key


def test_beat_joins_what_is_active():
    scheduler = Scheduler(app, lazy=True)
    call = {"args": (7,), "kwargs": {}, "options": {"headers": {PERIODIC_HEADER: "each"}}}
    entry = ScheduleEntry("each", once.name, schedule=schedule(1), **call, app=app)

    results = [scheduler.apply_async(entry, advance=False) for _ in range(2)]

    assert results[0].id == results[1].id
    run = TaskRunRecord.objects.get()
    assert (run.source, run.periodic_task_name) == (Source.PERIODIC, "each")
    assert PERIODIC_HEADER not in run.options.get("headers", {})


@pytest.fixture
def eager(monkeypatch):
    """Run what is called here and now."""
    monkeypatch.setitem(app.conf, "task_always_eager", True)


def test_an_eager_call_holds_the_key_while_it_runs(eager):
    first, second = once.delay(1), once.delay(1)

    assert (first.get(), second.get()) == (1, 1)
    runs = TaskRunRecord.objects.all()
    assert [(run.state, run.active_key) for run in runs] == [(State.SUCCESS, None)] * 2


def test_an_eager_call_that_raises_ends_its_row(eager, monkeypatch):
    monkeypatch.setitem(app.conf, "task_eager_propagates", True)

    with pytest.raises(ValueError, match="no"):
        at_most_hourly.delay(1, fails=True)

    assert TaskRunRecord.objects.get().state == State.FAILURE


def test_a_task_that_is_applied_here_takes_no_key_and_frees_none():
    active = once.delay(1)

    assert once.apply([1]).get() == 1

    assert TaskRunRecord.objects.count() == 1
    assert once.delay(1).id == active.id


# Later


def test_a_delayed_call_joins_and_is_joined():
    first = once.apply_async([1], countdown=HOUR)

    assert run_of(first).state == State.SCHEDULED
    assert once.apply_async([1], countdown=HOUR).id == first.id
    assert once.delay(1).id == first.id
    Dispatcher(app).dispatch(timezone.now() + timedelta(hours=2))
    assert run_of(first).state == State.PENDING
    assert once.delay(1).id == first.id


@ON_COMMIT
def test_a_delayed_call_in_a_transaction_joins_and_breaks_nothing():
    first = once.apply_async([1], countdown=HOUR)

    with transaction.atomic():
        assert once.apply_async([1], countdown=HOUR).id == first.id
        second = once.apply_async([2], countdown=HOUR)
        assert once.apply_async([2], countdown=HOUR).id == second.id

    assert TaskRunRecord.objects.count() == 2


def test_what_can_not_be_kept_goes_to_the_broker_with_its_row():
    with messages_sent() as sent:
        result = once_with_secret.apply_async(["a", "Sesame4"], countdown=HOUR)
        joined = once_with_secret.apply_async(["a", "Sesame4"], countdown=HOUR)

    run = run_of(result)
    assert (len(sent), joined.id) == (1, result.id)
    assert sent[0]["headers"][RUN_HEADER] == run.task_id
    assert (run.state, run.active_key) == (State.PENDING, run.unique_key)
    assert run.eta - run.created_at == timedelta(seconds=HOUR)


# Waiting for other runs


@pytest.mark.parametrize("keeps", [True, False])
def test_a_call_waits_for_other_runs(keeps, configure):
    configure(SCHEDULE_ETA=keeps)
    awaited = make_run(state=State.STARTED)

    with messages_sent() as sent:
        result = plain.apply_async([1], depends_on=[awaited, awaited])

    run = run_of(result)
    assert (run.state, list(run.depends_on.all()), sent) == (State.WAITING, [awaited], [])
    TaskRunRecord.objects.filter(pk=awaited.pk).update(
        state=State.SUCCESS, finished_at=timezone.now()
    )
    Dispatcher(app).dispatch()
    assert run_of(result).state == State.PENDING


@ON_COMMIT
def test_what_has_succeeded_already_is_not_waited_for():
    result = plain.apply_async([1], depends_on=[make_run()], countdown=HOUR)

    run = run_of(result)
    assert (run.state, run.due_at) == (State.SCHEDULED, run.eta)


def test_a_call_that_waits_holds_its_key_and_joins():
    awaited = make_run(state=State.STARTED)

    first = once.apply_async([1], depends_on=[awaited])

    assert once.delay(1).id == first.id
    assert once.apply_async([1], depends_on=[make_run(state=State.STARTED)]).id == first.id
    assert OpenDependency.objects.count() == 1


@ON_COMMIT
def test_a_rollback_leaves_nothing_of_a_call_that_waits():
    awaited = make_run(state=State.STARTED)

    with transaction.atomic():
        once.apply_async([1], depends_on=[awaited])
        assert once.apply_async([1], depends_on=[awaited]).id
        transaction.set_rollback(True)

    assert list(TaskRunRecord.objects.all()) == [awaited]
    assert not OpenDependency.objects.exists()


@pytest.mark.parametrize(
    ("task", "args", "options", "why"),
    [
        (once_with_secret, ["a", "Sesame4"], {}, "may be stored"),
        (plain, [1], {"chord": {"task": "x", "args": [], "kwargs": {}}}, "member of a chord"),
        (plain, [1], {"headers": {"api_token": "Sesame4"}}, "secret"),
    ],
    ids=["secret", "chord", "header"],
)
def test_what_can_not_be_kept_is_told_to_who_lets_it_wait(task, args, options, why):
    awaited = make_run(state=State.STARTED)

    with messages_sent() as sent, pytest.raises(InvalidArguments, match=why):
        task.apply_async(args, depends_on=[awaited], **options)

    assert (sent, TaskRunRecord.objects.count()) == ([], 1)


@pytest.mark.parametrize("given", [{"args": 5}, {"args": "12"}, {"kwargs": [1]}])
@pytest.mark.parametrize("call", ["apply_async", "apply_async_on_commit"])
def test_what_is_no_list_of_arguments_leaves_no_row(given, call):
    with messages_sent() as sent, pytest.raises(TypeError, match=r"^Give the .*arguments as a "):
        getattr(plain, call)(**given, run_context=RunContext(label="L"))

    assert (sent, TaskRunRecord.objects.count()) == ([], 0)


def test_only_runs_of_the_journal_can_be_waited_for():
    gone = make_run(state=State.STARTED)
    TaskRunRecord.objects.all().delete()

    for given in (["an id"], "an id", gone, plain.AsyncResult("an id"), [plain.AsyncResult("x")]):
        with pytest.raises(TypeError, match="runs of the journal"):
            plain.apply_async([1], depends_on=given)
    with pytest.raises(InvalidArguments, match="not in the journal any more"):
        plain.apply_async([1], depends_on=[TaskRunRecord(pk=987654, task_id=gone.task_id)])

    assert not TaskRunRecord.objects.exists()


@ON_COMMIT
@pytest.mark.parametrize("options", [{}, {"countdown": HOUR}], ids=["now", "delayed"])
def test_a_call_that_comes_second_by_a_hair_joins(options, caplog):
    key = unique.key_of(once, [1], {})
    faster = []

    def be_faster(execute, sql, params, many, context):
        if sql.startswith("INSERT") and not faster:
            faster.append(True)
            faster[:] = [make_run(state=State.PENDING, unique_key=key, active_key=key)]
        return execute(sql, params, many, context)

    with connection.execute_wrapper(be_faster), messages_sent() as sent:
        result = once.apply_async([1], **options)

    assert (result.id, sent) == (faster[0].task_id, [])
    assert TaskRunRecord.objects.filter(unique_key=key).count() == 1
    assert "could not record" not in caplog.text


@ON_COMMIT
@pytest.mark.skipif(connection.vendor == "sqlite", reason="its transaction is the journal's too")
def test_a_call_in_a_transaction_that_has_failed_is_sent_all_the_same():
    with messages_sent() as sent, transaction.atomic():
        transaction.set_rollback(True)
        result = once.delay(1)

    assert [message["headers"]["id"] for message in sent] == [result.id]
    assert run_of(result).active_key


def test_a_call_with_no_callback_but_an_empty_list_joins():
    first = once.delay(1)

    assert once.apply_async([1], link=[], link_error=[]).id == first.id


def test_a_window_that_opens_while_the_key_is_taken_counts():
    key = unique.key_of(told, [1], {})
    opened = []

    def open_it(execute, sql, params, many, context):
        if sql.startswith("INSERT") and not opened:
            opened.append(True)
            until = timezone.now() + timedelta(hours=1)
            opened[:] = [make_run(unique_key=key, ignore_until=until)]
        return execute(sql, params, many, context)

    with connection.execute_wrapper(open_it), messages_sent() as sent:
        result = told.delay(1)

    assert (result.state, sent) == ("IGNORED", [])
    run = run_of(result)
    assert (run.state, run.active_key, run.claimed_at) == (State.IGNORED, None, None)


# The database is away


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (once, {}),
        (at_most_hourly, {}),
        (once, {"countdown": HOUR}),
        (plain, {"depends_on": [TaskRunRecord(pk=1)]}),
    ],
    ids=["unique", "ignored", "delayed", "waits"],
)
def test_without_the_journal_a_call_that_depends_on_it_is_not_sent(task, options):
    with no_journal(), messages_sent() as sent, pytest.raises(DatabaseError):
        task.apply_async([1], **options)

    assert sent == []


@pytest.mark.parametrize(
    ("task", "options"),
    [(tracked, {}), (plain, {"run_context": RunContext(label="L")}), (once, {"task_id": "mine"})],
    ids=["tracked", "context", "member"],
)
def test_without_the_journal_any_other_call_is_sent_all_the_same(task, options, caplog):
    with no_journal(), messages_sent() as sent:
        result = task.apply_async([1], **options)

    assert [message["headers"]["id"] for message in sent] == [result.id]
    assert RUN_HEADER not in sent[0]["headers"]
    assert (CONTEXT_HEADER in sent[0]["headers"]) == ("run_context" in options)
    assert f"could not record the call of run {result.id}" in caplog.text


# Members of a canvas


def test_a_member_takes_the_key_if_it_is_free_and_runs_in_any_case():
    member = once.apply_async([1], task_id=str(uuid4()))
    assert once.delay(1).id == member.id

    other = once.apply_async([1], task_id=str(uuid4()), link=plain.si(2))

    assert other.id != member.id
    assert run_of(member).active_key == run_of(other).unique_key
    assert run_of(other).active_key is None


def test_a_call_with_a_callback_runs_so_that_it_is_called():
    first = once.delay(1)

    assert once.apply_async([1], link=plain.si(2)).id != first.id
    assert once.apply_async([1], link_error=plain.si(2)).id != first.id


def test_a_member_that_is_sent_twice_has_one_row():
    task_id = str(uuid4())
    with messages_sent() as sent:
        for _ in range(2):
            once.apply_async([1], task_id=task_id)

    run = TaskRunRecord.objects.get()
    assert [message["headers"][RUN_HEADER] for message in sent] == [task_id] * 2
    assert run.active_key == run.unique_key


@pytest.mark.parametrize("is_delayed", [True, False])
def test_a_delayed_member_runs_beside_the_one_that_holds_the_key(is_delayed):
    first = once.delay(1)

    member = once.apply_async([1], task_id=str(uuid4()), countdown=HOUR if is_delayed else None)

    assert member.id != first.id
    assert run_of(member).active_key is None
    assert run_of(member).state == (State.SCHEDULED if is_delayed else State.PENDING)
