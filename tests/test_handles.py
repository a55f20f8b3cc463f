"""Calls that wait for a commit: what their handle tells, and what is left of them."""

from __future__ import annotations

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from celery.result import AsyncResult
from django.db import connection, connections, transaction
from django.db.utils import load_backend
from django.test import TestCase, TransactionTestCase
from django.utils import timezone
from kombu.exceptions import OperationalError

from celery_admin_runner import handles
from celery_admin_runner.contexts import RunContext
from celery_admin_runner.dispatch import CLAIM_LASTS
from celery_admin_runner.exceptions import NotSent
from celery_admin_runner.handles import OnCommitResult
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.factories import make_run, make_superuser, make_user
from tests.hook_tasks import HookedTask, double, told, tracked_double
from tests.publishes import messages_sent
from tests.result_backend import using_backend

pytestmark = pytest.mark.django_db(transaction=True)


def names(handle_id):
    """Return the hooks that were told of a call, in order."""
    return [line[0] for line in told(handle_id)]


def run_of(handle):
    return TaskRunRecord.objects.get(task_id=handle.id)


@pytest.fixture(autouse=True)
def results():
    """Keep results in memory: here is no worker."""
    with using_backend("cache+memory://"):
        yield


def rolled_back(call):
    """Return what a call returns in a transaction, or savepoint, that is rolled back."""
    with transaction.atomic():
        handle = call()
        transaction.set_rollback(True)
    return handle


def committed(call, seen):
    """Make a call in a transaction that is committed; ``seen`` gets what it returns before."""
    with transaction.atomic():
        seen.append(call())


@pytest.fixture
def unique_double():
    """A task that is unique here, and whose rows nobody else makes."""
    yield app.register_task(UniqueDouble())
    app.tasks.pop(UniqueDouble.name)


class UniqueDouble(HookedTask):
    """Multiply, and only once at a time."""

    name = "tests.test_handles.unique_double"
    unique = True
    stale_time_limit = 3600
    ignore_task_timedelta = timedelta(hours=1)

    def run(self, number=1):
        return number * 2


@pytest.mark.parametrize("task", [double, tracked_double])
def test_a_call_is_sent_when_the_transaction_is_committed(task):
    with messages_sent() as sent:
        with transaction.atomic():
            handle = task.apply_async_on_commit([3], {"factor": 3}, priority=4)
            assert (sent, handle.state, handle.status) == ([], "UNSENT", "UNSENT")
            assert not handle.ready()
            assert names(handle.id) == ["apply"]

        [message] = sent
    assert isinstance(handle, AsyncResult)
    assert handle.id == handle.task_id == message["headers"]["id"]
    assert message["body"][:2] == ([3], {"factor": 3})
    assert message["properties"]["priority"] == 4
    assert handle.state == "PENDING"
    assert names(handle.id) == ["apply", "trigger"]


def test_the_arguments_of_a_call_are_those_of_delay():
    with messages_sent() as sent, transaction.atomic():
        handle = double.delay_on_commit(3, factor=4)

    assert sent[0]["body"][:2] == ((3,), {"factor": 4})
    assert sent[0]["headers"]["id"] == handle.id


@pytest.mark.parametrize("task", [double, tracked_double])
def test_the_arguments_of_a_call_are_those_that_it_was_made_with(task):
    args, kwargs = [0], {"factor": 0}
    with messages_sent() as sent, transaction.atomic():
        for number in (1, 2):
            args[0] = kwargs["factor"] = number
            task.apply_async_on_commit(args, kwargs)

    assert [message["body"][:2] for message in sent] == [
        ([1], {"factor": 1}),
        ([2], {"factor": 2}),
    ]


@pytest.mark.parametrize("task", [double, tracked_double])
def test_outside_of_a_transaction_a_call_is_sent_now(task):
    with messages_sent() as sent:
        handle = task.delay_on_commit(3)

        assert len(sent) == 1

    assert handle.state == "PENDING"
    assert names(handle.id) == ["apply", "trigger"]


