"""The result backend with a real worker: what Celery promises of results."""

from __future__ import annotations

import pytest
from billiard.exceptions import TimeLimitExceeded
from celery import chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import GroupResult
from django.conf import settings
from django.db import connection

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.backend_tasks import TYPED, OutOfStock
from tests.celery_app import app
from tests.conftest import running_worker, worker_name
from tests.result_backend import OURS, using_backend
from tests.tasks import add, fail, return_much
from tests.waiting import wait_for_state, wait_until

QUEUE = f"backend-{settings.QUEUE}"
#: Long enough for a task on a busy machine; looked at often.
PATIENCE = {"timeout": 30, "interval": 0.05}


@pytest.fixture(scope="module")
def backend_worker(django_db_setup, django_db_blocker):
    """A worker of this module's own, with our result backend."""
    with running_worker(
        "backend",
        *("--concurrency", "2", "-I", "tests.backend_tasks"),
        CELERY_RESULT_BACKEND=OURS,
        TEST_QUEUE=QUEUE,
    ) as process:
        yield process
        # Only the parent: it need not wait for children that it did not end.
        process.terminate()
        process.wait(15)


@pytest.fixture(autouse=True)
def backend(transactional_db, backend_worker):
    """Our result backend, here and in the worker that takes what is sent here."""
    with using_backend(task_default_queue=QUEUE) as backend:
        yield backend


def task(name, *args, **kwargs):
    """Return the signature of a task of the worker."""
    return app.signature(f"tests.backend_tasks.{name}", args=args, kwargs=kwargs)


def run_of(result):
    return TaskRunRecord.objects.get(task_id=result.id)


def test_a_result_is_in_the_row_of_its_run():
    run = TaskRunner().run("tests.tasks.add", [1])

    result = add.AsyncResult(run.task_id)

    assert result.get(**PATIENCE) == 3
    assert result.successful()
    run.refresh_from_db()
    assert (run.state, run.result) == (State.SUCCESS, 3)


def test_a_task_that_is_not_tracked_gets_a_row_when_it_ends():
    result = add.apply_async([1], {"b": 4})

    assert result.get(**PATIENCE) == 5
    run = run_of(result)
    assert (run.task_name, run.args, run.kwargs) == ("tests.tasks.add", [1], {"b": 4})
    assert (run.state, run.queue, run.worker) == (State.SUCCESS, QUEUE, worker_name("backend"))


def test_values_come_back_with_their_types():
    result = task("return_typed").apply_async()

    assert result.get(**PATIENCE) == TYPED


def test_a_large_result_comes_back_whole_and_is_shown_shortened():
    result = return_much.delay(100_000)

    assert result.get(**PATIENCE) == "x" * 100_000
    assert run_of(result).result["shortened"] is True


def test_get_raises_what_the_task_raised():
    result = task("sell", "socks").apply_async()

    with pytest.raises(OutOfStock) as raised:
        result.get(**PATIENCE)

    assert raised.value.args == ("socks", "for ")
    assert result.failed()
    assert "raise OutOfStock" in result.traceback
    run = run_of(result)
    assert run.exception.startswith("tests.backend_tasks.OutOfStock: ")
    assert (run.state, run.traceback) == (State.FAILURE, result.traceback)


def test_a_secret_stands_in_no_part_of_a_failure():
    run = TaskRunner().run("tests.backend_tasks.sell", ["socks"], {"password": "Sesame4"})

    with pytest.raises(OutOfStock) as raised:
        app.AsyncResult(run.task_id).get(**PATIENCE)

    run.refresh_from_db()
    texts = str([vars(run), raised.value.args])
    assert "Sesame4" not in texts
    assert "for ********" in raised.value.args


def test_a_state_of_the_tasks_own_is_shown_until_it_ends(tmp_path):
    result = task("tell_progress", str(tmp_path / "go")).apply_async()
    wait_until(lambda: result.state == "PROGRESS")

    info = result.info
    (tmp_path / "go").touch()

    assert info == {"done": TYPED["price"].from_float(0.5)}
    assert result.get(**PATIENCE) == "all"
    assert (result.state, run_of(result).custom_state) == ("SUCCESS", "")


