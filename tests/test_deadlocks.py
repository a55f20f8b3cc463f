"""What a deadlock has ended is written again, where that is for us to do."""

from __future__ import annotations

import pytest
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from celery_admin_runner import deletion
from celery_admin_runner.deadlocks import TRIES, written_together
from celery_admin_runner.models import TaskRunRecord
from tests.factories import make_run

needs_locks = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has one writer, and so no deadlocks"
)


class Writing:
    """Makes a run each time that it is called, and fails so often before it succeeds."""

    def __init__(self, faults):
        self.faults = faults
        self.runs = []

    def __call__(self):
        self.runs.append(make_run())
        if len(self.runs) <= self.faults:
            raise OperationalError("deadlock")
        return "written"


@needs_locks
@pytest.mark.django_db(transaction=True)
def test_what_a_deadlock_has_ended_is_written_again():
    write = Writing(faults=2)

    assert written_together(write, using="default") == "written"

    assert len(write.runs) == 3
    assert TaskRunRecord.objects.get() == write.runs[-1]


@needs_locks
@pytest.mark.django_db(transaction=True)
def test_it_is_given_up_at_last():
    write = Writing(faults=TRIES)

    with pytest.raises(OperationalError):
        written_together(write, using="default")

    assert len(write.runs) == TRIES
    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_in_a_transaction_of_the_caller_the_error_is_the_callers():
    write = Writing(faults=1)

    with pytest.raises(OperationalError), transaction.atomic():
        written_together(write, using="default")

    assert len(write.runs) == 1


@pytest.mark.skipif(connection.vendor != "sqlite", reason="what a lock of SQLite's file means")
@pytest.mark.django_db(transaction=True)
def test_a_file_that_is_locked_was_waited_for_already():
    write = Writing(faults=1)

    with pytest.raises(OperationalError):
        written_together(write, using="default")

    assert len(write.runs) == 1


@needs_locks
@pytest.mark.django_db(transaction=True)
def test_a_batch_of_runs_that_a_deadlock_has_ended_is_deleted_all_the_same(monkeypatch):
    runs = [make_run(finished_at=timezone.now()) for _ in range(3)]
    delete_some, faults = deletion._delete_some, [OperationalError("deadlock")]

    def fail_once(*arguments):
        number = delete_some(*arguments)
        if faults:
            raise faults.pop()
        return number

    monkeypatch.setattr(deletion, "_delete_some", fail_once)

    numbers = list(deletion.delete_runs(TaskRunRecord.objects.all(), [[run.pk for run in runs]]))

    assert numbers == [3]
    assert not TaskRunRecord.objects.exists()
