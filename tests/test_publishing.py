"""Tasks that code and beat start: the row before the message, and what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from celery import signals
from celery.beat import Scheduler
from django.db import DatabaseError, connection, transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from celery_admin_runner import publishing
from celery_admin_runner.headers import ROW_HEADER, RUN_HEADER
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run, make_user
from tests.publishes import messages_sent
from tests.tasks import (
    add,
    tracked_add,
    tracked_fail_twice,
    tracked_know_secrets,
    tracked_start_another,
)
from tests.waiting import wait_for_state, wait_until

#: A queue that no worker consumes.
NOWHERE = f"nowhere-{uuid4()}"


def publish(task_name: str = "tests.tracked.add", args=(1,), kwargs=None, **headers) -> dict:
    """Do what Celery does with a message, but send it; return its headers."""
    message = {"id": str(uuid4()), "timelimit": [None, None], "argsrepr": "Sesame", **headers}
    publishing.track(
        task_name,
        headers=message,
        body=(args, kwargs or {}, {}),
        properties={},
        routing_key="some",
    )
    return message


def run_of(task_id: str) -> TaskRunRecord:
    return TaskRunRecord.objects.get(task_id=task_id)


def test_a_task_that_code_starts_is_journalled_to_its_end(worker):
    result = tracked_add.delay(1, b=3)

    run = run_of(result.id)
    wait_for_state(run, State.SUCCESS)
    assert (run.task_name, run.args, run.kwargs) == ("tests.tracked.add", [1], {"b": 3})
    assert (run.source, run.run_by, run.periodic_task_name) == (Source.CODE, None, "")
    assert (run.parent_id, run.root_id) == ("", "")
    assert run.result == 4
    assert run.created_at <= run.published_at <= run.finished_at
    assert run.worker.startswith("session")


def test_a_task_that_code_starts_by_its_name_is_journalled_too(worker):
    result = app.send_task("tests.tracked.add", [40])

    wait_for_state(run_of(result.id), State.SUCCESS)


def test_a_retry_is_the_same_run(worker):
    result = tracked_fail_twice.delay()

    run = run_of(result.id)
    wait_for_state(run, State.SUCCESS)
    assert (run.retries, run.result) == (2, 2)
    assert TaskRunRecord.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("patterns", "is_tracked"),
    [
        ([], False),
        (["tests.*"], True),
        (["other.*", "tests.tasks.add"], True),
        ("tests.*", True),
        (["tests.tasks.ADD"], False),
    ],
)
def test_only_tasks_that_track_names_are_journalled(configure, patterns, is_tracked):
    configure(TRACK=patterns)

    headers = publish("tests.tasks.add")

    assert TaskRunRecord.objects.exists() is is_tracked
    assert (RUN_HEADER in headers) is is_tracked


@pytest.mark.parametrize(
    ("headers", "patterns", "is_seen"),
    [
        ({}, [], False),
        ({}, ["other.*"], False),
        ({}, ["tests.*"], True),
        ({RUN_HEADER: "id"}, [], True),
        ({ROW_HEADER: [1, "", ""]}, [], True),
        # Those of a retry, whose arguments Celery writes down anew.
        ({"headers": {RUN_HEADER: "id"}}, [], True),
    ],
)
def test_only_a_message_with_a_mark_or_a_name_is_looked_into(
    configure, headers, patterns, is_seen
):
    configure(TRACK=patterns)

    assert publishing.may_concern("tests.tasks.add", {"id": "id", **headers}) is is_seen


@pytest.mark.parametrize(("patterns", "is_heard"), [([], False), (["other.*"], True)])
def test_what_the_broker_took_is_heard_of_only_where_tasks_are_tracked(
    configure, patterns, is_heard
):
    configure(TRACK=patterns)

    assert signals.after_task_publish.has_listeners() is is_heard


@pytest.mark.django_db
def test_celerys_own_tasks_are_never_journalled(configure):
    configure(TRACK=["*"])

    publish("celery.chord_unlock")

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_message_that_the_runner_sends_has_one_row(configure):
    configure(TRACK=["*"])

    run = TaskRunner().run("tests.tasks.add", [1], queue=NOWHERE)

    assert TaskRunRecord.objects.get() == run
    assert run.state == State.PENDING


@pytest.mark.django_db(transaction=True)
def test_options_are_kept(configure):
    before = timezone.now()

    result = tracked_add.apply_async(
        [1],
        queue=NOWHERE,
        priority=3,
        countdown=60,
        expires=3600,
        time_limit=20,
        soft_time_limit=10,
        shadow="addition",
        headers={"x": "y", "x_token": "Sesame"},
    )

    run = run_of(result.id)
    assert run.options == {
        "queue": NOWHERE,
        "priority": 3,
        "expires": 3600,
        "time_limit": 20,
        "soft_time_limit": 10,
        "shadow": "addition",
        "headers": {"x": "y", "x_token": MASK},
    }
    assert run.queue == NOWHERE
    assert timedelta(seconds=59) < run.eta - before < timedelta(seconds=90)
    assert timedelta(seconds=3599) < run.expires_at - before < timedelta(seconds=3700)


@pytest.mark.django_db
def test_a_moment_without_a_zone_is_taken_for_utc_as_celery_does():
    headers = publish(eta="2030-01-02T03:04:05")

    assert run_of(headers["id"]).eta == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.django_db
def test_a_site_without_time_zones_keeps_its_own_time(settings):
    settings.USE_TZ = False

    headers = publish(eta="2030-01-02T03:04:05+00:00")

    assert run_of(headers["id"]).eta == datetime(2030, 1, 2, 4, 4, 5)


@pytest.mark.django_db
def test_a_run_of_a_schedule_carries_the_name_of_its_entry():
    headers = publish(periodic_task_name="every night")

    run = run_of(headers["id"])
    assert (run.source, run.periodic_task_name) == (Source.PERIODIC, "every night")
    assert run.options == {"queue": "some"}


@pytest.mark.django_db(transaction=True)
def test_what_celery_beat_sends_is_periodic(monkeypatch):
    monkeypatch.setattr(publishing, "_beat", Event())
    beat = Scheduler(app=app, lazy=True)
    options = {"queue": NOWHERE}
    entry = beat.Entry("often", "tests.tracked.add", args=(1,), app=app, options=options)

    signals.beat_init.send(sender=beat)
    result = beat.apply_async(entry, advance=False)

    assert run_of(result.id).source == Source.PERIODIC


def test_an_entry_of_a_schedule_says_of_nobody_that_he_started_it(monkeypatch):
    monkeypatch.setattr(publishing, "_beat", Event())
    beat = Scheduler(app=app, lazy=True)
    options = {"queue": NOWHERE, "headers": {ROW_HEADER: [1, "1", "root"], "tenant": "x"}}
    entry = beat.Entry("often", "tests.tasks.add", args=(1,), app=app, options=options)
    signals.beat_init.send(sender=beat)

    with messages_sent() as sent:
        beat.apply_async(entry, advance=False)

    [message] = sent
    assert ROW_HEADER not in message["headers"]
    assert message["headers"]["tenant"] == "x"


@pytest.mark.django_db(transaction=True)
def test_secrets_reach_neither_the_row_nor_what_celery_shows():
    kwargs = {"hint": "Sesame2", "api_key": "Sesame3", "more": {"a_token": "Sesame4", "b": 5}}
    headers = publish("tests.tracked.know_secrets", ("Sesame1",), kwargs)

    run = run_of(headers["id"])
    assert run.args == [MASK]
    assert run.kwargs == {"hint": MASK, "api_key": MASK, "more": {"a_token": MASK, "b": 5}}
    assert "Sesame" not in str(headers)


def test_secrets_of_a_task_that_code_starts_reach_no_log(worker):
    # Other tests of this worker let tasks tell their secrets.
    result = tracked_know_secrets.delay("Oregano1", hint="Oregano2")

    wait_for_state(run_of(result.id), State.SUCCESS)
    assert "Oregano" not in worker.read_text()


@pytest.mark.django_db
def test_of_a_task_that_is_not_registered_here_redact_alone_knows_the_secrets():
    headers = publish("tests.tracked.elsewhere", ({"password": "Sesame"},), {"token": "Sesame"})

    run = run_of(headers["id"])
    assert (run.args, run.kwargs) == ([{"password": MASK}], {"token": MASK})


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Unspeakable(), "<Unrepresentable"),
        ({"password": "Sesame", "what": object()}, "{'password': '********', 'what': <object"),
        (float("nan"), "nan"),
        ("a\x00b", "'a\\x00b'"),
    ],
    ids=["unspeakable", "object", "nan", "nul"],
)
def test_what_can_not_be_stored_as_it_is_sent_is_stored_readable(value, stored):
    headers = publish(args=(value, 2))

    run = run_of(headers["id"])
    assert run.args[0]["forced_json"] is True
    assert stored in run.args[0]["value"]
    assert run.args[1] == 2


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: iter([1, 2]), "<list_iterator object"),
        (lambda: {"a": [map(abs, [1, 2])]}, "{'a': [<map object"),
        (count, "count(0)"),
        (lambda: [range(10**9)], "[range(0, 1000000000)]"),
    ],
    ids=["iterator", "nested", "endless", "range"],
)
def test_nothing_is_taken_from_what_makes_its_items_when_asked(make: Any, text: str):
    value = make()

    headers = publish(args=(value,))

    run = run_of(headers["id"])
    assert run.args[0]["value"].startswith(text)
    assert not run.can_be_repeated
    if text.startswith("<list_iterator"):
        assert list(value) == [1, 2]


@pytest.mark.django_db
def test_a_header_that_can_not_be_stored_is_not_repeated():
    headers = publish(tenant=object())

    run = run_of(headers["id"])
    assert run.options["headers"]["forced_json"] is True
    assert run.lost_options == ["headers"]


@pytest.mark.django_db
def test_what_is_too_large_for_a_row_is_stored_shortened():
    headers = publish(args=("x" * 2_000_000, 2))

    run = run_of(headers["id"])
    assert run.args[0]["shortened"] is True
    assert run.args[0]["value"].startswith('"xxx')
    assert run.args[1] == 2


@pytest.mark.django_db(transaction=True)
def test_a_message_that_the_broker_does_not_take_leaves_an_unsent_run():
    with broker_away(options={"max_retries": 1}), pytest.raises(OperationalError):
        tracked_add.apply_async([1], connection=app.connection_for_write(), retry=False)

    run = TaskRunRecord.objects.get()
    assert (run.state, run.published_at) == (State.UNSENT, None)


@pytest.mark.django_db
def test_a_worker_that_is_faster_than_its_publisher_has_the_last_word():
    headers = publish()
    now = timezone.now()
    TaskRunRecord.objects.update(state=State.SUCCESS, finished_at=now, published_at=now)

    publishing.handed_over(headers)

    run = run_of(headers["id"])
    assert (run.state, run.published_at) == (State.SUCCESS, now)


@pytest.mark.django_db
def test_a_run_that_is_asked_to_stop_while_it_is_sent_stays_so_and_was_sent():
    headers = publish()
    TaskRunRecord.objects.update(state=State.CANCELLING)

    publishing.handed_over(headers)

    run = run_of(headers["id"])
    assert run.state == State.CANCELLING
    assert run.published_at is not None


@pytest.mark.django_db
def test_the_handover_of_another_message_moves_nothing():
    run = make_run(state=State.UNSENT)

    publishing.handed_over({"id": run.task_id, RUN_HEADER: run.task_id})

    run.refresh_from_db()
    assert run.state == State.UNSENT


@pytest.mark.django_db(transaction=True)
def test_a_publish_costs_one_insert_and_one_update(django_assert_num_queries):
    with django_assert_num_queries(2) as captured:
        tracked_add.apply_async([1], queue=NOWHERE)

    assert [query["sql"].split()[0] for query in captured] == ["INSERT", "UPDATE"]


@pytest.mark.django_db(transaction=True)
def test_a_publish_of_an_untracked_task_costs_no_statement(django_assert_num_queries):
    with django_assert_num_queries(0):
        add.apply_async([1], queue=NOWHERE)


@pytest.mark.django_db(transaction=True)
def test_a_publish_in_a_transaction_that_is_rolled_back_is_recorded_where_it_can_be():
    with transaction.atomic():
        make_run()
        result = tracked_add.apply_async([1], queue=NOWHERE)
        transaction.set_rollback(True)

    is_recorded = TaskRunRecord.objects.filter(task_id=result.id).exists()
    assert TaskRunRecord.objects.count() == is_recorded
    # On SQLite whoever holds a transaction lets nobody else write.
    assert is_recorded is (connection.vendor != "sqlite")


@pytest.mark.django_db(transaction=True)
def test_an_id_that_is_published_twice_has_one_row_and_harms_no_transaction():
    known = make_run(state=State.PENDING, run_by=make_user())

    with transaction.atomic():
        headers = publish(id=known.task_id)
        make_run()

    assert headers[ROW_HEADER] == [known.pk, str(known.run_by.pk), known.run_by_name]
    assert TaskRunRecord.objects.count() == 2


@pytest.mark.django_db
def test_a_database_that_does_not_answer_stops_no_publish(caplog):
    def refuse(execute, sql, params, many, context):
        raise DatabaseError("gone")

    with connection.execute_wrapper(refuse):
        headers = publish()

    assert RUN_HEADER not in headers
    assert f"could not record the publish of run {headers['id']}: gone" in caplog.text


@contextmanager
def without_table() -> Iterator[None]:
    """Have no table for the runs, as before ``migrate``."""
    table = TaskRunRecord._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO gone")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE gone RENAME TO {table}")


@pytest.mark.django_db(transaction=True)
def test_without_its_table_the_journal_harms_no_transaction():
    with without_table(), transaction.atomic():
        tracked_add.apply_async([1], queue=NOWHERE)
        user = make_user()

    user.refresh_from_db()


@pytest.mark.django_db(transaction=True)
def test_a_handover_that_is_not_recorded_harms_no_transaction():
    with transaction.atomic():
        headers = publish()
    with without_table(), transaction.atomic():
        publishing.handed_over(headers)
        user = make_user()

    user.refresh_from_db()


@pytest.mark.django_db
def test_the_handover_is_one_statement_also_if_the_worker_was_faster(django_assert_num_queries):
    headers = publish()
    TaskRunRecord.objects.update(state=State.STARTED)

    with django_assert_num_queries(1):
        publishing.handed_over(headers)

    run = run_of(headers["id"])
    assert run.state == State.STARTED
    assert run.published_at is not None


def test_a_run_started_inside_another_inherits_who_started_that(worker):
    user = make_user("run_celerytask")
    first = TaskRunner(user=user).run("tests.tracked.start_another", [1])
    wait_for_state(first, State.SUCCESS)

    second = run_of(first.result)
    wait_for_state(second, State.SUCCESS)
    third = run_of(second.result)
    wait_for_state(third, State.SUCCESS)

    assert (second.parent_id, second.root_id) == (first.task_id, first.task_id)
    assert (third.parent_id, third.root_id) == (second.task_id, first.task_id)
    assert [run.run_by for run in (first, second, third)] == [user] * 3
    assert [run.run_by_name for run in (second, third)] == [user.username] * 2
    assert [run.source for run in (second, third)] == [Source.CODE] * 2


def test_a_run_that_a_runner_starts_inside_another_inherits_too(worker):
    user = make_user("run_celerytask")
    first = TaskRunner(user=user).run("tests.tasks.run_another")
    wait_for_state(first, State.SUCCESS)

    second = run_of(first.result)

    assert (second.parent_id, second.root_id) == (first.task_id, first.task_id)
    assert (second.run_by, second.run_by_name) == (user, user.username)


def test_the_members_of_a_canvas_are_runs(worker):
    user = make_user("run_celerytask")
    run = TaskRunner(user=user).run("tests.tasks.start_canvas")
    wait_for_state(run, State.SUCCESS)

    # The second link of the chain is published by the worker of the first.
    wait_until(lambda: TaskRunRecord.objects.filter(task_id__in=run.result).count() == 4)
    members = [run_of(task_id) for task_id in run.result]
    for member in members:
        wait_for_state(member, State.SUCCESS)
    assert [member.result for member in members] == [3, 4, 3, 13]
    assert {member.run_by for member in members} == {user}
    assert members[3].parent_id == members[2].task_id


@pytest.mark.django_db(transaction=True)
def test_a_user_in_a_transaction_that_is_not_seen_is_left_out(monkeypatch):
    inherited = publishing.Lineage(run_by_id="123456789", run_by_name="nobody yet")
    monkeypatch.setattr(publishing, "lineage", lambda: inherited)

    headers = publish()

    run = run_of(headers["id"])
    assert (run.run_by, run.run_by_name) == (None, "nobody yet")


def test_a_run_in_a_worker_passes_nothing_on_to_code_outside(worker):
    result = tracked_start_another.delay()
    wait_for_state(run_of(result.id), State.SUCCESS)

    assert publishing.lineage() == publishing.Lineage()


def test_a_publisher_that_has_locked_its_user_waits_for_nothing(worker):
    user = make_user("run_celerytask")
    first = TaskRunner(user=user).run("tests.tasks.start_another_and_lock_its_user", [user.pk])

    wait_for_state(first, State.SUCCESS)
    task_id, seconds = first.result
    second = run_of(task_id)
    wait_for_state(second, State.SUCCESS)
    assert (second.run_by, second.run_by_name) == (user, user.username)
    assert seconds < 5