def test_a_task_that_is_retried_shows_why():
    result = task("try_again_later").apply_async()

    wait_until(lambda: result.state == "RETRY")

    assert isinstance(result.info, OutOfStock)
    run = run_of(result)
    assert run.state == State.RETRY
    assert 3500 < (run.eta - run.created_at).total_seconds() < 3700


def test_children_are_kept():
    result = task("start_another").apply_async()

    result.get(**PATIENCE)

    [child] = result.children
    assert child.get(**PATIENCE) == 5
    assert [value for _, value in result.collect()] == [None, 5]


def test_a_group_that_a_task_started_is_its_child():
    result = task("start_a_group").apply_async()

    result.get(**PATIENCE)

    [child] = result.children
    assert child.get(**PATIENCE) == [3, 4]


def test_a_chain_hands_on_its_results():
    result = chain(add.s(1), add.s(10), add.s(100)).apply_async()

    assert result.get(**PATIENCE) == 113
    assert result.parent.get(**PATIENCE) == 13


def wait_for_end(result):
    """Wait for the row of a run, and that it has ended."""
    ended = TaskRunRecord.objects.finished().filter(task_id=result.id)
    wait_until(ended.exists)


def test_a_chain_that_fails_raises_at_its_end():
    result = chain(fail.s("no"), add.s(1)).apply_async()

    with pytest.raises(ValueError, match=r"^no$"):
        result.get(**PATIENCE)

    # The error is that of the first, whose end is written before.
    wait_for_end(result)
    assert run_of(result).state == State.FAILURE


def test_a_group_gives_its_results_in_order_and_can_be_kept():
    result = group(add.s(number) for number in range(5)).apply_async()
    result.save()

    kept = GroupResult.restore(result.id, app=app)

    assert kept.get(**PATIENCE) == [2, 3, 4, 5, 6]
    assert kept.successful()
    kept.delete()
    assert GroupResult.restore(result.id, app=app) is None


def test_a_chord_calls_its_body_with_the_results():
    result = chord([add.s(1), add.s(2)], task("total")).apply_async()

    assert result.get(**PATIENCE) == 7


def test_chords_and_chains_inside_of_each_other():
    inner = chain(chord([add.s(1), add.s(2)], task("total")), add.s(1))

    result = chord([inner, add.s(1)], task("total")).apply_async()

    assert result.get(**PATIENCE) == 11


def test_a_task_that_is_replaced_by_a_chord_has_its_result():
    result = task("become_a_chord").apply_async()

    assert result.get(**PATIENCE) == 7


@pytest.mark.parametrize(("what", "value"), [("chain", 13), ("group", [3, 4])])
def test_a_run_that_is_replaced_by_a_canvas_has_its_result(what, value):
    result = task("become", what).delay()

    assert result.get(**PATIENCE) == value
    run = run_of(result)
    assert (run.state, run.result, run.active_key) == (State.SUCCESS, value, None)


def test_a_run_that_is_replaced_by_a_chain_that_fails_fails():
    result = task("become", "failure").delay()

    with pytest.raises(OutOfStock):
        result.get(**PATIENCE)
    run = run_of(result)
    assert (run.state, run.active_key) == (State.FAILURE, None)


def test_a_chord_whose_header_fails_raises_and_calls_its_errback(tmp_path):
    noted = tmp_path / "noted"
    body = task("total").on_error(task("note_failure", path=str(noted)))

    result = chord([add.s(1), fail.s("no")], body).apply_async()

    with pytest.raises(ChordError, match="no"):
        result.get(**PATIENCE, follow_parents=False)
    wait_until(noted.exists)
    assert "ChordError" in noted.read_text()
    wait_until(lambda: run_of(result).task_name == "tests.backend_tasks.total")