def test_the_row_of_a_call_is_in_its_transaction():
    user = make_user()
    with transaction.atomic():
        handle = double.apply_async_on_commit([3], run_context=RunContext(user=user, label="Ann"))
        run = run_of(handle)
        assert (run.state, run.label, run.run_by) == (State.UNSENT, "Ann", user)
        assert run.claimed_at is not None

    run = run_of(handle)
    assert (run.state, run.args) == (State.PENDING, [3])
    assert run.published_at is not None


@pytest.mark.parametrize("task", [double, tracked_double])
def test_a_rollback_leaves_nothing(task):
    with messages_sent() as sent:
        handle = rolled_back(lambda: task.delay_on_commit(3))

    assert sent == []
    assert not TaskRunRecord.objects.exists()
    assert handle.state == handles.ROLLED_BACK
    assert handle.ready()
    assert names(handle.id) == ["apply"]
    with pytest.raises(NotSent, match="rolled back"):
        handle.get()


@pytest.mark.parametrize("task", [double, tracked_double])
def test_the_rollback_of_a_savepoint_leaves_nothing(task):
    with messages_sent() as sent, transaction.atomic():
        gone = rolled_back(lambda: task.delay_on_commit(3))
        assert gone.state == handles.ROLLED_BACK
        kept = task.delay_on_commit(4)
        assert kept.state == handles.UNSENT

    assert [message["headers"]["id"] for message in sent] == [kept.id]
    assert (gone.state, kept.state) == (handles.ROLLED_BACK, "PENDING")
    assert not TaskRunRecord.objects.filter(task_id=gone.id).exists()


def test_waiting_for_a_call_that_is_not_sent_yet_is_an_error_at_once():
    with transaction.atomic():
        handle = double.delay_on_commit(3)

        with pytest.raises(NotSent, match="is committed"):
            handle.get(timeout=60)
        with pytest.raises(NotSent, match="is committed"):
            handle.wait()
        assert (handle.result, handle.successful(), handle.failed()) == (None, False, False)


def test_a_hook_of_the_same_commit_sees_that_a_call_is_not_sent_yet():
    seen = []
    with transaction.atomic():
        transaction.on_commit(lambda: seen.append(handle.state))
        handle = double.delay_on_commit(3)

    assert seen == [handles.UNSENT]


def test_a_handle_gives_the_result_of_its_run(tmp_path):
    with using_backend(f"file://{tmp_path}") as backend, transaction.atomic():
        handle = double.delay_on_commit(3)
        backend.store_result(handle.id, 6, "SUCCESS")
        assert handle.state == handles.UNSENT
    with using_backend(f"file://{tmp_path}"):
        assert handle.get(timeout=5) == 6
        assert (handle.state, handle.ready(), handle.result) == ("SUCCESS", True, 6)
        handle.forget()
        assert AsyncResult(handle.id, app=app).state == "PENDING"


def test_an_eager_call_has_its_result_after_the_commit(monkeypatch):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    with transaction.atomic():
        handles_ = [task.delay_on_commit(3) for task in (double, tracked_double)]
        assert [handle.state for handle in handles_] == [handles.UNSENT] * 2

    assert [(handle.get(), handle.state) for handle in handles_] == [(6, "SUCCESS")] * 2
    assert run_of(handles_[1]).state == State.SUCCESS


def test_a_copy_of_a_handle_is_a_plain_result():
    with transaction.atomic():
        handle = double.delay_on_commit(3)
        thawed = pickle.loads(pickle.dumps(handle))
        copied = copy.copy(handle)

    assert type(thawed) is AsyncResult
    assert {thawed.id, copied.id} == {handle.id}
    assert (thawed.state, copied.state) == ("PENDING", "PENDING")


