from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator
from celery.signals import worker_ready
from django.core.asgi import get_asgi_application
from django.core.signals import request_finished
from django.core.wsgi import get_wsgi_application
from django.db import connections
from django.test import RequestFactory
from django.utils import timezone

from celery_admin_runner import startup
from celery_admin_runner.models import Lease, TaskRunRecord
from tests.conftest import running_worker
from tests.factories import make_run
from tests.waiting import wait_until

#: Starts Django, and tells of whatever leaves the process.
WATCHED_SETUP = """
import sys

seen = []
WATCHED = ("socket.connect", "sqlite3.connect", "_thread.start_new_thread")
sys.addaudithook(lambda event, arguments: seen.append(event) if event in WATCHED else None)

import django

django.setup()
"""
TELL = """
print("seen:", seen, "tasks imported:", "tests.tasks" in sys.modules)
"""
CHECK = """
from django.core.management import execute_from_command_line

execute_from_command_line(["manage.py", "check"])
"""
PRUNE_IN_BACKGROUND = """
from datetime import timedelta

import django

django.setup()

from celery_admin_runner import startup

startup.prune_in_background(timedelta(days=28))
print("went on")
"""
MONTH = timedelta(days=28)


@pytest.fixture
def new_process():
    """Let this process be one that has served no request yet."""
    startup.connect()
    yield
    for handler in startup.HANDLERS:
        request_finished.disconnect(startup.on_request_finished, sender=handler)


@pytest.fixture
def old_run(transactional_db):
    return make_run(finished_at=timezone.now() - timedelta(days=60))


def is_pruned():
    return not TaskRunRecord.objects.exists()


def is_at_rest():
    return all(thread.name != startup.THREAD_NAME for thread in threading.enumerate())


def serve_a_request():
    """Serve a request as a web server does, to the end of the response."""
    environ = RequestFactory().get("/nowhere/").environ
    response = get_wsgi_application()(environ, lambda status, headers: None)
    response.close()


async def serve_a_request_over_asgi():
    """Serve a request as an asynchronous web server does."""
    scope = {"type": "http", "method": "GET", "path": "/nowhere/", "headers": []}
    communicator = ApplicationCommunicator(get_asgi_application(), scope)
    await communicator.send_input({"type": "http.request"})
    assert (await communicator.receive_output(timeout=10))["status"] == 404
    await communicator.wait(timeout=10)


def in_a_process(code, **environment):
    """Run ``code`` in a process of its own, where warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_django_starts_also_where_there_are_no_forks_and_few_signals():
    code = """
