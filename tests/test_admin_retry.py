"""Running runs again in admin: at once, after a question, by the form, and several."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.test import Client, override_settings
from django.urls import resolve, reverse
from django.utils import timezone

from celery_admin_runner.admin.questions import MAX_SELECTED
from celery_admin_runner.encoding import to_plain
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.factories import make_run, make_runs, make_superuser, make_user

pytestmark = pytest.mark.django_db

ADD = "tests.tasks.add"
LIST = "changelist"
ON_COMMIT = pytest.mark.django_db(transaction=True)


def url(view: str, *args: object, site: str = "admin") -> str:
    return reverse(f"{site}:celery_admin_runner_taskrunrecord_{view}", args=args)


def form_url(task: str, run: TaskRunRecord | None = None) -> str:
    address = reverse("admin:celery_admin_runner_celerytask_run", args=[task])
    return address if run is None else f"{address}?retry={run.pk}"


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def new_runs(*but: TaskRunRecord) -> list[TaskRunRecord]:
    return list(TaskRunRecord.objects.exclude(pk__in=[run.pk for run in but]).order_by("pk"))


def told_by(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def ask_selected(client: Client, runs: list[TaskRunRecord], **data: Any) -> Any:
    """Choose the action of the list."""
    keys = [run.pk for run in runs]
    return client.post(
        url(LIST), {"action": "run_selected_again", "_selected_action": keys, **data}, follow=True
    )


def answer_selected(client: Client, shown: Any, **data: Any) -> Any:
    """Press the button of the page that asks about several runs."""
    context = shown.context
    keys = [item.pk for item in context["items"]]
    data = {"_selected_action": keys, "_confirmed": context["digest"], **data}
    return client.post(context["form_url"], data, follow=True)


@pytest.fixture
def operator() -> User:
    return make_user("run_celerytask", "retry_taskrunrecord", username="ada")


@pytest.fixture
def client(operator: User) -> Client:
    return client_of(operator)


# One run, at once


@ON_COMMIT
def test_a_run_is_run_again_as_it_was(client: Client, operator: User) -> None:
    group = Group.objects.create(name="Finance")
    run = make_run(
        run_by=operator,
        args=[1],
        kwargs={"b": 5},
        label="May",
        options={"priority": 3, "time_limit": 60, "expires": 3600},
        content_type=ContentType.objects.get_for_model(Group),
        object_id=str(group.pk),
        state=State.FAILURE,
    )

    response = client.post(url("run_again", run.pk), follow=True)

    (again,) = new_runs(run)
    assert response.redirect_chain == [(url("change", again.pk), 302)]
    assert "This is the new run." in told_by(response)
    assert (again.retry_of_id, again.source, again.run_by) == (run.pk, "retry", operator)
    for name in ("task_name", "args", "kwargs", "label", "options", "object_id"):
        assert getattr(again, name) == getattr(run, name)
    assert 3590 < (again.expires_at - timezone.now()).total_seconds() <= 3600
    entry = LogEntry.objects.get()
    assert (entry.object_id, entry.user) == (str(run.pk), operator)
    assert entry.get_change_message() == f"Run again as {again.task_id}."


@ON_COMMIT
def test_a_broker_that_is_away_is_told_of(client: Client, operator: User) -> None:
    run = make_run(run_by=operator, args=[1])

    with broker_away():
        response = client.post(url("run_again", run.pk), follow=True)

    (again,) = new_runs(run)
    assert again.state == State.UNSENT
    assert response.redirect_chain[-1][0] == url("change", again.pk)
    assert "Not sent: " in told_by(response)[0]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": State.STARTED}, "It has not finished yet."),
        ({"task_name": "gone"}, "There is no such task any more."),
        ({"task_name": "celery.backend_cleanup"}, "The settings do not allow"),
        ({"args": [MASK]}, "A secret of it is not stored"),
        ({"kwargs": {"x": {"token": MASK}}}, "A secret of it is not stored"),
        ({"options": {"headers": {"my_token": MASK}}}, "A secret of it is not stored"),
        ({"args": [{"value": "x", "shortened": True}]}, "Its arguments are not stored as they"),
        ({"args": [1, 2, 3]}, "Its arguments do not fit the task any more"),
        ({"args": ["<b>x"]}, "Its arguments do not fit the task any more"),
    ],
)
def test_what_can_not_be_run_again_is_told_why(
    client: Client, operator: User, fields: dict[str, Any], text: str
) -> None:
    run = make_run(**{"run_by": operator, "args": [1], **fields})

    response = client.post(url("run_again", run.pk), follow=True)

    assert response.redirect_chain[-1][0] == url("change", run.pk)
    assert text in told_by(response)[0]
    assert "<b>x" not in response.content.decode()
    assert new_runs(run) == []
    assert LogEntry.objects.count() == 0


def pressed(client: Client, run: TaskRunRecord) -> dict[str, str]:
    """Return what the button "Run again" of the run's page sends."""
    page = client.get(url("change", run.pk))
    return {"known": page.context["known"]}


