"""Sending a run again that may have been sent: the page that asks, and who may answer it."""

from __future__ import annotations

import re
from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from celery_admin_runner.models import NOT_CONFIRMED, TaskRunRecord
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.factories import make_run, make_user
from tests.test_admin_runs import client_of, listed, text_of, url

HOUR = timedelta(hours=1)
QUESTION = "If you send it again, it may run twice."


def stale_run(**fields: object) -> TaskRunRecord:
    """Make a scheduled run that a dispatcher took an hour ago."""
    moment = timezone.now() - HOUR
    claim = {"claimed_at": moment, "dispatch_id": uuid4(), "due_at": moment, "eta": moment}
    return make_run(**{"state": State.SCHEDULED, "args": [1], **claim, **fields})


def doubtful_run(kind: str, **fields: object) -> TaskRunRecord:
    """Make a run of which nobody knows whether it was sent, in one of three ways."""
    if kind == "stale scheduled":
        return stale_run(**fields)
    unsent = {"state": State.UNSENT, "args": [1], **fields}
    if kind == "not confirmed":
        return make_run(**unsent, publish_error=f"{NOT_CONFIRMED}TimeoutError: timed out")
    return make_run(**unsent, claimed_at=timezone.now() - HOUR, dispatch_id=uuid4())


each_doubt = pytest.mark.parametrize(
    "kind", ["stale scheduled", "not confirmed", "publisher died"]
)


def ask(client: Client, run: TaskRunRecord) -> HttpResponse:
    return client.post(url("send_again", run.pk))


def answer_to(page: HttpResponse) -> dict[str, str]:
    """Return what the button of the page posts."""
    found = re.search(r'name="_confirmed" value="(\w+)"', page.content.decode())
    assert found
    return {"_confirmed": found[1]}


def state_of(run: TaskRunRecord) -> str:
    run.refresh_from_db()
    return run.state


@pytest.fixture
def operator(transactional_db: None) -> User:
    return make_user("run_celerytask", username="operator")


@each_doubt
def test_the_page_tells_what_is_not_known_and_has_the_button(operator: User, kind: str) -> None:
    run = doubtful_run(kind, run_by=operator)

    page = text_of(client_of(operator), run)

    assert "the broker may have" in page or "it may have it, or not" in page
    assert "was not handed to the broker" not in page
    assert url("send_again", run.pk) in page


@each_doubt
def test_before_a_run_is_sent_that_may_have_been_sent_a_page_asks(
    operator: User, kind: str
) -> None:
    run = doubtful_run(kind, run_by=operator)
    was = run.state

    page = ask(client_of(operator), run)

    assert page.status_code == 200
    assert QUESTION in page.content.decode()
    assert state_of(run) == was
    assert LogEntry.objects.count() == 0


@each_doubt
def test_who_answers_yes_sends_it(operator: User, kind: str) -> None:
    run = doubtful_run(kind, run_by=operator)
    client = client_of(operator)

    response = client.post(url("send_again", run.pk), answer_to(ask(client, run)), follow=True)

    assert "The run was sent." in response.content.decode()
    assert state_of(run) == State.PENDING
    assert run.publish_error == ""
    entry = LogEntry.objects.get(object_id=str(run.pk))
    assert (entry.user, entry.get_change_message()) == (operator, "Sent again.")


def test_of_two_persons_who_answer_yes_one_sends_it(operator: User) -> None:
    run = stale_run(run_by=operator)
    other = client_of(make_user("run_celerytask", "view_taskrunrecord"))
    client = client_of(operator)
    mine, theirs = answer_to(ask(client, run)), answer_to(ask(other, run))

    first = client.post(url("send_again", run.pk), mine, follow=True)
    second = other.post(url("send_again", run.pk), theirs, follow=True)

    assert "The run was sent." in first.content.decode()
    assert "This run was sent, or is being sent just now." in second.content.decode()
    assert LogEntry.objects.count() == 1


