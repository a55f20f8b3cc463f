"""What a task can tell of its run, and ask of it."""

from __future__ import annotations

import io
import logging
import math
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest
from celery.app.task import Context
from celery.exceptions import Ignore
from django.db import DatabaseError, connection
from django.utils import timezone

from celery_admin_runner import recording, runs
from celery_admin_runner.exceptions import RunCancelled
from celery_admin_runner.models import TaskRunOutput, TaskRunRecord
from celery_admin_runner.progress import INTERVAL, MAXIMUM
from celery_admin_runner.redaction import EVERYTHING, MASK
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.runs import CurrentRun, current_run
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.factories import make_run
from tests.talking_tasks import count_to, say_config, tell
from tests.waiting import wait_for_state, wait_until


@pytest.fixture
def eager():
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


@pytest.fixture(autouse=True)
def _no_faults():
    """Leave no faults for the next record to store."""
    yield
    recording._process.start_counting()


@pytest.fixture
def run(db):
    return make_run(state=State.STARTED)


def request_of(run, *, row=True, **fields):
    """Return the request by which a worker holds the message of a run."""
    headers = {"celery_admin_runner_row": [run.pk, "", ""]} if row else {}
    return Context({"id": run.task_id, "headers": headers, "args": (), "kwargs": {}, **fields})


@pytest.fixture
def current(run):
    """The run as its task sees it where nothing is captured."""
    return CurrentRun(count_to, request_of(run))


@pytest.fixture
def attempt(current):
    """What a worker's thread cares for; here only the test does."""
    current._attempt = runs._Attempt(current, 0)
    return current._attempt


def start(name, *args, **kwargs):
    return TaskRunner().run(f"tests.talking_tasks.{name}", args, kwargs)


def test_outside_of_a_run_there_is_none():
    assert current_run() is None


def test_a_task_knows_its_run(worker):
    run = wait_for_state(start("who_am_i"), State.SUCCESS)

    assert run.result == {"task_id": run.task_id, "pk": run.pk}


def test_a_task_that_is_not_tracked_has_no_run(worker):
    assert app.tasks["tests.talking_tasks.who_am_i"].apply().get() == {}


@pytest.mark.django_db(transaction=True)
def test_in_eager_mode_progress_is_recorded_and_output_is_not(eager, capsys):
    run = start("count_to", 5, "almost")
    said = start("say", "hello")

    assert (run.progress_current, run.progress_total, run.progress_message) == (5, 5, "almost")
    assert said.complete_output() == ""
    assert capsys.readouterr().out == "hello"
    assert current_run() is None


@pytest.mark.django_db(transaction=True)
def test_a_run_in_eager_mode_inside_of_another_leaves_the_outer_one_current(run):
    outer = request_of(run, is_eager=True)
    inner = request_of(make_run(state=State.STARTED), is_eager=True)
    runs.begin(count_to, outer)
    runs.begin(count_to, inner)
    assert current_run().task_id == inner.id

    runs.end(inner.id)

    assert current_run().task_id == outer.id
    runs.end(outer.id)
    assert current_run() is None


def test_the_end_of_another_run_ends_nothing(run):
    runs.begin(count_to, request_of(run, is_eager=True))

    assert runs.end("another") == {}

    assert current_run().task_id == run.task_id
    assert (runs.end(run.task_id), runs.end(run.task_id)) == ({}, {})


def test_a_message_without_our_row_finds_it_by_one_query(run, django_assert_num_queries):
    current = CurrentRun(count_to, request_of(run, row=False))

    with django_assert_num_queries(1):
        assert [current.pk, current.pk] == [run.pk, run.pk]


# Progress


def written(run):
    run.refresh_from_db()
    return run.progress_current, run.progress_total, run.progress_message


def test_progress_in_a_loop_is_written_twice_a_second_at_most(current, run):
    with CountedUpdates() as updates:
        ends = time.monotonic() + 1.2
        step = 0
        while time.monotonic() < ends:
            step += 1
            current.progress(step, 10**9)

    assert 2 <= updates.number <= 3
    assert step > 1000


def test_the_last_step_is_written_with_the_end(worker):
    run = wait_for_state(start("count_to", 10_000, "counting"), State.SUCCESS)

    assert written(run) == (10_000, 10_000, "counting")


