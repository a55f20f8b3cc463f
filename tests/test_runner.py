"""TaskRunner: who may run what, and what is recorded and sent."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import signals
from django.contrib.auth.models import AnonymousUser, Group
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from celery_admin_runner.dispatch import claim, publish
from celery_admin_runner.exceptions import (
    InvalidArguments,
    NotSendable,
    TaskNotFound,
    TaskNotRunnable,
)
from celery_admin_runner.messages import Message
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.registry import get_task_info
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.signals import TaskRunSignal
from celery_admin_runner.states import State
from tests.brokers import NO_BROKER, broker_away
from tests.celery_app import app
from tests.conftest import worker_name
from tests.factories import make_run, make_runs, make_superuser, make_user
from tests.tasks import add
from tests.waiting import wait_for_state


def test_a_run_succeeds_on_a_real_worker(worker):
    user = make_user("run_celerytask")

    run = TaskRunner(user, source="admin").run("tests.tasks.add", [1], {"b": 41}, reason="why not")

    wait_for_state(run, State.SUCCESS)
    assert run.result == 42
    assert (run.args, run.kwargs) == ([1], {"b": 41})
    assert (run.run_by, run.run_by_name, run.source) == (user, user.get_username(), "admin")
    assert run.reason == "why not"
    assert run.worker == worker_name("session")
    assert run.created_at <= run.started_at <= run.finished_at
    assert run.published_at is not None


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["no.such.task", "", "tests.tasks.ADD"])
def test_an_unknown_task_is_not_found(name):
    with pytest.raises(TaskNotFound):
        TaskRunner().run(name)

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("patterns", [None, ["*"], ["celery.*"], ["celery.backend_cleanup"]])
def test_celerys_own_tasks_are_never_run(configure, patterns):
    configure(RUNNABLE_TASKS=patterns)

    with pytest.raises(TaskNotRunnable):
        TaskRunner().run("celery.backend_cleanup")


@pytest.mark.django_db
@pytest.mark.parametrize("patterns", [[], {}, ["other.*"], {"tests.tasks.fail": {}}])
def test_a_task_outside_the_allowlist_is_refused_even_to_a_superuser(configure, patterns):
    configure(RUNNABLE_TASKS=patterns)

    with pytest.raises(TaskNotRunnable):
        TaskRunner(make_user(is_superuser=True)).run("tests.tasks.add", [1])

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
def test_a_user_without_the_permission_is_refused():
    for user in (make_user("view_celerytask", "view_taskrunrecord"), AnonymousUser()):
        with pytest.raises(PermissionDenied):
            TaskRunner(user).run("tests.tasks.add", [1])

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
def test_an_inactive_superuser_is_refused():
    with pytest.raises(PermissionDenied):
        TaskRunner(make_user(is_superuser=True, is_active=False)).run("tests.tasks.add", [1])


@pytest.mark.django_db(transaction=True)
def test_a_rule_asks_for_a_permission_and_a_group(configure):
    configure(
        RUNNABLE_TASKS={
            "tests.tasks.add": {
                "permission": "celery_admin_runner.export_taskrunrecord",
                "groups": ["Finance"],
            }
        }
    )
    user = make_user("run_celerytask")
    with pytest.raises(PermissionDenied):
        TaskRunner(user).run("tests.tasks.add", [1])
    user = make_user("run_celerytask", "export_taskrunrecord")
    with pytest.raises(PermissionDenied):
        TaskRunner(user).run("tests.tasks.add", [1])
    user.groups.add(Group.objects.create(name="Finance"))

    run = TaskRunner(user).run("tests.tasks.add", [1])

    assert run.state == State.PENDING


@pytest.mark.django_db
def test_a_user_model_of_the_project_says_which_groups_a_user_is_in(configure):
    class Clerk:
        """A user whose model relates to groups in a way of its own."""

        pk = 1
        is_active = True
        is_superuser = False

        @property
        def groups(self):
            return Group.objects.filter(name="Finance")

        def has_perm(self, name):
            return True

    configure(RUNNABLE_TASKS={"tests.*": {"groups": ["Finance"]}})
    Group.objects.create(name="Finance")

    assert TaskRunner(Clerk()).may_run(get_task_info("tests.tasks.add"))


@pytest.mark.django_db(transaction=True)
def test_a_rule_asks_users_for_a_reason(configure):
    configure(RUNNABLE_TASKS={"tests.*": {"reason": True}})

    with pytest.raises(InvalidArguments):
        TaskRunner(make_user("run_celerytask")).run("tests.tasks.add", [1], reason="  ")

    assert TaskRunner().run("tests.tasks.add", [1]).state == State.PENDING


@pytest.mark.django_db
def test_wrong_arguments_leave_no_row():
    with pytest.raises(InvalidArguments) as caught:
        TaskRunner().run("tests.tasks.add", ["x"])

    assert list(caught.value.errors) == ["a"]
    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"args": 5}, TypeError, "as a list"),
        ({"args": "12"}, TypeError, "as a list"),
        ({"args": [1], "kwargs": [2]}, TypeError, "as a dict"),
        ({"args": [1], "obj": 5}, TypeError, "an object of a model"),
        ({"args": [1], "obj": Group(name="none yet")}, ValueError, "is not saved"),
    ],
)
def test_what_is_of_a_wrong_kind_leaves_no_row(given, error, told):
    with pytest.raises(error, match=told):
        TaskRunner().run("tests.tasks.add", **given)

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("user", ["admin", 1, Group(name="Staff")])
def test_a_runner_is_for_a_user_object(user):
    with pytest.raises(TypeError, match="Give a user object"):
        TaskRunner(user)


@pytest.mark.django_db
def test_an_option_that_is_the_runners_own_is_refused():
    with pytest.raises(TypeError):
        TaskRunner().run("tests.tasks.add", [1], task_id="chosen")


@pytest.mark.django_db(transaction=True)
def test_a_rollback_leaves_neither_row_nor_message(worker, tmp_path):
    class Rollback(Exception):
        pass

    def roll_back() -> None:
        with transaction.atomic():
            TaskRunner().run("tests.tasks.tell_secret", [str(tmp_path / "told"), "x"])
            raise Rollback

    with pytest.raises(Rollback):
        roll_back()
    after = TaskRunner().run("tests.tasks.add", [1])

    wait_for_state(after, State.SUCCESS)
    assert TaskRunRecord.objects.count() == 1
    assert not (tmp_path / "told").exists()


@pytest.mark.django_db(transaction=True)
def test_inside_a_transaction_the_message_waits_for_the_commit():
    with transaction.atomic():
        run = TaskRunner().run("tests.tasks.add", [1])
        assert run.state == State.UNSENT

    assert run.state == State.PENDING


@pytest.mark.django_db(transaction=True)
def test_a_tracked_run_costs_its_publisher_an_insert_and_an_update(django_assert_num_queries):
    TaskRunner().run("tests.tasks.add", [1])

    with django_assert_num_queries(2) as captured:
        TaskRunner().run("tests.tasks.add", [1])

    assert [query["sql"].split()[0] for query in captured] == ["INSERT", "UPDATE"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "url", [NO_BROKER, "amqp://guest:guest@127.0.0.1:1//", "redis://:hush@127.0.0.1:1/0"]
)
def test_without_a_broker_the_run_stays_unsent_within_five_seconds(url):
    begin = timezone.now()

    with broker_away(url):
        TaskRunner().run("tests.tasks.add", [1])

    assert timezone.now() - begin < timedelta(seconds=15)
    stored = TaskRunRecord.objects.get()
    assert stored.state == State.UNSENT
    assert stored.publish_error
    assert "hush" not in stored.publish_error


@pytest.mark.django_db(transaction=True)
def test_of_many_runs_only_the_first_waits_for_a_broker_that_does_not_answer():
    runner = TaskRunner()
    begin = timezone.now()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with broker_away(f"redis://127.0.0.1:{port}/0"), transaction.atomic():
            runs = [runner.run("tests.tasks.add", [1]) for _ in range(20)]

    assert timezone.now() - begin < timedelta(seconds=15)
    assert {run.state for run in runs} == {State.UNSENT}
    assert all(run.publish_error for run in TaskRunRecord.objects.all())


def raise_strange_error(*args: object, **kwargs: object) -> None:
    raise StrangeError("hush")


class StrangeError(Exception):
    """What no broker raises."""


@pytest.mark.django_db(transaction=True)
def test_what_a_router_raises_stands_in_the_run_and_holds_up_no_other(monkeypatch):
    runner = TaskRunner()

    with monkeypatch.context() as patch:
        patch.setattr(add, "apply_async", raise_strange_error)
        run = runner.run("tests.tasks.add", [1])
        again = runner.send_again(TaskRunRecord.objects.get())
    other = runner.run("tests.tasks.add", [2])

    for unsent in (run, again, TaskRunRecord.objects.get(pk=run.pk)):
        assert (unsent.state, unsent.publish_error) == (State.UNSENT, "StrangeError: hush")
        assert (unsent.claimed_at, unsent.may_have_been_sent) == (None, False)
    assert other.published_at is not None


@pytest.mark.django_db(transaction=True)
def test_a_task_that_raises_after_it_was_sent_leaves_the_run_in_doubt(monkeypatch):
    apply_async = add.apply_async

    def send_and_raise(*args: object, **kwargs: object) -> None:
        apply_async(*args, **kwargs)
        raise_strange_error()

    monkeypatch.setattr(add, "apply_async", send_and_raise)
    run = TaskRunner().run("tests.tasks.add", [1], queue="nobody-consumes-this")

    assert run.state == State.UNSENT
    assert run.may_have_been_sent
    assert run.publish_error.endswith("StrangeError: hush")


@pytest.mark.django_db(transaction=True)
def test_what_is_raised_about_a_secret_is_not_kept(monkeypatch):
    monkeypatch.setattr(add, "apply_async", raise_strange_error)
    run = make_run(state=State.UNSENT, claimed_at=None)
    assert claim(run)

    publish(add, run, Message(args=["hush"], kwargs={}, argsrepr="(***)"))

    assert run.publish_error == "StrangeError"


@pytest.mark.django_db(transaction=True)
def test_in_eager_mode_the_caller_gets_what_the_task_raises(monkeypatch):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    monkeypatch.setattr(add, "apply_async", raise_strange_error)

    with pytest.raises(StrangeError):
        TaskRunner().run("tests.tasks.add", [1])


def test_a_run_that_was_not_sent_is_sent_again_under_its_own_id(worker):
    with broker_away():
        unsent = TaskRunner().run("tests.tasks.add", [40], priority=3)
        assert unsent.publish_error

    again = TaskRunner().send_again(TaskRunRecord.objects.get())

    wait_for_state(again, State.SUCCESS)
    assert again.task_id == unsent.task_id
    assert again.result == 42
    assert again.publish_error == ""
    assert TaskRunRecord.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_who_send_a_run_again_one_sends_it():
    with broker_away():
        run = TaskRunner().run("tests.tasks.add", [40])
    twin = TaskRunRecord.objects.get()
    assert claim(run)

    with pytest.raises(NotSendable):
        TaskRunner().send_again(twin)


@pytest.mark.django_db(transaction=True)
def test_a_run_that_was_sent_is_not_sent_again():
    run = TaskRunner().run("tests.tasks.add", [1])

    with pytest.raises(NotSendable):
        TaskRunner().send_again(run)


@pytest.mark.django_db(transaction=True)
def test_a_run_that_is_being_sent_just_now_is_not_sent_again():
    run = make_run(state=State.UNSENT, task_name="tests.tasks.add", args=[1])
    TaskRunRecord.objects.update(claimed_at=timezone.now())

    with pytest.raises(NotSendable):
        TaskRunner().send_again(run)


@pytest.mark.django_db(transaction=True)
def test_a_run_whose_publisher_died_can_be_sent_again():
    run = make_run(state=State.UNSENT, task_name="tests.tasks.add", args=[1])
    TaskRunRecord.objects.update(claimed_at=timezone.now() - timedelta(minutes=2))

    TaskRunner().send_again(run)

    assert run.state == State.PENDING


@pytest.mark.django_db
@pytest.mark.parametrize(
    "fields",
    [
        {"args": [MASK]},
        {"args": [{"value": "<object>", "forced_json": True}]},
        {"options": {"headers": {"my_token": MASK}}},
        {"task_name": "gone.task"},
        {"task_name": "celery.backend_cleanup"},
        {"expires_at": timezone.now() - timedelta(seconds=1)},
    ],
)
def test_a_run_that_can_not_be_sent_again_says_why(fields):
    unsent = {"state": State.UNSENT, "task_name": "tests.tasks.add", "args": [1]}
    run = make_run(**{**unsent, **fields})

    with pytest.raises(NotSendable):
        TaskRunner().send_again(run)


@pytest.mark.django_db
def test_a_secret_is_not_kept_until_later():
    with pytest.raises(InvalidArguments):
        TaskRunner().run("tests.tasks.tell_secret", ["x", "y"], countdown=5)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("is_countdown", [True, False])
def test_a_run_is_kept_until_the_right_moment_also_without_use_tz(settings, use_tz, is_countdown):
    settings.USE_TZ = use_tz
    begin = timezone.now()
    eta = datetime.now(UTC) + timedelta(seconds=600)

    when = {"countdown": 600} if is_countdown else {"eta": eta}
    TaskRunner().run("tests.tasks.add", [1], expires=1200, **when)

    run, slack = TaskRunRecord.objects.get(), timedelta(seconds=30)
    assert (run.state, run.due_at, run.published_at) == (State.SCHEDULED, run.eta, None)
    assert abs(run.eta - begin - timedelta(seconds=600)) < slack
    assert abs(run.expires_at - begin - timedelta(seconds=1200)) < slack
    assert timezone.is_aware(run.eta) is use_tz


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("use_tz", [True, False])
def test_a_run_expires_at_the_right_moment_also_without_use_tz(settings, use_tz):
    settings.USE_TZ = use_tz
    sent = {}

    def listen(headers, **kwargs):
        sent.update(headers)

    begin = datetime.now(UTC)
    signals.before_task_publish.connect(listen)
    TaskRunner().run("tests.tasks.add", [1], expires=1200)
    signals.before_task_publish.disconnect(listen)

    slack = timedelta(seconds=30)
    assert abs(datetime.fromisoformat(sent["expires"]) - begin - timedelta(seconds=1200)) < slack
    assert sent["eta"] is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "when", [{"eta": datetime(2030, 1, 1)}, {"expires": datetime(2030, 1, 1)}]
)
def test_a_moment_without_a_time_zone_is_refused(when):
    with pytest.raises(InvalidArguments):
        TaskRunner().run("tests.tasks.add", [1], **when)


@pytest.mark.django_db(transaction=True)
def test_a_run_about_an_object_of_another_database_stays_in_the_journal():
    group = Group.objects.create(name="Finance")
    group._state.db = "elsewhere"

    run = TaskRunner().run("tests.tasks.add", [1], obj=group)

    assert run.state == State.PENDING
    assert TaskRunRecord.objects.get().obj == Group.objects.get()


@pytest.mark.django_db(transaction=True)
def test_the_signal_tells_of_a_run_with_its_secrets_masked():
    told = []

    def listen(sender, **kwargs):
        told.append((sender, kwargs))

    TaskRunSignal.connect(listen)
    user = make_user("run_celerytask")
    run = TaskRunner(user).run("tests.tasks.tell_secret", ["/dev/null", "hush"])
    TaskRunSignal.disconnect(listen)

    [(sender, kwargs)] = told
    assert sender is TaskRunner
    assert kwargs.pop("signal") is TaskRunSignal
    assert kwargs == {
        "task_name": "tests.tasks.tell_secret",
        "task_id": run.task_id,
        "args": ["/dev/null", MASK],
        "kwargs": {},
        "user": user,
        "run": run,
    }


@pytest.mark.django_db(transaction=True)
def test_the_signal_is_silent_about_a_run_that_was_not_sent():
    told = []

    def listen(sender, **kwargs):
        told.append(kwargs)

    TaskRunSignal.connect(listen)
    with broker_away():
        TaskRunner().run("tests.tasks.add", [1])
    TaskRunSignal.disconnect(listen)

    assert told == []


def test_secrets_reach_the_task_and_nothing_else(worker: Path, tmp_path, caplog):
    told = tmp_path / "told"

    run = TaskRunner().run("tests.tasks.tell_secret", [str(told), "Sesame1"], {"hint": "Poppy2"})

    wait_for_state(run, State.SUCCESS)
    assert told.read_text() == "Sesame1/Poppy2"
    for secret in ("Sesame1", "Poppy2"):
        assert secret not in everything_stored(run)
        assert secret not in caplog.text
        assert secret not in worker.read_text()
    assert run.args == [str(told), MASK]
    assert run.kwargs == {"hint": MASK}


def test_secrets_in_a_result_are_masked(worker):
    run = TaskRunner().run("tests.tasks.return_secret", ["Sesame2", 4711, "Poppy3"])

    wait_for_state(run, State.SUCCESS)
    assert run.result == {"password": MASK, "text": f"it is {MASK}", MASK: [MASK]}
    assert "Sesame2" not in everything_stored(run)


def test_a_secret_in_an_exception_is_masked_in_each_attempt(worker):
    run = TaskRunner().run("tests.tasks.fail_with_secret", ["Sesame3"])

    wait_for_state(run, State.FAILURE)
    assert "Sesame3" not in everything_stored(run)
    assert MASK in run.exception
    assert run.retries == 1


def everything_stored(run: TaskRunRecord) -> str:
    """Return every column of a run as text."""
    return str(TaskRunRecord.objects.values().get(pk=run.pk))


@pytest.mark.django_db(transaction=True)
def test_a_secret_header_is_sent_and_not_stored():
    given = {"my_token": "Sesame", "auth": {"token": "Sesame2"}, "tenant": "north"}
    sent = []

    def look(headers, **kwargs):
        sent.append({name: headers[name] for name in given})

    signals.before_task_publish.connect(look)
    try:
        run = TaskRunner().run("tests.tasks.add", [1], headers=given)
    finally:
        signals.before_task_publish.disconnect(look)

    run.refresh_from_db()
    assert sent == [given]
    assert run.options == {
        "headers": {"my_token": MASK, "auth": {"token": MASK}, "tenant": "north"}
    }
    with pytest.raises(InvalidArguments):
        TaskRunner().run("tests.tasks.add", [1], headers=given, countdown=60)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("options", [{}, {"expires": 7200}], ids=["its own", "given"])
def test_a_run_expires_when_its_task_says_so(options, monkeypatch):
    monkeypatch.setattr(add, "expires", 60)
    # Celery 5.7 keeps the options of a task once it was sent.
    monkeypatch.setattr(add, "_exec_options", None)
    sent = []

    def look(headers, **kwargs):
        sent.append(datetime.fromisoformat(headers["expires"]))

    signals.before_task_publish.connect(look)
    try:
        run = TaskRunner().run("tests.tasks.add", [1], **options)
    finally:
        signals.before_task_publish.disconnect(look)

    run.refresh_from_db()
    assert sent == [run.expires_at]
    assert run.expires_at - run.created_at == timedelta(seconds=options.get("expires", 60))


@pytest.mark.django_db
@pytest.mark.parametrize("make", [make_user, make_superuser])
def test_a_user_marks_as_seen_only_what_is_his_or_hers_and_has_ended(make):
    user = make()
    own, going_on = make_run(run_by=user), make_run(run_by=user, state=State.STARTED)
    others = make_run(run_by=make_user())
    nobodys = make_run()
    pks = [own.pk, going_on.pk, others.pk, nobodys.pk, 10**15]

    assert TaskRunner(user).mark_seen(ids=pks) == 1
    assert TaskRunner(user).mark_seen(pks) == 0

    assert list(TaskRunRecord.objects.exclude(seen_at=None)) == [own]


@pytest.mark.django_db
def test_nobody_marks_nothing_and_trusted_code_marks_anything():
    run, nobodys = make_run(run_by=make_user()), make_run()

    assert TaskRunner(AnonymousUser()).mark_seen([run.pk, nobodys.pk]) == 0
    assert TaskRunner().mark_seen([run.pk, run.pk]) == 1


@pytest.mark.django_db
def test_many_runs_are_marked_as_seen_by_few_statements(django_assert_num_queries):
    user = make_user()
    pks = [run.pk for run in make_runs(501, run_by=user)]

    with django_assert_num_queries(2):
        assert TaskRunner(user).mark_seen(iter(pks)) == 501
    with django_assert_num_queries(0):
        assert TaskRunner(user).mark_seen([]) == 0


@pytest.mark.skipif(connection.vendor != "mysql", reason="only MariaDB locks an index by itself")
@pytest.mark.django_db
def test_runs_are_marked_by_their_keys_alone_for_who_deletes_them_locks_these_first():
    user = make_user()
    pks = [run.pk for run in make_runs(100, run_by=user)]

    with CaptureQueriesContext(connection) as queries:
        TaskRunner(user).mark_seen(pks[:3])

    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {queries.captured_queries[0]['sql']}")
        columns = [column[0] for column in cursor.description]
        [row] = cursor.fetchall()
    assert dict(zip(columns, row, strict=True))["key"] == "PRIMARY"
