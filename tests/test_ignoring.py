"""Calls that are ignored for a while after the same call has succeeded."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from celery import shared_task
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.base import DjangoTask
from celery_admin_runner.headers import IGNORE_HEADER, KEY_HEADER
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.statements import Window
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.publishes import attempt, messages_sent
from tests.result_backend import using_backend
from tests.unique_tasks import HOUR, ask_in_vain, at_most_hourly, ignored_if_asked, once, plain

pytestmark = pytest.mark.django_db
ON_COMMIT = pytest.mark.django_db(transaction=True)


@pytest.fixture
def eager(monkeypatch):
    """Run what is called here and now."""
    monkeypatch.setitem(app.conf, "task_always_eager", True)


def run_of(result):
    return TaskRunRecord.objects.get(task_id=result.id)


def succeed_in(seconds, run):
    """Let a run succeed so long from now."""
    now = timezone.now() + timedelta(seconds=seconds)
    until = {"ignore_until": Window(key=run.unique_key, now=now, until=now + HOUR)}
    tracking.record_success(run.task_id, attempt=0, result=1, now=now, **until)
    run.refresh_from_db()
    return now + HOUR


def test_after_a_success_the_same_call_is_ignored(eager):
    first = at_most_hourly.delay(1)
    second = at_most_hourly.delay(number=1)
    other = at_most_hourly.delay(2)

    assert (first.get(), other.get()) == (1, 2)
    assert (second.get(), second.state, second.ready()) == (None, "IGNORED", True)
    [run, ignored] = run_of(first), run_of(second)
    assert run.ignore_until - run.finished_at == HOUR
    assert ignored.state == State.IGNORED
    at, until = run.finished_at, run.ignore_until
    assert ignored.exception == (
        f"Skipped: the same call succeeded at {at.isoformat(' ', 'seconds')}, and is ignored "
        f"until {until.isoformat(' ', 'seconds')}."
    )
    assert (ignored.args, ignored.kwargs) == ([], {"number": 1})


def test_a_failure_opens_no_window(eager):
    assert at_most_hourly.delay(1, fails=True).state == "FAILURE"

    assert at_most_hourly.delay(1, fails=True).state == "FAILURE"


def test_a_window_ends(eager):
    at_most_hourly.delay(1)
    TaskRunRecord.objects.update(ignore_until=timezone.now())

    assert at_most_hourly.delay(1).state == "SUCCESS"


def test_a_window_begins_with_the_first_success_of_several():
    first, second = run_of(at_most_hourly.delay(1)), run_of(at_most_hourly.delay(1))

    until = succeed_in(0, first)
    succeed_in(60, second)

    assert (first.ignore_until, second.ignore_until) == (until, None)
    third = TaskRunRecord.objects.create(
        task_id="third", task_name="t", unique_key=first.unique_key, created_at=timezone.now()
    )
    assert succeed_in(3700, third) == third.ignore_until


def test_a_body_may_ask_for_the_window(eager):
    assert ignored_if_asked.delay(1).state == ignored_if_asked.delay(1).state == "SUCCESS"

    assert [ignored_if_asked.delay(2).state for _ in range(2)] == ["SUCCESS", "IGNORED"]
    result = ignored_if_asked.delay(4, seconds=10)
    run = run_of(result)
    assert run.ignore_until - run.finished_at == timedelta(seconds=10)


def test_a_body_that_asked_and_then_fails_opens_no_window(eager):
    @shared_task(base=DjangoTask, bind=True, ignore_task_timedelta=HOUR, name=f"tests.i.{uuid4()}")
    def task(self):
        """Be glad too soon."""
        self.set_ignore_task()
        raise ValueError("no")

    assert [task.delay().state for _ in range(2)] == ["FAILURE", "FAILURE"]
    assert not TaskRunRecord.objects.exclude(ignore_until=None).exists()


def test_a_body_that_asks_in_vain_is_told(eager):
    result = ask_in_vain.delay()

    with pytest.raises(ValueError, match=r"ask_in_vain: its calls are never ignored\. Give"):
        result.get()


@pytest.mark.parametrize(
    ("own", "states"),
    [
        ({"ignore_task_after_success": False}, ["SUCCESS", "SUCCESS"]),
        ({"ignore_task_timedelta": timedelta(minutes=1)}, ["SUCCESS", "IGNORED"]),
    ],
)
def test_a_call_may_say_otherwise_than_its_task(eager, own, states):
    results = [at_most_hourly.apply_async([1], **own) for _ in range(2)]

    assert [result.state for result in results] == states
    runs = TaskRunRecord.objects.exclude(ignore_until=None)
    windows = [run.ignore_until - run.finished_at for run in runs]
    assert windows == [window for name, window in own.items() if name.endswith("timedelta")]


def test_a_call_of_any_task_may_ask_to_be_ignored(eager):
    own = {"ignore_task_after_success": True, "ignore_task_timedelta": HOUR}

    assert [plain.apply_async([1], **own).state for _ in range(2)] == ["SUCCESS", "IGNORED"]
    assert plain.delay(1).state == "SUCCESS"


@ON_COMMIT
def test_what_a_caller_said_goes_with_the_message_and_with_a_retry():
    with messages_sent() as sent:
        result = at_most_hourly.apply_async([1], ignore_task_timedelta=timedelta(minutes=1))

    run = run_of(result)
    headers = sent[0]["headers"]
    assert (headers[IGNORE_HEADER], headers[KEY_HEADER]) == (60, run.unique_key)
    assert run.options["headers"] == {IGNORE_HEADER: 60}
    TaskRunRecord.objects.update(state=State.FAILURE, finished_at=timezone.now())
    run.refresh_from_db()
    with messages_sent() as sent:
        TaskRunner().retry(run)
    assert sent[0]["headers"][IGNORE_HEADER] == 60


def test_a_delayed_call_that_is_kept_says_it_too():
    result = at_most_hourly.apply_async(
        [1], countdown=3600, ignore_task_timedelta=timedelta(minutes=1)
    )

    run = run_of(result)
    assert (run.state, run.options["headers"]) == (State.SCHEDULED, {IGNORE_HEADER: 60})
    assert run.unique_key


def test_a_task_that_says_not_for_how_long_is_refused_before_anything_is_written():
    @shared_task(base=DjangoTask, ignore_task_after_success=True, name=f"tests.i.{uuid4()}")
    def task():
        """Be ignored for nobody knows how long."""

    with pytest.raises(ImproperlyConfigured, match="ignore_task_timedelta"):
        task.delay()

    assert not TaskRunRecord.objects.exists()


@ON_COMMIT
def test_a_runner_gets_the_row_of_what_was_ignored(eager):
    runner = TaskRunner()
    first = runner.run(at_most_hourly.name, [1])

    ignored = runner.run(at_most_hourly.name, [1], reason="again")
    retried = runner.retry(first)

    assert [run.state for run in (first, ignored, retried)] == [
        State.SUCCESS,
        State.IGNORED,
        State.IGNORED,
    ]
    assert (ignored.reason, retried.retry_of) == ("again", first)
    assert ignored.exception.startswith("Skipped: the same call succeeded at ")


@pytest.mark.parametrize("backend", ["cache+memory://", "disabled://"])
def test_a_worker_opens_the_window_whatever_the_result_backend_is(backend):
    with using_backend(backend), messages_sent() as sent:
        result = at_most_hourly.delay(1)
        headers = sent[0]["headers"]
        attempt(at_most_hourly, id=result.id, args=(1,), kwargs={"number": 1}, headers=headers)

    run = run_of(result)
    assert run.state == State.SUCCESS
    assert run.ignore_until - run.finished_at == HOUR
    assert at_most_hourly.delay(1).state == "IGNORED"


def statements_at_the_end(task, *args):
    """Count what the end of a run costs."""
    with messages_sent() as sent:
        result = task.delay(*args)
    headers = sent[0]["headers"]
    executed = []

    def count(execute, sql, *rest):
        executed.append(sql)
        return execute(sql, *rest)

    with connection.execute_wrapper(count):
        attempt(task, id=result.id, kwargs={"a" if task is once else "number": 1}, headers=headers)
    return [sql for sql in executed if "UPDATE" in sql]


def test_the_window_is_opened_by_the_statement_that_records_the_success():
    start, end = statements_at_the_end(at_most_hourly, 1)

    assert "ignore_until" in end
    assert "ignore_until" not in start
    assert ["ignore_until" in sql for sql in statements_at_the_end(once, 1)] == [False, False]
