"""The pages on which tasks are run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.db import connection
from django.db.models.signals import post_save
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from celery_admin_runner.admin.run_page import has_content
from celery_admin_runner.exceptions import InvalidArguments
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import make_run, make_runs, make_superuser, make_user

LIST = "admin:celery_admin_runner_celerytask_changelist"
SELECTED = "admin:celery_admin_runner_celerytask_run_selected"
ADD = "tests.tasks.add"
FAIL = "tests.tasks.fail"
SECRET = "tests.tasks.tell_secret"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def operator(client: Client) -> User:
    """A user who may run tasks, logged in."""
    user = make_user("run_celerytask")
    client.force_login(user)
    return user


@contextmanager
def registered(function: Callable[..., Any], name: str = "many.made_here") -> Iterator[str]:
    """Register a function as a task for a while."""
    app.task(function, name=name, shared=False)
    try:
        yield name
    finally:
        del app.tasks[name]


def _nothing() -> None:
    """Do nothing."""


def page_of(task_name: str) -> str:
    """Return the address of a task's page."""
    return reverse("admin:celery_admin_runner_celerytask_run", args=[task_name])


def page_of_run(run: TaskRunRecord) -> str:
    """Return the address of a run's page."""
    return reverse("admin:celery_admin_runner_taskrunrecord_change", args=[run.pk])


def typed(**fields: object) -> dict[str, object]:
    """Return a POST of the typed form: ``args_a=1`` stands for ``args-a``."""
    return {"mode": "typed"} | {name.replace("_", "-", 1): value for name, value in fields.items()}


def as_json(args: str = "[]", kwargs: str = "{}") -> dict[str, str]:
    """Return a POST of the JSON tab."""
    return {"mode": "json", "json-args": args, "json-kwargs": kwargs}


def messages_of(response: HttpResponse) -> list[str]:
    """Return the messages that the user will read."""
    return [str(message) for message in get_messages(response.wsgi_request)]


def prefix_of(response: HttpResponse, task_name: str) -> str:
    """Return what the names of a task's fields begin with, on the page for several."""
    return next(
        sheet.form.prefix for sheet in response.context["sheets"] if sheet.info.name == task_name
    )


def digest_of(response: HttpResponse) -> str:
    """Return what the confirmation page has to be answered with."""
    return response.context["digest"]


# The page


def test_the_page_has_documentation_both_tabs_and_options(client: Client, operator: User) -> None:
    response = client.get(page_of(ADD))

    assert response.status_code == 200
    assert "Add two numbers." in response.text
    for name in ("args-a", "args-b", "json-args", "json-kwargs", "options-queue"):
        assert f'name="{name}"' in response.text
    assert re.search(r'name="mode" value="typed"[^>]* checked', response.text)
    assert "<details>" in response.text


def test_nothing_in_the_pages_is_inline(client: Client, operator: User, configure) -> None:
    configure(RUNNABLE_TASKS={ADD: {"confirm": True}, "*": {}})
    pages = [
        client.get(reverse(LIST)),
        client.get(page_of(ADD)),
        client.get(page_of("celery.backend_cleanup")),
        client.post(page_of(ADD), typed(args_a="1", args_b="2")),
        client.get(reverse(SELECTED), {"task": [ADD, FAIL]}),
    ]

    for page in pages:
        assert page.status_code == 200
        assert not re.search(r"<script(?![^>]*\ssrc=)(?![^>]*application/json)", page.text)
        assert not re.search(r"<style|\sstyle=|\son\w+=", page.text)


def test_recent_runs_stand_beside_the_form(client: Client, operator: User) -> None:
    own = make_runs(12, run_by=operator, run_by_name=operator.username)
    foreign = make_run(run_by=make_user(), run_by_name="somebody else")
    other = make_run(task_name=FAIL, run_by=operator)

    response = client.get(page_of(ADD))

    shown = [item.pk for item in response.context["recent_runs"]]
    assert shown == [run.pk for run in reversed(own[2:])]
    assert foreign.pk not in shown
    assert other.pk not in shown
    assert "somebody else" not in response.text
    assert f'href="{page_of_run(own[-1])}"' in response.text
    assert f'href="?retry={own[-1].pk}"' in response.text


