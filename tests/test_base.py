"""DjangoTask: the journal decides whether a run starts, hooks are told, retries have delays."""

from __future__ import annotations

import logging
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import celery
import pytest
from celery import Celery
from celery.contrib.django.task import DjangoTask as CeleryDjangoTask
from celery.exceptions import MaxRetriesExceededError, Retry, TimeoutError
from celery.result import AsyncResult
from celery.utils.time import maybe_iso8601
from django.conf import settings
from django.utils import timezone
from kombu.exceptions import OperationalError

from celery_admin_runner import base, tracking
from celery_admin_runner.base import REFUSED, DjangoTask
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.headers import RUN_HEADER
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.conftest import running_worker
from tests.factories import make_run
from tests.hook_tasks import (
    HookedTask,
    back_off,
    double,
    end_loudly,
    fail_by_itself,
    fail_often,
    fail_twice,
    fail_until,
    give_up,
    loud,
    of_a_tenant,
    stubborn,
    time_out,
    told,
    tracked_double,
)
from tests.publishes import attempt, messages_sent
from tests.result_backend import using_backend
from tests.tasks import guarded
from tests.waiting import wait_for_state, wait_until

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


@pytest.fixture(scope="module")
def hook_worker(django_db_setup, django_db_blocker):
    """A worker of this module's own; gives the address of the results."""
    results = Path(settings.FOLDER) / "hook-results"
    results.mkdir(exist_ok=True)
    address = f"file://{results}"
    arguments = ("--concurrency", "2", "-I", "tests.hook_tasks", "-Q", HOOK_QUEUE)
    with running_worker("hooks", *arguments, CELERY_RESULT_BACKEND=address):
        yield address


@pytest.fixture
def hooked(transactional_db, hook_worker):
    """Send what this test calls to the worker of this module, and get its results."""
    with using_backend(hook_worker, task_default_queue=HOOK_QUEUE):
        yield


#: A queue that only the worker whose hooks are told consumes.
HOOK_QUEUE = f"hooks-{uuid4()}"


def names(key):
    """Return the hooks that were told of a run or call, in order."""
    return [line[0] for line in told(key)]


def test_the_hooks_of_a_call_that_succeeds_are_told_once(hooked):
    result = double.apply_async([4], {"factor": 3}, priority=4)

    assert result.get(timeout=60) == 12
    wait_until(lambda: len(told(result.id)) == 4)
    call = [[4], {"factor": 3}]
    assert sorted(told(result.id)) == [
        ["apply", *call, ["priority"], result.id],
        ["start", *call, 0],
        ["success", *call, 12],
        ["trigger", *call, result.id, ["priority"], result.id],
    ]


def test_the_hooks_of_a_run_with_a_row_are_told_once(hooked):
    result = tracked_double.delay(4)

    wait_until(lambda: len(told(result.id)) == 4)
    assert sorted(names(result.id)) == ["apply", "start", "success", "trigger"]


def test_a_run_is_tried_again_after_its_delays_and_its_hooks_are_told_of_each(hooked):
    result = fail_until.delay(2)

    assert result.get(timeout=60) == "done"
    # The next attempt may begin before its worker has told of the retry.
    wait_until(lambda: len(told(result.id)) == 8)
    own = ["apply", "retry", "retry", "start", "start", "start", "success", "trigger"]
    assert sorted(names(result.id)) == own
    retries = [line for line in told(result.id) if line[0] == "retry"]
    assert [line[3] for line in retries] == ["ValueError('attempt 0')", "ValueError('attempt 1')"]
    first, second = (datetime.fromisoformat(line[4]) for line in retries)
    # A worker's clock strikes a little early.
    assert timedelta(seconds=0.2) < second - first < timedelta(seconds=60)


