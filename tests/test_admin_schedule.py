"""Runs in admin that are kept until later: what is shown of them, and how they are moved."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from celery_admin_runner.admin import display
from celery_admin_runner.admin.questions import MAX_SELECTED
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import KEPT, State
from tests.factories import make_run, make_runs, make_superuser, make_user

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
#: A moment in summer, and how it is written in the time zone of the tests.
SUMMER = datetime(2030, 7, 1, 10, tzinfo=UTC)
SUMMER_TEXT = "July 1, 2030, noon"
SUMMER_FIELDS = {"eta_0": "2030-07-01", "eta_1": "12:00"}


def url(view: str = "changelist", *args: object) -> str:
    return reverse(f"admin:celery_admin_runner_taskrunrecord_{view}", args=args)


def run_url(task_name: str = "tests.tasks.add") -> str:
    return reverse("admin:celery_admin_runner_celerytask_run", args=[task_name])


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator(client: Client) -> Client:
    """A client of one who runs tasks and sees all runs."""
    return client_of(make_user("run_celerytask", "view_taskrunrecord", username="operator"))


def scheduled(**fields: Any) -> TaskRunRecord:
    """Make a run that is kept for three hours and a bit."""
    later = timezone.now() + 3 * HOUR + timedelta(seconds=90)
    return make_run(**{"state": State.SCHEDULED, "eta": later, "due_at": later, **fields})


def due(**fields: Any) -> TaskRunRecord:
    return scheduled(eta=None, due_at=timezone.now() - timedelta(seconds=5), **fields)


def stored(run: TaskRunRecord) -> TaskRunRecord:
    return TaskRunRecord.objects.get(pk=run.pk)


def page(client: Client, run: TaskRunRecord) -> str:
    """Return the text of a run's page."""
    return client.get(url("change", run.pk)).content.decode()


