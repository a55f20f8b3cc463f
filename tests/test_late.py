from __future__ import annotations

import signal
from functools import partial
from threading import enumerate as threads
from threading import get_ident

import pytest
from celery import signals
from django.db import DataError, OperationalError
from django.utils import timezone

from celery_admin_runner import late, recording, tracking
from celery_admin_runner.late import report_or_keep
from celery_admin_runner.models import RecordingFault
from celery_admin_runner.states import State
from tests.factories import make_run
from tests.waiting import wait_for_state, wait_until

pytestmark = pytest.mark.django_db(transaction=True)


class Database:
    """Lets a statement through, or not."""

    def __init__(self) -> None:
        self.error: Exception | None = OperationalError("gone")
        self.asked: list[object] = []

    def execute(self, name, statement):
        self.asked.append(name)
        if self.error is not None:
            raise self.error
        return statement()


@pytest.fixture
def database():
    return Database()


@pytest.fixture(autouse=True)
def in_worker(monkeypatch):
    """Be a worker, as far as recording knows, that asks again soon."""
    monkeypatch.setattr(recording._process, "is_worker", True)
    monkeypatch.setattr(late, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(late, "_kept", late._Kept())
    yield
    late._kept.statements.clear()
    wait_until(lambda: not trying(), why="the thread goes on")
    recording._process.start_counting()


def trying():
    return [thread for thread in threads() if thread.name == late.THREAD_NAME]


def end_of(run, result=1):
    return partial(
        tracking.record_success, run.task_id, attempt=0, result=result, now=timezone.now()
    )


def report_end(database, run, **fields):
    statement = partial(database.execute, run.task_id, end_of(run, **fields))
    return report_or_keep("its end", run.task_id, statement)


def test_signals_are_for_others_than_the_thread_that_tries_again(database):
    here = get_ident()
    blocked = {}

    def ask():
        blocked[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return database.execute("x", int)

    report_or_keep("its end", "x", ask)

    wait_until(lambda: blocked.keys() - {here})
    database.error = None
    assert all(signal.SIGTERM in signals for who, signals in blocked.items() if who != here)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_an_end_is_recorded_at_once_if_the_database_answers(database):
    run = make_run(state=State.STARTED)
    database.error = None

    assert report_end(database, run) == 1
    assert not trying()


def test_an_end_that_was_missed_is_recorded_when_the_database_is_back(database):
    run = make_run(state=State.STARTED)
    assert report_end(database, run) is None
    back_at = timezone.now()
    wait_until(lambda: len(database.asked) > 3)

    database.error = None

    wait_for_state(run, State.SUCCESS)
    assert run.finished_at < back_at
    wait_until(RecordingFault.objects.exists)
    wait_until(lambda: RecordingFault.objects.get().count == 1)


def test_what_was_missed_is_recorded_in_order(database):
    runs = [make_run(state=State.STARTED) for _ in range(3)]
    for run in runs:
        report_end(database, run)
    database.asked.clear()

    database.error = None

    for run in runs:
        wait_for_state(run, State.SUCCESS)
    assert database.asked[-3:] == [run.task_id for run in runs]
    assert len(trying()) <= 1


def test_a_late_end_does_not_undo_what_became_of_the_run_since(database):
    run = make_run(state=State.STARTED)
    report_end(database, run, result="late")
    tracking.record_start(run.task_id, attempt=1, worker="heir", now=timezone.now())
    database.error = None

    wait_until(lambda: not late._kept.statements)

    run.refresh_from_db()
    assert (run.state, run.worker) == (State.STARTED, "heir")


def test_what_the_database_refuses_for_its_contents_is_not_kept(database):
    database.error = DataError("too long")

    assert report_end(database, make_run(state=State.STARTED)) is None
    assert not late._kept.statements


def test_what_it_refuses_later_is_counted_and_no_longer_kept(database):
    run = make_run(state=State.STARTED)
    report_end(database, run)

    database.error = DataError("too long")

    wait_until(lambda: not late._kept.statements)
    wait_until(RecordingFault.objects.exists)
    wait_until(lambda: RecordingFault.objects.get().count == 2)


def test_only_workers_keep(database, monkeypatch):
    monkeypatch.setattr(recording._process, "is_worker", False)

    assert report_end(database, make_run(state=State.STARTED)) is None
    assert not late._kept.statements


def test_a_worker_that_ends_tries_once_more(database, monkeypatch):
    monkeypatch.setattr(late, "FIRST_PAUSE", 0.6)
    run = make_run(state=State.STARTED)
    report_end(database, run)
    database.error = None

    signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)

    run.refresh_from_db()
    assert run.state == State.SUCCESS


def test_it_does_not_try_for_ever(database, monkeypatch):
    monkeypatch.setattr(late, "KEEP_TRYING", 0.1)
    report_end(database, make_run(state=State.STARTED))

    wait_until(lambda: not trying())

    assert len(late._kept.statements) == 1


def test_a_forked_child_keeps_its_own_only(monkeypatch):
    late._kept.statements.append(end_of(make_run(state=State.STARTED)))
    monkeypatch.setattr(late._kept, "pid", -1)

    assert not late._of_this_process().statements