def test_a_run_without_further_retries_fails_and_its_hooks_are_told_once(hooked):
    result = fail_until.delay(9)

    with pytest.raises(ValueError, match="attempt 2"):
        result.get(timeout=60)

    wait_until(lambda: len(told(result.id)) == 8)
    own = ["apply", "failure", "retry", "retry", "start", "start", "start", "trigger"]
    assert sorted(names(result.id)) == own
    [failure] = [line for line in told(result.id) if line[0] == "failure"]
    assert failure[3:] == ["ValueError('attempt 2')", "ExceptionInfo"]


def test_a_run_that_is_kept_is_triggered_when_it_is_sent(db):
    run = TaskRunner().run(tracked_double.name, [1], countdown=3600)
    assert "trigger" not in names(run.task_id)

    TaskRunRecord.objects.update(due_at=timezone.now())
    assert Dispatcher().dispatch().sent == 1

    assert names(run.task_id).count("trigger") == 1


def test_a_delayed_call_is_applied_at_once_and_triggered_when_it_is_sent(db):
    result = double.apply_async([1], countdown=3600)
    assert names(result.id) == ["apply"]

    TaskRunRecord.objects.update(due_at=timezone.now())
    assert Dispatcher().dispatch().sent == 1

    assert names(result.id) == ["apply", "trigger"]


def test_a_retry_is_no_call_that_is_triggered(db):
    task_id = str(uuid4())

    attempt(fail_until, id=task_id, kwargs={"attempt": 1})

    assert names(task_id) == ["start", "retry"]


def test_a_cancelled_run_is_not_started_for_the_hooks(db):
    run = make_run(task_name=double.name, state=State.REVOKED)
    headers = {"celery_admin_runner_run": run.task_id}

    attempt(double, id=run.task_id, kwargs={"number": 1}, headers=headers)

    assert told(run.task_id) == []


def test_a_message_that_the_broker_did_not_take_is_not_triggered(db, monkeypatch):
    task_id = str(uuid4())
    monkeypatch.setattr(app.amqp, "send_task_message", broken)

    with pytest.raises(OperationalError):
        double.apply_async([1], task_id=task_id)

    assert names(task_id) == ["apply"]


def broken(*args, **kwargs):
    raise OperationalError("away")


def test_an_error_of_a_hook_is_logged_and_the_message_is_sent(db, caplog):
    with messages_sent() as sent, caplog.at_level(logging.ERROR, "celery_admin_runner"):
        loud.delay()
        with pytest.raises(TimeoutError):
            loud.apply_async_and_get_result(timeout=0)

    assert len(sent) == 2
    logged = [(record.getMessage(), repr(record.exc_info[1])) for record in caplog.records]
    assert logged == [
        (f"on_invocation_{name} of tests.hook_tasks.loud failed.", f"LookupError('{name}')")
        for name in ("apply", "trigger", "apply", "trigger", "timeout")
    ]


@pytest.mark.parametrize("end", [State.SUCCESS, State.FAILURE, State.RETRY])
def test_an_error_of_a_hook_hides_no_end_of_a_run(db, caplog, end):
    run = TaskRunner().run(end_loudly.name, [end])

    with messages_sent(), caplog.at_level(logging.ERROR, "celery_admin_runner"):
        attempt(
            end_loudly,
            kwargs={"end": end},
            id=run.task_id,
            headers={RUN_HEADER: run.task_id},
        )

    run.refresh_from_db()
    assert run.state == end
    assert f"on_task_{end.lower()} of {end_loudly.name} failed." in caplog.messages


@pytest.mark.parametrize(
    "call",
    [
        of_a_tenant.delay,
        of_a_tenant.delay_on_commit,
        of_a_tenant.apply_async_on_commit,
        lambda: of_a_tenant.apply_async_and_get_result(timeout=0),
        lambda: TaskRunner().run(of_a_tenant.name, kwargs={"tenant": "south"}),
    ],
)
@pytest.mark.django_db(transaction=True)
def test_an_apply_async_of_a_project_is_asked_however_a_task_is_called(call):
    with messages_sent() as sent, suppress(TimeoutError):
        call()

    assert [message["body"][1] for message in sent] == [{"tenant": "north"}]