def messages_of(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def press(client: Client, view: str, run: TaskRunRecord, **data: object) -> list[str]:
    """Post to a view of a run, and return the messages of its page that follows."""
    response = client.post(url(view, run.pk), data, follow=True)
    assert response.redirect_chain[-1][0] == url("change", run.pk)
    return messages_of(response)


def selected(client: Client, view: str, *runs: TaskRunRecord, **data: object) -> list[str]:
    """Answer the page of a selection, and return the messages of the list."""
    data = {"_selected_action": [run.pk for run in runs], **data}
    response = client.post(url(view), data, follow=True)
    assert response.redirect_chain[-1][0] == url()
    return messages_of(response)


def ask(client: Client, action: str, *runs: TaskRunRecord) -> Any:
    """Choose an action of the list."""
    keys = [run.pk for run in runs]
    return client.post(url(), {"action": action, "_selected_action": keys}, follow=True)


def entries() -> list[str]:
    return [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")]


# The page of a run


def test_the_page_of_a_scheduled_run_says_when_it_starts(operator: Client) -> None:
    run = scheduled()

    text = page(operator, run)

    assert f"Earliest start: {display.time_text(run.due_at)}, in 3 h 1 min." in text
    assert url("run_now", run.pk) in text
    assert url("move", run.pk) in text


def test_moments_are_shown_in_the_time_zone_of_who_looks(operator: Client) -> None:
    assert SUMMER_TEXT in page(operator, scheduled(eta=SUMMER, due_at=SUMMER))


def test_the_page_of_a_waiting_run_says_so_and_has_no_button_to_run_it_now(
    operator: Client,
) -> None:
    run = make_run(state=State.WAITING)

    text = page(operator, run)

    assert "It starts when all runs have succeeded that it waits for." in text
    assert url("move", run.pk) in text
    assert url("run_now", run.pk) not in text


def test_the_page_of_a_waiting_run_tells_of_its_earliest_start_too(operator: Client) -> None:
    text = page(operator, make_run(state=State.WAITING, eta=SUMMER))

    assert f"and not before {SUMMER_TEXT}: in " in text


def test_a_waiting_run_whose_earliest_start_has_passed_only_waits(operator: Client) -> None:
    text = page(operator, make_run(state=State.WAITING, eta=timezone.now() - HOUR))

    assert "It starts when all runs have succeeded that it waits for." in text


def test_the_page_of_a_run_that_is_due_says_that_a_dispatcher_sends_it(operator: Client) -> None:
    run = due()

    text = page(operator, run)

    assert "It is due: the next dispatcher sends it." in text
    assert url("move", run.pk) in text
    assert url("run_now", run.pk) not in text


def test_a_run_that_is_due_for_long_makes_one_ask_for_a_dispatcher(operator: Client) -> None:
    run = scheduled(due_at=timezone.now() - timedelta(minutes=2))

    text = page(operator, run)

    assert f"It has been due since {display.time_text(run.due_at)}, and no dispatcher" in text
    assert "the next dispatcher sends it" not in text


def test_a_run_that_is_being_sent_has_no_buttons_to_move_it(operator: Client) -> None:
    run = due(dispatch_id=uuid4(), claimed_at=timezone.now())

    text = page(operator, run)

    assert "It is being sent just now." in text
    assert url("move", run.pk) not in text


@pytest.mark.parametrize("state", sorted(set(State) - KEPT))
def test_what_is_not_kept_has_no_buttons_to_move_it(operator: Client, state: State) -> None:
    run = make_run(state=state)

    text = page(operator, run)

    assert url("move", run.pk) not in text
    assert url("run_now", run.pk) not in text
    assert "run-kept" not in text


def test_who_may_not_run_the_task_sees_no_buttons_to_move_it(configure: Any) -> None:
    run = scheduled()
    viewer = client_of(make_user("view_taskrunrecord"))
    runner = client_of(make_user("view_taskrunrecord", "run_celerytask"))
    configure(RUNNABLE_TASKS={"tests.*": {"groups": ["Finance"]}})

    for client in (viewer, runner):
        text = page(client, run)
        assert "Earliest start" in text
        assert url("move", run.pk) not in text
        assert url("run_now", run.pk) not in text


def test_a_page_that_follows_a_kept_run_is_told_when_it_starts(operator: Client) -> None:
    run = scheduled(eta=SUMMER, due_at=SUMMER)

    answer = operator.get(url("live", run.pk)).json()

    assert (answer["state"], answer["label"], answer["finished"]) == (
        "SCHEDULED",
        "Scheduled",
        False,
    )
    assert datetime.fromisoformat(answer["times"]["eta"]["iso"]) == SUMMER
    assert answer["times"]["due"]["text"] == SUMMER_TEXT
    assert f"Earliest start: {SUMMER_TEXT}" in answer["fragments"]["head"]


def test_a_page_that_follows_a_waiting_run_is_told_so(operator: Client) -> None:
    answer = operator.get(url("live", make_run(state=State.WAITING).pk)).json()

    assert (answer["state"], answer["times"]["due"]) == ("WAITING", None)
    assert "all runs have succeeded that it waits for" in answer["fragments"]["head"]


# Run now


def test_a_scheduled_run_is_run_now(operator: Client) -> None:
    run = scheduled(eta=SUMMER, due_at=SUMMER)

    texts = press(operator, "run_now", run)

    assert texts == ["The run is due now: the next dispatcher sends it."]
    assert stored(run).state == State.SCHEDULED
    assert stored(run).due_at <= timezone.now()
    assert entries() == ["Made due at once; the earliest start was: 2030-07-01 12:00+02:00."]


def test_a_second_click_says_that_the_run_is_on_its_way_already(operator: Client) -> None:
    run = scheduled()
    press(operator, "run_now", run)
    due_at = stored(run).due_at

    texts = press(operator, "run_now", run)

    assert texts == [
        "This run is on its way already: it is due, and the next dispatcher sends it."
    ]
    assert stored(run).due_at == due_at
    assert len(entries()) == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"dispatch_id": uuid4()}, "a dispatcher has taken it"),
        ({"state": State.PENDING, "due_at": None}, "was sent already"),
        ({"state": State.STARTED, "due_at": None}, "was sent already"),
        ({"state": State.SUCCESS, "due_at": None, "finished_at": SUMMER}, "“Succeeded”"),
        ({"state": State.REVOKED, "due_at": None, "finished_at": SUMMER}, "“Cancelled”"),
        ({"state": State.CANCELLING}, "asked to stop"),
    ],
    ids=["claimed", "sent", "started", "succeeded", "cancelled", "cancelling"],
)
@pytest.mark.parametrize("view", ["run_now", "move"])
def test_who_comes_too_late_is_told_the_truth(
    operator: Client, view: str, fields: dict[str, Any], text: str
) -> None:
    run = scheduled()
    TaskRunRecord.objects.filter(pk=run.pk).update(**fields)

    [message] = press(operator, view, run, **SUMMER_FIELDS)

    assert text in message
    assert stored(run).due_at != SUMMER
    assert entries() == []


