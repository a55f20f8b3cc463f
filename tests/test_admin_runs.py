"""The journal in admin."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.http import HttpRequest
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path, resolve, reverse
from django.utils import timezone
from django_celery_results.models import TaskResult

from celery_admin_runner.admin.run_page import named_arguments
from celery_admin_runner.admin.runs import TaskRunRecordAdmin
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.factories import make_run, make_runs, make_superuser, make_user

pytestmark = pytest.mark.django_db

NOT_CHANGED = ("add", "delete")
HTML = "<script>alert(1)</script>"


class OtherRunAdmin(TaskRunRecordAdmin):
    """A project's own: one column less."""

    list_display = ("state_column", "task_name")


staff_site = admin.AdminSite(name="staff")
staff_site.register(TaskRunRecord, OtherRunAdmin)
staff_site.register(User, UserAdmin)
urlpatterns = [
    path("admin/", admin.site.urls),
    path("back/office/", staff_site.urls),
]


def url(view: str = "changelist", *args: object, site: str = "admin", **query: object) -> str:
    address = reverse(f"{site}:celery_admin_runner_taskrunrecord_{view}", args=args)
    return f"{address}?{urlencode(query)}" if query else address


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def listed(client: Client, **query: object) -> list[int]:
    response = client.get(url(**query))
    assert response.status_code == 200
    return [run.pk for run in response.context["cl"].result_list]


def text_of(client: Client, run: TaskRunRecord) -> str:
    response = client.get(url("change", run.pk))
    assert response.status_code == 200
    return response.content.decode()


@pytest.fixture
def auditor() -> Client:
    return client_of(make_user("view_taskrunrecord", username="auditor"))


@pytest.fixture
def operator() -> User:
    return make_user("run_celerytask", username="operator")


# Who may see what


def test_who_may_view_runs_sees_all(auditor: Client, operator: User) -> None:
    runs = [make_run(), make_run(run_by=operator)]

    assert set(listed(auditor)) == {run.pk for run in runs}
    assert auditor.get(url("change", runs[1].pk)).status_code == 200


def test_who_runs_tasks_sees_only_the_own_runs(operator: User) -> None:
    other = make_run(run_by=make_user())
    code = make_run()
    own = make_run(run_by=operator, task_id="own")
    client = client_of(operator)

    assert listed(client) == [own.pk]
    assert listed(client, q=other.task_id) == []
    assert listed(client, user=other.run_by_name) == [own.pk]
    assert listed(client, task="tests.tasks.add") == [own.pk]
    assert client.get(url("change", own.pk)).status_code == 200
    for hidden in (other, code):
        for view in ("change", "history"):
            response = client.get(url(view, hidden.pk))
            assert response.status_code in {302, 404}
            assert hidden.task_id not in response.content.decode()


def test_who_runs_tasks_is_offered_no_other_users(operator: User) -> None:
    page = client_of(operator).get(url()).content.decode()

    assert 'name="user"' not in page


@pytest.mark.parametrize("permissions", [(), ("view_celerytask",), ("export_taskrunrecord",)])
def test_other_staff_sees_no_runs(permissions: tuple[str, ...]) -> None:
    run = make_run()
    client = client_of(make_user(*permissions))

    for address in (url(), url("change", run.pk), url("export")):
        assert client.get(address).status_code in {302, 403}
    assert client.get(url()).status_code == 403


def test_who_is_not_staff_is_asked_to_log_in() -> None:
    user = make_user("view_taskrunrecord", is_staff=False)

    for client in (Client(), client_of(user)):
        response = client.get(url())
        assert response.status_code == 302
        assert "/login/" in response["Location"]


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("view", NOT_CHANGED)
def test_nobody_adds_or_deletes_a_run(view: str, method: str) -> None:
    run = make_run()
    client = client_of(make_superuser())
    args = () if view == "add" else (run.pk,)

    response = getattr(client, method)(url(view, *args))

    assert response.status_code == 403
    assert TaskRunRecord.objects.count() == 1


def test_nobody_changes_a_run() -> None:
    run = make_run(label="before")

    response = client_of(make_superuser()).post(url("change", run.pk), {"label": "after"})

    assert response.status_code == 403
    run.refresh_from_db()
    assert run.label == "before"


