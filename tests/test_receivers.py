"""What workers report: each case with a real prefork worker."""

from __future__ import annotations

import pytest
from django.db import DatabaseError, connection
from django.utils import timezone

from celery_admin_runner import results, tracking
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.factories import make_run
from tests.tasks import add, fail
from tests.waiting import wait_for_state


def test_a_failure_has_its_exception_and_traceback(worker):
    run = TaskRunner().run("tests.tasks.fail", ["<b>broken</b>"])

    wait_for_state(run, State.FAILURE)
    assert run.exception == "ValueError: <b>broken</b>"
    assert "raise ValueError(message)" in run.traceback
    assert run.finished_at is not None


def test_a_run_that_is_retried_counts_its_attempts_and_ends_clean(worker, tmp_path):
    run = TaskRunner().run("tests.tasks.fail_twice", [str(tmp_path / "attempts")])

    wait_for_state(run, State.SUCCESS)
    assert run.result == "xxx"
    assert run.retries == 2
    assert (run.exception, run.traceback) == ("", "")


def test_an_ignored_run_is_skipped(worker):
    run = TaskRunner().run("tests.tasks.ignore")

    wait_for_state(run, State.IGNORED)


def test_a_run_that_expired_before_it_started_is_expired(worker):
    run = TaskRunner().run("tests.tasks.add", [1], expires=-1)

    wait_for_state(run, State.EXPIRED)
    assert run.started_at is None


def test_a_run_that_was_revoked_elsewhere_is_cancelled(worker, tmp_path):
    run = TaskRunner().run("tests.tasks.wait_for_file", [str(tmp_path / "never")])
    wait_for_state(run, State.STARTED)

    app.control.revoke(run.task_id, terminate=True)

    wait_for_state(run, State.REVOKED)
    assert run.exception == "Terminated while it ran."


def test_a_run_whose_process_was_killed_fails(worker):
    run = TaskRunner().run("tests.tasks.kill_own_process")

    wait_for_state(run, State.FAILURE)
    assert "WorkerLostError" in run.exception


def test_a_run_of_a_task_that_the_worker_does_not_know_fails(worker):
    @app.task(name="tests.tasks.only_here")
    def only_here() -> None: ...

    try:
        run = TaskRunner().run("tests.tasks.only_here")
        wait_for_state(run, State.FAILURE)
    finally:
        app.tasks.unregister("tests.tasks.only_here")

    assert "knows no task 'tests.tasks.only_here'" in run.exception


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("return_an_object", "<object object"),
        ("return_an_order", "order 7"),
        ("return_unspeakable", "<Unrepresentable"),
    ],
)
def test_a_result_that_is_no_json_is_kept_as_text(worker, name, text):
    run = TaskRunner().run(f"tests.tasks.{name}")

    wait_for_state(run, State.SUCCESS)
    assert run.result["forced_json"] is True
    assert run.result["value"].startswith(text)


def test_a_large_result_is_stored_shortened_and_says_so(worker):
    run = TaskRunner().run("tests.tasks.return_much", [100_000])

    wait_for_state(run, State.SUCCESS)
    assert run.result["shortened"] is True
    assert run.result["bytes"] == 100_002
    assert len(run.result["value"]) == 64 * 1024


def test_a_result_that_no_database_can_store_is_kept_as_text(worker):
    run = TaskRunner().run("tests.tasks.return_hostile")

    wait_for_state(run, State.SUCCESS)
    assert run.result["forced_json"] is True


def test_an_untracked_task_touches_no_row(worker):
    tracked = TaskRunner().run("tests.tasks.add", [1])
    wait_for_state(tracked, State.SUCCESS)

    add.apply_async([1], headers={"celery_admin_runner_run": tracked.task_id})
    fail.delay()
    after = TaskRunner().run("tests.tasks.add", [1])
    wait_for_state(after, State.SUCCESS)

    assert TaskRunRecord.objects.count() == 2
    before = tracked.finished_at
    tracked.refresh_from_db()
    assert tracked.finished_at == before


@pytest.mark.django_db(transaction=True)
def test_a_run_in_eager_mode_is_recorded_whole():
    app.conf.task_always_eager = True
    try:
        run = TaskRunner().run("tests.tasks.add", [1])
    finally:
        app.conf.task_always_eager = False

    assert (run.state, run.result) == (State.SUCCESS, 3)
    assert run.published_at is not None


@pytest.mark.django_db
def test_the_start_of_a_later_attempt_wins_over_the_retry_of_an_earlier_one():
    run = make_run(state=State.STARTED, retries=0)
    now = timezone.now()
    tracking.record_start(run.task_id, attempt=1, worker="w", now=now)

    moved = tracking.record_retry(run.task_id, attempt=0, exception="late", traceback="", now=now)

    run.refresh_from_db()
    assert (moved, run.state, run.retries) == (0, State.STARTED, 1)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "state", [State.SUCCESS, State.FAILURE, State.REVOKED, State.EXPIRED, State.IGNORED]
)
def test_a_finished_run_does_not_change_any_more(state):
    run = make_run(state=state, finished_at=timezone.now())
    now = timezone.now()

    moved = [
        tracking.record_start(run.task_id, attempt=1, worker="w", now=now),
        tracking.record_success(run.task_id, attempt=1, result=1, now=now),
        tracking.record_failure(run.task_id, attempt=1, exception="", traceback="", now=now),
    ]

    assert moved == [0, 0, 0]


@pytest.mark.django_db
def test_a_late_report_corrects_a_lost_run():
    run = make_run(state=State.LOST, finished_at=timezone.now())

    tracking.record_success(run.task_id, attempt=0, result=1, now=timezone.now())

    run.refresh_from_db()
    assert run.state == State.SUCCESS


@pytest.mark.django_db
def test_each_report_is_one_update(django_assert_num_queries):
    run = make_run(state=State.PENDING)

    with django_assert_num_queries(2) as captured:
        tracking.record_start(run.task_id, attempt=0, worker="w", now=timezone.now())
        tracking.record_success(run.task_id, attempt=0, result=1, now=timezone.now())

    assert all(query["sql"].startswith("UPDATE") for query in captured)


@pytest.mark.django_db
def test_a_database_that_does_not_answer_breaks_no_run(caplog):
    def refuse(execute, sql, params, many, context):
        raise DatabaseError("gone")

    app.conf.task_always_eager = True
    try:
        with connection.execute_wrapper(refuse):
            result = add.apply_async([1], task_id="x", headers={"celery_admin_runner_run": "x"})
    finally:
        app.conf.task_always_eager = False

    assert result.get() == 3
    assert "could not record the start of run x: gone" in caplog.text


def test_secret_keys_are_masked_in_a_result_that_is_no_json():
    cyclic: dict[str, object] = {"password": "Sesame4"}
    cyclic["itself"] = cyclic

    texts = [
        str(results.storable_result({"password": "Sesame4", "number": float("nan")})),
        str(results.storable_result(cyclic)),
    ]

    assert all("forced_json" in text for text in texts)
    assert not any("Sesame4" in text for text in texts)