@pytest.mark.parametrize("view", ["run_now", "move"])
def test_a_dispatcher_that_is_faster_than_the_view_is_told_of(
    operator: Client, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scheduled()
    reschedule = TaskRunner.reschedule

    def reschedule_late(self: TaskRunner, run: TaskRunRecord, **when: Any) -> TaskRunRecord:
        TaskRunRecord.objects.filter(pk=run.pk).update(dispatch_id=uuid4())
        return reschedule(self, run, **when)

    monkeypatch.setattr(TaskRunner, "reschedule", reschedule_late)

    texts = press(operator, view, run, **SUMMER_FIELDS)

    assert texts == ["This run is on its way already: a dispatcher has taken it."]
    assert entries() == []


def test_a_waiting_run_is_not_run_now(operator: Client) -> None:
    run = make_run(state=State.WAITING, eta=SUMMER)

    [text] = press(operator, "run_now", run)

    assert "when all of them have succeeded" in text
    assert stored(run).eta == SUMMER


# Move


def test_the_page_that_moves_a_run_shows_where_it_is(operator: Client) -> None:
    run = scheduled(eta=SUMMER, due_at=SUMMER, label="<b>May</b>")

    text = operator.get(url("move", run.pk)).content.decode()

    assert 'value="2030-07-01"' in text
    assert 'value="12:00:00"' in text
    assert "In the time zone Europe/Vienna." in text
    assert "&lt;b&gt;May" in text
    assert "<b>May" not in text
    assert entries() == []


def test_a_run_is_moved_and_logged(operator: Client) -> None:
    run = scheduled(eta=SUMMER - 24 * HOUR, due_at=SUMMER - 24 * HOUR)

    texts = press(operator, "move", run, **SUMMER_FIELDS)

    assert texts == ["The run was moved."]
    assert (stored(run).eta, stored(run).due_at) == (SUMMER, SUMMER)
    assert entries() == [
        "Moved. Earliest start: 2030-07-01 12:00+02:00; before: 2030-06-30 12:00+02:00."
    ]


def test_the_history_of_a_run_shows_its_moves_to_who_looks(operator: Client) -> None:
    run = scheduled()
    press(operator, "move", run, **SUMMER_FIELDS)

    text = operator.get(url("history", run.pk)).content.decode()

    assert "2030-07-01 12:00+02:00" in text
    assert "operator" in text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"eta_0": "2020-01-01", "eta_1": "12:00"}, "This moment has passed"),
        ({}, "This field is required."),
        ({"eta_0": "2030-07-01"}, "Enter a complete value."),
        ({"eta_0": "tomorrow", "eta_1": "early"}, "Enter a valid date."),
        ({"eta_0": "9999-12-31", "eta_1": "23:59"}, "This moment is out of range."),
        ({"eta_0": "2027-03-28", "eta_1": "02:30"}, "couldn’t be interpreted in time zone"),
    ],
)
def test_what_is_no_moment_to_come_is_an_error_at_the_field(
    operator: Client, fields: dict[str, str], text: str
) -> None:
    run = scheduled()

    response = operator.post(url("move", run.pk), fields)

    assert response.status_code == 200
    assert escape(text) in response.text or text in response.text
    assert stored(run).due_at == run.due_at
    assert entries() == []


def test_a_run_that_would_expire_is_not_moved_and_the_field_says_why(operator: Client) -> None:
    run = scheduled(expires_at=SUMMER - HOUR)

    response = operator.post(url("move", run.pk), SUMMER_FIELDS)

    assert "It would expire before it may start." in response.text
    assert stored(run).due_at == run.due_at


def test_a_waiting_run_is_moved(operator: Client) -> None:
    run = make_run(state=State.WAITING)

    press(operator, "move", run, **SUMMER_FIELDS)

    assert (stored(run).state, stored(run).eta, stored(run).due_at) == (
        State.WAITING,
        SUMMER,
        None,
    )
    assert entries() == ["Moved. Earliest start: 2030-07-01 12:00+02:00; before: none."]