def test_runs_can_not_be_deleted_by_an_action() -> None:
    run = make_run()
    client = client_of(make_superuser())

    client.post(url(), {"action": "delete_selected", "_selected_action": [run.pk], "post": "yes"})

    assert TaskRunRecord.objects.filter(pk=run.pk).exists()


def test_every_action_names_its_permission() -> None:
    model_admin = admin.site.get_model_admin(TaskRunRecord)
    request = HttpRequest()
    request.user = make_superuser()

    actions = model_admin.get_actions(request)

    assert {name: function_of(action).allowed_permissions for name, action in actions.items()} == {
        "run_selected_again": ["retry"],
        "run_selected_now": ["move"],
        "move_selected": ["move"],
        "cancel_selected": ["cancel"],
        "export_admin_action": ["export"],
    }


def function_of(action: object) -> Any:
    """Return what an action calls; before Django 6.1 an action is a tuple."""
    return action[0] if isinstance(action, tuple) else action.func


# The list


def test_the_list_shows_state_task_user_times_duration_and_label(auditor: Client) -> None:
    start = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
    make_run(
        state=State.FAILURE,
        task_name="shop.tasks.close",
        run_by_name="ada",
        created_at=start,
        started_at=start + timedelta(minutes=1),
        finished_at=start + timedelta(minutes=4, seconds=4),
        label="Close May",
    )

    page = auditor.get(url()).content.decode()

    assert 'class="run-state run-state-failure">Failed</span>' in page
    for text in ("shop.tasks.close", "ada", "1:30 p.m.", "1:31 p.m.", "3 min 4 s", "Close May"):
        assert text in page


def test_the_newest_run_is_first_and_the_order_can_be_turned(auditor: Client) -> None:
    first, second = make_run(), make_run()

    assert listed(auditor) == [second.pk, first.pk]
    assert listed(auditor, o="3") == [first.pk, second.pk]


def test_only_the_order_of_creation_can_be_chosen(auditor: Client) -> None:
    first, second = make_run(label="a"), make_run(label="b")

    assert listed(auditor, o="6") == [second.pk, first.pk]
    page = auditor.get(url()).content.decode()
    assert page.count("sortable") == 1


def test_the_number_of_queries_is_the_same_for_any_number_of_rows(auditor: Client) -> None:
    user = make_user()
    make_runs(5, run_by=user)
    with CaptureQueriesContext(
        connection,
    ) as few:
        auditor.get(url())
    make_runs(95, run_by=user)

    with CaptureQueriesContext(connection) as many:
        response = auditor.get(url())

    assert len(response.context["cl"].result_list) == 100
    assert len(many) == len(few)


@pytest.mark.parametrize(
    "error",
    [
        "NotRegistered: the worker celery@shop knows no task 'shop.tasks.new'.",
        "celery.exceptions.NotRegistered: 'shop.tasks.new'",
    ],
)
def test_a_worker_that_does_not_know_the_task_is_to_be_restarted(
    auditor: Client, error: str
) -> None:
    unknown = make_run(state=State.FAILURE, exception=error, started_at=None)
    failed = make_run(state=State.FAILURE, exception=error, started_at=timezone.now())

    pages = [auditor.get(url("change", run.pk)).text for run in (unknown, failed)]

    assert ["The worker does not know this task." in page for page in pages] == [True, False]


def test_a_user_who_may_not_be_viewed_is_named_once() -> None:
    run = make_run(run_by=make_user(username="ada"))
    viewers = (make_user("view_taskrunrecord", username="clerk"), make_superuser())

    pages = [client_of(user).get(url("change", run.pk)) for user in viewers]

    links = [[link.text for link in page.context["links"]] for page in pages]
    assert ["ada" in texts for texts in links] == [False, True]
    assert not any(str(run.run_by_id) in text for text in links[0])
    assert all("asked for by ada" in page.text for page in pages)