def test_the_recent_runs_are_those_that_were_created_last(client: Client, operator: User) -> None:
    older, newer = make_runs(2, run_by=operator, run_by_name=operator.username)
    later = newer.created_at + timedelta(hours=1)
    TaskRunRecord.objects.filter(pk=older.pk).update(created_at=later)

    response = client.get(page_of(ADD))

    # By the one order of which there is an index for each task.
    assert [item.pk for item in response.context["recent_runs"]] == [older.pk, newer.pk]


def test_the_page_costs_a_fixed_number_of_queries(client: Client, operator: User) -> None:
    make_run(run_by=operator)
    client.get(page_of(ADD))
    with CaptureQueriesContext(connection) as few:
        client.get(page_of(ADD))
    make_runs(9, run_by=operator)

    with CaptureQueriesContext(connection) as many:
        client.get(page_of(ADD))

    assert len(many) == len(few)


@pytest.mark.parametrize(
    "permissions", [("view_celerytask",), ("view_celerytask", "view_taskrunrecord")]
)
def test_who_may_only_view_sees_the_documentation_and_no_form(
    client: Client, permissions: tuple[str, ...]
) -> None:
    client.force_login(make_user(*permissions))

    response = client.get(page_of(ADD))

    assert response.status_code == 200
    assert "Add two numbers." in response.text
    assert "not allowed to run" in response.text
    assert "celerytask_form" not in response.text
    assert "<code>int</code>" in response.text


def test_a_task_that_is_not_runnable_has_a_page_without_form(client: Client) -> None:
    client.force_login(make_superuser())

    response = client.get(page_of("celery.backend_cleanup"))

    assert response.status_code == 200
    assert "not runnable" in response.text
    assert "celerytask_form" not in response.text


def test_a_hidden_task_has_no_page(client: Client, operator: User, configure) -> None:
    configure(RUNNABLE_TASKS=[ADD], SHOW_ONLY_RUNNABLE=True)

    response = client.get(page_of(FAIL))

    assert response.status_code == 302


# Running


def test_a_posted_form_runs_the_task(client: Client, operator: User) -> None:
    response = client.post(
        page_of(ADD), typed(args_a="40", args_b="2", options_reason="for the auditors")
    )

    run = TaskRunRecord.objects.get()
    assert (response.status_code, response.url) == (302, page_of_run(run))
    assert messages_of(response) == ["1 task was sent."]
    assert (run.state, run.args, run.kwargs) == (State.PENDING, [40], {})
    assert (run.run_by, run.source, run.reason) == (operator, "admin", "for the auditors")


def test_posted_json_runs_the_task(client: Client, operator: User) -> None:
    response = client.post(page_of(ADD), as_json("[40]", '{"b": 3}'))

    run = TaskRunRecord.objects.get()
    assert response.url == page_of_run(run)
    assert (run.args, run.kwargs) == ([40], {"b": 3})


def test_options_go_with_the_run(client: Client, operator: User) -> None:
    client.post(
        page_of(ADD),
        typed(args_a="1", args_b="2", options_queue="slow", options_countdown="60",
              options_priority="3"),
    )  # fmt: skip

    run = TaskRunRecord.objects.get()
    assert run.queue == "slow"
    assert run.options["priority"] == 3
    assert (run.eta - run.created_at).total_seconds() == pytest.approx(60, abs=1)