def test_the_earliest_start_of_a_waiting_run_is_taken_away_by_an_empty_field(
    operator: Client,
) -> None:
    run = make_run(state=State.WAITING, eta=SUMMER)

    press(operator, "move", run, eta_0="", eta_1="")

    assert (stored(run).state, stored(run).eta) == (State.WAITING, None)
    assert entries() == ["Moved. Earliest start: none; before: 2030-07-01 12:00+02:00."]


def test_a_site_without_time_zones_moves_runs_too(operator: Client, settings: Any) -> None:
    settings.USE_TZ = False
    run = scheduled()

    press(operator, "move", run, **SUMMER_FIELDS)

    assert stored(run).due_at == datetime(2030, 7, 1, 12)
    assert "2030-07-01 12:00" in entries()[0]
    assert "+" not in entries()[0]


# Who may


@pytest.mark.parametrize("view", ["run_now", "move"])
@pytest.mark.parametrize(
    ("permissions", "status"),
    [
        ([], 404),
        (["run_celerytask"], 404),
        (["view_taskrunrecord"], 403),
        (["view_taskrunrecord", "cancel_taskrunrecord", "retry_taskrunrecord"], 403),
    ],
)
def test_a_forged_post_moves_nothing(view: str, permissions: list[str], status: int) -> None:
    run, client = scheduled(), client_of(make_user(*permissions))

    response = client.post(url(view, run.pk), SUMMER_FIELDS)

    assert response.status_code == status
    assert stored(run).due_at == run.due_at
    assert entries() == []


@pytest.mark.parametrize("view", ["run_now", "move"])
def test_a_forged_post_of_who_may_not_run_that_task_moves_nothing(
    operator: Client, configure: Any, view: str
) -> None:
    configure(RUNNABLE_TASKS={"tests.*": {"groups": ["Finance"]}})
    run = scheduled()

    assert operator.post(url(view, run.pk), SUMMER_FIELDS).status_code == 403
    assert stored(run).due_at == run.due_at


@pytest.mark.parametrize("view", ["run_now", "move"])
@pytest.mark.parametrize("task_name", ["gone", "celery.backend_cleanup"])
def test_a_run_whose_task_can_not_be_run_is_not_moved(
    operator: Client, view: str, task_name: str
) -> None:
    run = scheduled(task_name=task_name)

    [text] = press(operator, view, run, **SUMMER_FIELDS)

    assert "task" in text
    assert stored(run).due_at == run.due_at


def test_who_sees_only_own_runs_moves_an_own_one() -> None:
    user = make_user("run_celerytask")
    run = scheduled(run_by=user)

    press(client_of(user), "move", run, **SUMMER_FIELDS)

    assert stored(run).due_at == SUMMER


@pytest.mark.parametrize("view", ["run_now", "move", "run_selected_now", "move_selected"])
def test_a_post_without_the_token_moves_nothing(view: str) -> None:
    run = scheduled()
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_superuser())
    address = url(view) if "selected" in view else url(view, run.pk)

    response = client.post(address, {"_selected_action": [run.pk], **SUMMER_FIELDS})

    assert response.status_code == 403
    assert stored(run).due_at == run.due_at


@pytest.mark.parametrize("view", ["run_now", "run_selected_now", "move_selected"])
def test_what_moves_at_once_is_only_posted(operator: Client, view: str) -> None:
    address = url(view) if "selected" in view else url(view, scheduled().pk)

    assert operator.get(address).status_code == 405


@pytest.mark.parametrize("view", ["run_selected_now", "move_selected"])
def test_who_runs_no_tasks_has_no_actions_that_move(view: str) -> None:
    run, client = scheduled(), client_of(make_user("view_taskrunrecord"))

    asked = ask(client, view, run)
    response = client.post(url(view), {"_selected_action": [run.pk], **SUMMER_FIELDS})

    assert view not in asked.text
    assert response.status_code == 403
    assert stored(run).due_at == run.due_at


def test_runs_that_the_user_does_not_see_are_not_moved_with_others() -> None:
    user = make_user("run_celerytask")
    own, other = scheduled(run_by=user), scheduled()

    texts = selected(client_of(user), "run_selected_now", own, other)

    assert texts == ["1 run is due now: the next dispatcher sends it."]
    assert stored(other).due_at == other.due_at


# Several runs