@ON_COMMIT
def test_a_second_click_shows_the_new_run_and_asks(client: Client, operator: User) -> None:
    run = make_run(run_by=operator, args=[1])
    other = make_run(run_by=make_user(), args=[1], retry_of=run)
    data = pressed(client, run)

    client.post(url("run_again", run.pk), data)
    (again,) = new_runs(run, other)
    asked = client.post(url("run_again", run.pk), data)
    nothing = new_runs(run, other, again)
    client.post(url("run_again", run.pk), {"known": asked.context["known"]})

    assert f'href="{url("change", again.pk)}">{again.task_id}</a> is the new run' in (
        asked.content.decode()
    )
    assert f'name="known" value="{again.pk}"' in asked.content.decode()
    assert nothing == []
    assert len(new_runs(run, other, again)) == 1


@ON_COMMIT
def test_who_has_seen_the_new_run_is_not_asked(client: Client, operator: User) -> None:
    run = make_run(run_by=operator, args=[1])

    for _time in range(2):
        client.post(url("run_again", run.pk), pressed(client, run))

    assert len(new_runs(run)) == 2


@ON_COMMIT
def test_a_reason_that_no_database_stores_is_made_one(client: Client, operator: User) -> None:
    run = make_run(run_by=operator, args=[1])

    client.post(url("run_again", run.pk), {"reason": "a\x00b"})
    client.post(url("run_again_selected"), {"_selected_action": [run.pk], "reason": "\x00"})

    assert [again.reason for again in new_runs(run)] == ["a\N{REPLACEMENT CHARACTER}b"]


# One run, after a question


def test_a_get_asks_and_runs_nothing(client: Client, operator: User) -> None:
    run = make_run(run_by=operator, args=["<script>"], options={"queue": "slow"})

    text = client.get(url("run_again", run.pk)).content.decode()

    for part in ("This will be sent", "&lt;script&gt;", "slow", "Yes, run it", "take me back"):
        assert part in text
    assert new_runs(run) == []


def test_a_moment_to_expire_is_shown_as_the_time_that_is_left(
    client: Client, operator: User
) -> None:
    now = timezone.now()
    past = now - timedelta(days=1)
    run = make_run(
        run_by=operator,
        args=[1],
        created_at=past - timedelta(seconds=90),
        expires_at=past,
        options={"expires": to_plain(past)},
    )

    response = client.get(url("run_again", run.pk))

    assert '"expires": 90' in response.context["previews"][0].options


@ON_COMMIT
def test_a_task_with_confirm_asks_first(client: Client, operator: User, configure: Any) -> None:
    configure(RUNNABLE_TASKS={ADD: {"confirm": True}})
    run = make_run(run_by=operator, args=[1])

    asked = client.post(url("run_again", run.pk))
    forged = client.post(url("run_again", run.pk), {"_confirmed": "yes"})
    nothing = new_runs(run)
    client.post(url("run_again", run.pk), {"_confirmed": asked.context["digest"]})

    assert (asked.status_code, forged.status_code, nothing) == (200, 200, [])
    assert len(new_runs(run)) == 1


@ON_COMMIT
def test_a_task_with_reason_asks_for_it(client: Client, operator: User, configure: Any) -> None:
    configure(RUNNABLE_TASKS={ADD: {"reason": True}})
    run = make_run(run_by=operator, args=[1], reason="the first time")

    asked = client.post(url("run_again", run.pk))
    digest = {"_confirmed": asked.context["digest"]}
    missing = client.post(url("run_again", run.pk), {**digest, "reason": "  "})
    nothing = new_runs(run)
    client.post(url("run_again", run.pk), {**digest, "reason": "it <failed>"})

    assert asked.status_code == 200
    assert "This task needs a reason." in missing.content.decode()
    assert nothing == []
    assert [again.reason for again in new_runs(run)] == ["it <failed>"]