def test_a_run_whose_page_the_site_lacks_leads_to_the_list(
    client: Client, operator: User, settings
) -> None:
    settings.ROOT_URLCONF = "tests.admin_sites"

    response = client.post("/office/tools/celery_admin_runner/celerytask/tests.tasks.add/run/",
                           typed(args_a="1", args_b="2"))  # fmt: skip

    assert TaskRunRecord.objects.count() == 1
    assert response.url == "/office/tools/celery_admin_runner/celerytask/"


def test_the_pages_of_another_site_stay_on_it(client: Client, operator: User, settings) -> None:
    settings.ROOT_URLCONF = "tests.admin_sites"
    make_run(run_by=operator)
    base = "/office/tools/celery_admin_runner/celerytask/"

    pages = [
        client.get(base),
        client.get(f"{base}tests.tasks.add/run/"),
        client.post(base, {"action": "run_selected", ACTION_CHECKBOX_NAME: [ADD, FAIL]}),
        client.get(f"{base}run-selected/", {"task": ADD}),
    ]
    answer = client.get(f"{base}api/", {"q": ADD}).json()

    for page in pages:
        assert page.status_code == 200
        assert '"/admin/' not in page.text
        assert f'="{base}' in page.text
    assert answer["tasks"][0]["run_url"] == f"{base}tests.tasks.add/run/"