def test_the_question_shows_what_will_run_now_and_what_will_not(operator: Client) -> None:
    first, waiting, done = scheduled(), make_run(state=State.WAITING), make_run()

    response = ask(operator, "run_selected_now", first, waiting, done)

    assert [item.pk for item in response.context["items"]] == [first.pk]
    assert {item.pk: item.text for item in response.context["left_out"]} == {
        waiting.pk: "It waits for other runs: it starts when all of them have succeeded.",
        done.pk: "This run has ended: “Succeeded”.",
    }
    assert "Yes, run it now" in response.text
    assert "in 3 h 1 min" in response.text
    assert stored(first).due_at == first.due_at


def test_selected_runs_run_now_and_of_the_others_it_is_said_why_not(operator: Client) -> None:
    runs = [scheduled(), scheduled(), make_run(state=State.WAITING), due(), make_run()]

    texts = selected(operator, "run_selected_now", *runs)

    assert texts == [
        "2 runs are due now: the next dispatcher sends them.",
        "1 run stays as it is: It waits for other runs: it starts when all of them have "
        "succeeded.",
        "1 run stays as it is: This run is on its way already: it is due, and the next "
        "dispatcher sends it.",
        "1 run stays as it is: This run has ended: “Succeeded”.",
    ]
    assert all(stored(run).due_at <= timezone.now() for run in runs[:2])
    assert len(entries()) == 2


def test_selected_runs_are_moved(operator: Client) -> None:
    first, waiting, done = scheduled(), make_run(state=State.WAITING), make_run()

    response = ask(operator, "move_selected", first, waiting, done)
    texts = selected(operator, "move_selected", first, waiting, done, **SUMMER_FIELDS)

    assert {item.pk for item in response.context["items"]} == {first.pk, waiting.pk}
    assert "Move these 2" in response.text
    assert texts == [
        "2 runs were moved.",
        "1 run stays as it is: This run has ended: “Succeeded”.",
    ]
    assert (stored(first).due_at, stored(waiting).eta) == (SUMMER, SUMMER)
    assert len(entries()) == 2


def test_a_selection_is_not_moved_to_what_is_no_moment(operator: Client) -> None:
    run = scheduled()

    response = operator.post(
        url("move_selected"), {"_selected_action": [run.pk], "eta_0": "x", "eta_1": "y"}
    )

    assert "Enter a valid date." in response.text
    assert re.search(f'name="_selected_action" value="{run.pk}"', response.text)
    assert stored(run).due_at == run.due_at


def test_too_many_runs_are_not_moved_at_once(operator: Client) -> None:
    make_runs(MAX_SELECTED + 1, state=State.WAITING)
    data = {"action": "move_selected", "select_across": 1, "_selected_action": [1]}

    for action in ("move_selected", "run_selected_now"):
        response = operator.post(url(), {**data, "action": action}, follow=True)
        assert f"at most {MAX_SELECTED} can be taken at once" in messages_of(response)[0]


def test_a_selection_that_is_gone_is_told_of(operator: Client) -> None:
    assert selected(operator, "run_selected_now") == ["None of these runs is there any more."]


# The list


def test_the_list_tells_in_how_long_a_run_starts(operator: Client) -> None:
    scheduled()

    text = operator.get(url()).text

    assert "in 3 h 1 min" in text
    assert "column-earliest_start" not in text


@pytest.mark.parametrize("query", [{"state": "SCHEDULED"}, {"due": "later"}])
def test_a_list_of_kept_runs_shows_when_they_start(
    operator: Client, query: dict[str, str]
) -> None:
    scheduled(eta=SUMMER, due_at=SUMMER)

    text = operator.get(url(), query).text

    assert SUMMER_TEXT in text
    assert "column-earliest_start" in text
    assert "column-took" not in text


@pytest.mark.parametrize(
    ("choice", "shown"),
    [
        ("now", ["due"]),
        ("hour", ["due", "soon"]),
        ("day", ["due", "soon", "today"]),
        ("week", ["due", "soon", "today", "days"]),
        ("later", ["later"]),
    ],
)
def test_the_list_is_filtered_by_the_earliest_start(
    operator: Client, choice: str, shown: list[str]
) -> None:
    now = timezone.now()
    ahead = {"due": -HOUR, "soon": HOUR / 2, "today": 5 * HOUR, "days": 60 * HOUR}
    for label, length in {**ahead, "later": 999 * HOUR}.items():
        scheduled(due_at=now + length, label=label)
    make_run(state=State.WAITING)
    make_run()

    response = operator.get(url(), {"due": choice})

    assert [run.label for run in reversed(response.context["cl"].result_list)] == shown


