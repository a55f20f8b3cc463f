"""Unique and ignored tasks with a real worker and a real result backend; canvases too."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from django.conf import settings

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.conftest import running_worker
from tests.result_backend import OURS, using_backend
from tests.unique_tasks import (
    at_most_hourly,
    call_again,
    end_once,
    once_of_two,
    total,
    tracked,
    wait_once,
)
from tests.waiting import wait_for_state

QUEUE = f"unique-{settings.QUEUE}"
#: Long enough for a task on a busy machine; looked at often.
PATIENCE = {"timeout": 30, "interval": 0.05}


@pytest.fixture(scope="module")
def unique_worker(django_db_setup, django_db_blocker):
    """A worker of this module's own, with our result backend."""
    with running_worker(
        "unique", "--concurrency", "2", CELERY_RESULT_BACKEND=OURS, TEST_QUEUE=QUEUE
    ) as process:
        yield process
        # Only the parent: it need not wait for children that it did not end.
        process.terminate()
        process.wait(15)


@pytest.fixture(autouse=True)
def backend(transactional_db, unique_worker):
    """Our result backend, here and in the worker that takes what is sent here."""
    with using_backend(task_default_queue=QUEUE) as backend:
        yield backend


def run_of(result):
    return TaskRunRecord.objects.get(task_id=result.id)


def test_all_callers_get_the_result_of_the_one_run(tmp_path):
    path = tmp_path / "go"
    results = [wait_once.delay(str(path)) for _ in range(3)]
    run = wait_for_state(run_of(results[0]), State.STARTED)
    results.append(wait_once.delay(path=str(path)))

    path.write_text("one")

    assert [result.get(**PATIENCE) for result in results] == ["one"] * 4
    assert {result.id for result in results} == {run.task_id}
    assert wait_once.delay(str(path)).id != run.task_id


@pytest.mark.parametrize(
    ("how", "state"),
    [("success", State.SUCCESS), ("failure", State.FAILURE), ("ignore", State.IGNORED)],
)
def test_an_end_lets_the_same_call_run_again(how, state):
    first = run_of(end_once.delay(how))
    wait_for_state(first, state)

    second = run_of(end_once.delay(how))

    assert second != first
    wait_for_state(second, state)


def test_a_process_that_is_lost_lets_the_same_call_run_again():
    lost = run_of(end_once.delay("kill"))
    wait_for_state(lost, State.FAILURE)

    other = run_of(end_once.apply_async(["kill"], expires=-1))

    assert "WorkerLostError" in lost.exception
    assert other != lost
    wait_for_state(other, State.EXPIRED)


def test_a_run_that_is_tried_again_keeps_the_key(tmp_path):
    path = tmp_path / "joined"

    result = end_once.delay("retry", str(path))

    assert result.get(**PATIENCE) == "well"
    assert path.read_text() == result.id
    assert run_of(result).retries == 1


def test_what_expires_in_its_queue_or_is_terminated_frees_the_key(tmp_path):
    expired = run_of(wait_once.apply_async([str(tmp_path / "never")], expires=-1))
    wait_for_state(expired, State.EXPIRED)
    running = run_of(wait_once.delay(str(tmp_path / "never")))
    assert running != expired
    wait_for_state(running, State.STARTED)

    TaskRunner().cancel(running, terminate=True)

    wait_for_state(running, State.REVOKED)
    assert running.active_key is None


def test_a_task_that_makes_the_call_that_it_is_joins_itself():
    result = call_again.delay()

    assert result.get(**PATIENCE) == result.id
    assert TaskRunRecord.objects.count() == 1


def test_each_member_of_a_group_runs():
    result = group(once_of_two.s(1), once_of_two.s(1), once_of_two.s(a=1)).apply_async()

    assert result.get(**PATIENCE) == [3, 3, 3]


def test_each_member_of_a_group_runs_though_the_same_call_is_active(tmp_path):
    path = tmp_path / "go"
    first = wait_once.delay(str(path))
    wait_for_state(run_of(first), State.STARTED)
    path.write_text("x")

    result = group(wait_once.s(str(path)), wait_once.s(str(path))).apply_async()

    assert result.get(**PATIENCE) == ["x", "x"]
    assert first.id not in [member.id for member in result]


def test_each_link_of_a_chain_runs():
    result = chain(once_of_two.s(1), once_of_two.si(1), once_of_two.s(5)).apply_async()

    assert result.get(**PATIENCE) == 8


def test_a_chord_of_unique_tasks_and_a_unique_body_ends():
    result = chord([once_of_two.s(1), once_of_two.s(1)], total.s()).apply_async()
    body = chord([tracked.s(1), tracked.s(2)], once_of_two.si(7)).apply_async()

    assert result.get(**PATIENCE) == 6
    assert body.get(**PATIENCE) == 9


def test_a_success_opens_the_window_and_a_member_of_a_canvas_runs_in_it():
    result = at_most_hourly.delay(1)
    assert result.get(**PATIENCE) == 1
    assert run_of(result).ignore_until is not None

    ignored = at_most_hourly.delay(1)
    member = group(at_most_hourly.s(1), at_most_hourly.s(2)).apply_async()

    assert (ignored.get(), ignored.state) == (None, "IGNORED")
    again = app.AsyncResult(ignored.id)
    assert (again.get(**PATIENCE), again.state) == (None, "IGNORED")
    assert member.get(**PATIENCE) == [1, 2]
    runs = {run.task_id: run.ignore_until for run in TaskRunRecord.objects.finished()}
    assert [bool(runs[child.id]) for child in member] == [False, True]