def test_what_goes_wrong_at_the_commit_is_raised_there_and_the_row_tells_it(monkeypatch):
    monkeypatch.setattr(app.amqp, "send_task_message", broken)
    seen = []
    with pytest.raises(OperationalError, match="away"):
        committed(lambda: tracked_double.delay_on_commit(3), seen)

    [handle] = seen
    # The error, which is gone, knew what would have sent the call.
    gc.collect()
    run = TaskRunRecord.objects.get()
    assert (run.state, run.task_id, run.claimed_at) == (State.UNSENT, handle.id, None)
    assert "away" in run.publish_error
    assert handle.state == handles.UNSENT
    with pytest.raises(NotSent, match="could not be sent"):
        handle.get()
    assert names(handle.id) == ["apply"]


def broken(*args, **kwargs):
    raise OperationalError("away")


def test_wrong_arguments_are_an_error_at_the_call():
    with messages_sent() as sent, transaction.atomic(), pytest.raises(TypeError):
        tracked_double.delay_on_commit(nothing=1)

    assert sent == []
    assert not TaskRunRecord.objects.exists()


def test_a_call_that_was_not_sent_after_the_commit_can_be_sent_again():
    handle, _send = announced(tracked_double)
    TaskRunRecord.objects.update(claimed_at=timezone.now() - CLAIM_LASTS * 2)

    assert TaskRunner(make_superuser()).send_again(run_of(handle)).state == State.PENDING


def test_who_sends_again_and_who_commits_late_do_not_both_send():
    handle, send = announced(tracked_double)
    TaskRunRecord.objects.update(claimed_at=timezone.now() - CLAIM_LASTS * 2)
    late = send._send.args[2]
    late.claimed_at -= CLAIM_LASTS * 2
    TaskRunner(make_superuser()).send_again(run_of(handle))

    with messages_sent() as sent:
        send()

    assert sent == []
    assert handle.state == "PENDING"


def announced(task):
    """Return the handle of a call whose transaction is committed, and what would send it now."""
    seen = []

    def call():
        transaction.on_commit(interrupt)
        handle = task.delay_on_commit(3)
        return handle, handle._sending()

    with pytest.raises(KeyboardInterrupt):
        committed(call, seen)
    return seen[0]


def interrupt():
    raise KeyboardInterrupt


def test_a_unique_call_joins_the_run_that_is_active_at_the_commit(unique_double):
    with transaction.atomic():
        handle = unique_double.delay_on_commit()
        own = handle.id
        assert run_of(handle).active_key is None
        with messages_sent() as sent:
            first = make_active(unique_double)

    assert sent == []
    assert handle.id == first.task_id
    joined = TaskRunRecord.objects.get(task_id=own)
    assert (joined.state, joined.active_key) == (State.IGNORED, None)
    assert first.task_id in joined.exception
    assert names(own) == ["apply", "unique"]


def make_active(task):
    """Make the run of the same call, as another process does."""
    key = TaskRunRecord.objects.get(task_name=task.name).unique_key
    fields = {"unique_key": key, "active_key": key}
    return make_run(task_name=task.name, state=State.STARTED, **fields)


def test_of_two_unique_calls_in_a_transaction_one_runs(unique_double):
    with messages_sent() as sent, transaction.atomic():
        both = [unique_double.delay_on_commit(1), unique_double.delay_on_commit(number=1)]
        ids = [handle.id for handle in both]

    assert [message["headers"]["id"] for message in sent] == [ids[0]]
    assert [handle.id for handle in both] == [ids[0]] * 2
    states = [TaskRunRecord.objects.get(task_id=task_id).state for task_id in ids]
    assert states == [State.PENDING, State.IGNORED]


def test_of_many_unique_calls_at_once_one_runs(unique_double):
    start = Barrier(8, timeout=60)

    def call(number):
        try:
            start.wait()
            with transaction.atomic():
                return unique_double.delay_on_commit()
        finally:
            connections.close_all()

    with messages_sent() as sent, ThreadPoolExecutor(8) as threads:
        followed = {handle.id for handle in threads.map(call, range(8))}

    assert [message["headers"]["id"] for message in sent] == list(followed)
    states = TaskRunRecord.objects.values_list("state", flat=True)
    assert sorted(states) == [State.IGNORED] * 7 + [State.PENDING]


