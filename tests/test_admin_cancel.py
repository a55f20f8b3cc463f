"""Cancelling runs in admin: the pages that ask, and what they lead to."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client, override_settings
from django.urls import resolve, reverse
from django.utils import timezone

from celery_admin_runner.admin.questions import MAX_SELECTED
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import FINISHED, State
from tests.brokers import broker_away
from tests.factories import make_run, make_runs, make_superuser, make_user
from tests.waiting import wait_for_state

pytestmark = pytest.mark.django_db

LIST = "changelist"
MOMENT = "2026-01-01T00:00Z"


def url(view: str, *args: object, site: str = "admin") -> str:
    return reverse(f"{site}:celery_admin_runner_taskrunrecord_{view}", args=args)


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def cancel(client: Client, run: TaskRunRecord, **data: Any) -> list[str]:
    """Answer the page of a run, and return the messages of the page that follows."""
    response = client.post(url("cancel", run.pk), data, follow=True)
    assert response.redirect_chain[-1][0] == url("change", run.pk)
    run.refresh_from_db()
    return [str(message) for message in response.context["messages"]]


def cancel_selected(client: Client, runs: list[TaskRunRecord], **data: Any) -> list[str]:
    """Answer the page of a selection, and return the messages of the list."""
    data = {"_selected_action": [run.pk for run in runs], **data}
    response = client.post(url("cancel_selected"), data, follow=True)
    assert response.redirect_chain[-1][0] == url(LIST)
    for run in runs:
        run.refresh_from_db()
    return [str(message) for message in response.context["messages"]]


def ask_selected(client: Client, runs: list[TaskRunRecord], **data: Any) -> Any:
    """Choose the action of the list."""
    keys = [run.pk for run in runs]
    return client.post(
        url(LIST), {"action": "cancel_selected", "_selected_action": keys, **data}, follow=True
    )


def ways(response: Any) -> list[str]:
    return [way.value for way in response.context["ways"]]


def entries() -> list[str]:
    return [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")]


@pytest.fixture
def canceller() -> Client:
    return client_of(make_user("view_taskrunrecord", "cancel_taskrunrecord", username="boss"))


@pytest.fixture
def running(worker: Path, tmp_path: Path) -> tuple[TaskRunRecord, Path]:
    """Give a run that a worker runs, and the file that it waits for."""
    file = tmp_path / "go"
    run = TaskRunner().run("tests.tasks.wait_for_file", [str(file)])
    return wait_for_state(run, State.STARTED), file


# The question


def test_the_question_says_what_happens_and_changes_nothing(canceller: Client) -> None:
    run = make_run(state=State.SCHEDULED, label="<b>May</b>")

    response = canceller.get(url("cancel", run.pk))

    text = response.content.decode()
    assert "it is cancelled at once" in text
    assert "Yes, cancel it" in text
    assert "No, take me back" in text
    assert "&lt;b&gt;May" in text
    assert "<b>May" not in text
    run.refresh_from_db()
    assert (run.state, run.cancel_requested_at) == (State.SCHEDULED, None)
    assert entries() == []


@pytest.mark.parametrize(
    ("task_name", "state", "text"),
    [
        ("tests.tasks.add", State.UNSENT, "cancelled at once"),
        ("tests.tasks.add", State.WAITING, "cancelled at once"),
        ("tests.tasks.add", State.PENDING, "told to drop it"),
        ("tests.tasks.add", State.RETRY, "told to drop it"),
        ("gone", State.PENDING, "told to drop it"),
        ("tests.stoppable_tasks.guarded", State.PENDING, "cancelled at once"),
        ("tests.stoppable_tasks.guarded", State.RETRY, "cancelled at once"),
        ("tests.tasks.add", State.STARTED, "until it has stopped"),
        ("tests.tasks.add", State.CANCELLING, "no worker has confirmed"),
    ],
)
def test_the_question_depends_on_state_and_task(
    canceller: Client, task_name: str, state: State, text: str
) -> None:
    run = make_run(task_name=task_name, state=state)

    assert text in canceller.get(url("cancel", run.pk)).content.decode()


def test_of_a_run_that_is_being_sent_it_is_not_said_that_it_is_cancelled_at_once(
    canceller: Client,
) -> None:
    run = make_run(state=State.UNSENT, claimed_at=timezone.now())

    assert "being sent just now" in canceller.get(url("cancel", run.pk)).content.decode()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"state": State.PENDING}, []),
        ({"state": State.STARTED}, ["", "terminate"]),
        ({"state": State.CANCELLING}, []),
        ({"state": State.CANCELLING, "started_at": MOMENT}, ["terminate", "kill"]),
    ],
)
def test_killing_is_offered_only_after_a_run_was_asked_to_stop(
    canceller: Client, fields: dict[str, Any], expected: list[str]
) -> None:
    run = make_run(**fields)

    assert ways(canceller.get(url("cancel", run.pk))) == expected


def test_an_unknown_way_is_asked_again(canceller: Client) -> None:
    run = make_run(state=State.STARTED)

    response = canceller.post(url("cancel", run.pk), {"how": "kill"})

    assert ways(response) == ["", "terminate"]
    run.refresh_from_db()
    assert run.state == State.STARTED


# One run


@pytest.mark.parametrize("state", [State.UNSENT, State.SCHEDULED, State.WAITING])
def test_what_no_worker_knows_of_is_cancelled_at_once(canceller: Client, state: State) -> None:
    run = make_run(state=state)

    told = cancel(canceller, run)

    assert told == ["The run was cancelled: it will not start."]
    assert run.state == State.REVOKED
    assert run.cancel_requested_by.get_username() == "boss"
    assert entries() == ["Cancelled."]


@pytest.mark.parametrize("state", sorted(FINISHED))
def test_a_finished_run_stays_as_it_is(canceller: Client, state: State) -> None:
    run = make_run(state=state)

    asked = canceller.get(url("cancel", run.pk), follow=True)
    told = cancel(canceller, run)

    assert asked.redirect_chain[-1][0] == url("change", run.pk)
    assert told == ["This run has finished already."]
    assert run.state == state
    assert entries() == []


@pytest.mark.django_db(transaction=True)
def test_a_running_task_is_asked_to_stop(
    canceller: Client, running: tuple[TaskRunRecord, Path]
) -> None:
    run, file = running

    told = cancel(canceller, run)
    file.write_text("done")

    assert told == ["The run was asked to stop. Until that is confirmed, it shows as cancelling."]
    assert run.state == State.CANCELLING
    assert entries() == ["Asked to stop."]
    wait_for_state(run, State.SUCCESS)


@pytest.mark.django_db(transaction=True)
def test_a_running_task_is_stopped_at_once_and_each_answer_is_shown(
    canceller: Client, running: tuple[TaskRunRecord, Path]
) -> None:
    run, _file = running

    told = cancel(canceller, run, how="terminate")

    # The worker may have confirmed it already.
    assert told[0] in {
        "The run was stopped.",
        "The workers were told to stop it. Until one confirms, it shows as cancelling.",
    }
    assert told[1].startswith(f"Worker {run.worker}: ")
    assert entries() == ["Asked to stop at once (SIGTERM)."]
    wait_for_state(run, State.REVOKED)


@pytest.mark.django_db(transaction=True)
def test_killing_is_the_second_step(
    canceller: Client, running: tuple[TaskRunRecord, Path]
) -> None:
    run, _file = running
    cancel(canceller, run)

    told = cancel(canceller, run, how="kill")

    assert told[1].startswith(f"Worker {run.worker}: ")
    assert entries() == ["Asked to stop.", "Asked to be killed (SIGKILL)."]
    wait_for_state(run, State.REVOKED)


# Forged requests


def test_who_may_only_view_cancels_nothing() -> None:
    client = client_of(make_user("view_taskrunrecord", "run_celerytask", "retry_taskrunrecord"))
    run = make_run(state=State.SCHEDULED)

    for response in (
        client.get(url("cancel", run.pk)),
        client.post(url("cancel", run.pk)),
        client.post(url("cancel_selected"), {"_selected_action": run.pk}),
    ):
        assert response.status_code == 403
    ask_selected(client, [run])
    assert "Cancel</a>" not in client.get(url("change", run.pk)).content.decode()
    run.refresh_from_db()
    assert run.state == State.SCHEDULED


def test_a_run_that_the_user_may_not_see_is_not_there() -> None:
    user = make_user("run_celerytask", "cancel_taskrunrecord")
    client = client_of(user)
    theirs = make_run(state=State.SCHEDULED, run_by=make_user())
    own = make_run(state=State.SCHEDULED, run_by=user)

    assert client.get(url("cancel", theirs.pk)).status_code == 404
    assert client.post(url("cancel", theirs.pk)).status_code == 404
    told = cancel_selected(client, [theirs, own])

    assert told == ["1 run was cancelled."]
    assert (theirs.state, own.state) == (State.SCHEDULED, State.REVOKED)


@pytest.mark.parametrize("key", [0, "x", "1/2", "9" * 30])
def test_an_unknown_run_is_not_there(canceller: Client, key: object) -> None:
    assert canceller.post(url("cancel", key)).status_code == 404


@pytest.mark.parametrize("keys", [[], ["x", "²", "-1", "9" * 30, "0"]])
def test_no_known_run_is_no_error(canceller: Client, keys: list[str]) -> None:
    response = canceller.post(url("cancel_selected"), {"_selected_action": keys}, follow=True)

    assert "None of these runs is there any more." in response.content.decode()


def test_cancelling_needs_a_post_with_the_token(canceller: Client) -> None:
    run = make_run(state=State.SCHEDULED)
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(make_superuser())

    assert strict.get(url("cancel_selected")).status_code == 405
    assert strict.put(url("cancel", run.pk)).status_code in {403, 405}
    assert strict.post(url("cancel", run.pk)).status_code == 403
    assert strict.post(url("cancel_selected"), {"_selected_action": run.pk}).status_code == 403
    run.refresh_from_db()
    assert run.state == State.SCHEDULED


@pytest.mark.parametrize("view", ["cancel", "cancel_selected"])
def test_cancelling_is_in_no_transaction_of_the_request(view: str) -> None:
    found = resolve(url(view, *([1] if view == "cancel" else []))).func

    assert found._non_atomic_requests == {"default"}


# Several runs


def test_the_question_about_several_says_what_happens_to_how_many(canceller: Client) -> None:
    runs = [make_run(state=State.SCHEDULED), make_run(state=State.STARTED), make_run()]

    text = ask_selected(canceller, runs).content.decode()

    assert "These 2 runs will be cancelled" in text
    assert "This run stays as it is" in text
    assert "Yes, cancel 2 runs" in text
    assert "Stop at once the one that runs" in text
    assert text.count('type="hidden" name="_selected_action"') == 2
    assert not TaskRunRecord.objects.exclude(cancel_requested_at=None).exists()


def test_with_nothing_to_cancel_there_is_no_button(canceller: Client) -> None:
    text = ask_selected(canceller, [make_run()]).content.decode()

    assert "Yes," not in text
    assert ">Back</a>" in text


def test_each_is_cancelled_for_itself_and_the_counts_are_true(canceller: Client) -> None:
    runs = make_runs(2, state=State.SCHEDULED)
    done = make_run()

    told = cancel_selected(canceller, [*runs, done])

    assert told == [
        "2 runs were cancelled.",
        "1 run was not cancelled: This run has ended: there is nothing to cancel.",
    ]
    assert [run.state for run in (*runs, done)] == ["REVOKED", "REVOKED", "SUCCESS"]
    assert entries() == ["Cancelled."] * 2


def test_the_page_about_several_says_who_asked_for_each_and_when(canceller: Client) -> None:
    created_at = datetime(2026, 5, 4, 10, 0, tzinfo=UTC)
    run = make_run(state=State.PENDING, run_by_name="grace", created_at=created_at)
    data = {"action": "cancel_selected", "_selected_action": [run.pk]}

    shown = canceller.post(url("changelist"), data)

    assert shown.context["items"][0].about == "asked for by grace, May 4, 2026, noon"
    assert "asked for by grace" in shown.text


@pytest.mark.django_db(transaction=True)
def test_running_ones_of_a_selection_are_stopped_at_once_if_that_is_ticked(
    canceller: Client, running: tuple[TaskRunRecord, Path]
) -> None:
    run, _file = running

    told = cancel_selected(canceller, [run], how="terminate")

    assert told[0].startswith(("1 run was told to stop", "1 run was cancelled."))
    assert told[1].startswith(f"Worker {run.worker}: ")
    wait_for_state(run, State.REVOKED)


@pytest.mark.django_db(transaction=True)
def test_many_running_ones_wait_for_the_answers_together(canceller: Client, worker: Path) -> None:
    runs = make_runs(20, state=State.STARTED, worker="gone@nowhere")
    before = time.monotonic()

    told = cancel_selected(canceller, runs, how="terminate")

    assert time.monotonic() - before < 15
    assert told[0].startswith("20 runs were told to stop")
    assert len([text for text in told if text.startswith("Worker gone@nowhere: ")]) == 1
    assert any(text.endswith(": It does not have this run.") for text in told)
    assert entries() == ["Asked to stop at once (SIGTERM)."] * 20


@pytest.mark.django_db(transaction=True)
def test_with_the_broker_away_a_selection_says_so(canceller: Client) -> None:
    runs = make_runs(3, state=State.STARTED)

    with broker_away():
        told = cancel_selected(canceller, runs, how="terminate")

    assert told[0].startswith("3 runs were told to stop")
    assert told[1].startswith("The workers could not be told")
    assert len(told) == 2


def test_the_list_is_shown_again_with_its_filter(canceller: Client) -> None:
    run = make_run(state=State.SCHEDULED)
    action = {"action": "cancel_selected", "_selected_action": run.pk}

    asked = canceller.post(f"{url(LIST)}?state=SCHEDULED", action)
    address = asked.context["form_url"]
    response = canceller.post(address, {"_selected_action": run.pk})

    assert asked.context["back_url"] == f"{url(LIST)}?state=SCHEDULED"
    assert response["Location"] == f"{url(LIST)}?state=SCHEDULED"


@pytest.mark.parametrize("is_across", ["0", "1"])
def test_more_than_can_be_asked_about_are_refused(canceller: Client, is_across: str) -> None:
    runs = make_runs(MAX_SELECTED + 1, state=State.SCHEDULED)
    chosen = runs[:1] if is_across == "1" else runs

    text = ask_selected(canceller, chosen, select_across=is_across).content.decode()

    assert f"{MAX_SELECTED + 1} are selected; at most {MAX_SELECTED}" in text
    assert not TaskRunRecord.objects.filter(state=State.REVOKED).exists()


def test_no_more_are_cancelled_than_can_be_asked_about(canceller: Client) -> None:
    runs = make_runs(MAX_SELECTED + 1, state=State.SCHEDULED)

    told = cancel_selected(canceller, runs)

    assert told == [f"{MAX_SELECTED} runs were cancelled."]


# The button


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": State.SCHEDULED}, "Cancel</a>"),
        ({"state": State.STARTED}, "Cancel</a>"),
        ({"state": State.CANCELLING}, "Cancel again</a>"),
        ({"state": State.CANCELLING, "started_at": MOMENT}, "Stop it at once</a>"),
    ],
)
def test_an_unfinished_run_has_the_button(
    canceller: Client, fields: dict[str, Any], text: str
) -> None:
    run = make_run(**fields)

    page = canceller.get(url("change", run.pk)).content.decode()

    assert f'href="{url("cancel", run.pk)}"' in page
    assert text in page


def test_a_finished_run_has_no_button(canceller: Client) -> None:
    run = make_run()

    assert url("cancel", run.pk) not in canceller.get(url("change", run.pk)).content.decode()


@override_settings(ROOT_URLCONF="tests.test_admin_runs")
def test_the_pages_stay_on_their_site() -> None:
    client = client_of(make_superuser())
    run = make_run(state=State.SCHEDULED)

    page = client.get(url("cancel", run.pk, site="staff")).content.decode()
    response = client.post(url("cancel", run.pk, site="staff"))

    assert "/back/office/celery_admin_runner/taskrunrecord/" in page
    assert 'href="/admin/' not in page
    assert response["Location"] == url("change", run.pk, site="staff")
