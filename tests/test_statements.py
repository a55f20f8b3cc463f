"""The statements, written by hand, that move one run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from celery_admin_runner import recording, tracking
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.statements import hand_over
from celery_admin_runner.states import State
from tests.factories import make_run

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


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


@pytest.mark.django_db
@pytest.mark.parametrize("published_at", [None, NOW - timedelta(hours=1)])
@pytest.mark.parametrize("state", [State.UNSENT, State.STARTED, State.CANCELLING, State.SUCCESS])
def test_one_run_is_handed_over_as_many_are(state, published_at):
    one, other = (make_run(state=state, published_at=published_at) for _ in range(2))

    hand_over(one.task_id, NOW, using="default")
    TaskRunRecord.objects.filter(pk=other.pk).hand_over(NOW)

    [ours, theirs] = TaskRunRecord.objects.filter(pk__in=[one.pk, other.pk]).order_by("pk")
    assert (ours.state, ours.published_at) == (theirs.state, theirs.published_at)
    assert ours.state == (State.PENDING if state == State.UNSENT else state)
    assert ours.published_at == (published_at or NOW)