def test_a_run_without_a_label_says_of_which_kind_and_key_its_object_is(auditor: Client) -> None:
    group = Group.objects.create(name="Nobody's business")
    about = {
        "content_type": ContentType.objects.get_for_model(Group),
        "object_id": str(group.pk),
    }
    make_run(**about)
    make_run(**about, label="Close May")
    make_run()
    ContentType.objects.clear_cache()
    ContentType.objects.get_for_id(about["content_type"].pk)

    with CaptureQueriesContext(connection) as queries:
        page = auditor.get(url()).text

    cells = re.findall(r'<td class="field-subject">(.*?)</td>', page)
    assert cells == ["–", "Close May", f"Group {group.pk}"]
    assert "business" not in page
    assert not [query for query in queries if re.search(r"auth_group.\..name", query["sql"])]


@pytest.mark.parametrize("column", ["traceback", "whole_result", "children"])
def test_the_list_does_not_read_what_it_does_not_show(auditor: Client, column: str) -> None:
    make_run(traceback="x" * 1000)

    with CaptureQueriesContext(connection) as queries:
        auditor.get(url())

    assert not [query for query in queries if column in query["sql"]]


def test_the_page_of_a_run_does_not_read_the_whole_of_its_result(auditor: Client) -> None:
    run = make_run()

    with CaptureQueriesContext(connection) as queries:
        auditor.get(reverse("admin:celery_admin_runner_taskrunrecord_change", args=[run.pk]))

    assert not [query for query in queries if "whole_result" in query["sql"]]


# Filters and search


def test_the_list_is_filtered_by_state(auditor: Client) -> None:
    done = make_run()
    failed = make_run(state=State.FAILURE)
    queued = make_run(state=State.PENDING)

    assert listed(auditor, state="SUCCESS") == [done.pk]
    assert listed(auditor, state="FAILURE") == [failed.pk]
    assert listed(auditor, state="unfinished") == [queued.pk]


def test_the_list_is_filtered_by_source(auditor: Client) -> None:
    make_run()
    by_hand = make_run(source="admin")

    assert listed(auditor, source="admin") == [by_hand.pk]


def test_the_list_is_filtered_by_task(auditor: Client) -> None:
    close = make_run(task_name="shop.tasks.close")
    closed = make_run(task_name="shop.tasks.close_all")
    make_run(task_name="bank.tasks.close")

    assert listed(auditor, task="shop.tasks.close") == [close.pk]
    assert listed(auditor, task="shop.tasks.*") == [closed.pk, close.pk]
    assert listed(auditor, task="close") == []


def test_the_list_is_filtered_by_the_name_of_the_user(auditor: Client) -> None:
    ada = make_user(username="ada")
    by_ada = make_run(run_by=ada)
    make_run(run_by=make_user(username="adam"))
    ada.delete()

    assert listed(auditor, user="ada") == [by_ada.pk]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"created_from": "2026-02-01"}, ["midnight", "evening", "next"]),
        ({"created_until": "2026-02-01"}, ["before", "midnight", "evening"]),
        ({"created_from": "2026-02-01", "created_until": "2026-02-01"}, ["midnight", "evening"]),
        ({"created_from": "", "created_until": ""}, ["before", "midnight", "evening", "next"]),
    ],
)
def test_the_list_is_filtered_by_days_of_the_current_timezone(
    auditor: Client, query: dict[str, str], found: list[str]
) -> None:
    vienna = timezone.get_current_timezone()
    for label, moment in {
        "before": datetime(2026, 1, 31, 23, 59, 59, tzinfo=vienna),
        "midnight": datetime(2026, 2, 1, 0, 0, tzinfo=vienna),
        "evening": datetime(2026, 2, 1, 23, 59, 59, 999_999, tzinfo=vienna),
        "next": datetime(2026, 2, 2, 0, 0, tzinfo=vienna),
    }.items():
        make_run(label=label, created_at=moment)

    runs = auditor.get(url(**query)).context["cl"].result_list

    assert [run.label for run in runs] == found[::-1]


def test_today_and_the_last_week_are_one_click(auditor: Client) -> None:
    now = timezone.now()
    old = make_run(created_at=now - timedelta(days=30))
    week = make_run(created_at=now - timedelta(days=5))
    new = make_run(created_at=now)
    page = auditor.get(url(state="SUCCESS")).content.decode()

    links = {
        text: address.replace("&amp;", "&")
        for address, text in re.findall(r'<a href="(\?[^"]*)">([^<]*)</a>', page)
    }

    def runs_behind(text: str) -> list[int]:
        response = auditor.get(url() + links[text])
        return [run.pk for run in response.context["cl"].result_list]

    assert runs_behind("Today") == [new.pk]
    assert runs_behind("Past 7 days") == [new.pk, week.pk]
    assert "state=SUCCESS" in links["Today"]
    assert old.pk in listed(auditor)


