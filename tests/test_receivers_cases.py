"""What Celery signals in each case, and what the journal makes of it."""

from __future__ import annotations

import signal

import pytest
from django.utils import timezone

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.factories import make_user
from tests.later import LATER, send_later
from tests.result_backend import OURS
from tests.tasks import add
from tests.waiting import wait_for_state, wait_for_words, wait_until


def ended(run: TaskRunRecord, state: State, seconds: float = 30) -> TaskRunRecord:
    """Return a run in its end state, with times in order, and a worker if it started."""
    wait_for_state(run, *[end for end in State if end not in (State.UNSENT, State.PENDING)])
    wait_for_state(run, state, seconds=seconds)
    assert run.created_at <= run.published_at <= run.finished_at
    if run.started_at is not None:
        assert run.created_at <= run.started_at <= run.finished_at
        assert run.worker.startswith("session")
    return run


def let_pass() -> None:
    """Return when every report of the tasks before is certainly in."""
    wait_for_state(TaskRunner().run("tests.tasks.add", [1]), State.SUCCESS)


@pytest.mark.parametrize(
    ("task", "args", "state", "exception"),
    [
        ("add", [1], State.SUCCESS, ""),
        ("fail", ["no"], State.FAILURE, "ValueError: no"),
        ("ignore", [], State.IGNORED, "The task asked to be ignored."),
        ("reject", [], State.FAILURE, "celery.exceptions.Reject: "),
        ("stop_itself", [], State.REVOKED, "Cancelled half way."),
        ("exit_process", [], State.FAILURE, " 3"),
        ("exceed_soft_limit", [], State.FAILURE, "SoftTimeLimitExceeded"),
        ("exceed_hard_limit", [], State.FAILURE, "TimeLimitExceeded"),
        ("return_in_vain", [], State.SUCCESS, ""),
        ("apply_others", [], State.SUCCESS, ""),
        ("retry_later", [0], State.SUCCESS, ""),
        ("replace_itself", [], State.SUCCESS, ""),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_run_ends_as_it_did_and_ends_once(worker, task, args, state, exception):
    run = TaskRunner().run(f"tests.tasks.{task}", args)

    ended(run, state)
    assert exception in run.exception
    assert bool(run.exception) is bool(exception)
    assert run.started_at is not None
    end = run.finished_at
    let_pass()
    run.refresh_from_db()
    assert (run.state, run.finished_at) == (state, end)


@pytest.mark.parametrize(
    ("task", "result", "retries"),
    [
        ("return_in_vain", 7, 0),
        ("apply_others", 3, 0),
        ("retry_later", "later", 1),
        ("replace_itself", 42, 0),
    ],
)
def test_a_run_has_its_own_result_and_attempts(worker, task, result, retries):
    run = TaskRunner().run(f"tests.tasks.{task}", [0] if task == "retry_later" else [])

    ended(run, State.SUCCESS)
    assert (run.result, run.retries) == (result, retries)


def test_arguments_that_do_not_fit_are_a_failure(worker, configure):
    configure(TRACK=["*"])

    result = app.send_task("tests.tasks.add", ["1", 2, 3, 4])

    run = ended(TaskRunRecord.objects.get(task_id=result.id), State.FAILURE)
    assert "TypeError" in run.exception


@pytest.mark.parametrize("task", ["die_at_first", "reject_at_first"])
def test_a_message_that_is_delivered_again_runs_again(worker, tmp_path, task):
    run = TaskRunner().run(f"tests.tasks.{task}", [str(tmp_path / "deliveries")])

    ended(run, State.SUCCESS)
    assert (run.result, run.retries, run.exception) == ("xx", 0, "")


def test_a_run_that_is_to_be_retried_later_tells_when(worker):
    before = timezone.now()

    run = TaskRunner().run("tests.tasks.retry_later", [600])

    wait_for_state(run, State.RETRY)
    assert 595 < (run.eta - before).total_seconds() < 700
    assert (run.retries, run.exception) == (0, "ValueError: not yet")
    assert "retry_later" in run.traceback
    app.control.revoke(run.task_id)


def test_revoking_a_run_that_waits_for_its_time_ends_it_then(worker, configure):
    configure(TRACK=["tests.tasks.add"], SCHEDULE_ETA=False)
    run = send_later("tests.tasks.add", [1], countdown=LATER)
    wait_for_words(worker, f"[{run.task_id}] received")
    app.control.revoke(run.task_id)

    ended(run, State.REVOKED)
    assert run.exception == "Revoked before it started."
    assert run.started_at is None


def test_revoking_without_terminating_stops_nothing(worker, tmp_path):
    path = tmp_path / "go"
    run = TaskRunner().run("tests.tasks.wait_for_file", [str(path)])
    wait_for_state(run, State.STARTED)

    app.control.revoke(run.task_id, reply=True, timeout=1)
    path.write_text("on")

    ended(run, State.SUCCESS)


def test_a_run_that_is_asked_to_stop_by_a_signal_ends_as_its_process_says(worker, tmp_path):
    run = TaskRunner().run("tests.stoppable_tasks.polite", [str(tmp_path)])
    # Celery catches what is raised in the receivers of a start.
    wait_until((tmp_path / "begun").exists)

    app.control.revoke(run.task_id, terminate=True, signal="SIGUSR1")

    ended(run, State.FAILURE)
    # In the middle of a statement mysqlclient raises something else on top of it.
    assert "SoftTimeLimitExceeded" in run.traceback


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_run_that_is_terminated_is_cancelled(worker, tmp_path, name):
    assert getattr(signal, name)
    run = TaskRunner().run("tests.tasks.wait_for_file", [str(tmp_path / "never")])
    wait_for_state(run, State.STARTED)
    TaskRunRecord.objects.filter(pk=run.pk).update(state=State.CANCELLING)

    app.control.revoke(run.task_id, terminate=True, signal=name)

    ended(run, State.REVOKED)
    assert run.exception == "Terminated while it ran."


def test_a_user_who_runs_a_task_is_not_asked_for_by_its_worker(worker):
    run = TaskRunner(user=make_user("run_celerytask")).run("tests.tasks.add", [1])

    ended(run, State.SUCCESS)


def test_what_is_no_run_leaves_no_trace(worker):
    if app.conf.result_backend == OURS:
        pytest.skip("our result backend keeps the result of any task in a row")
    result = add.delay(1)
    let_pass()

    assert not TaskRunRecord.objects.filter(task_id=result.id).exists()
