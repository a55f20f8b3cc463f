"""Running again what has ended."""

from __future__ import annotations

from datetime import timedelta

import pytest
from celery import signals
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.utils import timezone

from celery_admin_runner.exceptions import InvalidArguments, NotRetryable
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import FINISHED, UNFINISHED, State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run, make_superuser, make_user
from tests.waiting import wait_for_state

ADD = "tests.tasks.add"


def test_a_run_is_run_again_with_everything_it_was_run_with(worker):
    user = make_user("run_celerytask", "retry_taskrunrecord", "view_taskrunrecord")
    group = Group.objects.create(name="Finance")
    first = TaskRunner(source="command").run(
        ADD, [1], {"b": 41}, obj=group, label="the sum", reason="because", priority=3, expires=600
    )
    wait_for_state(first, State.SUCCESS)

    second = TaskRunner(user, source="admin").retry(first, reason="once more")

    wait_for_state(second, State.SUCCESS)
    assert second.pk != first.pk
    assert second.task_id != first.task_id
    assert second.retry_of == first
    assert second.result == 42
    assert (second.args, second.kwargs) == ([1], {"b": 41})
    assert (second.label, second.obj) == ("the sum", group)
    assert (second.source, second.reason) == ("retry", "once more")
    assert (second.run_by, second.run_by_name) == (user, user.get_username())
    assert second.options == first.options == {"priority": 3, "expires": 600}


@pytest.mark.django_db(transaction=True)
def test_all_options_are_sent_again():
    queue = f"{app.conf.task_default_queue}-elsewhere"
    options = {
        "priority": 7,
        "queue": queue,
        "time_limit": 30,
        "soft_time_limit": 20,
        "headers": {"tenant": "north"},
        "serializer": "json",
        "compression": "zlib",
        "ignore_result": True,
        "shadow": "sum",
    }
    sent = []

    def look(headers, properties, routing_key, **kwargs):
        names = ("timelimit", "ignore_result", "shadow", "tenant")
        sent.append(([headers[name] for name in names], properties["priority"], routing_key))

    signals.before_task_publish.connect(look)
    try:
        first = TaskRunner().run(ADD, [1], **options)
        TaskRunRecord.objects.update(state=State.FAILURE, finished_at=timezone.now())
        first.refresh_from_db()
        second = TaskRunner().retry(first)
    finally:
        signals.before_task_publish.disconnect(look)

    assert second.options == first.options == options
    assert second.queue == queue
    assert sent == [([[30, 20], True, "sum", "north"], 7, queue)] * 2


@pytest.mark.django_db(transaction=True)
def test_arguments_stay_positional_or_named():
    first = TaskRunner().run(ADD, [], {"a": 1, "b": 5})
    TaskRunRecord.objects.update(state=State.SUCCESS, finished_at=timezone.now())
    first.refresh_from_db()

    again = TaskRunner().retry(first)

    assert (again.args, again.kwargs) == (first.args, first.kwargs)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_moment", [True, False])
@pytest.mark.parametrize("use_tz", [True, False])
def test_a_run_expires_as_long_after_it_was_run_again_as_before(settings, use_tz, is_moment):
    settings.USE_TZ = use_tz
    now = timezone.now()
    expires = now + timedelta(hours=2) if is_moment else 7200
    first = TaskRunner().run(ADD, [1], expires=expires)
    created_at = now - timedelta(days=1)
    length = timedelta(hours=3 if is_moment else 2)
    TaskRunRecord.objects.update(
        state=State.EXPIRED,
        finished_at=now,
        created_at=created_at,
        expires_at=created_at + length,
    )
    first.refresh_from_db()

    second = TaskRunner().retry(first)

    second.refresh_from_db()
    assert second.published_at is not None
    assert abs(second.expires_at - second.created_at - length) < timedelta(seconds=1)


@pytest.mark.django_db(transaction=True)
def test_a_run_that_was_to_start_later_is_run_again_at_once():
    eta = timezone.now() - timedelta(days=1)
    first = make_run(args=[1], eta=eta)

    assert TaskRunner().retry(first).eta is None


@pytest.mark.django_db(transaction=True)
def test_changes_take_the_place_of_what_was():
    first = make_run(args=[1], options={"priority": 3, "queue": "a"}, queue="a")

    second = TaskRunner().retry(
        first, args=[2], kwargs={"b": 3}, countdown=600, options={"queue": None, "time_limit": 9}
    )

    assert (second.args, second.kwargs) == ([2], {"b": 3})
    assert second.options == {"priority": 3, "time_limit": 9}
    assert second.queue != "a"
    assert second.eta - second.created_at == timedelta(seconds=600)