def test_who_answers_for_some_tasks_only_is_asked_before_who_answers_for_all(monkeypatch):
    monkeypatch.setattr(base, "_interceptors", [])
    asked = []

    base.intercept(lambda invocation: asked.append("all") or AsyncResult("answer"))
    base.intercept(lambda invocation: asked.append("some"), first=True)

    assert double.delay(1).id == "answer"
    assert asked == ["some", "all"]


def test_eager_calls_tell_their_hooks(monkeypatch):
    monkeypatch.setitem(app.conf, "task_always_eager", True)

    result = double.delay(2)

    assert result.get() == 4
    assert names(result.id) == ["apply", "start", "success", "trigger"]


def test_the_result_of_a_call_can_be_waited_for(hooked):
    assert double.apply_async_and_get_result([3], timeout=60) == 6


def test_what_the_task_raised_is_raised_or_returned(hooked):
    with pytest.raises(TimeoutError, match="mine"):
        time_out.apply_async_and_get_result(timeout=60)

    error = time_out.apply_async_and_get_result(timeout=60, propagate=False)

    assert isinstance(error, TimeoutError)


@pytest.mark.parametrize("timeout", [0, -1, 0.05])
def test_a_result_that_does_not_come_in_time_is_an_error_after_the_call_was_sent(
    db, tmp_path, timeout
):
    task_id = str(uuid4())
    with (
        using_backend(f"file://{tmp_path}"),
        messages_sent() as sent,
        pytest.raises(TimeoutError),
    ):
        double.apply_async_and_get_result([3], timeout=timeout, task_id=task_id)

    assert len(sent) == 1
    assert names(task_id) == ["apply", "trigger", "timeout"]
    assert told(task_id)[-1][3:] == [task_id, "TimeoutError", task_id]


def test_a_call_with_no_time_is_not_waited_for_even_if_its_result_is_there(db):
    task_id = str(uuid4())
    with using_backend("cache+memory://") as backend, messages_sent() as sent:
        backend.store_result(task_id, 6, "SUCCESS")
        with pytest.raises(TimeoutError):
            double.apply_async_and_get_result([3], timeout=0, task_id=task_id)

    assert len(sent) == 1


def seconds_until_next(task, retries=0, **kwargs):
    """Return after how long a worker tries a run again; None: it does not."""
    begun_at = datetime.now(UTC)
    with messages_sent() as sent:
        attempt(task, retries=retries, kwargs=kwargs)
    if not sent:
        return None
    [message] = sent
    assert message["headers"]["retries"] == retries + 1
    eta = message["headers"]["eta"]
    return round((maybe_iso8601(eta) - begun_at).total_seconds()) if eta else 0


@pytest.mark.parametrize("task", [stubborn, fail_by_itself])
def test_a_run_is_tried_again_as_often_as_it_has_delays(task):
    delays = [seconds_until_next(task, retries) for retries in range(4)]

    assert delays == [60, 120, 180, None]


@pytest.mark.parametrize("task", [stubborn, fail_by_itself])
def test_an_explicit_countdown_or_moment_wins(task):
    eta = datetime.now(UTC) + timedelta(seconds=33)

    assert seconds_until_next(task, countdown=7) == 7
    assert seconds_until_next(task, countdown=0) == 0
    assert seconds_until_next(task, eta=eta) == 33


@pytest.mark.parametrize("task", [stubborn, give_up])
def test_no_retry_wins(task):
    assert seconds_until_next(task, max_retries=0) is None


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery 5.5 keeps it out of our reach.")
def test_what_one_run_said_of_its_retries_does_not_count_for_the_next():
    assert seconds_until_next(give_up, max_retries=0) is None

    assert seconds_until_next(give_up) == 60


