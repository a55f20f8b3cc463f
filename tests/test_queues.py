"""Queues by name, with the options that their tasks have by default."""

from __future__ import annotations

import json
import pickle
import warnings
from uuid import uuid4

import pytest
from celery import Celery, chain
from kombu.utils.json import dumps

from celery_admin_runner.base import DjangoTask
from celery_admin_runner.queues import TaskQueue, default_options
from celery_admin_runner.registry import get_task_info
from tests.hook_tasks import (
    Queue,
    double,
    on_fast_queue,
    on_named_queue,
    patient_on_fast_queue,
    stubborn,
)
from tests.publishes import attempt, messages_sent

SLOW = {"time_limit": 3000}


def sent_by(call):
    """Return the queue, the limits, the priority and whether it expires, of the only message."""
    with messages_sent() as sent:
        call()
    [message] = sent
    headers = message["headers"]
    return (
        message["routing_key"],
        headers["timelimit"],
        message["properties"].get("priority"),
        headers["expires"] is not None,
    )


def test_a_member_is_the_name_of_its_queue():
    assert Queue.FAST == "hooks-fast"
    assert str(Queue.FAST) == f"{Queue.FAST}" == "hooks-fast"
    assert Queue("hooks-fast") is Queue.FAST
    assert {"hooks-fast": 1}[Queue.FAST] == 1
    assert json.loads(dumps({"queue": Queue.FAST})) == {"queue": "hooks-fast"}
    assert pickle.loads(pickle.dumps(Queue.FAST)) is Queue.FAST


def test_the_options_of_a_queue_are_known_by_its_name_too():
    assert default_options(Queue.SLOW) == default_options("hooks-slow") == SLOW
    assert default_options(Queue.PLAIN) == default_options("unheard of") == {}
    assert default_options(None) == {}
    with pytest.raises(TypeError):
        Queue.SLOW.options["time_limit"] = 1


def test_options_that_are_no_mapping_are_an_error_where_they_stand():
    with pytest.raises(TypeError, match="no mapping: 30"):

        class Wrong(TaskQueue):
            FAST = "wrong", 30


def test_a_task_goes_to_its_queue_with_what_the_queue_has_for_it():
    assert sent_by(on_fast_queue.delay) == ("hooks-fast", [30, 20], 3, True)


def test_a_call_names_another_queue_and_has_what_that_one_has():
    call = lambda: on_fast_queue.apply_async(queue=Queue.SLOW)  # noqa: E731

    assert sent_by(call) == ("hooks-slow", [3000, None], None, False)


@pytest.mark.parametrize("queue", [Queue.FAST, "hooks-fast"])
def test_a_task_without_a_queue_can_be_called_on_one(queue):
    assert sent_by(lambda: double.apply_async([1], queue=queue))[:3] == ("hooks-fast", [30, 20], 3)


def test_what_the_call_says_wins():
    call = lambda: on_fast_queue.apply_async(time_limit=7, priority=9, expires=None)  # noqa: E731

    assert sent_by(call) == ("hooks-fast", [7, None], 9, False)


def test_what_the_task_says_wins():
    assert sent_by(patient_on_fast_queue.delay) == ("hooks-fast", [400, None], 3, True)


def test_a_queue_may_be_only_a_name():
    assert sent_by(on_named_queue.delay)[:2] == ("hooks-named", [None, None])


def test_a_later_link_of_a_chain_has_the_options_of_its_queue():
    later = double.s().set(queue=Queue.FAST)
    with messages_sent() as sent:
        chain(double.s(1).set(queue=Queue.SLOW), later).apply_async()
    [first] = sent
    [link] = json.loads(dumps(first["body"][2]["chain"]))

    call = lambda: double.app.signature(link).apply_async((2,))  # noqa: E731

    assert first["headers"]["timelimit"] == [3000, None]
    assert sent_by(call)[:2] == ("hooks-fast", [30, 20])


def test_a_retry_stays_on_its_queue_with_its_limits():
    where = {"delivery_info": {"exchange": "", "routing_key": "hooks-fast", "priority": 3}}

    def call():
        attempt(stubborn, timelimit=[30, 20], **where)

    assert sent_by(call)[:3] == ("hooks-fast", [30, 20], 3)


def test_a_retry_can_go_to_another_queue():
    assert sent_by(lambda: attempt(stubborn, kwargs={"queue": Queue.SLOW}))[0] == "hooks-slow"


def test_celery_does_not_warn_of_the_queue_and_admin_shows_it():
    with warnings.catch_warnings(), Celery(f"other-{uuid4()}", set_as_current=False) as app:
        warnings.simplefilter("error")

        @app.task(base=DjangoTask, queue=Queue.FAST)
        def other():
            """Belong to a queue."""

        assert other.app is app

    assert other.queue is Queue.FAST
    assert get_task_info(on_fast_queue.name).queue == "hooks-fast"
    assert get_task_info(on_named_queue.name).queue == "hooks-named"
