"""What workers with other pools than prefork report, and what a run costs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager

import pytest
from celery.app.trace import build_tracer
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from celery_admin_runner.headers import RUN_HEADER
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.conftest import worker_name
from tests.factories import make_run
from tests.later import LATER, send_later
from tests.tasks import tracked_add
from tests.waiting import wait_for_state

#: The beginning of the names of queues of this module's own.
QUEUE = settings.QUEUE
CASES = {
    "add": ([1], State.SUCCESS, ""),
    "fail": (["no"], State.FAILURE, "ValueError: no"),
    "ignore": ([], State.IGNORED, "The task asked to be ignored."),
    "reject": ([], State.FAILURE, "celery.exceptions.Reject: "),
    "stop_itself": ([], State.REVOKED, "Cancelled half way."),
    "retry_later": ([0], State.SUCCESS, ""),
    "apply_others": ([], State.SUCCESS, ""),
}


@pytest.fixture(params=["threads", "solo"])
def pool(request) -> str:
    """The kind of pool of a worker that runs."""
    request.getfixturevalue(f"{request.param}_queue")
    return request.param


def test_a_run_ends_as_it_did_in_any_pool(transactional_db, pool):
    queue = f"{QUEUE}-{pool}"

    runs = {
        name: TaskRunner().run(f"tests.tasks.{name}", args, queue=queue)
        for name, (args, _state, _exception) in CASES.items()
    }

    for name, run in runs.items():
        _args, state, exception = CASES[name]
        wait_for_state(run, state)
        assert exception in run.exception
        assert run.worker == worker_name(pool)
        assert run.created_at <= run.started_at <= run.finished_at
    assert runs["retry_later"].retries == 1
    assert runs["apply_others"].result == 3


def test_a_run_that_expired_or_was_revoked_does_not_start_in_any_pool(
    transactional_db, configure, threads_queue, solo_queue
):
    configure(TRACK=["tests.tasks.add"], SCHEDULE_ETA=False)
    # Both pools wait together.
    queues = (threads_queue, solo_queue)
    expired = [
        TaskRunner().run("tests.tasks.add", [1], queue=queue, expires=-1) for queue in queues
    ]
    revoked = [
        send_later("tests.tasks.add", [1], queue=queue, countdown=LATER) for queue in queues
    ]
    for run in revoked:
        app.control.revoke(run.task_id)

    for run in expired:
        assert wait_for_state(run, State.EXPIRED).started_at is None
    for run in revoked:
        assert wait_for_state(run, State.REVOKED).started_at is None


def test_what_can_not_be_terminated_runs_on_to_its_end(transactional_db, pool, tmp_path):
    path = tmp_path / "go"
    run = TaskRunner().run("tests.tasks.wait_for_file", [str(path)], queue=f"{QUEUE}-{pool}")
    wait_for_state(run, State.STARTED)
    TaskRunRecord.objects.filter(pk=run.pk).update(state=State.CANCELLING)

    app.control.revoke(run.task_id, terminate=True)
    path.write_text("on")

    wait_for_state(run, State.SUCCESS)
    assert run.result == "on"


# In a solo pool it ends the worker.
@pytest.mark.parametrize("pool", ["threads"], indirect=True)
def test_a_task_that_exits_ends_as_failure_in_threads_too(transactional_db, pool):
    run = TaskRunner().run("tests.tasks.exit_process", queue=f"{QUEUE}-{pool}")

    wait_for_state(run, State.FAILURE)
    assert run.exception == "SystemExit: 3"


@pytest.mark.parametrize("pool", ["threads"], indirect=True)
def test_what_a_task_says_when_it_exits_or_stops_holds_no_secret(transactional_db, pool):
    exited = TaskRunner().run(
        "tests.tasks.exit_with_secret", ["Sesame42"], queue=f"{QUEUE}-{pool}"
    )
    stopped = TaskRunner().run(
        "tests.tasks.stop_with_secret", ["Sesame42"], queue=f"{QUEUE}-{pool}"
    )

    wait_for_state(exited, State.FAILURE)
    wait_for_state(stopped, State.REVOKED)
    assert exited.exception == f"SystemExit: bad {MASK}"
    assert stopped.exception == f"stop {MASK}"


class NoJson:
    def __json__(self):
        raise RuntimeError("no")

    def __str__(self):
        return "Sesame"


class NoItems(Mapping):
    def __getitem__(self, key):
        raise RuntimeError("no")

    def __iter__(self):
        return iter("a")

    def __len__(self):
        return 1


class Unspeakable(Exception):
    def __repr__(self):
        raise RuntimeError("no")


class NoText:
    def __str__(self):
        raise Unspeakable


class Unequal(type):
    def __eq__(cls, other):
        raise Unspeakable

    __hash__ = type.__hash__


class Odd(metaclass=Unequal):
    pass


@contextmanager
def running(function):
    """Make a task of a function, and give its run: from the message on, as a worker has it."""
    task = app.task(name=f"tests.tasks.{function.__name__}", ignore_result=True)(function)
    run = make_run(state=State.PENDING, task_name=task.name)

    def go(*args):
        trace(task, run.task_id, args, {RUN_HEADER: run.task_id})
        run.refresh_from_db()
        return run

    try:
        yield go
    finally:
        app.tasks.unregister(task.name)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("result", "text"), [(NoJson(), "Sesame"), (NoItems(), "<NoItems>"), (NoText(), "<NoText>")]
)
def test_a_run_whose_result_raises_when_it_is_read_has_ended_all_the_same(result, text):
    def give():
        return result

    with running(give) as go:
        run = go()

    assert (run.state, run.result) == (State.SUCCESS, {"value": text, "forced_json": True})


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fails", [True, False])
def test_where_nobody_can_tell_what_is_secret_all_is(fails):
    def take(password: Odd):
        if fails:
            raise ValueError(f"it is {password}")
        return {"said": password}

    with running(take) as go:
        run = go("Sesame42")

    hidden = "Not shown: which of the arguments are secret could not be told."
    if fails:
        assert (run.state, run.exception, run.traceback) == (State.FAILURE, hidden, hidden)
    else:
        assert (run.state, run.result) == (State.SUCCESS, MASK)


@pytest.mark.django_db(transaction=True)
def test_an_exception_is_kept_without_colours():
    def shout():
        raise ValueError("\x1b[31mred\x1b[0m")

    with running(shout) as go:
        run = go()

    assert run.exception == "ValueError: red"
    assert "ValueError: red" in run.traceback
    assert "\x1b" not in run.traceback


@pytest.mark.django_db(transaction=True)
def test_a_run_costs_four_statements_from_publish_to_end():
    # What faults other tests have left to be counted is counted by this.
    tracked_add.apply_async([1], queue=f"{QUEUE}-nobody")

    with CaptureQueriesContext(connection) as captured:
        result = tracked_add.apply_async([1], queue=f"{QUEUE}-nobody")
        trace(tracked_add, result.id, [1], {RUN_HEADER: result.id})

    assert [query["sql"].split()[0] for query in captured] == ["INSERT", *["UPDATE"] * 3]
    run = TaskRunRecord.objects.get(task_id=result.id)
    assert (run.state, run.result) == (State.SUCCESS, 3)


def trace(task, task_id, args, headers):
    """Do with a message what a worker does with it."""
    request = {"id": task_id, "headers": headers, "delivery_info": {}, "hostname": "w@here"}
    build_tracer(task.name, task, app=app)(task_id, args, {}, request)
