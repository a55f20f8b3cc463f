"""Claims, and what is handed to the broker."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from celery import Celery, signals
from django.db import connection
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.broker import (
    BROKER_TIMEOUT,
    bounded_connection,
    describe,
    shared_connection,
)
from celery_admin_runner.dispatch import Handover, claim, keep_claim, publish
from celery_admin_runner.messages import Message
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run
from tests.tasks import add

CALLERS = 8


@pytest.mark.django_db(transaction=True)
def test_of_many_claims_at_once_one_wins():
    run = make_run(state=State.UNSENT, claimed_at=None)
    together = Barrier(CALLERS)

    def try_to_claim(_: int) -> bool:
        mine = TaskRunRecord.objects.get(pk=run.pk)
        together.wait()
        try:
            return claim(mine)
        finally:
            connection.close()

    with ThreadPoolExecutor(CALLERS) as callers:
        won = list(callers.map(try_to_claim, range(CALLERS)))

    assert sum(won) == 1


@pytest.mark.django_db
def test_an_old_claim_is_prolonged_only_by_who_holds_it():
    old = timezone.now() - timedelta(seconds=45)
    run = make_run(state=State.UNSENT, claimed_at=old)
    other = TaskRunRecord.objects.get()
    TaskRunRecord.objects.update(claimed_at=old - timedelta(minutes=1))
    assert claim(other)
    TaskRunRecord.objects.update(claimed_at=old)

    assert not keep_claim(run)
    other.claimed_at = old
    assert keep_claim(other)


@pytest.mark.django_db
def test_a_worker_that_is_faster_than_its_publisher_is_not_overwritten():
    run = make_run(state=State.UNSENT, task_name="tests.tasks.add")

    def finish_at_once(**kwargs: object) -> None:
        now = timezone.now()
        tracking.record_success(run.task_id, attempt=0, result=3, now=now)

    signals.after_task_publish.connect(finish_at_once)
    try:
        publish(add, run, Message(args=[1], kwargs={}))
    finally:
        signals.after_task_publish.disconnect(finish_at_once)

    assert run.state == State.SUCCESS
    assert run.published_at is not None


@pytest.mark.django_db
def test_a_run_without_moments_leaves_its_task_those_it_has(monkeypatch):
    monkeypatch.setattr(add, "expires", 60)
    # Celery 5.7 keeps the options of a task once it was sent.
    monkeypatch.setattr(add, "_exec_options", None)
    sent = []

    def look(headers: dict[str, object], **kwargs: object) -> None:
        sent.append((headers["eta"], headers["expires"] is not None))

    signals.before_task_publish.connect(look)
    try:
        publish(add, make_run(state=State.UNSENT), Message(args=[1], kwargs={}))
    finally:
        signals.before_task_publish.disconnect(look)

    assert sent == [(None, True)]


@pytest.mark.django_db
def test_the_texts_of_a_call_with_a_secret_are_masked_in_each_message():
    sent = []

    def look(sender: str, headers: dict[str, object], **kwargs: object) -> None:
        sent.append((headers["argsrepr"], headers["kwargsrepr"]))

    signals.before_task_publish.connect(look)
    try:
        message = Message(args=[1], kwargs={"b": 2}, argsrepr="(***)", kwargsrepr="{***}")
        run = make_run(state=State.UNSENT)
        publish(add, run, message)
        headers = message.headers(run)
        add.apply_async([1], {"b": 2}, headers=headers, retries=1)
    finally:
        signals.before_task_publish.disconnect(look)

    assert sent == [("(***)", "{***}"), ("(***)", "{***}")]


@pytest.mark.django_db
@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_never_answers_is_given_up_within_five_seconds(scheme):
    run = make_run(state=State.UNSENT, task_name="tests.tasks.add")
    begin = timezone.now()

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        broker_away(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}//"),
    ):
        handed_over = publish(add, run, Message(args=[1], kwargs={}))

    assert handed_over == Handover.REFUSED
    assert timezone.now() - begin < timedelta(seconds=15)
    assert TaskRunRecord.objects.get().publish_error


@pytest.mark.django_db
@pytest.mark.parametrize("url", ["nosuch://x", "sqs://", "amqp://me:se/same@host//"])
def test_a_broker_that_can_not_be_used_is_told_like_one_that_is_away(url):
    run = make_run(state=State.UNSENT, task_name="tests.tasks.add")

    with broker_away(url):
        handed_over = publish(add, run, Message(args=[1], kwargs={}))

    assert handed_over == Handover.REFUSED
    error = TaskRunRecord.objects.get().publish_error
    assert error.startswith("The settings name a broker that can't be used: ")
    assert "'se'" not in error


@pytest.mark.django_db
def test_a_queue_that_the_broker_does_not_take_is_told_of_each_time(tmp_path):
    folder = str(tmp_path)
    folders = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": folder}
    with broker_away("filesystem://"):
        app.conf.broker_transport_options = folders
        runs = [
            make_run(state=State.UNSENT, task_name="tests.tasks.add", options={"queue": queue})
            for queue in ("../../x", "a/b", "../../x")
        ]

        handed_over = [publish(add, run, Message(args=[1], kwargs={})) for run in runs]

    assert handed_over == [Handover.REFUSED] * 3
    assert all(run.publish_error for run in TaskRunRecord.objects.all())


def test_a_connection_that_we_publish_by_gives_up_soon():
    options = bounded_connection(app).transport_options

    assert options["max_retries"] == 1
    assert options["connect_retries_timeout"] <= 2 * BROKER_TIMEOUT


def test_a_broker_with_several_addresses_is_published_to(monkeypatch):
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    addresses = ["memory://one//", "memory://two//"]
    several = Celery("several", broker=addresses, set_as_current=False)

    connection = shared_connection(several)

    assert connection.alt == addresses
    assert shared_connection(several) is connection


def test_the_password_of_the_broker_stands_in_no_error():
    with app.connection_for_write("redis://:sesame@localhost/0") as broker:
        text = describe(OSError("can't reach redis://:sesame@localhost"), broker)

    assert text == "OSError: can't reach redis://:********@localhost"
