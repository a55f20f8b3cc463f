"""The statement by which a worker moves a run."""

from __future__ import annotations

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from celery_admin_runner import recording, tracking
from celery_admin_runner.states import State
from tests.factories import make_run


@pytest.fixture
def own_connection(transactional_db, monkeypatch):
    """The connection by which a worker records."""
    monkeypatch.setattr(recording._process, "is_worker", True)
    return connections[recording.database()]


def test_only_the_end_of_a_run_waits_for_the_disk(own_connection):
    if own_connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL can be told for one statement not to wait for its disk")
    run = make_run(state=State.PENDING)
    now = timezone.now()

    with CaptureQueriesContext(own_connection) as captured:
        tracking.record_start(run.task_id, attempt=0, worker="w", now=now)
        tracking.record_success(run.task_id, attempt=0, result=1, now=now)

    start, end = (query["sql"] for query in captured)
    assert "synchronous_commit" in start
    assert "synchronous_commit" not in end
    run.refresh_from_db()
    assert run.state == State.SUCCESS
    with own_connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("on",)


def test_in_a_transaction_of_the_caller_nothing_is_said_about_waiting(transactional_db):
    run = make_run(state=State.PENDING)
    caller = connections["default"]

    with CaptureQueriesContext(caller) as captured:
        tracking.record_start(run.task_id, attempt=0, worker="w", now=timezone.now())

    assert len(captured) == 1
    assert "synchronous_commit" not in captured[0]["sql"]