def test_a_hard_time_limit_raises():
    result = task("sleep", 30).apply_async(time_limit=1)

    with pytest.raises(TimeLimitExceeded):
        result.get(**PATIENCE)


def test_a_run_that_was_terminated_raises(tmp_path):
    run = TaskRunner().run("tests.tasks.wait_for_file", [str(tmp_path / "never")])
    wait_for_state(run, State.STARTED)

    app.control.revoke(run.task_id, terminate=True)

    with pytest.raises(TaskRevokedError, match="terminated"):
        app.AsyncResult(run.task_id).get(**PATIENCE)


def test_a_run_that_is_asked_to_stop_by_a_signal_ends_as_its_process_says(tmp_path):
    started = tmp_path / "started"
    run = TaskRunner().run("tests.backend_tasks.sleep", [30, str(started)])
    # Celery catches what is raised in the receivers of a start.
    wait_until(started.exists)

    app.control.revoke(run.task_id, terminate=True, signal="SIGUSR1")

    wait_for_state(run, State.FAILURE)
    assert "SoftTimeLimitExceeded" in run.exception


def test_a_task_that_is_not_tracked_goes_on_though_a_signal_asked_it_to_stop(tmp_path):
    started = tmp_path / "started"
    result = task("sleep_until_asked", str(started)).apply_async()
    wait_until(started.exists)

    asked = {"reply": True, "timeout": 5, "destination": [worker_name("backend")]}
    app.control.revoke(result.id, terminate=True, signal="SIGUSR1", **asked)
    (tmp_path / "started.end").touch()

    assert result.get(**PATIENCE) == "went on"
    assert run_of(result).state == State.SUCCESS


def test_a_task_that_is_not_tracked_and_was_terminated_raises(tmp_path):
    started = tmp_path / "started"
    result = task("sleep_until_asked", str(started)).apply_async()
    wait_until(started.exists)

    app.control.revoke(result.id, terminate=True)

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(**PATIENCE)
    assert run_of(result).state == State.REVOKED


def test_a_run_that_expired_raises():
    result = add.apply_async([1], expires=-1)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(**PATIENCE)

    assert run_of(result).state == State.EXPIRED


def test_a_revocation_that_comes_too_late_changes_nothing():
    result = add.delay(1)
    result.get(**PATIENCE)

    app.control.revoke(result.id, reply=True, timeout=5, destination=[worker_name("backend")])

    result.backend._cache.clear()
    assert app.AsyncResult(result.id).state == "SUCCESS"
    assert run_of(result).state == State.SUCCESS


def test_a_task_that_asked_to_be_ignored_keeps_nobody_waiting():
    run = TaskRunner().run("tests.tasks.ignore")

    result = app.AsyncResult(run.task_id)

    assert result.get(**PATIENCE) is None
    assert (result.state, result.ready()) == ("IGNORED", True)


@pytest.mark.skipif(
    connection.vendor != "postgresql", reason="pg_stat_database counts sessions on PostgreSQL"
)
def test_200_tracked_tasks_open_no_session_each(configure):
    configure(TRACK=["*"])
    results = [add.delay(1) for _ in range(2)]
    assert [result.get(**PATIENCE) for result in results] == [3, 3]
    before = sessions()

    results = [add.delay(1) for _ in range(200)]
    wait_until(lambda: TaskRunRecord.objects.finished().count() == 202, seconds=60)

    assert sessions() - before < 10


def sessions() -> int:
    """Return how many sessions this database has seen; what it counts comes a second late."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")
        return cursor.fetchone()[0]


def test_the_output_and_the_last_progress_of_a_run_are_recorded_before_its_end():
    failed = TaskRunner().run("tests.talking_tasks.talk_and_fail")
    counted = TaskRunner().run("tests.talking_tasks.count_to", [7])

    wait_for_state(failed, State.FAILURE)
    assert failed.complete_output() == f"before it failed\n{failed.traceback}"
    wait_for_state(counted, State.SUCCESS)
    assert (counted.progress_current, counted.progress_total) == (7, 7)