def test_a_typed_filter_keeps_the_other_parameters_but_the_page(auditor: Client) -> None:
    page = auditor.get(url(state="SUCCESS", q="tests", p="1", user="ada")).content.decode()

    form = page[page.index('<form method="get" class="run-filter">') :]
    form = form[: form.index("</form>")]
    assert 'name="task"' in form
    assert '<input type="hidden" name="state" value="SUCCESS">' in form
    assert '<input type="hidden" name="q" value="tests">' in form
    assert '<input type="hidden" name="user" value="ada">' in form
    assert 'name="p"' not in form


def test_the_registered_tasks_are_suggested_to_who_may_see_them(auditor: Client) -> None:
    seer = client_of(make_user("view_taskrunrecord", "view_celerytask"))

    assert '<option value="tests.tasks.add">' in seer.get(url()).content.decode()
    assert '<option value="tests.tasks.add">' not in auditor.get(url()).content.decode()


@pytest.mark.parametrize(
    "query",
    [
        {"state": "NO"},
        {"source": "NO"},
        {"task": "a\x00b"},
        {"created_from": "yesterday"},
        {"created_until": "2026-02-30"},
        {"created_from": "0001-01-01"},
    ],
)
def test_a_filter_that_can_not_be_read_is_dropped(auditor: Client, query: dict[str, str]) -> None:
    response = auditor.get(url(**query), follow=True)

    assert response.status_code == 200
    assert response.redirect_chain[0][0].endswith("?e=1")


def test_the_secrets_of_users_can_not_be_asked_for(auditor: Client) -> None:
    response = auditor.get(url(run_by__password__startswith="md5"))

    assert response.status_code == 400


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("id-of-one", ["one"]),
        ("id-of", []),
        ("shop.tasks.", ["two", "one"]),
        ("tasks", []),
        ("ada", ["two"]),
        ("ad", []),
        ("ada shop.", ["two"]),
        ("ada bank.", []),
        ("%", []),
        ("a\x00", ["two", "one"]),
    ],
)
def test_a_search_finds_ids_beginnings_of_tasks_and_users(
    auditor: Client, words: str, found: list[str]
) -> None:
    make_run(task_id="id-of-one", task_name="shop.tasks.one", label="one")
    make_run(task_id="id-of-two", task_name="shop.tasks.two", label="two", run_by_name="ada")

    runs = auditor.get(url(q=words)).context["cl"].result_list

    assert [run.label for run in runs] == found


def test_words_after_one_that_is_nothing_are_not_asked_for(auditor: Client) -> None:
    make_run(task_name="shop.tasks.one")
    with CaptureQueriesContext(connection) as one_word:
        auditor.get(url(q="nothing"))

    with CaptureQueriesContext(connection) as many_words:
        auditor.get(url(q="nothing" + " shop.tasks.one" * 50))

    assert len(many_words) == len(one_word)


# The page of a run


def test_the_page_shows_what_happened(auditor: Client) -> None:
    run = make_run(
        state=State.FAILURE,
        args=[1],
        kwargs={"b": {"x": [1, "Zoë"]}},
        exception="ValueError: no",
        traceback="Traceback\n  line 1",
        reason="Month end",
        worker="w1@host",
        options={"queue": "slow"},
    )

    page = text_of(auditor, run)

    assert "&quot;a&quot;: 1" in page
    assert "Zoë" in page
    for text in ("ValueError: no", "Traceback\n  line 1", "Month end", "w1@host", run.task_id):
        assert text in page
    for heading in ("What happened", "Call", "Who and why", "Times", "Technical"):
        assert f">{heading}</h2>" in page


