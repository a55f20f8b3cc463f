from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from datetime import timedelta
from threading import Thread

import pytest
from celery import signals
from celery.fixups.django import DjangoWorkerFixup
from django.conf import settings
from django.core.signals import request_finished
from django.db import (
    DataError,
    InterfaceError,
    OperationalError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.utils import timezone

from celery_admin_runner import dispatch, recording
from celery_admin_runner.models import RecordingFault, TaskRunRecord
from celery_admin_runner.recording import OWN_ALIAS, database, journal, record, report
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import UNFINISHED, State
from tests.celery_app import app
from tests.factories import make_run
from tests.tasks import tracked_add
from tests.waiting import wait_for_state, wait_until

in_real_transactions = pytest.mark.django_db(transaction=True)
on_a_server = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has no server, and one writer at a time"
)
#: How a database names the session that asks, and how it ends one.
SESSION = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}
END_SESSION = {"postgresql": "SELECT pg_terminate_backend(%s)", "mysql": "KILL %s"}


@pytest.fixture
def in_worker(monkeypatch):
    """Be a worker, as far as recording knows."""
    monkeypatch.setattr(recording._process, "is_worker", True)
    monkeypatch.setattr(recording._process, "worker", "celery@here")
    yield
    recording.close()
    recording._process.start_counting()


def move(run, target=State.STARTED):
    return journal().filter(pk=run.pk).transition(sources=UNFINISHED, target=target)


def ask(alias, sql, *parameters):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()[0]


def own_session():
    return ask(OWN_ALIAS, SESSION[connection.vendor])


def in_thread(function):
    """Return what a function gives in a thread of its own, which has ended."""

    def work():
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@contextmanager
def failing(error, *, alias=OWN_ALIAS):
    """Let every statement of a connection fail."""

    def refuse(execute, sql, params, many, context):
        raise error

    with connections[alias].execute_wrapper(refuse):
        yield


# Which connection


@in_real_transactions
def test_outside_a_worker_records_go_by_the_callers_connection():
    assert database() == "default"


@in_real_transactions
def test_in_a_worker_records_go_by_a_connection_of_their_own(in_worker):
    run = make_run(state=State.PENDING)

    assert database() == OWN_ALIAS
    assert move(run) == 1
    assert connections[OWN_ALIAS].connection is not connection.connection


@pytest.mark.django_db
@pytest.mark.parametrize("is_worker", [False, True])
def test_in_a_test_case_records_belong_to_its_transaction(monkeypatch, is_worker):
    monkeypatch.setattr(recording._process, "is_worker", is_worker)
    outside = database()
    with transaction.atomic():
        inside = database()

    assert (outside, inside) == ("default", "default")


@on_a_server
@in_real_transactions
@pytest.mark.parametrize("is_worker", [False, True])
def test_in_a_transaction_records_are_committed_at_once_and_stay(monkeypatch, is_worker):
    monkeypatch.setattr(recording._process, "is_worker", is_worker)
    run = make_run(state=State.PENDING)

    with transaction.atomic():
        moved = move(run)
        seen = in_thread(lambda: TaskRunRecord.objects.get().state)
        transaction.set_rollback(True)

    run.refresh_from_db()
    assert (moved, seen, run.state) == (1, State.STARTED, State.STARTED)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="is about SQLite's one writer")
@in_real_transactions
@pytest.mark.parametrize("is_worker", [False, True])
def test_in_a_transaction_on_sqlite_records_are_the_callers(monkeypatch, is_worker):
    monkeypatch.setattr(recording._process, "is_worker", is_worker)

    with transaction.atomic():
        inside = database()

    assert inside == "default"


@pytest.mark.parametrize("sender", ["celery@there", type("W", (), {"hostname": "celery@there"})])
def test_celery_tells_that_this_is_a_worker_and_its_name(monkeypatch, sender):
    monkeypatch.setattr(recording, "_process", recording._Process())
    before = recording.is_worker()

    signals.worker_process_init.send(sender=sender)

    assert (before, recording.is_worker()) == (False, True)
    assert recording._process.worker == "celery@there"


# How long it lasts


@in_real_transactions
@pytest.mark.parametrize(
    "close",
    [
        connections.close_all,
        close_old_connections,
        lambda: DjangoWorkerFixup(app).close_database(),
    ],
    ids=["close_all", "close_old_connections", "Celery"],
)
def test_what_closes_all_connections_leaves_it_open(in_worker, close):
    run = make_run(state=State.PENDING)
    move(run)
    opened = connections[OWN_ALIAS].connection

    close()
    move(run)

    assert opened is not None
    assert connections[OWN_ALIAS].connection is opened


