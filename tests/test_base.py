"""DjangoTask: the journal decides whether a run starts."""

from __future__ import annotations

from uuid import uuid4

import pytest
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.base import REFUSED, DjangoTask
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.conftest import running_worker
from tests.factories import make_run
from tests.tasks import guarded
from tests.waiting import wait_for_state

#: A queue that only the worker of this module consumes, as soon as it runs.
QUEUE = f"guarded-{uuid4()}"


def cancelled(run: TaskRunRecord, state: State) -> None:
    """Bring a waiting run where somebody who cancels it brings it."""
    now = timezone.now()
    finished = {"finished_at": now} if state == State.REVOKED else {}
    moved = TaskRunRecord.objects.filter(pk=run.pk).transition(
        sources=[State.PENDING], target=state, cancel_requested_at=now, **finished
    )
    assert moved == 1


@pytest.fixture
def runs(transactional_db: None, tmp_path) -> list[TaskRunRecord]:
    """Runs of guarded tasks in a queue: the last is as it was, those before are cancelled."""
    runs = [
        TaskRunner().run("tests.tasks.guarded", [str(tmp_path / name)], queue=QUEUE)
        for name in ("revoked", "cancelling", "as it was")
    ]
    cancelled(runs[0], State.REVOKED)
    cancelled(runs[1], State.CANCELLING)
    return runs


def test_a_cancelled_run_does_not_start_in_a_worker_that_was_not_there_then(runs, tmp_path):
    with running_worker("later", "--concurrency", "1", "-Q", QUEUE):
        wait_for_state(runs[2], State.SUCCESS)
        wait_for_state(runs[1], State.REVOKED)

    runs[0].refresh_from_db()
    assert [path.name for path in tmp_path.iterdir()] == ["as it was"]
    assert [run.started_at for run in runs[:2]] == [None, None]
    assert [run.state for run in runs[:2]] == [State.REVOKED] * 2


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("state", "is_refused", "becomes"),
    [
        (State.REVOKED, True, State.REVOKED),
        (State.CANCELLING, True, State.REVOKED),
        (State.SUCCESS, False, State.SUCCESS),
        (State.EXPIRED, False, State.EXPIRED),
    ],
)
def test_only_a_cancelled_run_is_refused(state, is_refused, becomes):
    run = make_run(state=state)

    assert tracking.refuse_start(run.task_id, now=timezone.now()) is is_refused

    run.refresh_from_db()
    assert run.state == becomes


def test_a_guarded_task_runs_as_any_other_when_nobody_refuses_it(tmp_path):
    path = tmp_path / "file"

    assert guarded.apply([str(path)]).get() == "x"

    assert isinstance(guarded, DjangoTask)
    assert not hasattr(guarded.request, REFUSED)
