"""The result backend on its own: what Celery's documentation promises of one."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from celery import states
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.exceptions import BackendStoreError, Reject, TaskRevokedError, TimeoutError
from celery.result import AsyncResult, GroupResult
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_results.models import GroupResult as StoredGroup

from celery_admin_runner import backends, late, recording
from celery_admin_runner.headers import RUN_HEADER
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.backend_tasks import (
    ODD,
    TYPED,
    OutOfStock,
    call_itself,
    return_odd,
    return_typed,
    sell,
)
from tests.celery_app import app
from tests.factories import make_run
from tests.result_backend import OURS, using_backend
from tests.tasks import add, return_an_object, return_much, return_secret
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db


@pytest.fixture
def backend():
    """Our result backend, in the app of the tests."""
    with using_backend() as backend:
        yield backend


def run_of(task_id):
    return TaskRunRecord.objects.get(task_id=task_id)


def request_of(id, task="tests.tasks.add", **fields):
    """Return the request of a task that a worker holds."""
    return Context({"id": id, "task": task, "args": [], "kwargs": {}, **fields})


def work(task, *args, **fields):
    """Let a task run as a worker does, tracked or not; return its id."""
    task_id = str(uuid4())
    request = {"id": task_id, "task": task.name, "hostname": "w@h", "retries": 0, **fields}
    request.setdefault("delivery_info", {"routing_key": "letters"})
    build_tracer(task.name, task, app=app)(task_id, args, fields.pop("kwargs", {}), request)
    return task_id


def work_as(task, fields, *args):
    """Let a task run as a worker does, of the message with these fields; return its id."""
    task_id = fields.get("id") or str(uuid4())
    request = {"task": task.name, "hostname": "w@h", "retries": 0, "id": task_id, **fields}
    build_tracer(task.name, task, app=app)(task_id, args, {}, {"delivery_info": {}, **request})
    return task_id


def tracked(**fields):
    """Make the run of a message that is in the queue, and return its headers."""
    run = make_run(state=State.PENDING, **fields)
    return run, {"id": run.task_id, "headers": {RUN_HEADER: run.task_id}}


def test_the_backend_is_found_by_its_name_and_by_its_path(backend):
    with using_backend("celery-admin-runner") as by_name:
        assert type(by_name) is type(backend)


def test_an_unknown_task_is_pending(backend):
    result = AsyncResult("nobody", app=app)

    assert (result.state, result.result, result.ready()) == ("PENDING", None, False)
    with pytest.raises(TimeoutError):
        result.get(timeout=0)
    result.forget()


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (State.UNSENT, "PENDING"),
        (State.SCHEDULED, "PENDING"),
        (State.WAITING, "PENDING"),
        (State.PENDING, "PENDING"),
        (State.STARTED, "STARTED"),
        (State.RETRY, "RETRY"),
        (State.CANCELLING, "STARTED"),
        (State.SUCCESS, "SUCCESS"),
        (State.FAILURE, "FAILURE"),
        (State.REVOKED, "REVOKED"),
        (State.EXPIRED, "REVOKED"),
        (State.IGNORED, "IGNORED"),
        (State.LOST, "PENDING"),
    ],
)
def test_each_state_of_a_run_has_its_word_in_celery(backend, state, shown):
    run = make_run(state=state)

    result = AsyncResult(run.task_id, app=app)

    assert result.state == shown
    assert result.ready() == (shown in {"SUCCESS", "FAILURE", "REVOKED", "IGNORED"})


def test_a_success_is_stored_and_read(backend):
    backend.mark_as_done("one", {"number": 42})

    result = AsyncResult("one", app=app)

    assert result.get(timeout=1) == {"number": 42}
    assert (result.successful(), result.traceback) == (True, None)
    assert result.date_done is not None
    assert backend.get_state("one") == states.SUCCESS


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}, 1.5, "text", [1, [2]]])
def test_values_come_back_as_they_were(backend, value):
    backend.store_result("one", value, states.SUCCESS)

    assert AsyncResult("one", app=app).get(timeout=1) == value


def test_typed_values_come_back_with_their_types(backend):
    task_id = work(return_typed)

    assert AsyncResult(task_id, app=app).get(timeout=1) == TYPED


def test_what_json_can_hold_is_stored_whatever_the_serializer_is():
    with using_backend(result_serializer="pickle") as backend:
        backend.mark_as_done("one", TYPED)
        backend.mark_as_failure("two", OutOfStock("socks"))

        assert AsyncResult("one", app=app).get(timeout=1) == TYPED
        with pytest.raises(OutOfStock):
            AsyncResult("two", app=app).get(timeout=1)


def test_a_failure_comes_back_as_its_exception(backend):
    backend.mark_as_failure("one", OutOfStock("socks", 7), traceback="where it was")

    result = AsyncResult("one", app=app)

    with pytest.raises(OutOfStock):
        result.get(timeout=1)
    assert result.get(timeout=1, propagate=False).args == ("socks", 7)
    assert (result.failed(), result.traceback) == (True, "where it was")
    assert run_of("one").exception.startswith("tests.backend_tasks.OutOfStock: ")


def test_an_exception_whose_arguments_are_no_json_comes_back_all_the_same(backend):
    backend.mark_as_failure("one", OutOfStock(object(), "a\x00b"))

    [first, second] = AsyncResult("one", app=app).result.args

    assert first.startswith("<object object")
    assert second == repr("a\x00b")


def test_a_failure_of_which_only_a_signal_told_comes_back_by_its_text(backend):
    run = make_run(state=State.FAILURE, exception="billiard.exceptions.WorkerLostError: killed")
    odd = make_run(state=State.FAILURE, exception="it was: odd")

    error = AsyncResult(run.task_id, app=app).result

    assert (type(error).__name__, str(error)) == ("WorkerLostError", "killed")
    assert str(AsyncResult(odd.task_id, app=app).result) == "it was: odd"


@pytest.mark.parametrize("state", [State.REVOKED, State.EXPIRED])
def test_a_cancelled_run_raises(backend, state):
    run = make_run(state=state, exception="Cancelled by ann.")

    with pytest.raises(TaskRevokedError, match="Cancelled by ann"):
        AsyncResult(run.task_id, app=app).get(timeout=1)


def test_an_ignored_run_gives_none_and_keeps_nobody_waiting(backend):
    run = make_run(state=State.IGNORED)

    assert AsyncResult(run.task_id, app=app).get(timeout=5) is None


def test_a_retry_tells_why(backend):
    backend.mark_as_retry("one", OutOfStock("today"), traceback="where")

    result = AsyncResult("one", app=app)

    assert (result.state, result.ready(), result.traceback) == ("RETRY", False, "where")
    assert isinstance(result.info, OutOfStock)


def test_a_state_of_the_tasks_own_has_its_information(backend):
    run, request = tracked()
    backend.store_result(run.task_id, {"done": 3}, "PROGRESS", request=request_of(**request))

    result = AsyncResult(run.task_id, app=app)

    assert (result.state, result.info) == ("PROGRESS", {"done": 3})
    run.refresh_from_db()
    assert run.state == State.PENDING


def test_the_end_of_a_task_ends_its_own_state(backend):
    backend.store_result("one", {"done": 3}, "PROGRESS")
    backend.mark_as_done("one", 4)
    backend.store_result("one", {"done": 5}, "PROGRESS")

    assert (AsyncResult("one", app=app).state, AsyncResult("one", app=app).get()) == ("SUCCESS", 4)


def test_the_start_that_celery_reports_itself_is_not_written_twice(
    backend, django_assert_num_queries
):
    run, request = tracked()

    with django_assert_num_queries(0):
        backend.store_result(
            run.task_id, {"pid": 1, "hostname": "w"}, "STARTED", request=request_of(**request)
        )


def test_a_started_run_tells_its_worker(backend):
    run = make_run(state=State.STARTED, worker="w@h")

    assert AsyncResult(run.task_id, app=app).info == {"hostname": "w@h"}


@pytest.mark.parametrize("state", [State.SUCCESS, State.FAILURE, State.REVOKED, State.EXPIRED])
def test_a_finished_run_is_never_overwritten(backend, state):
    run = make_run(state=state, result=1)

    backend.mark_as_revoked(run.task_id, "revoked", request=request_of(run.task_id))
    backend.mark_as_revoked(run.task_id, "revoked")
    backend.mark_as_done(run.task_id, 2)
    backend.mark_as_failure(run.task_id, ValueError())
    backend.mark_as_retry(run.task_id, ValueError())

    again = run_of(run.task_id)
    assert (again.state, again.result, again.finished_at) == (state, 1, run.finished_at)


def test_a_revocation_of_what_runs_is_left_to_its_worker(backend):
    run = make_run(state=State.STARTED)

    backend.mark_as_revoked(run.task_id, "revoked")

    assert run_of(run.task_id).state == State.STARTED


def test_the_end_of_an_earlier_attempt_changes_nothing(backend):
    run = make_run(state=State.STARTED, retries=1)

    backend.mark_as_retry(run.task_id, ValueError(), request=request_of(run.task_id, retries=0))

    assert run_of(run.task_id).state == State.STARTED


def test_an_end_without_a_request_leaves_the_number_of_the_attempt(backend):
    run = make_run(state=State.STARTED, retries=2)

    backend.mark_as_failure(run.task_id, ValueError("no"))

    again = run_of(run.task_id)
    assert (again.state, again.retries) == (State.FAILURE, 2)


def test_arguments_are_never_overwritten(backend):
    run, request = tracked(args=[1, 2], kwargs={"c": 3}, task_name="shop.sell")

    backend.mark_as_done(run.task_id, 1, request=request_of(**request))

    again = run_of(run.task_id)
    assert (again.args, again.kwargs, again.task_name) == ([1, 2], {"c": 3}, "shop.sell")


def test_the_extended_attributes_are_there(backend):
    task_id = work(add, 1, kwargs={"b": 4})

    result = AsyncResult(task_id, app=app)

    assert (result.name, result.args, result.kwargs) == ("tests.tasks.add", [1], {"b": 4})
    assert (result.worker, result.retries, result.queue) == ("w@h", 0, "letters")


def test_a_task_that_its_worker_does_not_know_has_a_row(backend):
    class Bunch:
        """What Celery 5.7 makes for it."""

        def __init__(self):
            self.name, self.chord, self.root_id, self.errbacks = "shop.gone", None, "root", None

    backend.mark_as_failure("one", KeyError("shop.gone"), request=Bunch())

    run = run_of("one")
    assert (run.task_name, run.state, run.root_id) == ("shop.gone", State.FAILURE, "root")


def test_a_large_result_is_read_whole_and_shown_shortened(backend):
    task_id = work(return_much, 100_000)

    assert AsyncResult(task_id, app=app).get(timeout=1) == "x" * 100_000
    run = run_of(task_id)
    assert run.result["shortened"] is True
    assert len(run.whole_result) == 100_002


def test_a_large_failure_is_read_whole(backend):
    backend.mark_as_failure("one", OutOfStock("x" * 100_000))

    assert AsyncResult("one", app=app).result.args == ("x" * 100_000,)


def test_a_secret_is_stored_nowhere(backend):
    task_id = work(return_secret, "Sesame4", 987654)
    failed = work(sell, "socks", "Sesame4")

    assert AsyncResult(task_id, app=app).get(timeout=1)["password"] == "********"
    for run in (run_of(task_id), run_of(failed)):
        assert "Sesame4" not in str(vars(run))
    assert isinstance(AsyncResult(failed, app=app).result, OutOfStock)


def test_a_secret_of_the_first_task_of_a_chain_stands_in_no_row_of_the_rest(backend):
    rest = [add.si(1).set(task_id=name) for name in ("third", "second")]

    work(sell, "socks", "Sesame4", chain=rest)

    for name in ("second", "third"):
        assert run_of(name).state == State.FAILURE
        assert "Sesame4" not in str(vars(run_of(name)))
        assert "for ********" in AsyncResult(name, app=app).result.args


def test_a_secret_that_only_the_workers_parent_reports_stands_in_no_row_of_a_chain(backend):
    rest = [add.si(1).set(task_id="second")]
    request = request_of("one", sell.name, kwargs={"password": "Sesame4"}, chain=rest)

    backend.mark_as_failure("one", Reject("for Sesame4"), request=request)

    for name in ("one", "second"):
        assert "Sesame4" not in str(vars(run_of(name)))


def test_a_state_of_the_tasks_own_holds_no_secret_and_fits(backend, caplog):
    run, request = tracked(task_name=call_itself.name)
    told = request_of(**request, task=call_itself.name, args=["x", "Sesame4"])
    state = f"S Sesame4 {'x' * 100}"

    backend.store_result(run.task_id, {"Sesame4": "Sesame4"}, state, request=told)

    again = run_of(run.task_id)
    assert again.custom_state == f"S ******** {'x' * 100}"[:64]
    assert "Sesame4" not in str(vars(again))


@pytest.mark.parametrize(
    ("state", "shown"), [(None, ""), (5, "5"), ("a\x00b", "a\N{REPLACEMENT CHARACTER}b")]
)
def test_an_odd_state_of_the_tasks_own_breaks_nothing(backend, state, shown):
    run, request = tracked()

    backend.store_result(run.task_id, {"done": 3}, state, request=request_of(**request))

    assert run_of(run.task_id).custom_state == shown


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "RETRY", "REVOKED"])
@pytest.mark.parametrize("is_tracked", [True, False], ids=["tracked", "not tracked"])
def test_a_task_that_sets_a_state_of_celerys_and_goes_on_ends_as_it_ends(
    backend, state, is_tracked
):
    fields = tracked(task_name=call_itself.name)[1] if is_tracked else {}

    task_id = work_as(call_itself, fields, state)

    assert AsyncResult(task_id, app=app).get(timeout=1) == f"went on as {state}"
    assert (run_of(task_id).state, run_of(task_id).custom_state) == (State.SUCCESS, "")


@pytest.mark.parametrize("is_tracked", [True, False], ids=["tracked", "not tracked"])
def test_a_task_that_sets_failure_and_asks_to_be_ignored_shows_it(backend, is_tracked):
    fields = tracked(task_name=call_itself.name)[1] if is_tracked else {}

    task_id = work_as(call_itself, fields, "FAILURE", "ignore")

    result = AsyncResult(task_id, app=app)
    assert (run_of(task_id).state, result.state) == (State.IGNORED, "FAILURE")
    assert result.result.args == ({"why": "shelf"},)
    with pytest.raises(Exception, match="shelf"):
        result.get(timeout=1)


# Celery 5.7 can't log a huge number.
@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")
@pytest.mark.parametrize("name", ODD)
def test_a_result_that_can_hardly_be_written_down_lets_no_task_fail(backend, name):
    task_id = work(return_odd, name)

    result = AsyncResult(task_id, app=app)
    assert (result.state, result.get(timeout=1)["forced_json"]) == ("SUCCESS", True)


def test_no_text_is_made_of_a_result_that_is_json(backend):
    class Silent(dict):
        def __str__(self):
            raise AssertionError

    backend.mark_as_done("one", Silent(number=1))

    assert AsyncResult("one", app=app).get(timeout=1) == {"number": 1}


def test_an_error_of_celerys_own_is_reported_as_an_exception(backend):
    assert isinstance(backend.prepare_exception(OutOfStock("socks"), "pickle"), OutOfStock)


def test_a_mask_inside_of_a_value_breaks_no_reading(backend):
    value = {"id": TYPED["id"]}
    task_id = str(uuid4())
    request = request_of(task_id, "tests.backend_tasks.sell", args=["a", str(TYPED["id"].hex)])

    backend.mark_as_done(task_id, value, request=request)

    assert "********" in str(AsyncResult(task_id, app=app).get(timeout=1))


def test_what_is_no_json_is_stored_as_text(backend):
    task_id = work(return_an_object)

    result = AsyncResult(task_id, app=app).get(timeout=1)

    assert result["forced_json"] is True
    assert result["value"].startswith("<object object")


def test_without_force_json_a_result_that_is_no_json_lets_the_task_fail(backend, configure):
    configure(FORCE_JSON=False)

    task_id = work(return_an_object)

    result = AsyncResult(task_id, app=app)
    assert (result.state, type(result.result).__name__) == ("FAILURE", "EncodeError")
    assert run_of(task_id).state == State.FAILURE


def test_forgetting_clears_the_result_and_keeps_who_did_what(backend):
    task_id = work(sell, "socks")
    result = AsyncResult(task_id, app=app)
    assert result.state == "FAILURE"

    AsyncResult(task_id, app=app).forget()

    run = run_of(task_id)
    assert (run.state, run.args) == (State.FAILURE, ["socks"])
    assert (run.result, run.whole_result, run.children, run.traceback) == (None, "", None, "")
    assert AsyncResult(task_id, app=app).state == "PENDING"


def test_a_success_that_is_forgotten_is_pending_though_it_was_read_before(backend):
    backend.mark_as_done("one", 1)
    assert AsyncResult("one", app=app).get() == 1

    AsyncResult("one", app=app).forget()

    assert AsyncResult("one", app=app).state == "PENDING"


def test_groups_are_kept_read_and_deleted(backend):
    for task_id, value in (("one", 1), ("two", 2)):
        backend.mark_as_done(task_id, value)
    group = GroupResult("both", [AsyncResult("one", app=app), AsyncResult("two", app=app)])
    group.save(backend=backend)

    kept = GroupResult.restore("both", app=app, backend=backend)

    assert kept.get(timeout=1) == [1, 2]
    kept.delete(backend=backend)
    assert GroupResult.restore("both", app=app, backend=backend) is None
    backend.delete_group("both")


def test_the_cleanup_lets_expired_groups_go_and_runs_by_their_retention(backend, configure):
    configure(RETENTION=timedelta(days=10), PRUNE_ON_STARTUP=True)
    old, older = (timezone.now() - timedelta(days=days) for days in (5, 20))
    kept = {
        make_run(finished_at=old).pk,
        make_run(state=State.STARTED, created_at=older).pk,
    }
    make_run(finished_at=older)
    backend._save_group("both", GroupResult("both", []))
    StoredGroup.objects.update(date_done=old)

    app.tasks["celery.backend_cleanup"]()

    assert set(TaskRunRecord.objects.values_list("pk", flat=True)) == kept
    assert not StoredGroup.objects.exists()


@pytest.mark.parametrize(
    "keys", [{"RETENTION": None}, {"PRUNE_ON_STARTUP": False}], ids=["for ever", "by hand"]
)
def test_the_cleanup_prunes_no_runs_where_nothing_is_to_prune_them(backend, configure, keys):
    configure(**{"RETENTION": timedelta(days=10), "PRUNE_ON_STARTUP": True, **keys})
    make_run(finished_at=timezone.now() - timedelta(days=99))

    backend.cleanup()

    assert TaskRunRecord.objects.count() == 1


def test_the_cleanup_leaves_all_where_results_never_expire(configure):
    configure(RETENTION=timedelta(days=10), PRUNE_ON_STARTUP=True)
    make_run(finished_at=timezone.now() - timedelta(days=99))

    with using_backend(result_expires=None) as backend:
        backend.cleanup()

    assert TaskRunRecord.objects.count() == 1


def test_an_eager_task_stores_its_result_if_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(add, "store_eager_result", True)
    conf = {"task_always_eager": True, "task_store_eager_result": True}
    with using_backend(OURS, **conf):
        result = add.delay(1)

        assert AsyncResult(result.id, app=app).get(timeout=1) == 3
    assert run_of(result.id).state == State.SUCCESS


def test_a_task_whose_result_is_ignored_has_no_row(backend):
    task_id = work(add, 1, ignore_result=True)

    assert AsyncResult(task_id, app=app).state == "PENDING"
    assert not TaskRunRecord.objects.exists()


def gone(execute, sql, params, many, context):
    raise OperationalError("gone")


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_gone_breaks_no_task(backend, caplog):
    with connection.execute_wrapper(gone):
        backend.store_result("one", 1, states.SUCCESS)

    assert "could not record SUCCESS" in caplog.text
    assert AsyncResult("one", app=app).state == "PENDING"


@pytest.mark.django_db(transaction=True)
def test_an_end_that_a_worker_could_not_record_is_recorded_whole_when_the_database_is_back(
    backend, monkeypatch
):
    store, away = backends.store, [True]

    def store_when_back(*arguments):
        if away:
            raise OperationalError("gone")
        return store(*arguments)

    monkeypatch.setattr(backends, "store", store_when_back)
    monkeypatch.setattr(late, "FIRST_PAUSE", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(recording._process, "is_worker", True)
        backend.mark_as_done("one", "x" * 100_000)
        away.clear()
        wait_until(lambda: late._kept.thread is None)
    recording._process.start_counting()

    assert AsyncResult("one", app=app).get(timeout=1) == "x" * 100_000


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_gone_is_waited_for_if_that_is_asked_for():
    conf = {"result_backend_always_retry": True, "result_backend_max_retries": 2}
    conf["result_backend_base_sleep_between_retries_ms"] = 1
    with using_backend(OURS, **conf) as backend:
        with connection.execute_wrapper(gone), pytest.raises(BackendStoreError):
            backend.store_result("one", 1, states.SUCCESS)
        left = iter([True])

        def gone_once(execute, *arguments):
            if next(left, None):
                raise OperationalError("gone")
            return execute(*arguments)

        with connection.execute_wrapper(gone_once):
            backend.store_result("one", 1, states.SUCCESS)

        with connection.execute_wrapper(gone), pytest.raises(Exception, match="get meta"):
            AsyncResult("two", app=app).state  # noqa: B018
        assert AsyncResult("one", app=app).get(timeout=1) == 1


@pytest.mark.django_db(transaction=True)
def test_a_tracked_task_costs_four_statements_from_its_publish_to_its_end(configure):
    configure(TRACK=["*"])
    with using_backend(task_default_queue=f"count-{uuid4()}") as backend:
        # Faults of tests before are written down with the next record.
        backend.mark_as_done("one", 1)
        with CaptureQueriesContext(connection) as published:
            task_id = add.delay(1).id
        message = take(task_id)
        trace = build_tracer(add.name, add, app=app)
        with CaptureQueriesContext(connection) as worked:
            trace(task_id, [1], {}, message)

    statements = [query["sql"].split()[0] for query in [*published, *worked]]
    assert statements == ["INSERT", "UPDATE", "UPDATE", "UPDATE"]
    assert run_of(task_id).state == State.SUCCESS


def take(task_id):
    """Take a message out of its queue, and return the request that a worker makes of it."""
    with app.connection_for_read() as broker:
        queue = broker.SimpleQueue(app.conf.task_default_queue)
        message = queue.get(timeout=10)
        message.ack()
        queue.clear()
        queue.close()
    return {**message.headers, "headers": message.headers, "delivery_info": {}, "hostname": "w"}
