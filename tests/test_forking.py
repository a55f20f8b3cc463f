"""What a process forks while its threads write: children that can write too."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from threading import Event, Thread

import pytest
from django.db import connection

from celery_admin_runner import forking
from celery_admin_runner.forking import fork_waits
from celery_admin_runner.states import State
from tests.factories import make_run
from tests.waiting import PATIENCE, wait_until

on_sqlite = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="a server keeps its locks to itself"
)
# Python 3.12 warns of a fork beside threads.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

#: Forks while a thread is in the midst of what it records; what records goes on when the fork
#: begins. Ends as its child does: by 0 if that could write.
SCRIPT = """
import os, threading
import django
django.setup()
from django.db import transaction
from celery_admin_runner import recording
from celery_admin_runner.states import State, UNFINISHED
recording._process.is_worker = True
is_inside, forks = threading.Event(), threading.Event()
def move():
    return recording.journal().transition(sources=UNFINISHED, target=State.STARTED)
def move_slowly():
    with transaction.atomic(using=recording.database()):
        move()
        is_inside.set()
        forks.wait()
thread = threading.Thread(target=recording.record, args=[move_slowly])
thread.start()
is_inside.wait()
# Of these functions Python calls the latest first.
os.register_at_fork(before=forks.set)
child = os.fork()
if not child:
    os._exit(0 if recording.record(move) == 1 else 5)
thread.join()
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def fork():
    """Fork, and return when the child has ended."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


@pytest.fixture
def statement():
    """A thread that is in a statement until this is set."""
    may_end = Event()
    with ExitStack() as stack:

        def work():
            with fork_waits(connection):
                begun.set()
                may_end.wait(PATIENCE)

        begun, thread = Event(), Thread(target=work)
        thread.start()
        stack.callback(thread.join)
        stack.callback(may_end.set)
        begun.wait(PATIENCE)
        yield may_end


@on_sqlite
@pytest.mark.django_db(transaction=True)
def test_a_child_that_is_forked_while_a_thread_records_can_write():
    make_run(state=State.PENDING)

    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env={
            **os.environ,
            "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
            "TEST_DATABASE_TIMEOUT": "2",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (process.returncode, process.stderr) == (0, "")


@on_sqlite
@forks
def test_a_fork_does_not_wait_for_ever(statement, monkeypatch):
    monkeypatch.setattr(forking, "PATIENCE", 0.01)

    fork()

    assert not statement.is_set()
    assert len(forking._gate.busy) == 1


@on_sqlite
@forks
def test_a_fork_does_not_wait_for_its_own_thread(monkeypatch):
    monkeypatch.setattr(forking, "PATIENCE", float("inf"))

    with fork_waits(connection), fork_waits(connection):
        fork()
        assert forking._gate.busy

    assert not forking._gate.busy


@on_sqlite
@forks
def test_no_statement_begins_while_a_fork_waits(statement, monkeypatch):
    order = []

    def work():
        with fork_waits(connection):
            order.append("statement")

    def fork_and_tell():
        forking._wait_for_statements()
        order.append("fork")
        forking._go_on()

    forking_thread = Thread(target=fork_and_tell)
    forking_thread.start()
    wait_until(lambda: forking._gate.forking)
    thread = Thread(target=work)
    thread.start()
    statement.set()
    forking_thread.join(PATIENCE)
    thread.join(PATIENCE)

    assert order == ["fork", "statement"]
    assert not forking._gate.forking


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite's locks are the process's own")
@forks
def test_a_fork_does_not_wait_for_a_server(statement, monkeypatch):
    monkeypatch.setattr(forking, "PATIENCE", float("inf"))

    fork()

    assert not statement.is_set()
