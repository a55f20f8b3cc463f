"""Periodic tasks by hand: what beat would send is sent, and its schedule stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.utils import timezone

from celery_admin_runner.exceptions import InvalidArguments, NotSendable, TaskNotRunnable
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.registry import find_task, find_task_info
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run, make_user
from tests.periodic import beat_models, make_periodic, messages_sent
from tests.waiting import wait_until

ON_COMMIT = pytest.mark.django_db(transaction=True)
pytestmark = pytest.mark.django_db

ADD = "tests.tasks.add"
ELSEWHERE = "elsewhere.tasks.count"


def errors_of(periodic_task: Any) -> dict[str, list[str]]:
    with pytest.raises(InvalidArguments) as caught:
        TaskRunner().run_periodic(periodic_task)
    assert not TaskRunRecord.objects.exists()
    return caught.value.errors


def test_a_worker_runs_it_with_its_arguments(worker: object) -> None:
    user = make_user("run_celerytask", username="ada")
    periodic_task = make_periodic(args=[1], kwargs={"b": 4})

    run = TaskRunner(user, source="admin").run_periodic(periodic_task, reason="Closing")

    wait_until(lambda: TaskRunRecord.objects.get(pk=run.pk).is_finished)
    run.refresh_from_db()
    assert (run.state, run.result) == (State.SUCCESS, 5)
    assert (run.source, run.run_by, run.periodic_task_name) == ("periodic", user, "hourly")
    assert (run.reason, run.args, run.kwargs) == ("Closing", [1], {"b": 4})


@ON_COMMIT
def test_what_beat_would_send_is_sent(settings: object) -> None:
    expires = timezone.now() + timedelta(hours=3)
    periodic_task = make_periodic(
        args=[1],
        queue=f"{settings.QUEUE}-nobody",
        priority=7,
        expires=expires,
        headers='{"tenant": "acme", "celery_admin_runner_context": ["1", "", "", "", "", ""]}',
    )

    with messages_sent() as sent:
        run = TaskRunner().run_periodic(periodic_task)

    (message,) = sent
    assert "celery_admin_runner_context" not in message["headers"]
    assert run.state == State.PENDING
    assert message["routing_key"] == f"{settings.QUEUE}-nobody"
    assert message["properties"]["priority"] == 7
    assert message["headers"]["tenant"] == "acme"
    assert message["headers"]["periodic_task_name"] == "hourly"
    assert message["headers"]["expires"] == expires.isoformat()
    assert run.expires_at == expires
    assert run.options.keys() == {"queue", "priority", "expires", "headers"}
    assert run.options["headers"] == {"tenant": "acme"}


@ON_COMMIT
def test_exchange_and_routing_key_are_kept(settings: object) -> None:
    routing = {"exchange": f"{settings.QUEUE}-exchange", "routing_key": "audit.high"}
    periodic_task = make_periodic(args=[1], **routing)

    with messages_sent() as sent:
        run = TaskRunner().run_periodic(periodic_task)

    assert run.state == State.PENDING
    assert {name: sent[0][name] for name in routing} == routing
    assert run.options == routing


@ON_COMMIT
def test_seconds_to_expire_count_from_now_on() -> None:
    before = timezone.now()

    run = TaskRunner().run_periodic(make_periodic(args=[1], expire_seconds=60))

    lasts = run.expires_at - before
    assert timedelta(seconds=60) <= lasts < timedelta(seconds=90)
    assert run.options == {"expires": 60}


@ON_COMMIT
def test_empty_fields_are_no_options() -> None:
    periodic_task = make_periodic(args=[1], expire_seconds=0)
    beat_models.PeriodicTask.objects.update(
        args="",
        kwargs="",
        headers="",
        queue="",
        exchange="",
        routing_key="",
        task="tests.tasks.fail",
    )
    periodic_task.refresh_from_db()

    run = TaskRunner().run_periodic(periodic_task)

    assert (run.args, run.kwargs, run.options) == ([], {}, {})
    assert run.expires_at is None


@ON_COMMIT
def test_a_header_that_names_another_periodic_task_is_not_believed() -> None:
    periodic_task = make_periodic(args=[1], headers='{"periodic_task_name": "other"}')

    with messages_sent() as sent:
        run = TaskRunner().run_periodic(periodic_task)

    assert sent[0]["headers"]["periodic_task_name"] == "hourly"
    assert (run.periodic_task_name, run.options) == ("hourly", {})


@ON_COMMIT
@pytest.mark.parametrize("fields", [{"enabled": False}, {"one_off": True}])
def test_its_schedule_stays_as_it_is(fields: dict[str, Any]) -> None:
    periodic_task = make_periodic(args=[1], total_run_count=3, **fields)
    beat_models.PeriodicTask.objects.update(last_run_at=timezone.now() - timedelta(hours=1))
    before = beat_models.PeriodicTask.objects.values().get()
    changed_at = beat_models.PeriodicTasks.last_change()

    run = TaskRunner().run_periodic(periodic_task)

    assert run.state == State.PENDING
    assert beat_models.PeriodicTask.objects.values().get() == before
    assert beat_models.PeriodicTasks.last_change() == changed_at


@ON_COMMIT
def test_a_task_that_only_workers_know_is_sent_by_its_name() -> None:
    periodic_task = make_periodic(ELSEWHERE, args=[1, [2]], kwargs={"password": "pw", "deep": {}})

    with messages_sent() as sent:
        run = TaskRunner().run_periodic(periodic_task)

    (message,) = sent
    assert (run.state, run.task_name) == (State.PENDING, ELSEWHERE)
    assert message["sender"] == ELSEWHERE
    assert message["body"][:2] == ((1, [2]), {"password": "pw", "deep": {}})
    assert run.kwargs == {"password": MASK, "deep": {}}
    assert "pw" not in message["headers"]["kwargsrepr"]
    assert ELSEWHERE not in app.tasks


@ON_COMMIT
def test_a_task_that_only_workers_know_is_sent_also_where_tasks_are_eager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(app.conf, "task_always_eager", True)

    with messages_sent() as sent, pytest.warns(UserWarning, match="no effect on send_task"):
        run = TaskRunner().run_periodic(make_periodic(ELSEWHERE))

    assert (len(sent), run.state) == (1, State.PENDING)


def test_a_name_is_known_by_the_same_task_each_time() -> None:
    task = find_task(ELSEWHERE)

    info = find_task_info(ELSEWHERE)

    assert find_task(ELSEWHERE) is task
    assert (info.name, info.doc, info.is_runnable) == (ELSEWHERE, "", True)
    assert find_task(ADD) is app.tasks[ADD]


@pytest.mark.parametrize("name", [ADD, ELSEWHERE, "celery.backend_cleanup"])
def test_the_allowlist_decides_for_every_name(configure: Callable[..., None], name: str) -> None:
    configure(RUNNABLE_TASKS=["shop.*"])

    with pytest.raises(TaskNotRunnable):
        TaskRunner().run_periodic(make_periodic(name, args=[1]))

    assert not TaskRunRecord.objects.exists()


@pytest.mark.parametrize("name", [ADD, ELSEWHERE])
def test_who_may_not_run_tasks_is_refused(name: str) -> None:
    user = make_user("django_celery_beat.change_periodictask")

    with pytest.raises(PermissionDenied):
        TaskRunner(user).run_periodic(make_periodic(name, args=[1]))


def test_the_rule_of_a_name_asks_for_more(configure: Callable[..., None]) -> None:
    configure(RUNNABLE_TASKS={"elsewhere.*": {"groups": ["Finance"]}, "*": {"reason": True}})
    runner = TaskRunner(make_user("run_celerytask"))

    with pytest.raises(PermissionDenied):
        runner.run_periodic(make_periodic(ELSEWHERE))
    with pytest.raises(InvalidArguments, match="needs a reason"):
        runner.run_periodic(make_periodic(args=[1], name="other"))


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"args": "[1"}, "args", "This is no valid JSON: Expecting"),
        ({"args": '{"a": 1}'}, "args", "This must be a JSON list."),
        ({"kwargs": "[]"}, "kwargs", "This must be a JSON object."),
        ({"kwargs": "nonsense"}, "kwargs", "This is no valid JSON"),
        ({"headers": "[1]"}, "headers", "This must be a JSON object."),
        ({"args": "[" * 100_000}, "args", "This is no valid JSON: RecursionError"),
    ],
)
def test_what_is_no_json_is_told_by_field(fields: dict[str, str], field: str, text: str) -> None:
    periodic_task = make_periodic(args=[1])
    for name, value in fields.items():
        setattr(periodic_task, name, value)

    errors = errors_of(periodic_task)

    assert errors.keys() == {field}
    assert errors[field][0].startswith(text)


@pytest.mark.parametrize("kind", ["decimal", "uuid", "datetime", "unknown"])
def test_an_error_of_json_quotes_no_value(kind: str) -> None:
    secret = {"__type__": kind, "__value__": "hunter2"}
    periodic_task = make_periodic(args=[1])
    periodic_task.kwargs = json.dumps({"password": secret})

    (text,) = errors_of(periodic_task)["kwargs"]

    assert text.startswith("This is no valid JSON")
    assert "hunter2" not in text


def test_arguments_that_do_not_fit_the_task_are_refused() -> None:
    assert errors_of(make_periodic(args=["x"])).keys() == {"a"}


def test_one_that_has_expired_is_refused() -> None:
    past = timezone.now() - timedelta(seconds=1)

    errors = errors_of(make_periodic(args=[1], expires=past))

    assert errors == {"expires": ["It has expired: a run would not start any more."]}


@ON_COMMIT
def test_secrets_are_sent_and_not_kept() -> None:
    periodic_task = make_periodic(
        "tests.tasks.tell_secret",
        kwargs={"path": "/nowhere", "password": "hunter2"},
        headers='{"my_token": "hunter3"}',
    )

    with messages_sent() as sent:
        run = TaskRunner().run_periodic(periodic_task)

    kept = TaskRunRecord.objects.values().get()
    assert sent[0]["body"][1]["password"] == "hunter2"
    assert sent[0]["headers"]["my_token"] == "hunter3"
    assert run.kwargs["password"] == MASK
    assert "hunter" not in str(kept)
    assert "hunter" not in sent[0]["headers"]["kwargsrepr"]


@pytest.mark.django_db
@pytest.mark.parametrize("header", ["task", "id"])
def test_no_header_makes_another_task_or_run_of_it(header: str) -> None:
    errors = errors_of(make_periodic(args=[1], headers=json.dumps({header: "other.task"})))

    assert errors == {"__all__": [f"These headers are Celery's own: {header}."]}


@ON_COMMIT
@pytest.mark.parametrize("name", [ADD, ELSEWHERE])
def test_sent_again_it_is_still_a_run_of_its_periodic_task(name: str) -> None:
    with broker_away():
        run = TaskRunner().run_periodic(make_periodic(name, args=[1]))
    assert run.state == State.UNSENT

    with messages_sent() as sent:
        TaskRunner().send_again(run)

    assert sent[0]["headers"]["periodic_task_name"] == "hourly"


@ON_COMMIT
def test_what_was_no_periodic_task_is_not_sent_by_its_name() -> None:
    run = make_run(task_name=ELSEWHERE, state=State.UNSENT)

    with pytest.raises(NotSendable, match="No task named"):
        TaskRunner().send_again(run)
    assert not TaskRunner().may_run_task_of(run)
