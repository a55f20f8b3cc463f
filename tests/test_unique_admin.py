"""What people are told of a task that is active already, or that is ignored for a while."""

from __future__ import annotations

import json

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.factories import make_user
from tests.test_admin_run import messages_of, page_of, typed
from tests.unique_tasks import HOUR, at_most_hourly, once_of_two

pytestmark = pytest.mark.django_db(transaction=True)
ACTIVE = "This task is active with the same arguments already, and runs only once."


@pytest.fixture
def client() -> Client:
    """The browser of somebody who sees his own runs only."""
    client = Client()
    client.force_login(make_user("run_celerytask", "retry_taskrunrecord", username="ada"))
    return client


def told_by(response):
    return [str(message) for message in response.context["messages"]]


def test_the_api_refuses_what_is_active_and_names_no_hidden_run(client):
    run = TaskRunner().run(once_of_two.name, [1])

    response = client.post(
        page_of(once_of_two.name), json.dumps({"args": [1]}), content_type="application/json"
    )

    assert (response.status_code, response.json()) == (400, {"errors": {"__all__": [ACTIVE]}})
    assert run.task_id not in response.content.decode()


def test_the_form_says_that_it_is_active(client):
    run = TaskRunner().run(once_of_two.name, [1])

    response = client.post(page_of(once_of_two.name), typed(args_a="1", args_b="2"))

    assert ACTIVE in response.content.decode()
    assert run.task_id not in response.content.decode()
    assert TaskRunRecord.objects.count() == 1


def ended(run):
    """Let a run succeed, with a window if its task has one."""
    until = {"ignore_until": timezone.now() + HOUR} if run.task_name == at_most_hourly.name else {}
    tracking.record_success(run.task_id, attempt=0, result=1, now=timezone.now(), **until)
    run.refresh_from_db()
    return run


@pytest.mark.parametrize(
    ("task", "text"),
    [(once_of_two, ACTIVE), (at_most_hourly, "the same call succeeded at ")],
    ids=["active", "ignored"],
)
def test_a_run_that_can_not_be_run_again_now_is_told_why(client, task, text):
    user = make_user("retry_taskrunrecord", "run_celerytask", "view_taskrunrecord")
    client.force_login(user)
    run = ended(TaskRunner().run(task.name, [1]))
    if task is once_of_two:
        TaskRunner().run(task.name, [1])

    url = reverse("admin:celery_admin_runner_taskrunrecord_run_again", args=[run.pk])
    response = client.post(url, follow=True)

    assert any(text in told for told in told_by(response)), told_by(response)
    assert "arguments do not fit" not in response.content.decode()


def test_a_call_that_is_ignored_is_not_told_as_sent(client):
    ended(TaskRunner().run(at_most_hourly.name, [1]))

    response = client.post(page_of(at_most_hourly.name), typed(args_number="1"))

    [told] = messages_of(response)
    assert told.startswith(f"Not sent: {at_most_hourly.name}. Skipped: the same call succeeded")
    assert TaskRunRecord.objects.first().state == State.IGNORED
