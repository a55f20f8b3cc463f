"""A publisher that dies: what its run shows, and what can still be done with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from celery_admin_runner.exceptions import NotSendable
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.waiting import wait_for_state

#: Runs a task, and is killed while Celery sends the signal that is named.
SCRIPT = """
import os, signal
import django
django.setup()
from celery import signals
from celery_admin_runner.runner import TaskRunner
def die(**kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
signals.{signal}.connect(die)
TaskRunner().run("tests.tasks.add", [40])
"""


def run_and_die(signal_name: str) -> TaskRunRecord:
    """Run a task in a process that is killed at this signal; return the row it left."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(signal=signal_name)],
        env={**os.environ, "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"])},
        timeout=60,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    return TaskRunRecord.objects.get()


def test_a_publisher_killed_before_it_sends_leaves_a_run_that_can_be_sent(worker):
    run = run_and_die("before_task_publish")
    assert run.state == State.UNSENT
    with pytest.raises(NotSendable):
        TaskRunner().send_again(run)
    TaskRunRecord.objects.update(claimed_at=timezone.now() - timedelta(minutes=2))

    TaskRunner().send_again(run)

    wait_for_state(run, State.SUCCESS)
    assert run.result == 42


def test_a_publisher_killed_after_it_sent_leaves_a_run_that_its_worker_tells_of(worker):
    run = run_and_die("after_task_publish")

    wait_for_state(run, State.SUCCESS)
    assert run.result == 42
    with pytest.raises(NotSendable):
        TaskRunner().send_again(run)
