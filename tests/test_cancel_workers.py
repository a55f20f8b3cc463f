"""Cancelling with real workers: what Celery makes of it, in each pool."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from django.conf import settings

from celery_admin_runner.control import Answer
from celery_admin_runner.exceptions import NotCancellable
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.conftest import running_worker, worker_name
from tests.factories import make_user
from tests.later import LATER, send_later
from tests.waiting import wait_for_state, wait_for_words, wait_until

TASKS = "tests.stoppable_tasks"


@pytest.fixture
def queue_of_its_own(transactional_db):
    """The queue of a worker for one test.

    A process that went on after SIGTERM takes the next task. And billiard has that one ended by
    the next SIGTERM without a word: other tests wait for its last words.
    """
    queue = f"{settings.QUEUE}-own"
    with running_worker("own", "--concurrency", "1", "-Q", queue):
        yield queue


def answer_of(worker: str, answers: tuple[Answer, ...]) -> Answer:
    """Return what a worker answered: others may share the broker of the tests."""
    [answer] = [answer for answer in answers if answer.worker == worker]
    return answer


def running(name: str, *args: object, queue: str | None = None) -> TaskRunRecord:
    """Run a task, and return as soon as a worker has begun it."""
    run = TaskRunner().run(name, args, queue=queue)
    return wait_for_state(run, State.STARTED)


def test_a_running_run_is_terminated(worker, tmp_path):
    user = make_user("cancel_taskrunrecord", "view_taskrunrecord")
    run = running("tests.tasks.wait_for_file", str(tmp_path / "never"))

    cancellation = TaskRunner(user).cancel(run, terminate=True)

    answer = answer_of(worker_name("session"), cancellation.answers)
    assert (answer.text, answer.is_ok) == (
        "It has sent the signal to the process of the run.",
        True,
    )
    wait_for_state(run, State.REVOKED)
    assert run.exception == "Terminated while it ran."
    assert run.cancel_requested_by == user
    assert run.cancel_requested_at <= run.finished_at


def test_a_run_that_goes_on_after_sigterm_stays_cancelling_until_it_is_killed(worker, tmp_path):
    run = running(f"{TASKS}.stubborn", str(tmp_path))
    wait_until((tmp_path / "begun").exists)

    cancellation = TaskRunner().cancel(run, terminate=True)
    wait_until((tmp_path / "asked").exists)
    assert cancellation.state == State.CANCELLING
    run.refresh_from_db()
    assert run.state == State.CANCELLING
    TaskRunner().cancel(run, kill=True)

    wait_for_state(run, State.REVOKED)


def test_a_run_that_was_asked_to_stop_and_does_not_look_is_killed(worker, tmp_path):
    run = running("tests.tasks.wait_for_file", str(tmp_path / "never"))
    assert TaskRunner().cancel(run).state == State.CANCELLING

    TaskRunner().cancel(run, kill=True)

    wait_for_state(run, State.REVOKED)
    assert run.exception == "Terminated while it ran."


def test_a_run_that_goes_on_after_sigterm_and_ends_well_has_succeeded(queue_of_its_own, tmp_path):
    run = running(f"{TASKS}.stubborn", str(tmp_path), queue=queue_of_its_own)
    wait_until((tmp_path / "begun").exists)
    TaskRunner().cancel(run, terminate=True)
    wait_until((tmp_path / "asked").exists)

    (tmp_path / "end").touch()

    wait_for_state(run, State.SUCCESS)
    assert run.result == "went on"
    assert run.cancel_requested_at is not None


def test_a_run_that_looks_for_it_stops_by_itself(worker, tmp_path):
    run = running(f"{TASKS}.polite", str(tmp_path))
    wait_until((tmp_path / "begun").exists)

    assert TaskRunner().cancel(run).state == State.CANCELLING

    wait_for_state(run, State.REVOKED)


def test_a_run_that_waits_in_a_worker_for_its_eta_never_begins(worker, configure, tmp_path):
    configure(TRACK=[f"{TASKS}.*"], SCHEDULE_ETA=False)
    # Guarded and unguarded, they wait together.
    states = {f"{TASKS}.guarded": State.REVOKED, f"{TASKS}.unguarded": State.CANCELLING}
    runs = [send_later(name, [str(tmp_path / name)], countdown=LATER) for name in states]
    for run in runs:
        wait_for_words(worker, f"{run.task_id}] received")

    cancellations = [TaskRunner().cancel(run) for run in runs]

    assert [cancellation.state for cancellation in cancellations] == list(states.values())
    for run in runs:
        wait_for_words(worker, f"Discarding revoked task: {run.task_name}[{run.task_id}")
        wait_for_state(run, State.REVOKED)
        assert run.started_at is None
    assert list(tmp_path.iterdir()) == []


def test_a_guarded_run_that_was_cancelled_begins_in_no_worker_that_knows_nothing_of_it(
    worker, configure, tmp_path
):
    configure(TRACK=[f"{TASKS}.*"], SCHEDULE_ETA=False)
    run = send_later(f"{TASKS}.guarded", [str(tmp_path / "ran")], countdown=LATER)
    # The workers are not told, as those that were started again since were not.
    runner = TaskRunner()
    runner._broker_away_at = float("inf")

    assert runner.cancel(run).state == State.REVOKED

    wait_for_words(worker, f"Task {run.task_name}[{run.task_id}] ignored")
    assert TaskRunRecord.objects.get().state == State.REVOKED
    assert not (tmp_path / "ran").exists()


def test_a_guarded_run_that_is_to_be_tried_again_is_cancelled_at_once(worker, tmp_path):
    run = TaskRunner().run(f"{TASKS}.tried_again", [str(tmp_path), LATER])
    wait_for_state(run, State.RETRY)

    assert TaskRunner().cancel(run).state == State.REVOKED

    wait_for_words(worker, f"Discarding revoked task: {run.task_name}[{run.task_id}")
    assert TaskRunRecord.objects.get().state == State.REVOKED
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


@pytest.mark.parametrize("name", ["guarded", "unguarded"])
def test_of_cancel_and_a_real_worker_either_is_right(worker, tmp_path, name):
    runner = TaskRunner()
    paths = {}
    for number in range(15):
        run = runner.run(f"{TASKS}.{name}", [str(tmp_path / str(number))])
        paths[run.task_id] = tmp_path / str(number)
        # Some are cancelled at once, some when the worker may have had them.
        time.sleep(0.01 * number)
        with suppress(NotCancellable):
            runner.cancel(run)

    wait_until(lambda: not TaskRunRecord.objects.unfinished().exists())
    after = runner.run("tests.tasks.add", [1])
    wait_for_state(after, State.SUCCESS)
    states = dict(TaskRunRecord.objects.exclude(pk=after.pk).values_list("task_id", "state"))
    assert states == {
        task_id: State.SUCCESS if path.exists() else State.REVOKED
        for task_id, path in paths.items()
    }


# Pools that can't end a run


@pytest.mark.usefixtures("transactional_db")
def test_a_pool_of_threads_says_that_it_can_not_and_the_run_goes_on(threads_queue, tmp_path):
    path = tmp_path / "file"
    run = running("tests.tasks.wait_for_file", str(path), queue=threads_queue)

    cancellation = TaskRunner().cancel(run, terminate=True)

    answer = answer_of(worker_name("threads"), cancellation.answers)
    assert not answer.is_ok
    assert answer.text.startswith("Its pool can't stop a run")
    assert cancellation.state == State.CANCELLING
    path.write_text("done")
    wait_for_state(run, State.SUCCESS)
    assert run.result == "done"


@pytest.mark.usefixtures("transactional_db")
def test_a_run_in_a_thread_stops_by_itself(threads_queue, tmp_path):
    run = running(f"{TASKS}.polite", str(tmp_path), queue=threads_queue)

    TaskRunner().cancel(run)

    wait_for_state(run, State.REVOKED)


@pytest.mark.usefixtures("transactional_db")
def test_a_solo_worker_is_silent_while_it_runs_something(solo_queue, tmp_path):
    path = tmp_path / "file"
    run = running("tests.tasks.wait_for_file", str(path), queue=solo_queue)

    cancellation = TaskRunner().cancel(run, terminate=True)

    answer = answer_of(worker_name("solo"), cancellation.answers)
    assert not answer.is_ok
    assert answer.text.startswith("This worker did not answer")
    assert cancellation.state == State.CANCELLING
    path.write_text("done")
    wait_for_state(run, State.SUCCESS)