@in_real_transactions
def test_each_thread_has_its_own_until_it_ends(in_worker):
    run = make_run(state=State.PENDING)
    move(run)

    def work():
        move(run)
        return connections[OWN_ALIAS]

    theirs = in_thread(work)

    wait_until(lambda: theirs.connection is None, seconds=5, why="it is still open")
    assert theirs is not connections[OWN_ALIAS]
    assert theirs not in recording._process.own.values()
    assert move(run) == 1


@in_real_transactions
def test_threads_that_come_and_go_leave_nothing_open(in_worker):
    run = make_run(state=State.PENDING)
    before = len(recording._process.own)

    def work():
        move(run)
        connections.close_all()

    for _ in range(5):
        thread = Thread(target=work)
        thread.start()
        thread.join()

    assert len(recording._process.own) == before


@in_real_transactions
def test_in_a_worker_it_lasts_and_takes_no_pool(in_worker, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
    monkeypatch.setitem(
        connection.settings_dict, "OPTIONS", {**connection.settings_dict["OPTIONS"], "pool": True}
    )

    database()

    settings = connections[OWN_ALIAS].settings_dict
    assert settings["CONN_MAX_AGE"] is None
    assert "pool" not in settings["OPTIONS"]
    assert connection.settings_dict["OPTIONS"]["pool"] is True


@on_a_server
@in_real_transactions
@pytest.mark.parametrize(("age", "is_kept"), [(0, False), (60, True), (None, True)])
def test_in_a_web_process_it_lasts_as_long_as_the_sites(monkeypatch, age, is_kept):
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", age)
    run = make_run(state=State.PENDING)
    with transaction.atomic():
        move(run)
    own = connections[OWN_ALIAS]

    recording._on_request_finished()

    assert (own.connection is not None) == is_kept


def test_django_tells_of_the_end_of_a_request():
    receivers = request_finished._live_receivers(None)

    assert recording._on_request_finished in [item for group in receivers for item in group]


@on_a_server
@in_real_transactions
def test_a_session_that_the_server_ended_is_replaced(in_worker):
    run = make_run(state=State.PENDING)
    move(run)
    ended = own_session()
    with connection.cursor() as cursor:
        cursor.execute(END_SESSION[connection.vendor], [ended])

    moved = record(lambda: move(run))

    assert moved == 1
    assert own_session() != ended


#: Records, forks a child that records too and collects its garbage, and records again. It ends
#: as children of a pool do. Its count of faults begins anew.
FORK = """
import gc, json, os
import django
django.setup()
from django.db import connections
from celery_admin_runner import dispatch, recording
from celery_admin_runner.states import State, UNFINISHED
recording._process.is_worker = True
def move():
    return recording.record(lambda: recording.journal().transition(
        sources=UNFINISHED, target=State.STARTED))
facts = {"first": move()}
mine = connections[recording.OWN_ALIAS].connection
recording._process.faults = 3
child = os.fork()
if not child:
    moved = move()
    fresh = connections[recording.OWN_ALIAS].connection is not mine
    del mine
    gc.collect()
    recording.close()
    os._exit(0 if moved == 1 and fresh and recording._process.faults == 0 else 5)
facts["child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
recording._process.faults = 0
facts["again"] = move()
facts["same"] = connections[recording.OWN_ALIAS].connection is mine
print(json.dumps(facts))
"""


def script(text):
    """Start a process of its own on the tests' database."""
    return subprocess.Popen(
        [sys.executable, "-c", text],
        env={**os.environ, "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"])},
        stdout=subprocess.PIPE,
        text=True,
    )


@in_real_transactions
def test_a_forked_child_has_its_own_and_leaves_the_parents_open():
    make_run(state=State.PENDING)

    output, _ = script(FORK).communicate(timeout=60)

    assert json.loads(output) == {"first": 1, "child": 0, "again": 1, "same": True}


# What could not be recorded


@in_real_transactions
@pytest.mark.parametrize("error", [OperationalError("deadlock"), InterfaceError("closed")])
def test_a_statement_that_met_a_deadlock_or_a_closed_connection_is_tried_again(in_worker, error):
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has waited already")
    run = make_run(state=State.PENDING)
    errors = [error]

    def statement():
        moved = move(run)
        if errors:
            raise errors.pop()
        return moved

    assert record(statement) == 1


@in_real_transactions
def test_what_can_not_be_recorded_breaks_nothing_and_is_logged_with_the_run(in_worker, caplog):
    run = make_run(state=State.PENDING)
    database()

    with failing(OperationalError("gone")):
        recorded = report("its start", run.task_id, lambda: move(run))

    assert recorded is None
    assert f"could not record its start of run {run.task_id}: gone" in caplog.text