@pytest.mark.parametrize("number", [1, 3])
def test_a_traceback_that_ends_the_output_is_shown_once(auditor: Client, number: int) -> None:
    run = make_run(state=State.FAILURE, exception="ValueError", traceback="Traceback\n  line 1")
    for seq, text in enumerate(["hello\n"] * (number - 1) + [run.traceback], start=1):
        stream = "traceback" if text == run.traceback else "stdout"
        run.output.create(seq=seq, stream=stream, text=text)

    page = text_of(auditor, run)

    assert page.count("Traceback\n  line 1") == 1


def test_a_traceback_of_which_the_output_holds_another_is_shown(auditor: Client) -> None:
    run = make_run(state=State.FAILURE, exception="ValueError", traceback="Traceback of the last")
    run.output.create(seq=1, stream="traceback", text="Traceback of the first")

    page = text_of(auditor, run)

    assert "Traceback of the first" in page
    assert "Traceback of the last" in page


def test_what_has_nothing_to_say_is_not_shown(auditor: Client) -> None:
    page = text_of(auditor, make_run(state=State.PENDING))

    for name in ("traceback_field", "eta", "worker", "reason_field", "progress_field"):
        assert f"field-{name}" not in page
    assert "field-state_field" in page


def test_a_result_of_none_is_shown(auditor: Client) -> None:
    page = text_of(auditor, make_run(result=None))

    assert '<pre class="run-text">null</pre>' in page


def test_the_progress_is_shown(auditor: Client) -> None:
    run = make_run(
        state=State.STARTED, progress_current=3, progress_total=10, progress_message="third"
    )

    assert "3 / 10 third" in text_of(auditor, run)


SHOWN = (
    "label",
    "run_by_name",
    "reason",
    "publish_error",
    "exception",
    "traceback",
    "worker",
    "queue",
    "task_name",
    "task_id",
    "progress_message",
    "unique_key",
    "parent_id",
)


@pytest.mark.parametrize("name", [*SHOWN, "args", "kwargs", "options", "result"])
def test_html_in_a_field_is_text(auditor: Client, name: str) -> None:
    values: dict[str, Any] = {
        "args": [HTML],
        "kwargs": {HTML: HTML},
        "options": {HTML: HTML},
        "result": {HTML: HTML},
    }
    run = make_run(**{"state": State.UNSENT, "progress_total": 1, name: values.get(name, HTML)})

    for page in (text_of(auditor, run), auditor.get(url()).content.decode()):
        assert HTML not in page
    assert "&lt;script&gt;" in text_of(auditor, run)


def test_html_in_the_address_is_text(auditor: Client) -> None:
    make_run()

    page = auditor.get(url(task=HTML, user=HTML, q=HTML)).content.decode()

    assert HTML not in page


def test_the_pages_have_no_inline_script_style_or_handler(auditor: Client) -> None:
    run = make_run(state=State.UNSENT)
    boss = client_of(make_superuser())

    for address in (url(), url("change", run.pk), url("export")):
        page = boss.get(address).content.decode()
        assert not re.search(r"<[^>]+\s(style|on\w+)=", page)
        assert not re.search(r"<style|<script(?![^>]*\bsrc=)(?![^>]*json)", page)


def test_arguments_have_the_names_of_their_parameters() -> None:
    run = TaskRunRecord(task_name="tests.tasks.add", args=[1], kwargs={"b": 3})

    assert named_arguments(run) == {"a": 1, "b": 3}


def test_further_positional_arguments_have_one_name() -> None:
    run = TaskRunRecord(task_name="celery.accumulate", args=[1, 2], kwargs={"x": 3})

    assert named_arguments(run) == {"*args": [1, 2], "x": 3}


@pytest.mark.parametrize(
    "fields",
    [
        {"task_name": "gone", "args": [1], "kwargs": {}},
        {"task_name": "tests.tasks.add", "args": [1, 2, 3], "kwargs": {}},
        {"task_name": "tests.tasks.add", "args": [1], "kwargs": {"a": 1}},
    ],
)
def test_arguments_that_do_not_fit_have_no_names(auditor: Client, fields: dict[str, Any]) -> None:
    run = make_run(**fields)

    page = text_of(auditor, run)

    assert named_arguments(run) is None
    assert "field-args_field" in page
    assert "field-arguments_field" not in page


# Links