def test_a_unique_call_that_could_not_be_sent_does_not_keep_its_key(unique_double, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(app.amqp, "send_task_message", broken)
        with pytest.raises(OperationalError):
            committed(unique_double.delay_on_commit, [])

    with messages_sent() as sent, transaction.atomic():
        unique_double.delay_on_commit()

    assert len(sent) == 1


def test_a_member_of_a_canvas_is_sent_whoever_is_active(unique_double):
    with messages_sent() as sent, transaction.atomic():
        handle = unique_double.apply_async_on_commit(link=double.s())
        make_active(unique_double)

    assert [message["headers"]["id"] for message in sent] == [handle.id]
    assert run_of(handle).active_key is None


def test_a_call_is_ignored_if_the_same_one_has_succeeded_by_the_commit(unique_double):
    with messages_sent() as sent, transaction.atomic():
        handle = unique_double.delay_on_commit()
        until = timezone.now() + timedelta(hours=1)
        key = run_of(handle).unique_key
        make_run(unique_key=key, ignore_until=until, finished_at=timezone.now())

    assert sent == []
    assert (handle.state, handle.get(), handle.ready()) == ("IGNORED", None, True)
    assert run_of(handle).state == State.IGNORED
    assert names(handle.id) == ["apply", "ignored"]


def test_a_window_that_opens_while_a_call_takes_its_key_at_the_commit_counts(unique_double):
    opened = []

    def open_it(execute, sql, params, many, context):
        if sql.startswith("UPDATE") and not opened:
            opened.append(True)
            until = timezone.now() + timedelta(hours=1)
            make_run(unique_key=run_of(handle).unique_key, ignore_until=until)
        return execute(sql, params, many, context)

    with messages_sent() as sent, connection.execute_wrapper(open_it), transaction.atomic():
        handle = unique_double.delay_on_commit()

    assert (handle.state, sent) == ("IGNORED", [])
    assert (run_of(handle).state, run_of(handle).active_key) == (State.IGNORED, None)


@pytest.mark.parametrize("task", [double, tracked_double])
def test_a_delayed_call_is_kept_in_the_transaction(task):
    with messages_sent() as sent:
        with transaction.atomic():
            handle = task.apply_async_on_commit([1], countdown=3600)
            assert run_of(handle).state == State.SCHEDULED
        gone = rolled_back(lambda: task.apply_async_on_commit([2], countdown=3600))

    assert sent == []
    assert [run.task_id for run in TaskRunRecord.objects.all()] == [handle.id]
    assert gone.state == handles.ROLLED_BACK


def test_a_delayed_unique_call_joins_the_one_that_is_kept(unique_double):
    with transaction.atomic():
        first, second = (unique_double.apply_async_on_commit(countdown=3600) for _ in range(2))

    assert first.id == second.id
    assert TaskRunRecord.objects.get().state == State.SCHEDULED


def test_a_delayed_call_that_is_ignored_is_not_kept(unique_double):
    key = rolled_back(lambda: run_of(unique_double.delay_on_commit()).unique_key)
    until = timezone.now() + timedelta(hours=1)
    make_run(unique_key=key, ignore_until=until, finished_at=timezone.now())

    with transaction.atomic():
        handle = unique_double.apply_async_on_commit(countdown=3600)

    assert handle.state == run_of(handle).state == State.IGNORED


def test_a_call_that_TRACK_names_has_its_row_in_the_transaction(configure):
    configure(TRACK=["tests.hook_tasks.double"])

    with transaction.atomic():
        handle = double.delay_on_commit(3)
        assert run_of(handle).state == State.UNSENT

    assert run_of(handle).state == State.PENDING


def test_an_id_of_the_callers_own_is_that_of_the_run():
    with messages_sent() as sent, transaction.atomic():
        handle = double.apply_async_on_commit([1], task_id="my own")

    assert (handle.id, sent[0]["headers"]["id"]) == ("my own", "my own")


def test_an_id_that_has_a_row_already_does_not_break_the_transaction():
    known = make_run()
    with messages_sent() as sent, transaction.atomic():
        tracked_double.apply_async_on_commit([1], task_id=known.task_id)
        user = make_user()

    assert len(sent) == 1
    user.refresh_from_db()


def test_the_context_of_an_unsaved_user_is_an_error_before_anything_is_written():
    context = RunContext(user=type(make_user())())
    with (
        messages_sent() as sent,
        transaction.atomic(),
        pytest.raises(ValueError, match="not saved"),
    ):
        double.apply_async_on_commit([1], run_context=context)

    assert sent == []
    assert not TaskRunRecord.objects.exists()


@pytest.fixture
def other(tmp_path):
    """Another database than that of the journal."""
    settings = {**connections["default"].settings_dict}
    # Not in memory: Django keeps that open.
    name = str(tmp_path / "other.sqlite3")
    settings |= {"ENGINE": "django.db.backends.sqlite3", "NAME": name, "OPTIONS": {}}
    wrapper = load_backend(settings["ENGINE"]).DatabaseWrapper(settings, "other")
    connections["other"] = wrapper
    yield "other"
    wrapper.close()
    del connections["other"]


@pytest.mark.parametrize("task", [double, tracked_double])
def test_a_call_can_wait_for_the_commit_of_another_database(other, task):
    with messages_sent() as sent:
        with transaction.atomic(using=other), transaction.atomic():
            handle = task.apply_async_on_commit([3], using=other)
            assert not TaskRunRecord.objects.exists()
        with transaction.atomic(using=other):
            gone = task.apply_async_on_commit([4], using=other)
            transaction.set_rollback(True, using=other)

    assert [message["headers"]["id"] for message in sent] == [handle.id]
    assert (handle.state, gone.state) == ("PENDING", handles.ROLLED_BACK)
    assert TaskRunRecord.objects.count() == (task is tracked_double)


def test_a_delayed_member_of_a_canvas_is_kept_whoever_is_active(unique_double):
    with transaction.atomic():
        first, second = (
            unique_double.apply_async_on_commit(countdown=3600, link=double.s()) for _ in range(2)
        )

    assert first.id != second.id
    assert [run_of(first).active_key is None, run_of(second).active_key is None] == [False, True]


def test_a_copy_waits_for_the_result():
    with transaction.atomic():
        copied = copy.copy(double.delay_on_commit(3))
    app.backend.store_result(copied.id, 6, "SUCCESS")

    assert copied.get(timeout=5) == 6
    copied.forget()


class InATestCase(TestCase):
    """In Django's own test case, whose transaction is never committed."""

    def test_a_call_is_sent_when_the_test_says_so(self):
        for task in (double, tracked_double):
            with messages_sent() as sent, self.captureOnCommitCallbacks(execute=True):
                handle = task.delay_on_commit(3)
                assert (sent, handle.state) == ([], "UNSENT")

            assert [message["headers"]["id"] for message in sent] == [handle.id]
            assert handle.state == "PENDING"
        assert run_of(handle).state == State.PENDING

    def test_a_unique_call_joins_when_the_test_says_so(self):
        task = app.register_task(UniqueDouble())
        self.addCleanup(app.tasks.pop, task.name)
        with self.captureOnCommitCallbacks(execute=True):
            first, second = task.delay_on_commit(), task.delay_on_commit()

        assert first.id == second.id

    def test_a_call_that_is_never_sent_stays_unsent(self):
        handle = double.delay_on_commit(3)

        assert handle.state == "UNSENT"
        assert isinstance(handle, OnCommitResult)


class InATransactionTestCase(TransactionTestCase):
    """In Django's test case with real transactions."""

    def test_a_call_is_sent_on_commit(self):
        with messages_sent() as sent, transaction.atomic():
            handle = double.delay_on_commit(3)

        assert [message["headers"]["id"] for message in sent] == [handle.id]
