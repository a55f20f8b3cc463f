"""Each worker sends what is due, whatever its pool is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from threading import enumerate as all_threads

import pytest
from django.conf import settings
from django.utils import timezone

from celery_admin_runner.bootsteps import KILL_STEP, THREAD_NAME, DispatchStep, add_steps
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.conftest import running_worker
from tests.factories import make_run
from tests.waiting import wait_for_state, wait_until


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_sends_what_is_due_runs_it_and_ends_in_peace(pool):
    queue = f"{settings.QUEUE}-dispatch-{pool}"
    arguments = ("--pool", pool, "--concurrency", "1", "-Q", queue)
    with running_worker(f"dispatch-{pool}", *arguments, TEST_DISPATCH="worker") as process:
        eta = timezone.now() + timedelta(seconds=1)
        run = TaskRunner().run("tests.tasks.add", [1], eta=eta, queue=queue)
        first = make_run(state=State.STARTED)
        waiting = TaskRunner().run("tests.tasks.add", [2], queue=queue, depends_on=[first])
        type(first).objects.filter(pk=first.pk).transition(
            sources=[State.STARTED], target=State.SUCCESS, finished_at=timezone.now()
        )

        wait_for_state(run, State.SUCCESS)
        wait_for_state(waiting, State.SUCCESS)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: process.poll() is not None, why="the worker does not end")

    assert process.returncode == 0
    assert run.started_at >= eta
    log = (Path(settings.FOLDER) / f"dispatch-{pool}.log").read_text()
    assert "Traceback" not in log


class Worker:
    """What the step needs of a worker."""

    def __init__(self) -> None:
        self.app = self
        self.steps: dict[str, set[type]] = {"worker": set()}


def threads() -> list[str]:
    return [thread.name for thread in all_threads() if thread.name == THREAD_NAME]


def test_a_worker_gets_our_steps_when_it_begins():
    worker = Worker()

    add_steps(worker)

    assert worker.steps["worker"] == {DispatchStep, KILL_STEP}


def test_what_only_workers_need_is_imported_by_no_other_process():
    ours = "django.setup(); import sys; assert 'celery_admin_runner.admin' in sys.modules"
    workers = "print({'celery.worker.control', 'celery_admin_runner.killing'} & set(sys.modules))"

    told = subprocess.run(
        [sys.executable, "-c", f"import django; {ours}; {workers}"],
        check=True,
        capture_output=True,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        text=True,
    )

    assert told.stdout.strip() == "set()"


@pytest.mark.parametrize(("who", "is_included"), [("worker", True), ("beat", False)])
def test_the_step_is_for_workers_that_are_to_dispatch(configure, who, is_included):
    configure(DISPATCH=who)

    assert DispatchStep(Worker()).include_if(Worker()) is is_included


@pytest.mark.parametrize("end", ["stop", "terminate"])
@pytest.mark.django_db(transaction=True)
def test_the_thread_ends_with_its_worker(end):
    step = DispatchStep(Worker())

    step.start(Worker())
    assert threads() == [THREAD_NAME]
    getattr(step, end)(Worker())

    assert threads() == []
