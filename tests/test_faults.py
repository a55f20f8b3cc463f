"""What goes wrong around a task: processes that are killed, a database or broker that is away."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from kombu.messaging import Producer

from celery_admin_runner.models import RecordingFault, TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests import fault_tasks  # noqa: F401
from tests.celery_app import app
from tests.conftest import running_worker, worker_name
from tests.waiting import wait_for_state, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

#: Only the workers of these tests take what is sent here.
QUEUE = f"{settings.QUEUE}-faults"
WORKER = ("--concurrency", "1", "-Q", QUEUE, "-I", "tests.fault_tasks")
#: Longer than a running run may be silent.
LATER = timedelta(minutes=3)
#: RabbitMQ knows at once that a worker is gone; Redis waits an hour, files are gone as well.
DELIVERS_AGAIN = app.conf.broker_url.startswith("amqp")


def run_task(name, *args):
    return TaskRunner().run(name, args, queue=QUEUE)


@pytest.fixture(scope="module")
def faulty_worker(django_db_setup, django_db_blocker) -> Iterator[Path]:
    """A worker whose database may be taken away; gives its log."""
    with running_worker("faulty", *WORKER, TEST_DATABASE_TIMEOUT="0.3") as process:
        yield Path(settings.FOLDER) / "faulty.log"
        kill(process)


def kill(process):
    """Kill a worker and all its children."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# Processes that are killed


def test_a_killed_worker_leaves_runs_that_show_as_stale_and_its_heir_goes_on(tmp_path):
    path = tmp_path / "go"
    with running_worker("killed", *WORKER) as process:
        running = run_task("tests.fault_tasks.wait_and_be_delivered_again", str(path))
        wait_for_state(running, State.STARTED)
        kill(process)
    waiting = run_task("tests.tasks.add", 1)

    soon = timezone.now() + LATER
    stale = list(TaskRunRecord.objects.stale(soon))
    output = io.StringIO()
    with pytest.raises(SystemExit):
        call_command(
            "find_stale_taskruns",
            mark_lost=True,
            json=True,
            stdout=output,
            older_than=timedelta(),
            state=["STARTED"],
        )
    path.write_text("again")
    with running_worker("killed", *WORKER) as process:
        wait_for_state(waiting, State.SUCCESS)
        kill(process)

    assert stale == [running]
    [row] = json.loads(output.getvalue())
    assert (row["id"], row["worker"]) == (running.task_id, worker_name("killed"))
    assert row["outcome"] == "marked as lost"
    running.refresh_from_db()
    # The heir's report corrects it.
    assert running.state == (State.SUCCESS if DELIVERS_AGAIN else State.LOST)


# A database that is away


@contextmanager
def database_away() -> Iterator[None]:
    """Let the worker reach no database; this process keeps its connection."""
    away = {"sqlite": locked, "postgresql": closed, "mysql": without_table}
    with away[connection.vendor]():
        yield


@contextmanager
def locked() -> Iterator[None]:
    """Hold the file of SQLite for longer than the worker waits."""
    holder = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


@contextmanager
def closed() -> Iterator[None]:
    """Let PostgreSQL take no connections, and end those that there are."""
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor, connection._nodb_cursor() as elsewhere:
        elsewhere.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
        try:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            yield
        finally:
            elsewhere.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')


@contextmanager
def without_table() -> Iterator[None]:
    """Take MariaDB's table away: locked, it would let the worker wait for a day."""
    table = connection.ops.quote_name(TaskRunRecord._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"RENAME TABLE {table} TO away")
        try:
            yield
        finally:
            cursor.execute(f"RENAME TABLE away TO {table}")


def test_tasks_run_on_without_their_database_and_what_was_missed_is_counted(
    faulty_worker, tmp_path
):
    path = tmp_path / "go"
    ending = run_task("tests.tasks.wait_for_file", str(path))
    starting = run_task("tests.tasks.add", 1)
    wait_for_state(ending, State.STARTED)

    def is_missed(run):
        return re.search(f"could not record .* of run {run.task_id}", faulty_worker.read_text())

    def succeeded(run):
        return re.search(rf"{run.task_id}\] succeeded", faulty_worker.read_text())

    with database_away():
        path.write_text("done")
        wait_until(lambda: is_missed(ending) and is_missed(starting))
        wait_until(lambda: succeeded(ending) and succeeded(starting))

    after = run_task("tests.tasks.add", 2)
    for run in (after, ending, starting):
        wait_for_state(run, State.SUCCESS)
    wait_until(RecordingFault.objects.exists)
    fault = RecordingFault.objects.get()
    assert (after.result, ending.result, starting.result) == (4, "done", 3)
    assert ending.finished_at < after.created_at
    assert fault.worker == worker_name("faulty")
    assert fault.count >= 2


def test_a_task_that_closes_its_own_connection_is_recorded(faulty_worker):
    runs = [run_task("tests.fault_tasks.close_own_connection") for _ in range(2)]

    for run in runs:
        wait_for_state(run, State.SUCCESS)

    assert [run.result for run in runs] == ["closed", "closed"]
    assert not RecordingFault.objects.exists()


def test_a_task_whose_transaction_is_rolled_back_keeps_its_true_record(faulty_worker):
    run = run_task("tests.fault_tasks.roll_back")

    wait_for_state(run, State.FAILURE)

    assert (run.exception, run.label) == ("ValueError: no", "")
    assert run.started_at is not None


# A broker that is away


def test_a_run_whose_broker_went_before_it_answered_is_told_by_its_worker(
    faulty_worker, monkeypatch
):
    publish = Producer._publish

    def publish_without_answer(*args, **kwargs):
        publish(*args, **kwargs)
        raise ConnectionResetError("no answer")

    monkeypatch.setattr(Producer, "_publish", publish_without_answer)
    run = run_task("tests.tasks.add", 1)
    monkeypatch.undo()

    wait_for_state(run, State.SUCCESS)

    assert run.result == 3
    after = run_task("tests.tasks.add", 2)
    wait_for_state(after, State.SUCCESS)
    run.refresh_from_db()
    assert run.state == State.SUCCESS