@in_real_transactions
def test_faults_of_an_outage_are_counted_when_it_is_over(in_worker):
    run = make_run(state=State.PENDING)
    database()
    with failing(OperationalError("gone")):
        for number in range(3):
            report("its start", f"run-{number}", lambda: move(run))
    assert not RecordingFault.objects.exists()

    report("its start", run.task_id, lambda: move(run))

    fault = RecordingFault.objects.get()
    assert (fault.worker, fault.count, fault.task_id) == ("celery@here", 3, "run-2")
    assert fault.error == "its start: gone"
    assert timezone.now() - fault.happened_at < timedelta(minutes=1)


@in_real_transactions
def test_a_fault_of_a_database_that_answers_is_counted_at_once(in_worker):
    def statement():
        raise DataError("too long")

    report("its end", "first", statement)
    report("its end", "x" * 300, statement)

    fault = RecordingFault.objects.get()
    assert (fault.count, fault.task_id) == (2, "x" * 255)


@in_real_transactions
def test_what_a_coroutine_publishes_is_counted_when_its_request_has_ended(caplog):
    async def view():
        return tracked_add.apply_async([1], queue=f"{settings.QUEUE}-nobody").id

    task_id = asyncio.run(view())
    request_finished.send(sender=None)

    assert f"could not record the publish of run {task_id}" in caplog.text
    fault = RecordingFault.objects.get()
    assert (fault.worker, fault.count, fault.task_id) == ("", 1, task_id)
    assert not TaskRunRecord.objects.exists()


@in_real_transactions
def test_what_a_worker_has_counted_is_written_when_it_ends(in_worker):
    recording.note_fault("its end", "run", OperationalError("gone"))

    signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)
    signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)

    assert RecordingFault.objects.get().count == 1


@in_real_transactions
def test_faults_that_can_not_be_counted_yet_are_kept(in_worker, caplog):
    run = make_run(state=State.PENDING)
    recording.note_fault("its end", "run", OperationalError("gone"))
    database()
    with failing(OperationalError("still gone")):
        recording._store_faults()
    recording._store_faults()

    assert "could not count 1 faults: still gone" in caplog.text
    assert RecordingFault.objects.get().count == 1
    assert move(run) == 1


COUNT = """
import django
django.setup()
from celery_admin_runner import dispatch, recording
from django.db import DataError
recording._process.worker = "celery@both"
recording._process.is_worker = True
for _ in range(40):
    recording.note_fault("its end", "run", DataError("too long"))
"""


@in_real_transactions
def test_processes_that_count_at_once_lose_nothing():
    processes = [script(COUNT) for _ in range(2)]

    codes = [(process.communicate(timeout=60), process.returncode)[1] for process in processes]

    assert codes == [0, 0]
    assert RecordingFault.objects.get().count == 80


# Under load


@on_a_server
@in_real_transactions
def test_many_who_move_the_same_run_at_once_meet_no_deadlock():
    run = make_run(state=State.UNSENT)
    cycle = [State.UNSENT, State.PENDING, State.RETRY]

    def work(number):
        # As who sends does, who knows key and state; as who claims and gives up; and as a
        # worker, who knows the task id.
        mine = copy(run)
        by_key = TaskRunRecord.objects.filter(pk=run.pk)
        by_id = TaskRunRecord.objects.filter(task_id=run.task_id)
        try:
            for step in range(60):
                if number % 3 == 0:
                    by_key.transition(sources=[cycle[step % 3]], target=cycle[(step + 1) % 3])
                elif number % 3 == 1:
                    dispatch.claim(mine)
                    dispatch.record_failure(mine, "no broker")
                else:
                    by_id.transition(sources=UNFINISHED, target=cycle[step % 3])
        finally:
            connections.close_all()
        return number

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, range(8)))

    assert done == list(range(8))


@pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL counts sessions")
def test_tracked_tasks_open_no_session_each(worker):
    def sessions():
        sql = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
        return ask("default", sql)

    warm = [TaskRunner().run("tests.tasks.add", [1]) for _ in range(4)]
    for run in warm:
        wait_for_state(run, State.SUCCESS)
    before = sessions()

    runs = [TaskRunner().run("tests.tasks.add", [1]) for _ in range(200)]
    for run in runs:
        wait_for_state(run, State.SUCCESS)

    assert sessions() - before <= 4


class SoftLimit(Exception):
    """Raised in the middle of something, as Celery's SoftTimeLimitExceeded."""


@on_a_server
@in_real_transactions
def test_a_statement_that_a_signal_interrupts_leaves_no_answer_for_the_next_one(in_worker):
    def interrupt(number, frame):
        raise SoftLimit

    run = make_run(state=State.PENDING)
    sleep = {"postgresql": "SELECT 1 FROM pg_sleep(1)", "mysql": "SELECT SLEEP(1)"}
    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        # What mysqlclient finds when it tidies up takes the place of what was raised.
        with pytest.raises((SoftLimit, connection.Database.Error)):
            record(lambda: ask(database(), sleep[connection.vendor]))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)

    assert record(lambda: move(run)) == 1