def test_progress_never_goes_backwards_and_its_total_may_be_unknown(worker, tmp_path):
    run = start("count_and_wait", str(tmp_path / "go"))

    wait_until(lambda: written(run) == (5, 10, "known"))

    (tmp_path / "go").touch()
    wait_for_state(run, State.SUCCESS)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((-5, -1), (0, None)),
        ((3, None), (3, None)),
        ((3.9, 10.2), (3, 10)),
        ((7, 5), (7, 7)),
        ((0, 0), (0, None)),
        ((math.nan, math.nan), (0, None)),
        ((1, math.inf), (1, MAXIMUM)),
        ((10**30, 10**31), (MAXIMUM, MAXIMUM)),
        ((10**400, 10**400), (MAXIMUM, MAXIMUM)),
        ((-(10**400), None), (0, None)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_number_out_of_range_is_clamped(current, run, given, kept):
    current.progress(*given)

    assert written(run)[:2] == kept


@pytest.mark.parametrize("value", [True, "5", None])
def test_what_is_no_number_is_refused(current, value):
    with pytest.raises(TypeError, match="must be a number"):
        current.progress(value)


class NoText:
    def __str__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("message", "kept"), [(None, ""), (5, "5"), (NoText(), "<Unrepresentable")]
)
def test_a_message_of_any_kind_breaks_no_task(current, run, message, kept):
    current.progress(1, 2, message)

    assert written(run)[2][: len("<Unrepresentable")] == kept


def test_output_is_hidden_where_nobody_can_tell_what_is_secret(run, in_worker, monkeypatch):
    monkeypatch.setattr(runs, "secrets_of", lambda *args: {EVERYTHING})
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        runs.begin(tell, request_of(run, kwargs={"password": "Sesame-1234"}))
        sys.stdout.write("Sesame-1234")
        runs.end(run.task_id)

    assert [row.text for row in TaskRunOutput.objects.all()] == [f"{MASK}\n"]


def test_a_message_is_stored_without_secrets_and_cut(run):
    current = CurrentRun(tell, request_of(run, kwargs={"password": "Sesame-1234"}))

    current.progress(1, 2, "\x1b[1mfor Sesame-1234\x00" + "x" * 300)

    assert written(run)[2] == ("for ********\ufffd" + "x" * 300)[:255]


def test_a_late_step_changes_no_finished_run(current, run):
    TaskRunRecord.objects.update(state=State.SUCCESS, finished_at=timezone.now())

    current.progress(1)

    assert written(run)[0] == 0


def test_a_late_step_of_an_earlier_attempt_changes_nothing(current, run):
    TaskRunRecord.objects.update(retries=1)

    current.progress(1)

    assert written(run)[0] == 0


def test_a_database_that_is_away_breaks_no_progress(current, run):
    with connection.execute_wrapper(refuse):
        current.progress(1)

    assert current._progress.fields()["progress_current"] == 1


# What the worker's thread does, at moments that the tests choose


class CountedUpdates:
    """Counts the UPDATEs of a block."""

    def __init__(self):
        self.number = 0

    def __call__(self, execute, sql, *args):
        self.number += sql.startswith("UPDATE")
        return execute(sql, *args)

    def __enter__(self):
        self.wrapper = connection.execute_wrapper(self)
        self.wrapper.__enter__()
        return self

    def __exit__(self, *error):
        self.wrapper.__exit__(*error)


def refuse(execute, sql, params, many, context):
    raise DatabaseError("gone")


def test_a_silent_task_costs_no_statement(attempt, django_assert_num_queries):
    with django_assert_num_queries(0):
        attempt.tick(1)
        attempt.end("")


def test_a_run_that_goes_on_gives_a_sign_of_life_each_half_minute(
    attempt, run, django_assert_num_queries
):
    with django_assert_num_queries(0):
        assert attempt.tick(29) == 30
    with django_assert_num_queries(1):
        assert attempt.tick(30) == 60
    with django_assert_num_queries(0):
        attempt.tick(59)

    run.refresh_from_db()
    assert run.heartbeat_at is not None


def test_the_thread_waits_between_two_writes_of_progress(attempt, current):
    current.progress(1, 10)
    with CountedUpdates() as updates:
        attempt.tick(1)
        current.progress(2, 10)
        due = attempt.tick(1.1)
        attempt.tick(1 + INTERVAL)

    assert updates.number == 2
    assert due == 1 + INTERVAL