@pytest.mark.parametrize("answer", ["", "yes", "0" * 64])
def test_an_answer_that_nobody_was_asked_for_sends_nothing(operator: User, answer: str) -> None:
    run = stale_run(run_by=operator)

    page = client_of(operator).post(url("send_again", run.pk), {"_confirmed": answer})

    assert QUESTION in page.content.decode()
    assert state_of(run) == State.SCHEDULED


def test_the_answer_for_another_run_does_not_count(operator: User) -> None:
    run, other = stale_run(run_by=operator), stale_run(run_by=operator)
    client = client_of(operator)

    page = client.post(url("send_again", run.pk), answer_to(ask(client, other)))

    assert QUESTION in page.content.decode()
    assert state_of(run) == State.SCHEDULED


def test_the_answer_to_an_earlier_doubt_does_not_count_for_a_later_one(operator: User) -> None:
    run = doubtful_run("not confirmed", run_by=operator)
    client = client_of(operator)
    answer = answer_to(ask(client, run))
    TaskRunRecord.objects.update(publish_error=f"{NOT_CONFIRMED}once more")

    page = client.post(url("send_again", run.pk), answer)

    assert QUESTION in page.content.decode()
    assert state_of(run) == State.UNSENT


def test_a_forged_post_sends_nothing(operator: User) -> None:
    run = stale_run(run_by=operator)
    answer = answer_to(ask(client_of(operator), run))
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(operator)

    assert strict.post(url("send_again", run.pk), answer).status_code == 403
    assert strict.get(url("send_again", run.pk), answer).status_code == 405
    assert state_of(run) == State.SCHEDULED


@pytest.mark.parametrize(
    ("permissions", "status"),
    [((), 404), (("view_taskrunrecord",), 403), (("run_celerytask",), 404)],
)
def test_who_may_not_send_it_is_not_even_asked(
    operator: User, permissions: tuple[str, ...], status: int
) -> None:
    run = stale_run(run_by=operator)
    answer = answer_to(ask(client_of(operator), run))
    client = client_of(make_user(*permissions))

    for data in ({}, answer):
        response = client.post(url("send_again", run.pk), data)
        assert response.status_code == status
        assert QUESTION not in response.content.decode()
    assert state_of(run) == State.SCHEDULED


@pytest.mark.parametrize("seconds", [0, 200])
def test_a_run_that_a_dispatcher_has_in_hand_is_not_sent(operator: User, seconds: int) -> None:
    run = stale_run(run_by=operator, claimed_at=timezone.now() - timedelta(seconds=seconds))
    client = client_of(operator)

    response = client.post(url("send_again", run.pk), follow=True)

    assert "being sent just now" in response.content.decode()
    assert url("send_again", run.pk) not in text_of(client, run)
    assert state_of(run) == State.SCHEDULED


def test_a_broker_that_is_away_leaves_it_unsent_and_in_doubt(operator: User) -> None:
    run = stale_run(run_by=operator)
    client = client_of(operator)
    answer = answer_to(ask(client, run))

    with broker_away():
        response = client.post(url("send_again", run.pk), answer, follow=True)

    assert "The broker still does not take this run" in response.content.decode()
    assert "did not confirm that it took this run" in response.content.decode()
    assert state_of(run) == State.UNSENT
    assert run.may_have_been_sent
    assert LogEntry.objects.count() == 0


@pytest.mark.django_db
@each_doubt
def test_who_wants_to_cancel_it_is_told_that_it_may_have_been_sent(kind: str) -> None:
    run = doubtful_run(kind)
    user = make_user("cancel_taskrunrecord", "view_taskrunrecord")

    page = client_of(user).get(url("cancel", run.pk)).content.decode()

    assert "It may have been sent, or not: it is cancelled at once" in page


def test_the_list_finds_stale_scheduled_runs(operator: User) -> None:
    stale = stale_run(run_by=operator)
    stale_run(run_by=operator, claimed_at=timezone.now())
    make_run(run_by=operator, state=State.SCHEDULED)

    assert listed(client_of(operator), state="stale_scheduled") == [stale.pk]