def test_what_was_confirmed_for_another_run_does_not_count(
    client: Client, operator: User, configure: Any
) -> None:
    configure(RUNNABLE_TASKS={ADD: {"confirm": True}})
    one, other = (make_run(run_by=operator, args=[number]) for number in (1, 2))
    digest = client.post(url("run_again", one.pk)).context["digest"]

    response = client.post(url("run_again", other.pk), {"_confirmed": digest})

    assert response.status_code == 200
    assert new_runs(one, other) == []


# Forged requests


@pytest.mark.parametrize(
    "permissions",
    [
        ("view_taskrunrecord", "run_celerytask", "cancel_taskrunrecord"),
        ("view_taskrunrecord", "retry_taskrunrecord"),
    ],
)
def test_without_both_permissions_nothing_is_run_again(permissions: tuple[str, ...]) -> None:
    client = client_of(make_user(*permissions))
    run = make_run(args=[1])

    for response in (
        client.get(url("run_again", run.pk)),
        client.post(url("run_again", run.pk)),
        client.post(url("run_again_selected"), {"_selected_action": run.pk}),
    ):
        assert response.status_code == 403
    ask_selected(client, [run])
    assert url("run_again", run.pk) not in client.get(url("change", run.pk)).content.decode()
    assert new_runs(run) == []


def test_without_the_right_to_the_task_nothing_is_run_again(
    client: Client, operator: User, configure: Any
) -> None:
    configure(RUNNABLE_TASKS={ADD: {"groups": ["Finance"]}})
    run = make_run(run_by=operator, args=[1])

    assert client.post(url("run_again", run.pk)).status_code == 403
    assert client.get(url("run_again", run.pk)).status_code == 403
    shown = ask_selected(client, [run])
    assert "You are not allowed to run this task." in shown.content.decode()
    assert "Yes," not in shown.content.decode()
    answer_selected(client, shown, _selected_action=[run.pk])
    assert new_runs(run) == []


def test_a_run_that_the_user_may_not_see_is_not_there(client: Client) -> None:
    theirs = make_run(run_by=make_user(), args=[1])

    assert client.get(url("run_again", theirs.pk)).status_code == 404
    assert client.post(url("run_again", theirs.pk)).status_code == 404
    shown = client.post(url("run_again_selected"), {"_selected_action": theirs.pk})
    assert list(shown.context["items"]) == []
    client.post(form_url(ADD, theirs), {"mode": "typed", "args-a": "1", "args-b": "2"})
    assert all(again.retry_of_id is None for again in new_runs(theirs))


@pytest.mark.parametrize("key", [0, "x", "1/2", "9" * 30])
def test_an_unknown_run_is_not_there(client: Client, key: object) -> None:
    assert client.post(url("run_again", key)).status_code == 404


def test_running_again_needs_a_post_with_the_token(operator: User) -> None:
    run = make_run(run_by=operator, args=[1])
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(operator)

    assert strict.get(url("run_again_selected")).status_code == 405
    assert strict.post(url("run_again", run.pk)).status_code == 403
    assert strict.post(url("run_again_selected"), {"_selected_action": run.pk}).status_code == 403
    assert new_runs(run) == []


@pytest.mark.parametrize("view", ["run_again", "run_again_selected"])
def test_running_again_is_in_no_transaction_of_the_request(view: str) -> None:
    found = resolve(url(view, *([1] if view == "run_again" else []))).func

    assert found._non_atomic_requests == {"default"}


# Several runs


@ON_COMMIT
def test_several_are_run_again_and_the_counts_are_true(client: Client, operator: User) -> None:
    runs = [make_run(run_by=operator, args=[number]) for number in range(3)]
    misfit = make_run(run_by=operator, args=["x"])
    unfinished = make_run(run_by=operator, args=[1], state=State.STARTED)
    secret = make_run(run_by=operator, args=[MASK])
    all_runs = [*runs, misfit, unfinished, secret]

    shown = ask_selected(client, all_runs)
    before = new_runs(*all_runs)
    response = answer_selected(client, shown)

    text = shown.content.decode()
    assert "These 4 runs will be run again" in text
    assert "These 2 runs can’t be run again" in text
    assert "It has not finished yet." in text
    assert "A secret of it is not stored" in text
    assert before == []
    again = new_runs(*all_runs)
    assert [run.retry_of_id for run in again] == [run.pk for run in runs]
    assert [run.args for run in again] == [[0], [1], [2]]
    told = told_by(response)
    assert told[0] == "3 runs were sent."
    assert "Its arguments do not fit the task any more" in told[1]
    assert LogEntry.objects.count() == 3
    assert response.redirect_chain == [(url(LIST), 302)]