def test_a_filter_that_is_none_shows_the_whole_list(operator: Client) -> None:
    assert operator.get(url(), {"due": "x"}).status_code == 302


def test_a_list_that_follows_its_runs_is_told_when_they_start(operator: Client) -> None:
    run = scheduled(eta=SUMMER, due_at=SUMMER)

    cells = operator.get(url("live_list"), {"ids": run.pk}).json()["runs"][str(run.pk)]["cells"]

    assert cells["earliest_start"] == SUMMER_TEXT
    assert cells["started"].startswith("in ")


# Starting


def test_the_form_says_that_a_run_is_kept(operator: Client) -> None:
    text = operator.get(run_url()).text

    assert "Until then the run is kept in the database" in text


def test_after_scheduling_it_is_said_until_when_the_run_is_kept(operator: Client) -> None:
    fields = {"mode": "typed", "args-a": "1", "options-eta_0": "2030-07-01"}

    response = operator.post(run_url(), {**fields, "options-eta_1": "12:00"}, follow=True)

    [text] = messages_of(response)
    run = TaskRunRecord.objects.get()
    assert text.startswith(f"Scheduled: tests.tasks.add. Earliest start: {SUMMER_TEXT}, in ")
    assert response.redirect_chain[-1][0] == url("change", run.pk)
    assert (run.state, run.due_at) == (State.SCHEDULED, SUMMER)


def test_after_scheduling_several_tasks_it_is_said_how_many(operator: Client) -> None:
    address = reverse("admin:celery_admin_runner_celerytask_run_selected")
    names = ["tests.tasks.add", "tests.tasks.apply_others"]
    form = operator.get(address, {"task": names}).text
    prefixes = list(dict.fromkeys(re.findall(r'name="([0-9a-f]{12}-)mode"', form)))
    fields = {f"{prefix}options-countdown": "60" for prefix in prefixes}
    fields |= {f"{prefixes[0]}args-a": "1", f"{prefixes[1]}args-a": "1"}

    response = operator.post(address, {"task": names, **fields}, follow=True)

    assert messages_of(response) == ["2 runs are kept until later: their pages say until when."]
    assert TaskRunRecord.objects.filter(state=State.SCHEDULED).count() == 2


def test_a_kept_run_fills_in_the_form_with_its_earliest_start(operator: Client) -> None:
    run = scheduled(eta=SUMMER, due_at=SUMMER, args=[40])

    response = operator.get(run_url(), {"retry": run.pk})

    assert "That run stays as it is: what you start here is one more." in messages_of(response)
    assert 'value="2030-07-01"' in response.text
    assert 'value="40"' in response.text
    assert "Use these arguments" in page(operator, run)


def test_an_earliest_start_that_has_passed_is_not_filled_in(operator: Client) -> None:
    run = make_run(state=State.WAITING, eta=datetime(2021, 7, 1, tzinfo=UTC), args=[40])

    assert 'value="2021' not in operator.get(run_url(), {"retry": run.pk}).text


def test_by_json_a_run_is_scheduled(operator: Client) -> None:
    body = {"args": [1], "options": {"eta": SUMMER.isoformat()}}

    response = operator.post(run_url(), body, content_type="application/json")

    run = TaskRunRecord.objects.get()
    assert response.status_code == 201
    assert response.json() == {
        "task_id": run.task_id,
        "state": "SCHEDULED",
        "url": url("change", run.pk),
    }
    assert (run.state, run.due_at) == (State.SCHEDULED, SUMMER)


def test_by_json_a_secret_is_not_kept(operator: Client) -> None:
    body = {"args": ["/nowhere", "hunter2"], "options": {"countdown": 60}}

    response = operator.post(
        run_url("tests.tasks.tell_secret"), body, content_type="application/json"
    )

    assert response.status_code == 400
    assert "can't be kept until later" in response.json()["errors"]["__all__"][0]
    assert not TaskRunRecord.objects.exists()


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(seconds=59), "in less than a minute"),
        (timedelta(seconds=61), "in 1 min"),
        (timedelta(minutes=59, seconds=59), "in 59 min"),
        (timedelta(minutes=60), "in 1 h 0 min"),
        (timedelta(days=2, hours=3, minutes=59), "in 2 d 3 h"),
    ],
)
def test_how_long_it_is_until_a_moment(length: timedelta, text: str) -> None:
    assert display.until_text(SUMMER + length, SUMMER) == text