@pytest.mark.django_db(transaction=True)
def test_output_that_can_not_be_written_waits_and_is_written_later(attempt, run):
    attempt.output.add("stdout", "kept\n")
    with connection.execute_wrapper(refuse):
        attempt.tick(time.monotonic() + 2)
        attempt.output.add("stdout", "and more\n")
        attempt.end("")
    assert TaskRunOutput.objects.count() == 0

    attempt.tick(time.monotonic() + 5)

    assert run.complete_output() == "kept\nand more\n"


def test_of_output_that_can_never_be_written_only_the_latest_runs_are_kept(current):
    with connection.execute_wrapper(refuse):
        for _ in range(runs.UNWRITTEN_MAX + 3):
            attempt = runs._Attempt(current, 0)
            attempt.output.add("stdout", "x")
            attempt.end("")

    assert len(runs._unwritten) == runs.UNWRITTEN_MAX
    runs._unwritten.clear()


@pytest.mark.django_db(transaction=True)
def test_output_of_a_run_that_is_gone_is_dropped(attempt, run, caplog):
    TaskRunRecord.objects.all().delete()
    attempt.output.add("stdout", "for nobody\n")

    attempt.end("")

    assert attempt.output.waits_since is None


# Cancelling


def test_whether_it_is_cancelled_is_asked_once_a_second(current, django_assert_num_queries):
    with django_assert_num_queries(1):
        assert [current.cancel_requested for _ in range(1000)] == [False] * 1000


@pytest.mark.parametrize(
    "fields", [{"cancel_requested_at": timezone.now()}, {"state": State.CANCELLING}], ids=list
)
def test_a_cancelled_run_is_told_so(current, run, fields):
    TaskRunRecord.objects.update(**fields)

    with pytest.raises(RunCancelled, match="was cancelled") as raised:
        current.raise_if_cancelled()

    assert isinstance(raised.value, Ignore)
    assert current.cancel_requested


def test_a_database_that_is_away_cancels_nothing(current):
    with connection.execute_wrapper(refuse):
        assert not current.cancel_requested


def test_a_task_stops_when_somebody_cancels_it(worker):
    run = start("stop_when_asked")
    wait_for_state(run, State.STARTED)

    TaskRunner().cancel(run)

    wait_for_state(run, State.REVOKED)
    assert "cancelled while it ran" in run.exception


# Threads and forks


def test_another_thread_is_in_no_run(run):
    runs.begin(count_to, request_of(run, is_eager=True))
    seen = []

    thread = threading.Thread(target=lambda: seen.append(current_run()))
    thread.start()
    thread.join()

    assert seen == [None]
    runs.end(run.task_id)


# In a worker


@pytest.fixture
def in_worker(monkeypatch):
    """Be a worker; what it installs is taken back."""
    monkeypatch.setattr(recording._process, "is_worker", True)
    factory = logging.getLogRecordFactory()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
    logging.setLogRecordFactory(factory)


@pytest.mark.django_db(transaction=True)
def test_in_a_worker_output_is_captured_from_begin_to_end(run, in_worker):
    with redirect_stdout(io.StringIO()):
        runs.begin(count_to, request_of(run))
        sys.stdout.write("in the run\n")
        runs.end(run.task_id, traceback="Traceback: no\n")
        sys.stdout.write("after it\n")

    assert run.complete_output() == "in the run\nTraceback: no\n"


@pytest.mark.django_db(transaction=True)
def test_a_run_whose_end_nobody_told_of_ends_when_the_next_begins(run, in_worker):
    following = make_run(state=State.STARTED)
    with redirect_stdout(io.StringIO()):
        runs.begin(count_to, request_of(run))
        sys.stdout.write("first\n")
        runs.begin(count_to, request_of(following))
        sys.stdout.write("second\n")
        runs.end(following.task_id)

    assert (run.complete_output(), following.complete_output()) == ("first\n", "second\n")
    assert current_run() is None


@pytest.mark.django_db(transaction=True)
def test_a_limit_of_nothing_captures_nothing(run, in_worker, configure):
    configure(OUTPUT_MAX_BYTES=0)
    with redirect_stdout(io.StringIO()):
        runs.begin(count_to, request_of(run))
        sys.stdout.write("lost\n")
        runs.end(run.task_id)

    assert TaskRunOutput.objects.count() == 0


def test_a_secret_that_the_task_takes_out_of_its_arguments_is_masked_all_the_same(run):
    config = {"password": "Sesame-1234"}
    current = CurrentRun(say_config, request_of(run, args=[config]))

    del config["password"]
    current.progress(1, message="for Sesame-1234")

    assert written(run)[2] == "for ********"