@ON_COMMIT
def test_with_the_broker_away_it_is_said_which_were_not_sent(
    client: Client, operator: User
) -> None:
    runs = [make_run(run_by=operator, args=[number]) for number in range(8)]
    shown = ask_selected(client, runs)

    with broker_away():
        response = answer_selected(client, shown)

    assert {run.state for run in new_runs(*runs)} == {State.UNSENT}
    told = told_by(response)
    assert len(told) == 2
    assert "The broker did not take the run before this one. " in told[1]
    assert told[1].endswith("(× 7)")


def test_what_was_not_shown_is_not_run_again(client: Client, operator: User) -> None:
    one, other = (make_run(run_by=operator, args=[number]) for number in (1, 2))
    shown = ask_selected(client, [one])

    response = answer_selected(client, shown, _selected_action=[one.pk, other.pk])

    assert [item.pk for item in response.context["items"]] == [one.pk, other.pk]
    assert new_runs(one, other) == []


@ON_COMMIT
def test_one_reason_is_asked_for_all_of_them(
    client: Client, operator: User, configure: Any
) -> None:
    configure(RUNNABLE_TASKS={ADD: {"reason": True}, "*": {}})
    runs = [make_run(run_by=operator, args=[1]), make_run(run_by=operator, args=[2])]
    shown = ask_selected(client, runs)

    missing = answer_selected(client, shown)
    nothing = new_runs(*runs)
    answer_selected(client, missing, reason="because")

    assert "One of these tasks needs a reason." in missing.content.decode()
    assert nothing == []
    assert [run.reason for run in new_runs(*runs)] == ["because"] * 2


@ON_COMMIT
def test_several_are_run_again_once_by_two_clicks(client: Client, operator: User) -> None:
    runs = [make_run(run_by=operator, args=[number]) for number in range(2)]
    shown = ask_selected(client, runs)
    data = {"known": shown.context["known"]}

    answer_selected(client, shown, **data)
    asked = answer_selected(client, shown, **data)
    nothing = new_runs(*runs)[2:]
    answer_selected(client, asked, known=asked.context["known"])

    assert "is the new run" in asked.content.decode()
    assert nothing == []
    assert len(new_runs(*runs)) == 4


@pytest.mark.parametrize("is_across", ["0", "1"])
def test_more_than_can_be_asked_about_are_refused(
    client: Client, operator: User, is_across: str
) -> None:
    runs = make_runs(MAX_SELECTED + 1, run_by=operator, args=[1])
    chosen = runs[:1] if is_across == "1" else runs

    text = ask_selected(client, chosen, select_across=is_across).content.decode()

    assert f"{MAX_SELECTED + 1} are selected; at most {MAX_SELECTED}" in text
    assert len(new_runs()) == len(runs)


def test_the_page_asks_as_often_for_few_as_for_many(
    client: Client, operator: User, django_assert_max_num_queries: Any
) -> None:
    runs = make_runs(MAX_SELECTED, run_by=operator, args=[1])

    with django_assert_max_num_queries(12):
        ask_selected(client, runs)


# The form


@ON_COMMIT
def test_the_form_filled_in_from_a_run_runs_that_run_again(client: Client, operator: User) -> None:
    run = make_run(
        run_by=operator,
        args=[1],
        label="May",
        options={"priority": 3, "queue": "slow", "time_limit": 60},
    )
    page = client.get(form_url(ADD, run))
    address = page.context["form_url"]
    data = {"mode": "typed", "args-a": "7", "args-b": "8", "options-priority": "5"}

    client.post(address, data)

    assert address == form_url(ADD, run)
    (again,) = new_runs(run)
    assert (again.retry_of_id, again.source, again.label) == (run.pk, "retry", "May")
    assert (again.args, again.kwargs) == ([7], {"b": 8})
    # The queue was emptied; for the time limit there is no field.
    assert again.options == {"priority": 5, "time_limit": 60}
    assert LogEntry.objects.get().get_change_message() == f"Run again as {again.task_id}."