def test_more_retries_than_delays_follow_after_the_last_delay():
    assert seconds_until_next(stubborn, retries=7, max_retries=8) == 180


def test_what_the_task_says_of_its_retries_wins():
    assert [seconds_until_next(fail_twice, retries) for retries in range(2)] == [60, None]
    assert [seconds_until_next(fail_often, retries) for retries in (0, 4, 5)] == [9, 9, None]


def test_celerys_own_growing_delays_win():
    assert [seconds_until_next(back_off, retries) for retries in range(4)] == [7, 14, 28, None]


def test_a_task_without_delays_is_tried_again_as_celery_does():
    assert HookedTask.max_retries == DjangoTask.max_retries == 3
    assert [task.max_retries for task in (stubborn, fail_by_itself, fail_twice)] == [3, 3, 1]
    assert fail_until.max_retries == 2


def test_a_body_that_is_called_directly_raises_its_own_error():
    with pytest.raises(ValueError, match="no"):
        stubborn()


def test_a_retry_that_is_not_thrown_is_returned():
    class Patient(DjangoTask):
        name = "tests.patient"
        default_retry_delays = (5,)

        def run(self):
            return self.retry(throw=False)

    task = app.register_task(Patient())
    with messages_sent() as sent:
        outcome = attempt(task)

    assert isinstance(outcome.retval, Retry)
    assert len(sent) == 1


def test_exhausted_retries_without_an_error_are_celerys_error():
    class Exhausted(DjangoTask):
        name = "tests.exhausted"
        default_retry_delays = (5,)

        def run(self):
            self.retry()

    outcome = attempt(app.register_task(Exhausted()), retries=1)

    assert isinstance(outcome.info.retval, MaxRetriesExceededError)


def test_a_moment_without_its_zone_is_one_in_utc_for_the_hook():
    seen = []

    class Telling(DjangoTask):
        name = "tests.telling"

        def run(self):
            self.retry(eta=datetime(2100, 1, 1))

        def on_task_retry(self, task_id, args, kwargs, exc, eta):
            seen.append(eta)

    attempt(app.register_task(Telling()))

    assert seen == [datetime(2100, 1, 1, tzinfo=UTC)]


TASKS = """
from celery import Celery, shared_task
from celery_admin_runner.base import DjangoTask
from celery_admin_runner.contexts import RunContext
from celery_admin_runner.queues import TaskQueue

class Queue(TaskQueue):
    FAST = "fast", {"time_limit": 30}

@shared_task(base=DjangoTask, queue=Queue.FAST, unique=True, default_retry_delays=(1, 2))
def one():
    pass

app = Celery("x", broker="memory://", task_cls="celery_admin_runner.base:DjangoTask")

@app.task(bind=True)
def two(self):
    return self.request.id

assert isinstance(two, DjangoTask) and isinstance(app.tasks[one.name], DjangoTask)
assert two.apply().get() and two.delay().id
"""


@pytest.mark.parametrize("module", ["tests.settings", "", "settings_of_nobody"])
def test_tasks_can_be_defined_before_django_is_ready(tmp_path, monkeypatch, module):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", module)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    # Celery sets up Django itself if it is told where the settings are.
    patched = "from celery.fixups import django\ndjango.fixup = lambda app: None\n"

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", patched * bool(module) + TASKS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stderr == ""
    assert done.returncode == 0


def test_what_celerys_own_task_for_django_has_this_one_has():
    assert issubclass(DjangoTask, CeleryDjangoTask)


def test_a_whole_app_can_be_of_django_tasks():
    with Celery(
        "whole", task_cls="celery_admin_runner.base:DjangoTask", set_as_current=False
    ) as whole:

        @whole.task
        def plain():
            """Do nothing."""

        assert isinstance(plain, DjangoTask)
        assert isinstance(whole.tasks["celery.chord_unlock"], DjangoTask)
