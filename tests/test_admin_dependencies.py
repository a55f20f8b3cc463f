"""Dependencies in admin: on the page of a run, in the form, and by JSON."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse
from django.utils import timezone, translation

from celery_admin_runner.admin import dependencies
from celery_admin_runner.admin.reasons import exception_text
from celery_admin_runner.admin.tasks import CeleryTaskAdmin
from celery_admin_runner.dependencies import SKIPPED, settle_finished
from celery_admin_runner.models import CeleryTask, TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_runs, make_user

ADD = "tests.tasks.add"
pytestmark = pytest.mark.django_db

bare_site = admin.AdminSite(name="bare")
bare_site.register(CeleryTask, CeleryTaskAdmin)
urlpatterns = [path("admin/", admin.site.urls), path("bare/", bare_site.urls)]


@pytest.fixture
def operator(client: Client) -> User:
    """A user who may run tasks, and sees only his own runs; logged in."""
    user = make_user("run_celerytask")
    client.force_login(user)
    return user


@pytest.fixture
def auditor() -> Client:
    """A user who sees every run."""
    client = Client()
    client.force_login(make_user("view_taskrunrecord"))
    return client


def url(view: str, *args: object) -> str:
    return reverse(f"admin:celery_admin_runner_taskrunrecord_{view}", args=args)


def waiting(*others: TaskRunRecord, **fields: object) -> TaskRunRecord:
    run = make_run(**{"state": State.WAITING, **fields})
    for other in others:
        run.depends_on.add(other)
        run.open_dependencies.create(dependency=other)
    return run


def page_of(client: Client, run: TaskRunRecord) -> str:
    response = client.get(url("change", run.pk))
    assert response.status_code == 200
    return response.text


def link_to(run: TaskRunRecord) -> str:
    return f'<a href="{url("change", run.pk)}">'


# The page of a run


def test_the_page_shows_what_a_run_waits_for_and_what_waits_for_it(auditor: Client) -> None:
    done, failed = make_run(label="done <b>"), make_run(state=State.STARTED)
    run = waiting(done, failed)
    later = waiting(run, label="later")

    page = page_of(auditor, run)

    assert "Waits for:" in page
    assert "Is waited for by:" in page
    for other in (done, failed, later):
        assert link_to(other) in page
    assert "done &lt;b&gt;" in page
    assert "Waited for:" not in page
    assert "Waits for:" not in page_of(auditor, done)
    assert "Was waited for by:" in page_of(auditor, done)


def test_a_run_alone_has_no_dependencies_on_its_page(auditor: Client) -> None:
    page = page_of(auditor, make_run())

    assert "Dependencies" not in page
    assert "aited for by" not in page


def test_runs_that_the_user_may_not_see_are_counted_and_not_named(
    client: Client, operator: User
) -> None:
    hidden = make_run(label="hush", task_name="secret.task", state=State.STARTED)
    own = make_run(run_by=operator)
    run = waiting(hidden, own, run_by=operator)
    waiting(run, label="hush"), waiting(run, label="hush")

    page = page_of(client, run)

    assert link_to(own) in page
    for text in ("hush", "secret.task", hidden.task_id, url("change", hidden.pk)):
        assert text not in page
    assert "1 run that you may not see" in page
    assert "2 runs that you may not see" in page


def test_of_very_many_dependents_some_are_shown(auditor: Client, monkeypatch) -> None:
    monkeypatch.setattr(dependencies, "SHOWN_MAX", 3)
    run = make_run(state=State.STARTED)
    for other in make_runs(5, state=State.WAITING):
        other.depends_on.add(run)

    page = page_of(auditor, run)

    assert page.count("<li>") - page.count("<li>2 more runs</li>") >= 3
    assert "<li>2 more runs</li>" in page


def test_the_page_asks_as_often_whatever_a_run_waits_for(auditor: Client) -> None:
    few = waiting(make_run())
    waiting(few)
    many = waiting(*make_runs(20))
    for _ in range(20):
        waiting(many)
    page_of(auditor, few)

    with CaptureQueriesContext(connection) as for_few:
        page_of(auditor, few)
    with CaptureQueriesContext(connection) as for_many:
        page_of(auditor, many)

    assert len(for_many) == len(for_few)


def test_the_page_follows_its_dependencies(auditor: Client) -> None:
    dependency = make_run(state=State.STARTED)
    run = waiting(dependency)

    answer = auditor.get(url("live", run.pk)).json()

    assert link_to(dependency) in answer["fragments"]["dependencies"]


def test_the_output_as_a_file_begins_with_that_of_visible_dependencies(
    client: Client, operator: User
) -> None:
    hidden, own = make_run(), make_run(run_by=operator)
    own.depends_on.add(hidden)
    run = make_run(run_by=operator)
    run.depends_on.add(own)
    for other, text in ((hidden, "hidden\n"), (own, "own\n"), (run, "last\n")):
        other.output.create(seq=1, stream="stdout", text=text)

    assert client.get(url("output", run.pk)).text == "own\nlast\n"
    assert url("output", run.pk) in page_of(client, run)


def test_the_reason_why_a_run_was_skipped_is_shown_once_and_in_words(auditor: Client) -> None:
    dependency = make_run(state=State.FAILURE)
    run = waiting(dependency)
    now = timezone.now()
    settle_finished(now - timedelta(minutes=1), now)
    run.refresh_from_db()

    page = page_of(auditor, run)

    reason = "Skipped: a run that it waited for ended as “Failed”."
    assert page.count(reason) == 1
    assert SKIPPED[State.FAILURE] not in page
    assert "Waited for:" in page


def test_only_our_own_reason_is_put_in_other_words() -> None:
    told = make_run(state=State.IGNORED, exception="Ignore()")
    failed = make_run(state=State.FAILURE, exception=SKIPPED[State.FAILURE])

    with translation.override("de"):
        assert exception_text(told) == "Ignore()"
        assert exception_text(failed) == SKIPPED[State.FAILURE]


# The form


def task_page(site: str = "admin") -> str:
    return reverse(f"{site}:celery_admin_runner_celerytask_run", args=[ADD], current_app=site)


def submit(client: Client, *others: object, **fields: object) -> HttpResponse:
    keys = [getattr(other, "pk", other) for other in others]
    data = {"mode": "typed", "args-a": 1, "options-depends_on": keys, **fields}
    return client.post(task_page(), data)


def test_the_form_takes_finished_and_unfinished_runs(client: Client, operator: User) -> None:
    finished, unfinished = (
        make_run(run_by=operator, state=state) for state in (State.SUCCESS, State.PENDING)
    )

    response = submit(client, finished, unfinished)

    run = TaskRunRecord.objects.latest("pk")
    assert response["Location"] == url("change", run.pk)
    assert run.state == State.WAITING
    assert set(run.depends_on.all()) == {finished, unfinished}


@pytest.mark.parametrize("key", ["abc", "-1", "9" * 30, "٣", "999999", ""])
def test_the_form_refuses_what_is_no_run(client: Client, operator: User, key: str) -> None:
    own = make_run(run_by=operator)

    response = submit(client, own, key)

    assert response.status_code == 200
    assert response.context["sheets"][0].form.options.errors["depends_on"]
    assert TaskRunRecord.objects.get() == own


def test_the_form_refuses_and_does_not_name_a_run_that_the_user_may_not_see(
    client: Client, operator: User
) -> None:
    hidden = make_run(label="hush")

    response = submit(client, hidden)

    assert response.context["sheets"][0].form.options.errors["depends_on"]
    assert hidden.task_id not in response.text
    assert "hush" not in response.text


def test_who_may_not_run_a_task_starts_none_that_waits(auditor: Client) -> None:
    dependency = make_run(state=State.STARTED)

    assert submit(auditor, dependency).status_code == 403
    assert TaskRunRecord.objects.get() == dependency


def test_a_secret_is_not_kept_until_others_have_ended(client: Client, operator: User) -> None:
    dependency = make_run(run_by=operator, state=State.STARTED)
    address = reverse("admin:celery_admin_runner_celerytask_run", args=["tests.tasks.tell_secret"])

    data = {"args-path": "x", "args-password": "hush", "options-depends_on": [dependency.pk]}
    response = client.post(address, {"mode": "typed", **data})

    assert response.context["sheets"][0].form.options.errors["depends_on"]
    assert TaskRunRecord.objects.get() == dependency


def test_a_confirmation_shows_what_a_run_will_wait_for(
    client: Client, operator: User, configure
) -> None:
    configure(RUNNABLE_TASKS={"tests.*": {"confirm": True}})
    dependency = make_run(run_by=operator, label="the import", state=State.STARTED)

    response = submit(client, dependency)

    assert f"the import ({dependency.task_id})" in response.context["previews"][0].options
    digest = response.context["digest"]
    confirmed = {response.context["confirmed_field"]: digest}
    assert submit(client, dependency, **confirmed).status_code == 302
    assert list(TaskRunRecord.objects.latest("pk").depends_on.all()) == [dependency]


def test_the_form_of_a_waiting_run_is_filled_in_with_what_it_waits_for(
    client: Client, operator: User
) -> None:
    dependency = make_run(run_by=operator, label="the import", state=State.STARTED)
    hidden = make_run(label="hush", state=State.STARTED)
    run = waiting(dependency, hidden, run_by=operator, args=[1])

    page = client.get(task_page(), {"retry": run.pk}).text

    assert f'<option value="{dependency.pk}" selected>the import' in page
    assert "hush" not in page


def found(client: Client, term: str) -> list[str]:
    query = {"app_label": "celery_admin_runner", "model_name": "taskrunrecord"}
    response = client.get(
        reverse("admin:autocomplete"), {**query, "field_name": "depends_on", "term": term}
    )
    assert response.status_code == 200
    return [result["id"] for result in response.json()["results"]]


def test_the_autocomplete_finds_by_id_task_and_label(auditor: Client) -> None:
    run = make_run(task_id="abc-123", task_name="shop.import_orders", label="Nightly import")
    make_run(task_id="xabc", task_name="shop.other")

    for term in ("abc", "abc-123", "import_orders", "nightly", "Nightly shop"):
        assert found(auditor, term) == [str(run.pk)], term
    assert found(auditor, "nothing") == []
    assert len(found(auditor, "")) == 2


def test_the_autocomplete_finds_only_what_the_user_may_see(client: Client, operator: User) -> None:
    own = make_run(run_by=operator)
    make_run()

    assert found(client, "add") == [str(own.pk)]


def test_the_autocomplete_looks_through_the_latest_runs(auditor: Client, monkeypatch) -> None:
    monkeypatch.setattr(dependencies, "LOOKED_THROUGH", 2)
    old = make_run(task_id="first")
    runs = make_runs(2)

    assert set(found(auditor, "add")) == {str(run.pk) for run in runs}
    assert found(auditor, "first") == [str(old.pk)]


@pytest.mark.urls("tests.test_admin_dependencies")
def test_a_site_without_the_journal_has_no_field_for_dependencies(
    client: Client, operator: User
) -> None:
    assert "options-depends_on" not in client.get(task_page("bare")).text
    assert "options-depends_on" in client.get(task_page()).text


# JSON


def post(client: Client, **options: object) -> HttpResponse:
    body = json.dumps({"args": [1], "options": options})
    return client.post(task_page(), body, content_type="application/json")


def test_json_names_dependencies_by_their_task_ids(client: Client, operator: User) -> None:
    one, other = (make_run(run_by=operator, state=State.STARTED) for _ in range(2))

    response = post(client, depends_on=[one.task_id, other.task_id, one.task_id])

    assert response.status_code == 201
    assert response.json()["state"] == State.WAITING
    run = TaskRunRecord.objects.get(task_id=response.json()["task_id"])
    assert set(run.depends_on.all()) == {one, other}


def test_json_tells_of_a_run_that_is_hidden_no_more_than_of_one_that_is_not(
    client: Client, operator: User
) -> None:
    hidden = make_run()

    answers = [post(client, depends_on=[key]) for key in (hidden.task_id, "none")]

    for answer, key in zip(answers, (hidden.task_id, "none"), strict=True):
        assert answer.status_code == 400
        text = f"options.depends_on: there is no run “{key}” that you may see."
        assert answer.json() == {"errors": {"__all__": [text]}}
    assert TaskRunRecord.objects.get() == hidden


def test_json_finds_no_run_that_the_journal_of_the_site_hides(
    client: Client, operator: User, monkeypatch
) -> None:
    one, other = (make_run(run_by=operator, state=State.STARTED) for _ in range(2))
    journal = admin.site.get_model_admin(TaskRunRecord)
    shown = TaskRunRecord.objects.exclude(pk=one.pk)
    monkeypatch.setattr(journal, "get_queryset", lambda request: shown)

    answers = [post(client, depends_on=[run.task_id]) for run in (one, other)]

    assert [answer.status_code for answer in answers] == [400, 201]


@pytest.mark.parametrize("value", ["abc", [1], {}, [None], ["x"] * 1001])
def test_json_refuses_what_are_no_task_ids(client: Client, operator: User, value: object) -> None:
    assert post(client, depends_on=value).status_code == 400
    assert not TaskRunRecord.objects.exists()
