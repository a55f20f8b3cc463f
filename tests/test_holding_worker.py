"""Delayed calls with a real worker: what workers themselves delay, and ``get()`` across it."""

from __future__ import annotations

from datetime import timedelta
from threading import Thread

import pytest
from celery import chain, group
from django.conf import settings
from django.db import connections
from django.utils import timezone

from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.conftest import running_worker
from tests.factories import make_superuser
from tests.held_tasks import add, replace_later, try_again
from tests.result_backend import using_backend
from tests.waiting import wait_for_state, wait_until

#: Far enough for no test to see it come.
HOUR = 3600
#: Long enough for a task on a busy machine; looked at often.
PATIENCE = {"timeout": 30, "interval": 0.05}


def dispatch_all():
    """Send what is kept, as if its time had come."""
    return Dispatcher(app).dispatch(timezone.now() + timedelta(seconds=HOUR + 60)).sent


def kept_run(**fields):
    """Return the run that a worker keeps, as soon as it does."""
    runs = TaskRunRecord.objects.filter(due_at__isnull=False, **fields)
    wait_until(runs.exists, why=f"no run was kept: {list(TaskRunRecord.objects.values())}")
    return runs.get()


@pytest.mark.parametrize("task", [try_again, replace_later], ids=["retry", "replace"])
def test_what_goes_on_with_a_task_is_never_kept(worker, tmp_path, task):
    path = tmp_path / "end"

    task.delay(str(path))

    wait_until(path.exists)
    assert not TaskRunRecord.objects.exists()


def test_a_kept_run_may_be_tried_again(worker, tmp_path):
    path = tmp_path / "end"
    try_again.apply_async([str(path)], countdown=HOUR)
    run = TaskRunRecord.objects.get()

    dispatch_all()

    wait_for_state(run, State.SUCCESS)
    assert run.retries == 1
    assert path.exists()


def test_a_later_member_of_a_chain_is_kept_by_the_worker(worker):
    result = chain(add.s(1), add.s(2).set(countdown=HOUR), add.s(3)).apply_async()

    run = kept_run()
    assert run.task_id == result.parent.id
    assert (run.parent_id, run.root_id) == (result.parent.parent.id,) * 2
    assert run.args == [3, 2]
    assert len(run.canvas["chain"]) == 1
    assert dispatch_all() == 1
    wait_for_state(run, State.SUCCESS)
    assert run.result == 5


def test_a_linked_task_with_a_countdown_is_kept_by_the_worker(worker):
    result = add.apply_async([1], link=add.s(5).set(countdown=HOUR))

    run = kept_run()
    assert (run.args, run.parent_id) == ([3, 5], result.id)
    assert dispatch_all() == 1
    wait_for_state(run, State.SUCCESS)
    assert run.result == 8


def test_a_link_of_a_kept_call_is_called(worker):
    add.apply_async([1], countdown=HOUR, link=add.s(5).set(countdown=2 * HOUR))

    first = TaskRunRecord.objects.get()
    assert dispatch_all() == 1

    wait_for_state(first, State.SUCCESS)
    assert kept_run(parent_id=first.task_id).args == [3, 5]


def test_a_call_in_a_task_knows_who_began_it_all(worker):
    user = make_superuser()

    run = TaskRunner(user).run("tests.held_tasks.start_later")

    child = kept_run(parent_id=run.task_id)
    wait_for_state(run, State.SUCCESS)
    assert (child.root_id, child.run_by, child.run_by_name) == (
        run.task_id,
        user,
        user.get_username(),
    )
    assert run.result == [child.task_id]
    assert dispatch_all() >= 1
    wait_for_state(child, State.SUCCESS)
    assert child.parent_id == run.task_id


def test_a_call_that_is_rolled_back_in_a_task_leaves_no_child(worker):
    run = TaskRunner().run("tests.held_tasks.change_its_mind")

    wait_for_state(run, State.SUCCESS)

    assert run.result == []
    assert TaskRunRecord.objects.count() == 1


# Results, by a backend whose results come back to the thread that called


@pytest.fixture(scope="module")
def rpc_worker(django_db_setup, django_db_blocker):
    """A worker of this module's own, whose results come by messages."""
    queue = f"rpc-{settings.QUEUE}"
    with running_worker(
        "rpc", "--pool", "solo", CELERY_RESULT_BACKEND="rpc://", TEST_QUEUE=queue
    ) as process:
        yield queue
        process.terminate()
        process.wait(15)


def got(result):
    """Send what is kept in another thread, and return what its caller then gets here."""

    def send():
        assert dispatch_all()
        connections.close_all()

    assert not result.ready()
    thread = Thread(target=send)
    thread.start()
    try:
        return result.get(**PATIENCE)
    finally:
        thread.join()


@pytest.mark.parametrize(
    ("canvas", "expected"),
    [
        (add.s(40), 42),
        (add.s(1) | add.s(10) | add.s(100), 113),
        (group(add.s(1), add.s(2)), [3, 4]),
    ],
    ids=["task", "chain", "group"],
)
def test_get_works_across_the_schedule(transactional_db, rpc_worker, canvas, expected):
    with using_backend("rpc://", task_default_queue=rpc_worker) as backend:
        assert got(canvas.apply_async(countdown=HOUR)) == expected
        # Else it takes the messages that are for the next one: their thread is the same.
        backend.result_consumer.stop()