def test_the_message_is_sent_when_requests_are_atomic(
    client: Client, operator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    response = client.post(page_of(ADD), typed(args_a="1", args_b="2"))

    run = TaskRunRecord.objects.get()
    # A worker of another test may have run it already.
    assert run.state in {State.PENDING, State.STARTED, State.SUCCESS}
    assert messages_of(response) == ["1 task was sent."]


def test_an_atomic_request_tells_of_a_broker_that_is_down(
    client: Client, operator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    with broker_away():
        response = client.post(page_of(ADD), typed(args_a="1", args_b="2"))

    run = TaskRunRecord.objects.get()
    [message] = messages_of(response)
    assert (run.state, response.url) == (State.UNSENT, page_of_run(run))
    assert message.startswith("Not sent: tests.tasks.add. ")
    assert run.publish_error in message
    assert "Send again" in message


# What is refused


@pytest.mark.parametrize(
    "data",
    [
        typed(args_a="many", args_b="2", options_reason="because"),
        typed(args_a="", args_b="7", options_reason="because"),
        typed(args_a="1", args_b="2", options_priority="-7", options_reason="because"),
        {**as_json("[1, 2, 3]"), "options-reason": "because"},
        {**as_json("[1", '{"b": <b>'), "options-reason": "because"},
        {**as_json("1", "[]"), "options-reason": "because"},
        {**as_json("[]", '{"c": 1}'), "options-reason": "because"},
    ],
)
def test_what_is_not_valid_is_shown_again_and_nothing_is_sent(
    client: Client, operator: User, data: dict[str, str]
) -> None:
    response = client.post(page_of(ADD), data)

    assert response.status_code == 200
    assert "Nothing was sent." in response.text
    assert 'class="errorlist' in response.text
    form = response.context["sheets"][0].form
    assert form.mode == data["mode"]
    for part in (form.parameters, form.json, form.options):
        for field in part:
            if field.html_name in data:
                assert field.value() == data[field.html_name]
    assert TaskRunRecord.objects.count() == 0


@pytest.mark.parametrize(
    "text",
    ['["\\u0000"]', '["\\ud800"]', f"[{'9' * 10_000}]", "[NaN]", "[1e999]", "[" * 100_000,
     json.dumps(["x" * 2**20])],
    ids=["NUL", "lone surrogate", "10,000 digits", "NaN", "infinity", "deep", "1 MB"],
)  # fmt: skip
def test_json_that_cannot_be_sent_is_refused_in_words(
    client: Client, operator: User, text: str
) -> None:
    response = client.post(page_of(FAIL), as_json(text))

    assert response.status_code == 200
    assert 'class="errorlist' in response.text
    assert TaskRunRecord.objects.count() == 0


def test_an_error_opens_the_options(client: Client, operator: User) -> None:
    folded = client.post(page_of(ADD), typed(args_a="x"))
    wrong = client.post(page_of(ADD), typed(args_a="1", options_priority="-7"))
    used = client.post(page_of(ADD), typed(args_a="x", options_queue="slow"))

    assert "<details>" in folded.text
    assert "<details>" not in wrong.text
    assert "<details>" not in used.text


def test_a_reason_that_is_asked_for_must_be_given(client: Client, operator, configure) -> None:
    configure(RUNNABLE_TASKS={ADD: {"reason": True}})

    refused = client.post(page_of(ADD), typed(args_a="1", args_b="2"))
    count = TaskRunRecord.objects.count()
    client.post(page_of(ADD), typed(args_a="1", args_b="2", options_reason="month end"))

    assert (refused.status_code, count) == (200, 0)
    assert TaskRunRecord.objects.get().reason == "month end"


@pytest.mark.parametrize("task_name", ["celery.backend_cleanup", "celery.chord", FAIL])
@pytest.mark.parametrize("is_superuser", [True, False])
def test_a_forged_post_for_a_task_outside_the_allowlist_is_refused(
    client: Client, configure, task_name: str, is_superuser: bool
) -> None:
    configure(RUNNABLE_TASKS=[ADD, "celery.*"])
    client.force_login(make_user("run_celerytask", is_superuser=is_superuser))

    for data in (as_json(), typed(args_message="x")):
        assert client.post(page_of(task_name), data).status_code == 403
    selected = client.post(reverse(SELECTED), {"task": [ADD, task_name]})

    assert selected.status_code == 403
    assert TaskRunRecord.objects.count() == 0


@pytest.mark.parametrize(
    "permissions", [(), ("view_celerytask",), ("view_taskrunrecord", "retry_taskrunrecord")]
)
def test_a_forged_post_without_the_permission_is_refused(
    client: Client, permissions: tuple[str, ...]
) -> None:
    client.force_login(make_user(*permissions))

    answers = [
        client.post(page_of(ADD), typed(args_a="1", args_b="2")),
        client.post(reverse(SELECTED), {"task": [ADD]}),
        client.get(reverse(SELECTED), {"task": [ADD]}),
    ]

    assert {answer.status_code for answer in answers} == {403}
    assert TaskRunRecord.objects.count() == 0


def test_the_rule_of_a_task_is_enforced(client: Client, operator: User, configure) -> None:
    configure(RUNNABLE_TASKS={ADD: {"permission": "auth.add_user"}, "*": {}})

    answer = client.post(page_of(ADD), typed(args_a="1", args_b="2"))

    assert answer.status_code == 403
    assert TaskRunRecord.objects.count() == 0


def test_a_post_without_csrf_token_is_refused(operator: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(operator)

    answers = [
        client.post(page_of(ADD), typed(args_a="1", args_b="2")),
        client.post(reverse(SELECTED), {"task": [ADD]}),
        client.post(page_of(ADD), {"args": [1]}, content_type="application/json"),
    ]

    assert {answer.status_code for answer in answers} == {403}
    assert TaskRunRecord.objects.count() == 0


@pytest.mark.parametrize("name", ["no.such.task", "a/b", "<b>x</b>", "🙂", "x_2F"])
def test_an_unknown_task_is_a_message(client: Client, operator: User, name: str) -> None:
    shown = client.get(page_of(name))
    posted = client.post(page_of(name), typed())

    for response in (shown, posted):
        assert (response.status_code, response.url) == (302, reverse(LIST))
        assert all(name in message for message in messages_of(response))
    assert "<b>" not in client.get(posted.url).text


def test_other_methods_are_not_allowed(client: Client, operator: User) -> None:
    assert client.put(page_of(ADD)).status_code == 405
    assert client.delete(reverse(SELECTED)).status_code == 405


# Odd tasks


def test_a_task_whose_annotations_cannot_be_resolved_has_the_json_form_and_a_hint(
    client: Client, operator: User
) -> None:
    def odd(value: NotDefinedAnywhere = 1) -> None:  # noqa: F821
        """Take something."""

    with registered(odd) as name:
        shown = client.get(page_of(name))
        client.post(page_of(name), as_json('["x"]'))
        answer = client.get(
            reverse("admin:celery_admin_runner_celerytask_api"), {"q": name}
        ).json()

    assert "NotDefinedAnywhere" in shown.text
    assert 'name="json-args"' in shown.text
    assert 'name="mode"' not in shown.text
    assert TaskRunRecord.objects.get().args == ["x"]
    assert answer["tasks"][0]["parameters"][0]["schema"] == {}


def test_a_task_without_a_signature_has_the_json_form(client: Client, operator: User) -> None:
    class Odd(app.Task):
        name = "many.without_signature"
        run = dict

    app.register_task(Odd())
    shown = client.get(page_of(Odd.name))
    client.post(page_of(Odd.name), as_json("[]", '{"b": 1}'))
    del app.tasks[Odd.name]

    assert shown.status_code == 200
    assert TaskRunRecord.objects.get().kwargs == {"b": 1}


def test_a_parameter_may_have_any_name(client: Client, operator: User) -> None:
    def odd(task: int, csrfmiddlewaretoken: int, action: int, mode: int, retry: int = 0) -> None:
        """Take names that the page uses too."""

    data = typed(args_task=1, args_csrfmiddlewaretoken=2, args_action=3, args_mode=4, args_retry=5)
    with registered(odd) as name:
        client.post(page_of(name), data)
        page = client.get(reverse(SELECTED), {"task": name})
        prefix = prefix_of(page, name)
        client.post(
            reverse(SELECTED),
            {"task": name} | {f"{prefix}{field}": value for field, value in data.items()},
        )

    for run in TaskRunRecord.objects.all():
        assert (run.args, run.kwargs) == ([1, MASK, 3, 4], {"retry": 5})
    assert TaskRunRecord.objects.count() == 2


def test_hostile_texts_are_escaped_wherever_they_are_shown(
    client: Client, operator: User, configure
) -> None:
    evil = "<script>alert(1)</script>"

    def odd(value: str, other: str = evil) -> None:
        """<script>alert(1)</script>.

        More <script>alert(1)</script>.

        Args:
            value: Is <script>alert(1)</script>.
            other: Is <img src=x onerror=alert(1)>.
        """

    configure(RUNNABLE_TASKS={"many.*": {"confirm": True}})
    with registered(odd, name=f"many.{evil}") as name:
        make_run(task_name=name, run_by=operator, label=evil)
        pages = [
            client.get(reverse(LIST)),
            client.get(page_of(name)),
            client.get(page_of(name), {"value": evil, "retry": evil}),
            client.get(page_of(name), {"value": evil}),
            client.post(page_of(name), typed(args_value="", options_reason=evil)),
            client.post(page_of(name), typed(args_value=evil, options_queue=evil)),
            client.get(reverse(SELECTED), {"task": [name, evil]}),
            client.post(reverse(LIST), {"action": "run_selected", ACTION_CHECKBOX_NAME: name}),
        ]
        client.force_login(make_user("view_celerytask"))
        pages.append(client.get(page_of(name)))

    for page in pages:
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text


# Filling it in


def test_the_arguments_of_a_run_fill_in_the_form(client: Client, operator: User) -> None:
    run = make_run(run_by=operator, args=[11], kwargs={"b": 22})

    form = client.get(page_of(ADD), {"retry": run.pk}).context["sheets"][0].form

    assert (form.parameters["a"].value(), form.parameters["b"].value()) == ("11", "22")
    assert json.loads(form.json["args"].value()) == [11]


def test_the_secrets_of_a_run_are_asked_for_again(client: Client, operator: User) -> None:
    run = make_run(task_name=SECRET, run_by=operator, args=["/tmp/x", MASK])

    response = client.get(page_of(SECRET), {"retry": run.pk})

    form = response.context["sheets"][0].form
    assert form.parameters["path"].value() == "/tmp/x"
    assert not form.parameters["password"].value()
    assert "Secrets are not stored" in response.text


@pytest.mark.parametrize("key", ["other", "foreign", "0", "-1", "9" * 30, "x", "", "²", "1.5"])
def test_a_run_that_cannot_be_seen_or_is_of_another_task_fills_in_nothing(
    client: Client, operator: User, key: str
) -> None:
    runs = {
        "foreign": make_run(run_by=make_user(), args=[11]),
        "other": make_run(run_by=operator, task_name=FAIL, args=["eleven"]),
    }

    response = client.get(page_of(ADD), {"retry": runs[key].pk if key in runs else key})

    assert response.status_code == 200
    assert "not visible to you" in response.text
    assert response.context["sheets"][0].form.parameters["a"].value() is None
    assert "eleven" not in response.text


def test_the_query_fills_in_the_form(client: Client, operator: User) -> None:
    response = client.get(page_of(ADD), {"a": "<b>1", "b": "5", "c": "6"})

    form = response.context["sheets"][0].form
    assert (form.parameters["a"].value(), form.parameters["b"].value()) == ("<b>1", "5")
    assert "<b>1" not in response.text


def test_a_secret_in_the_query_is_not_taken(client: Client, operator: User) -> None:
    response = client.get(page_of(SECRET), {"password": "hunter2", "hint": "hunter3"})

    assert "hunter" not in response.text.replace("password=hunter2", "")


# Confirming


@pytest.fixture
def confirming(configure: Callable[..., None]) -> None:
    """Tasks ask for a confirmation."""
    configure(RUNNABLE_TASKS={"tests.*": {"confirm": True}})


def test_a_confirmation_shows_what_will_be_sent_and_sends_nothing(
    client: Client, operator: User, confirming: None
) -> None:
    response = client.post(
        page_of(FAIL), typed(args_message="<b>17</b>", options_priority="3", options_reason="why")
    )

    [preview] = response.context["previews"]
    assert response.status_code == 200
    assert json.loads(preview.args) == []
    assert json.loads(preview.kwargs) == {"message": "<b>17</b>"}
    assert json.loads(preview.options) == {"priority": 3}
    assert preview.reason == "why"
    assert "&lt;b&gt;17&lt;/b&gt;" in response.text
    assert "Yes, run it" in response.text
    assert TaskRunRecord.objects.count() == 0


def test_what_was_confirmed_is_run(client: Client, operator: User, confirming: None) -> None:
    data = typed(args_a="1", args_b="3")
    digest = digest_of(client.post(page_of(ADD), data))

    response = client.post(page_of(ADD), {**data, "_confirmed": digest})

    run = TaskRunRecord.objects.get()
    assert response.url == page_of_run(run)
    assert (run.args, run.kwargs) == ([1], {"b": 3})


@pytest.mark.parametrize("confirmed", ["1", "yes", "", "é"])
def test_what_was_not_shown_cannot_be_confirmed(
    client: Client, operator: User, confirming: None, confirmed: str
) -> None:
    data = typed(args_a="1", args_b="3")
    digest = digest_of(client.post(page_of(ADD), data))

    changed = client.post(page_of(ADD), {**data, "args-a": "2", "_confirmed": digest})
    forged = client.post(page_of(ADD), {**data, "_confirmed": confirmed})

    assert (changed.status_code, forged.status_code) == (200, 200)
    assert digest_of(changed) != digest
    assert digest_of(forged) == digest
    assert TaskRunRecord.objects.count() == 0


def test_the_confirmation_page_keeps_what_was_typed(
    client: Client, operator: User, confirming: None
) -> None:
    response = client.post(page_of(ADD), typed(args_a="1", args_b="3", options_queue="slow"))

    form = response.context["sheets"][0].form
    assert (form.parameters["a"].value(), form.options["queue"].value()) == ("1", "slow")
    assert "Change what will be sent" in response.text


def test_the_confirmation_page_does_not_hold_secrets(
    client: Client, operator: User, confirming: None, tmp_path
) -> None:
    data = typed(args_path=str(tmp_path / "x"), args_password="hunter2", args_hint="hunter3")

    response = client.post(page_of(SECRET), data)
    confirmed = {**data, "_confirmed": digest_of(response)}
    without = client.post(page_of(SECRET), {**confirmed, "args-password": ""})
    count = TaskRunRecord.objects.count()
    client.post(page_of(SECRET), confirmed)

    assert "hunter" not in response.text
    assert "type them again" in response.text
    assert MASK in response.text
    assert (without.status_code, count) == (200, 0)
    assert "hunter" not in str(TaskRunRecord.objects.values().get())


# Several at once


def test_the_action_shows_a_form_for_each_selected_task(client: Client, operator: User) -> None:
    response = client.post(
        reverse(LIST),
        {"action": "run_selected", ACTION_CHECKBOX_NAME: [ADD, FAIL, "celery.chord"]},
    )

    names = [sheet.info.name for sheet in response.context["sheets"]]
    assert response.status_code == 200
    assert names == [ADD, FAIL]
    assert f'action="{reverse(SELECTED)}"' in response.text
    assert "Left out, because you may not run them: celery.chord" in response.text


def selected(client: Client, tasks: dict[str, dict[str, object]], **more: object) -> HttpResponse:
    """Fill in the page for several tasks, and send it."""
    page = client.get(reverse(SELECTED), {"task": list(tasks)})
    data: dict[str, object] = {"task": list(tasks), **more}
    for name, fields in tasks.items():
        data |= {f"{prefix_of(page, name)}{field}": value for field, value in fields.items()}
    return client.post(reverse(SELECTED), data)


def test_selected_tasks_are_run_together(client: Client, operator: User) -> None:
    response = selected(
        client, {ADD: typed(args_a="1", args_b="2"), FAIL: as_json("[]", '{"message": "x"}')}
    )

    runs = TaskRunRecord.objects.order_by("pk")
    assert [(run.task_name, run.args, run.kwargs) for run in runs] == [
        (ADD, [1], {}),
        (FAIL, [], {"message": "x"}),
    ]
    assert {run.state for run in runs} == {State.PENDING}
    assert messages_of(response) == ["2 tasks were sent."]
    assert response.url == reverse("admin:celery_admin_runner_taskrunrecord_changelist")


def test_nothing_is_sent_if_one_of_the_selected_is_not_valid(
    client: Client, operator: User
) -> None:
    response = selected(client, {FAIL: typed(args_message="kept"), ADD: typed(args_a="x")})

    assert response.status_code == 200
    assert 'value="kept"' in response.text
    assert TaskRunRecord.objects.count() == 0


def test_nothing_is_sent_if_one_of_the_selected_has_gone(client: Client, operator: User) -> None:
    with registered(_nothing) as name:
        page = client.get(reverse(SELECTED), {"task": [ADD, name]})
    data = {f"{prefix_of(page, ADD)}{field}": value for field, value in typed(args_a="77").items()}

    response = client.post(reverse(SELECTED), {"task": [ADD, name], **data})

    assert [sheet.info.name for sheet in response.context["sheets"]] == [ADD]
    assert f"no such tasks any more, and nothing was sent: {name}" in response.text
    assert 'value="77"' in response.text
    assert TaskRunRecord.objects.count() == 0


def test_nothing_is_sent_if_the_runner_refuses_the_last(client: Client, operator: User) -> None:
    tasks = {ADD: typed(args_a="1", args_b="2"), FAIL: typed(args_message="x")}

    def refuse(instance: TaskRunRecord, **_named: object) -> None:
        if instance.task_name == FAIL:
            raise InvalidArguments({"message": ["Not today."]})

    post_save.connect(refuse, sender=TaskRunRecord)
    try:
        response = selected(client, tasks)
    finally:
        post_save.disconnect(refuse, sender=TaskRunRecord)

    assert response.status_code == 200
    assert "Not today." in response.text
    assert TaskRunRecord.objects.count() == 0


def test_a_confirmation_of_one_asks_for_all(client: Client, operator: User, configure) -> None:
    configure(RUNNABLE_TASKS={ADD: {"confirm": True}, "*": {}})
    tasks = {ADD: typed(args_a="1", args_b="2"), FAIL: typed(args_message="x")}

    shown = selected(client, tasks)
    count = TaskRunRecord.objects.count()
    selected(client, tasks, _confirmed=digest_of(shown))

    assert [preview.task_name for preview in shown.context["previews"]] == [ADD, FAIL]
    assert count == 0
    assert TaskRunRecord.objects.count() == 2


def test_without_a_broker_each_of_the_selected_is_told_of(client: Client, operator: User) -> None:
    with broker_away():
        response = selected(
            client, {ADD: typed(args_a="1", args_b="2"), FAIL: typed(args_message="x")}
        )

    assert len(messages_of(response)) == 2
    assert {run.state for run in TaskRunRecord.objects.all()} == {State.UNSENT}


@pytest.mark.parametrize("names", [[], ["no.such.task"]])
def test_without_a_task_there_is_no_page_for_several(
    client: Client, operator: User, names: list[str]
) -> None:
    for response in (
        client.get(reverse(SELECTED), {"task": names}),
        client.post(reverse(SELECTED), {"task": names}),
    ):
        assert (response.status_code, response.url) == (302, reverse(LIST))
        assert "No task that you may run is selected." in messages_of(response)


def test_a_selected_task_that_has_gone_is_a_clear_message(client: Client, operator: User) -> None:
    response = client.post(
        reverse(LIST), {"action": "run_selected", ACTION_CHECKBOX_NAME: [ADD, "no.such.task"]}
    )

    assert [sheet.info.name for sheet in response.context["sheets"]] == [ADD]
    assert "no such tasks any more" in response.text


def test_too_many_tasks_are_not_run_at_once(client: Client, operator: User) -> None:
    names = [f"many.task_{number}" for number in range(51)]
    for name in names:
        app.task(_nothing, name=name)

    by_action = client.post(
        reverse(LIST),
        {
            "action": "run_selected",
            ACTION_CHECKBOX_NAME: names[0],
            "select_across": "1",
            "q": "many",
        },
    )
    by_post = client.post(reverse(SELECTED), {"task": names})
    just_enough = client.get(reverse(SELECTED), {"task": names[:50]})
    for name in names:
        del app.tasks[name]

    assert (by_action.status_code, by_post.status_code) == (302, 302)
    assert "51 tasks are selected; at most 50 can be run at once." in messages_of(by_post)
    assert len(just_enough.context["sheets"]) == 50
    assert TaskRunRecord.objects.count() == 0


def test_the_action_without_the_permission_is_refused(client: Client) -> None:
    client.force_login(make_user("view_celerytask"))

    response = client.post(reverse(LIST), {"action": "run_selected", ACTION_CHECKBOX_NAME: ADD})

    assert "celerytask_form" not in response.text
    assert TaskRunRecord.objects.count() == 0


@pytest.mark.parametrize(
    ("state", "is_shown"),
    [(State.STARTED, True), (State.IGNORED, True), (State.SUCCESS, False)],
)
def test_a_custom_state_is_shown_while_it_counts(state: State, is_shown: bool) -> None:
    run = TaskRunRecord(state=state, custom_state="HALF_WAY")

    assert has_content("custom_state", run) is is_shown