@ON_COMMIT
@pytest.mark.parametrize("state", [State.SUCCESS, State.STARTED])
def test_without_the_right_to_run_it_again_the_form_makes_a_run_of_its_own(state: State) -> None:
    user = make_user("run_celerytask", *["retry_taskrunrecord"] * (state == State.STARTED))
    client = client_of(user)
    run = make_run(run_by=user, args=[1], options={"time_limit": 60}, state=state)
    page = client.get(form_url(ADD, run))

    client.post(form_url(ADD, run), {"mode": "typed", "args-a": "7", "args-b": "8"})

    assert page.context["sheets"][0].form.parameters["a"].value() == "1"
    assert page.context["form_url"] == form_url(ADD)
    (again,) = new_runs(run)
    assert (again.retry_of_id, again.source, again.options) == (None, "admin", {})
    assert LogEntry.objects.count() == 0


@ON_COMMIT
def test_a_run_with_a_secret_is_run_again_by_the_form_alone(
    client: Client, operator: User
) -> None:
    run = make_run(task_name="tests.tasks.tell_secret", run_by=operator, args=["/tmp/x", MASK])
    page = client.get(url("change", run.pk)).content.decode()
    form = client.get(form_url(run.task_name, run)).context["sheets"][0].form
    data = {"mode": "typed", "args-path": "/nowhere/x", "args-password": ""}

    missing = client.post(form_url(run.task_name, run), data)
    client.post(form_url(run.task_name, run), {**data, "args-password": "s3cret"})

    assert url("run_again", run.pk) not in page
    assert form_url(run.task_name, run) in page
    assert not form.parameters["password"].value()
    assert missing.status_code == 200
    (again,) = new_runs(run)
    assert (again.retry_of_id, again.args) == (run.pk, ["/nowhere/x", MASK])


@ON_COMMIT
def test_the_form_leaves_out_a_header_that_is_not_stored(client: Client, operator: User) -> None:
    options = {"time_limit": 60, "headers": {"my_token": MASK}}
    run = make_run(run_by=operator, args=[1], options=options)

    page = client.get(form_url(ADD, run))
    client.post(form_url(ADD, run), {"mode": "typed", "args-a": "7", "args-b": "8"})

    assert told_by(page) == ["Not stored as they were, and left out: headers."]
    (again,) = new_runs(run)
    assert (again.retry_of_id, again.options) == (run.pk, {"time_limit": 60})


@ON_COMMIT
def test_the_confirmation_of_the_form_shows_all_options(
    client: Client, operator: User, configure: Any
) -> None:
    configure(RUNNABLE_TASKS={ADD: {"confirm": True}})
    run = make_run(run_by=operator, args=[1], options={"time_limit": 61, "queue": "slow"})
    data = {"mode": "typed", "args-a": "7", "args-b": "8"}

    shown = client.post(form_url(ADD, run), data)
    client.post(form_url(ADD, run), {**data, "_confirmed": shown.context["digest"]})

    preview = shown.context["previews"][0]
    assert "61" in preview.options
    assert "slow" not in preview.options
    (again,) = new_runs(run)
    assert again.options == {"time_limit": 61}


# The buttons


@pytest.mark.parametrize(
    ("fields", "has_button"),
    [
        ({}, True),
        ({"state": State.STARTED}, False),
        ({"args": [MASK]}, False),
        ({"kwargs": {"b": {"value": "<object>", "forced_json": True}}}, False),
        ({"options": {"headers": {"my_token": MASK}}}, False),
    ],
)
def test_the_button_is_there_for_what_can_be_run_again(
    client: Client, operator: User, fields: dict[str, Any], has_button: bool
) -> None:
    run = make_run(**{"run_by": operator, "args": [1], **fields})

    page = client.get(url("change", run.pk)).content.decode()

    assert (f'action="{url("run_again", run.pk)}"' in page) is has_button
    assert "Edit and run again" in page


@ON_COMMIT
@override_settings(ROOT_URLCONF="tests.test_admin_runs")
def test_the_pages_stay_on_their_site() -> None:
    client = client_of(make_superuser())
    run = make_run(args=[1])

    page = client.get(url("run_again", run.pk, site="staff")).content.decode()
    response = client.post(url("run_again", run.pk, site="staff"))

    assert "/back/office/celery_admin_runner/taskrunrecord/" in page
    assert 'href="/admin/' not in page
    assert response["Location"].startswith("/back/office/")
