"""The command that sends what is due."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from celery_admin_runner.states import State
from tests.brokers import NO_BROKER, broker_away
from tests.factories import make_run
from tests.waiting import wait_for_state


def make_due(**fields: object) -> object:
    """Make a run that is due."""
    return make_run(**{"state": State.SCHEDULED, "due_at": timezone.now(), "args": [1], **fields})


def dispatch_once(**options: object) -> str:
    """Run the command with --once, and return what it prints."""
    output = StringIO()
    call_command("dispatch_taskruns", once=True, stdout=output, **options)
    return output.getvalue()


@pytest.mark.django_db(transaction=True)
def test_one_pass_sends_what_is_due():
    run = make_due()

    assert dispatch_once() == "1 run sent.\n"

    run.refresh_from_db()
    assert run.state == State.PENDING
    assert dispatch_once() == "0 runs sent.\n"


@pytest.mark.django_db(transaction=True)
def test_one_pass_tells_by_its_exit_code_of_what_could_not_be_sent():
    make_due(task_name="gone.task")

    with pytest.raises(SystemExit) as exited:
        dispatch_once(verbosity=0)

    assert exited.value.code == 1


@pytest.mark.django_db(transaction=True)
def test_one_pass_tells_of_a_broker_that_is_away():
    make_due()

    with broker_away(), pytest.raises(CommandError, match="The broker is away"):
        dispatch_once()


@pytest.mark.parametrize("seconds", ["0", "-1", "0.09", "nan", "x", "3601"])
def test_an_interval_that_makes_no_sense_is_refused(seconds):
    with pytest.raises(CommandError, match="seconds"):
        call_command("dispatch_taskruns", f"--interval={seconds}")


@contextmanager
def running_command(**environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "django", "dispatch_taskruns", "--interval", "0.1"],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.django_db(transaction=True)
def test_the_command_sends_until_it_is_told_to_stop():
    run = make_due()

    with running_command() as process:
        # A worker of another test may have begun it.
        wait_for_state(run, State.PENDING, State.STARTED, State.SUCCESS)
        process.send_signal(signal.SIGTERM)

        output, errors = process.communicate(timeout=30)

    assert (process.returncode, errors) == (0, "")
    assert output == "Due runs are sent, every 0.1 s, until told to stop.\n"


@pytest.mark.django_db(transaction=True)
def test_the_command_stops_though_the_broker_is_away():
    make_due()

    with running_command(CELERY_BROKER_URL=NO_BROKER) as process:
        line = process.stderr.readline()
        process.send_signal(signal.SIGINT)

        process.communicate(timeout=30)

    assert line.startswith("Due runs wait: the broker is away")
    assert process.returncode == 0
