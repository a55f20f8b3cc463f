"""The tasks that we bring, for a schedule of beat."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier

import pytest
from django.conf import settings
from django.db import connections
from django.utils import timezone

from celery_admin_runner import tasks
from celery_admin_runner.exceptions import PruneError, TaskNotRunnable
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.publishing import is_tracked_by_name
from celery_admin_runner.registry import PRUNE_SEEN_TASK, rule_for
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.tasks import prune_seen_runs
from tests.conftest import running_worker
from tests.factories import make_run, make_runs
from tests.waiting import wait_until


def seen_run(age, **fields):
    now = timezone.now()
    return make_run(finished_at=now - age, seen_at=now, **fields)


def left():
    return set(TaskRunRecord.objects.values_list("pk", flat=True))


@pytest.mark.django_db
def test_what_its_user_has_seen_goes_after_two_minutes_and_is_counted(caplog):
    for _ in range(2):
        seen_run(timedelta(seconds=125))
    kept = [
        seen_run(timedelta(seconds=100)),
        make_run(finished_at=timezone.now() - timedelta(days=60)),
        seen_run(timedelta(days=60), source=Source.ADMIN),
    ]

    with caplog.at_level(logging.INFO, "celery_admin_runner"):
        numbers = [prune_seen_runs(), prune_seen_runs()]

    assert numbers == [2, 0]
    assert left() == {run.pk for run in kept}
    assert caplog.messages == ["Pruned 2 task runs whose users have seen them."]


@pytest.mark.django_db
def test_another_age_can_be_asked_for():
    seen_run(timedelta(seconds=40))

    assert prune_seen_runs(older_than_seconds=60) == 0
    assert prune_seen_runs(older_than_seconds=30) == 1


@pytest.mark.django_db
@pytest.mark.parametrize("age", [-1, float("nan"), float("inf"), 1e300, 9e12])
def test_an_age_that_is_none_deletes_nothing(age):
    run = seen_run(timedelta(days=1))

    with pytest.raises(PruneError):
        prune_seen_runs(age)

    assert left() == {run.pk}


@pytest.mark.django_db
def test_it_ends_when_its_time_is_over_and_the_next_goes_on(monkeypatch):
    long_ago = timezone.now() - timedelta(hours=1)
    make_runs(5, finished_at=long_ago, seen_at=long_ago)
    monkeypatch.setattr(tasks, "PRUNE_BATCH_SIZE", 2)
    monkeypatch.setattr(tasks, "PRUNE_LASTS", 0)

    numbers = [prune_seen_runs() for _ in range(4)]

    assert numbers == [2, 2, 1, 0]


@pytest.mark.django_db(transaction=True)
def test_several_at_once_do_no_harm(monkeypatch):
    monkeypatch.setattr(tasks, "PRUNE_BATCH_SIZE", 20)
    long_ago = timezone.now() - timedelta(hours=1)
    make_runs(200, finished_at=long_ago, seen_at=long_ago)
    start = Barrier(3)

    def work(_number):
        start.wait()
        try:
            return prune_seen_runs()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(3) as pool:
        numbers = list(pool.map(work, range(3)))

    assert sum(numbers) == 200
    assert left() == set()


@pytest.mark.django_db
def test_it_is_neither_runnable_by_users_nor_tracked(configure):
    configure(RUNNABLE_TASKS=["*"], TRACK=["*"])

    assert rule_for(PRUNE_SEEN_TASK) is None
    assert not is_tracked_by_name(PRUNE_SEEN_TASK)
    with pytest.raises(TaskNotRunnable):
        TaskRunner().run(PRUNE_SEEN_TASK)


@pytest.mark.django_db(transaction=True)
def test_a_worker_runs_it_and_leaves_no_row_of_it():
    for _ in range(3):
        seen_run(timedelta(hours=1))
    queue = f"{settings.QUEUE}-seen"
    log = Path(settings.FOLDER) / "seen.log"

    with running_worker("seen", "--pool", "solo", "-Q", queue, "-I", tasks.__name__):
        prune_seen_runs.apply_async(kwargs={"older_than_seconds": 60}, queue=queue)
        wait_until(lambda: "succeeded in" in log.read_text(), why=log.read_text)

    assert "Pruned 3 task runs whose users have seen them." in log.read_text()
    assert left() == set()