def test_a_run_is_linked_with_what_it_repeats_and_what_repeats_it(auditor: Client) -> None:
    first = make_run(label="first")
    second = make_run(label="second", retry_of=first)
    third = make_run(label="third", retry_of=second)

    page = text_of(auditor, second)

    assert f'<a href="{url("change", first.pk)}">first ({first.task_id})</a>' in page
    assert f'<a href="{url("change", third.pk)}">third ({third.task_id})</a>' in page


def test_runs_of_others_are_not_linked(operator: User) -> None:
    theirs = make_run(label="theirs")
    own = make_run(run_by=operator, retry_of=theirs)

    assert "theirs" not in text_of(client_of(operator), own)


def test_the_object_a_run_is_about_is_linked_for_who_may_view_it(auditor: Client) -> None:
    group = Group.objects.create(name="Finance")
    kind = ContentType.objects.get_for_model(Group)
    run = make_run(content_type=kind, object_id=str(group.pk))
    viewer = client_of(make_user("view_taskrunrecord", "auth.view_group"))

    assert f'<a href="/admin/auth/group/{group.pk}/change/">Finance</a>' in text_of(viewer, run)
    assert "Finance" not in text_of(auditor, run)
    assert f"Group {group.pk}" in text_of(auditor, run)


@pytest.mark.parametrize("object_id", ["999", "no key"])
def test_an_object_that_is_gone_is_named(object_id: str) -> None:
    run = make_run(content_type=ContentType.objects.get_for_model(Group), object_id=object_id)

    assert f"Group {object_id}" in text_of(client_of(make_superuser()), run)


def test_a_model_that_is_gone_is_no_error(auditor: Client) -> None:
    kind = ContentType.objects.create(app_label="gone", model="gone")

    assert "Related" in text_of(auditor, make_run(content_type=kind, object_id="1"))


def test_the_row_of_django_celery_results_is_linked_for_who_may_view_it(auditor: Client) -> None:
    run = make_run()
    stored = TaskResult.objects.create(task_id=run.task_id)
    address = f"/admin/django_celery_results/taskresult/{stored.pk}/change/"
    viewer = client_of(make_user("view_taskrunrecord", "django_celery_results.view_taskresult"))

    assert address in text_of(viewer, run)
    assert address not in text_of(auditor, run)
    assert "Stored result" not in text_of(viewer, make_run())


# Buttons


def test_an_unfinished_run_can_be_reloaded(auditor: Client) -> None:
    assert "Reload" in text_of(auditor, make_run(state=State.STARTED))
    assert "Reload" not in text_of(auditor, make_run())


def test_who_may_run_the_task_can_edit_and_run_it_again(auditor: Client, operator: User) -> None:
    run = make_run(run_by=operator)

    page = text_of(client_of(operator), run)

    assert f'/celerytask/tests.tasks.add/run/?retry={run.pk}"' in page
    assert "Edit and run again" not in text_of(auditor, run)


@pytest.mark.parametrize("task_name", ["gone", "celery.backend_cleanup"])
def test_a_task_that_can_not_be_run_has_no_button(task_name: str) -> None:
    run = make_run(task_name=task_name, state=State.UNSENT)

    page = text_of(client_of(make_superuser()), run)

    assert "Edit and run again" not in page
    assert "Send again" not in page


@override_settings(
    CELERY_ADMIN_RUNNER={
        "APP": "tests.celery_app:app",
        "RUNNABLE_TASKS": {"tests.*": {"groups": ["Finance"]}},
    }
)
def test_the_rule_of_the_task_holds_for_the_buttons(operator: User) -> None:
    run = make_run(run_by=operator, state=State.UNSENT)

    assert "Send again" not in text_of(client_of(operator), run)

    operator.groups.add(Group.objects.create(name="Finance"))

    assert "Send again" in text_of(client_of(operator), run)


def test_a_run_that_was_not_sent_says_why(auditor: Client) -> None:
    run = make_run(state=State.UNSENT, publish_error="Connection refused")

    page = text_of(auditor, run)

    assert "it was not handed to the broker" in page
    assert "Connection refused" in page
    assert "Send again" not in page


def test_a_run_with_a_secret_can_not_be_sent_again(operator: User) -> None:
    run = make_run(run_by=operator, state=State.UNSENT, args=["********"])

    page = text_of(client_of(operator), run)

    assert "Send again" not in page
    assert "A secret in its arguments is not stored" in page