import asyncio, concurrent.futures, logging, os, random, signal, threading
del os.register_at_fork, signal.SIGUSR1, signal.SIGKILL, signal.pthread_sigmask
import django
django.setup()
"""

    result = in_a_process(code)

    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("new_process", "old_run")
def test_the_first_request_of_a_process_prunes_in_the_background(configure):
    configure(PRUNE_ON_STARTUP=True)

    serve_a_request()

    wait_until(is_at_rest, why="the thread does not end")
    assert is_pruned()


@pytest.mark.usefixtures("new_process", "old_run")
def test_the_first_request_over_asgi_prunes_in_the_background(configure):
    configure(PRUNE_ON_STARTUP=True)

    async_to_sync(serve_a_request_over_asgi)()

    wait_until(is_at_rest, why="the thread does not end")
    assert is_pruned()


@pytest.mark.usefixtures("new_process", "old_run")
def test_only_the_first_request_of_a_process_prunes(configure):
    serve_a_request()
    configure(PRUNE_ON_STARTUP=True)

    serve_a_request()

    assert is_at_rest()
    assert not is_pruned()


@pytest.mark.usefixtures("new_process", "old_run")
def test_the_test_client_starts_nothing(configure, client):
    configure(PRUNE_ON_STARTUP=True)

    client.get("/nowhere/")

    assert is_at_rest()
    assert not is_pruned()


@pytest.mark.usefixtures("old_run")
def test_a_worker_that_is_ready_prunes_in_the_background(configure):
    configure(PRUNE_ON_STARTUP=True)

    worker_ready.send(sender=None)

    wait_until(is_at_rest, why="the thread does not end")
    assert is_pruned()


@pytest.mark.usefixtures("old_run")
def test_a_real_worker_prunes_when_it_is_ready():
    with running_worker("pruning", TEST_PRUNE_ON_STARTUP="1"):
        wait_until(is_pruned, why="the worker pruned nothing")


@pytest.mark.usefixtures("old_run")
@pytest.mark.parametrize("keys", [{"PRUNE_ON_STARTUP": False}, {"RETENTION": None}])
def test_nothing_is_started_that_the_settings_do_not_ask_for(configure, keys):
    configure(**{"PRUNE_ON_STARTUP": True, **keys})

    thread = startup.start()

    assert thread is None
    assert not is_pruned()


def test_runs_are_pruned_once_a_day_at_most(old_run):
    first = startup.prune_once_a_day(MONTH)
    make_run(finished_at=old_run.finished_at)

    second = startup.prune_once_a_day(MONTH)

    assert (first, second) == (1, 0)


def test_runs_are_pruned_again_the_next_day(old_run):
    startup.prune_once_a_day(MONTH)
    make_run(finished_at=old_run.finished_at)
    leases = Lease.objects.filter(name=startup.LEASE_NAME)
    leases.update(expires_at=timezone.now() - timedelta(seconds=1))

    number = startup.prune_once_a_day(MONTH)

    assert number == 1


@pytest.mark.usefixtures("old_run")
def test_of_many_processes_at_once_one_prunes():
    def start(_):
        try:
            return startup.prune_once_a_day(MONTH)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(start, range(4)))

    assert sorted(numbers) == [0, 0, 0, 1]


@pytest.mark.usefixtures("old_run")
def test_what_went_is_logged(caplog):
    caplog.set_level(logging.INFO, "celery_admin_runner")

    startup.prune_in_background(MONTH)

    assert caplog.messages == ["Pruned 1 old task runs on startup."]


@pytest.mark.usefixtures("old_run")
def test_a_retention_before_all_calendars_is_logged(caplog):
    startup.prune_in_background(timedelta.max)

    assert "before the year 1" in caplog.text
    assert not is_pruned()


@pytest.mark.parametrize("path", ["missing/folder/db.sqlite3", "not-migrated.sqlite3"])
def test_a_database_that_is_away_or_empty_is_logged_and_left_alone(tmp_path, path):
    result = in_a_process(PRUNE_IN_BACKGROUND, DATABASE_URL=f"sqlite:///{tmp_path / path}")

    assert result.returncode == 0, result.stderr
    assert result.stdout == "went on\n"
    assert "Old task runs could not be pruned on startup" in result.stderr
    assert "Traceback" not in result.stderr


def test_starting_django_asks_no_database_no_broker_and_starts_no_thread():
    result = in_a_process(
        WATCHED_SETUP + TELL,
        DATABASE_URL="sqlite:////missing/folder/db.sqlite3",
        CELERY_BROKER_URL="redis://127.0.0.1:1/0",
    )

    assert result.stdout == "seen: [] tasks imported: False\n", result.stderr


def test_a_shared_task_goes_to_the_named_app_from_its_first_call_on():
    # As in a web process, or a shell, where nobody else has imported the app.
    tell = "from celery import current_app; print(current_app.main)"
    result = in_a_process(WATCHED_SETUP + tell)

    assert result.stdout == "tests\n", result.stderr


def test_the_checks_pass_with_a_database_and_a_broker_that_refuse_connections():
    # Not on SQLite: there Django 6.1 asks the database itself, for each JSON field.
    result = in_a_process(
        WATCHED_SETUP + CHECK + TELL,
        DATABASE_URL="postgres://nobody@127.0.0.1:1/nothing",
        CELERY_BROKER_URL="redis://127.0.0.1:1/0",
    )

    assert result.returncode == 0, result.stderr
    assert "no issues" in result.stdout
    # They look at each task, and so import them.
    assert "seen: [] tasks imported: True" in result.stdout