@pytest.mark.django_db(transaction=True)
def test_an_option_that_no_run_has_is_refused():
    with pytest.raises(TypeError):
        TaskRunner().retry(make_run(args=[1]), options={"task_id": "chosen"})


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("state", list(State))
def test_only_what_has_ended_is_run_again(state):
    run = make_run(state=state, args=[1])

    assert TaskRunner().may_retry(run) is (state in FINISHED)
    if state in FINISHED:
        assert TaskRunner().retry(run).retry_of == run
    else:
        with pytest.raises(NotRetryable, match=f"“{state.label}”"):
            TaskRunner().retry(run)
    assert TaskRunRecord.objects.count() == 1 + (state not in UNFINISHED)


@pytest.mark.django_db(transaction=True)
def test_a_run_with_a_secret_can_not_be_run_again_without_it(tmp_path):
    path = str(tmp_path / "told")
    run = make_run(task_name="tests.tasks.tell_secret", args=[path, MASK])

    with pytest.raises(NotRetryable, match="secret"):
        TaskRunner().retry(run, kwargs={})
    again = TaskRunner().retry(run, args=[path, "Sesame5"])

    assert again.args == [path, MASK]


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["gone.task", "celery.backend_cleanup"])
def test_a_task_that_is_gone_or_not_runnable_is_not_run_again(name):
    run = make_run(task_name=name)

    assert not TaskRunner(make_superuser()).may_retry(run)
    with pytest.raises(NotRetryable, match=name):
        TaskRunner(make_superuser()).retry(run)


@pytest.mark.django_db
@pytest.mark.parametrize("fields", [{"args": ["x"]}, {"args": [1, 2, 3]}, {"kwargs": {"c": 1}}])
def test_arguments_that_do_not_fit_the_task_any_more_leave_no_row(fields):
    run = make_run(**fields)

    with pytest.raises(InvalidArguments):
        TaskRunner().retry(run)

    assert TaskRunRecord.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    "permissions",
    [
        ["run_celerytask", "view_taskrunrecord"],
        ["retry_taskrunrecord", "view_taskrunrecord"],
        ["run_celerytask", "retry_taskrunrecord"],
    ],
    ids=["may-not-run-again", "may-not-run-the-task", "does-not-see-the-run"],
)
def test_who_may_not_run_it_again_is_refused(permissions):
    user = make_user(*permissions)
    run = make_run(args=[1])

    assert not TaskRunner(user).may_retry(run)
    with pytest.raises(PermissionDenied):
        TaskRunner(user).retry(run)

    assert TaskRunRecord.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_user_may_run_his_or_her_own_run_again():
    user = make_user("run_celerytask", "retry_taskrunrecord")
    run = make_run(args=[1], run_by=user)

    assert TaskRunner(user).may_retry(run)
    assert TaskRunner(user).retry(run).retry_of == run


@pytest.mark.django_db(transaction=True)
def test_the_rule_of_the_task_asks_for_a_reason_again(configure):
    configure(RUNNABLE_TASKS={"tests.*": {"reason": True}})
    user = make_user("run_celerytask", "retry_taskrunrecord", "view_taskrunrecord")
    run = make_run(args=[1], reason="the old one")

    with pytest.raises(InvalidArguments):
        TaskRunner(user).retry(run)

    assert TaskRunner(user).retry(run, reason="a new one").reason == "a new one"


@pytest.mark.django_db(transaction=True)
def test_a_rollback_leaves_no_second_run():
    run = make_run(args=[1])

    with transaction.atomic():
        TaskRunner().retry(run)
        transaction.set_rollback(True)

    assert TaskRunRecord.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_without_a_broker_the_second_run_stays_unsent():
    run = make_run(args=[1])

    with broker_away():
        again = TaskRunner().retry(run)

    assert again.state == State.UNSENT
    assert again.publish_error


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("key", ["forced_json", "shortened"])
def test_arguments_that_are_not_stored_as_they_were_are_never_sent(key):
    run = make_run(args=[1], kwargs={"b": {"value": "<object>", key: True}})

    with pytest.raises(NotRetryable, match="not stored as they were"):
        TaskRunner().retry(run)
    again = TaskRunner().retry(run, kwargs={"b": 3})

    assert again.kwargs == {"b": 3}


@pytest.mark.django_db(transaction=True)
def test_a_run_with_a_secret_header_is_not_run_again_without_it():
    run = make_run(args=[1], options={"headers": {"auth": {"token": MASK}}})

    with pytest.raises(NotRetryable, match="secret"):
        TaskRunner().retry(run)
    again = TaskRunner().retry(run, options={"headers": {"auth": {"token": "Sesame"}}})

    assert again.options == run.options