@pytest.mark.django_db(transaction=True)
def test_a_run_that_was_not_sent_can_be_sent_again() -> None:
    user = make_user("run_celerytask")
    run = make_run(run_by=user, state=State.UNSENT, args=[1], publish_error="refused")
    client = client_of(user)
    assert "Send again" in text_of(client, run)

    response = client.post(url("send_again", run.pk), follow=True)

    assert "The run was sent." in response.content.decode()
    run.refresh_from_db()
    # A worker of another test may have run it already.
    assert run.state in {State.PENDING, State.STARTED, State.SUCCESS}
    entry = LogEntry.objects.get(object_id=str(run.pk))
    assert entry.user == user
    assert entry.get_change_message() == "Sent again."


@pytest.mark.parametrize("state", [State.PENDING, State.SUCCESS])
def test_a_run_that_was_sent_is_not_sent_again(operator: User, state: State) -> None:
    run = make_run(run_by=operator, state=state)

    response = client_of(operator).post(url("send_again", run.pk), follow=True)

    assert 'class="error"' in response.content.decode()
    run.refresh_from_db()
    assert run.state == state


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_still_does_not_take_the_run_is_told_of() -> None:
    user = make_user("run_celerytask")
    run = make_run(run_by=user, state=State.UNSENT, args=[1])

    with broker_away():
        response = client_of(user).post(url("send_again", run.pk), follow=True)

    assert "The broker still does not take this run" in response.content.decode()
    run.refresh_from_db()
    assert run.state == State.UNSENT
    assert run.publish_error
    assert LogEntry.objects.count() == 0


def test_who_may_not_run_tasks_any_more_can_not_send_again() -> None:
    user = make_user()
    run = make_run(state=State.UNSENT, run_by=user)

    assert client_of(user).post(url("send_again", run.pk)).status_code == 403


def test_who_may_only_view_can_not_send_again(auditor: Client) -> None:
    run = make_run(state=State.UNSENT)

    assert auditor.post(url("send_again", run.pk)).status_code == 403


def test_the_run_of_another_can_not_be_sent_again(operator: User) -> None:
    run = make_run(state=State.UNSENT, run_by=make_user())

    assert client_of(operator).post(url("send_again", run.pk)).status_code == 404


def test_sending_again_needs_a_post_with_the_token(operator: User) -> None:
    run = make_run(state=State.UNSENT, run_by=operator)
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(operator)

    assert strict.get(url("send_again", run.pk)).status_code == 405
    assert strict.post(url("send_again", run.pk)).status_code == 403


def test_sending_again_is_in_no_transaction_of_the_request() -> None:
    view = resolve(url("send_again", 1)).func

    assert view._non_atomic_requests == {"default"}


# Other sites


@pytest.fixture
def two_sites() -> Iterator[None]:
    with override_settings(ROOT_URLCONF="tests.test_admin_runs"):
        yield


@pytest.mark.usefixtures("two_sites")
def test_the_journal_works_on_another_site_with_a_subclass() -> None:
    user = make_superuser()
    run = make_run(run_by=user, state=State.UNSENT)
    client = client_of(user)

    pages = [
        client.get(url(*view, site="staff")).content.decode()
        for view in (("changelist",), ("change", run.pk), ("history", run.pk), ("export",))
    ]

    for page in pages:
        assert "/back/office/celery_admin_runner/taskrunrecord/" in page
        assert 'href="/admin/' not in page
    assert f"/back/office/auth/user/{user.pk}/change/" in pages[1]
    assert "Edit and run again" not in pages[1]
    assert "column-subject" not in pages[0]


@pytest.mark.usefixtures("two_sites")
def test_what_is_not_registered_on_a_site_is_not_linked() -> None:
    group = Group.objects.create(name="Finance")
    run = make_run(content_type=ContentType.objects.get_for_model(Group), object_id=str(group.pk))
    TaskResult.objects.create(task_id=run.task_id)
    client = client_of(make_superuser())

    page = client.get(url("change", run.pk, site="staff")).content.decode()

    assert isinstance(admin.site.get_model_admin(Group), GroupAdmin)
    assert f"Group {group.pk}" in page
    assert "Stored result" not in page
