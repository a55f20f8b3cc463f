"""The list of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import all_task_infos, get_task_info
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.factories import make_run, make_runs, make_superuser, make_user

LIST = "admin:celery_admin_runner_celerytask_changelist"
ADD = "tests.tasks.add"
FAIL = "tests.tasks.fail"

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client: Client) -> User:
    """A user who may run tasks and see every run, logged in."""
    user = make_user("run_celerytask", "view_taskrunrecord")
    client.force_login(user)
    return user


@pytest.fixture
def many_tasks() -> Iterator[int]:
    """Five thousand more registered tasks."""
    names = [f"many.p{number % 7}.task_{number:04}" for number in range(5000)]
    for name in names:
        app.task(_nothing, name=name)
    yield len(names)
    for name in names:
        del app.tasks[name]


def _nothing(number: int = 0) -> None:
    """Do nothing, many times."""


def listed(client: Client, **query: object) -> list[str]:
    """Return the names of the tasks in the list, those of all its pages if none is asked for.

    Other tests have registered tasks too: too many for one page, sometimes.
    """
    response = client.get(reverse(LIST), {"all": "", **query})
    assert response.status_code == 200
    changelist = response.context["cl"]
    names = [task.info.name for task in changelist.result_list]
    if "p" in query or len(names) == changelist.result_count:
        return names
    pages = range(2, changelist.paginator.num_pages + 1)
    return names + [name for page in pages for name in listed(client, p=page, **query)]


# Who sees it


@pytest.mark.parametrize("permission", ["view_celerytask", "run_celerytask"])
def test_who_may_view_or_run_tasks_sees_the_list(client: Client, permission: str) -> None:
    client.force_login(make_user(permission))

    response = client.get(reverse(LIST), {"q": ADD})

    assert response.status_code == 200
    assert ADD in response.text


@pytest.mark.parametrize(
    "permissions", [(), ("view_taskrunrecord", "export_taskrunrecord", "retry_taskrunrecord")]
)
def test_others_do_not_see_the_list(client: Client, permissions: tuple[str, ...]) -> None:
    client.force_login(make_user(*permissions))

    response = client.get(reverse(LIST))

    assert response.status_code == 403


def test_who_is_not_staff_is_asked_to_log_in(client: Client) -> None:
    client.force_login(make_user("run_celerytask", is_staff=False))

    response = client.get(reverse(LIST))

    assert response.status_code == 302


def test_the_admin_index_links_to_the_list(client: Client) -> None:
    client.force_login(make_user("run_celerytask"))

    response = client.get(reverse("admin:index"))

    assert reverse(LIST) in response.text


@pytest.mark.parametrize("name", ["add", "delete"])
def test_no_task_is_added_or_deleted_even_by_a_superuser(client: Client, name: str) -> None:
    client.force_login(make_superuser())
    url = reverse(
        f"admin:celery_admin_runner_celerytask_{name}", args=[] if name == "add" else [ADD]
    )

    assert client.get(url).status_code == 403
    assert client.post(url, {"post": "yes"}).status_code == 403
    assert TaskRunRecord.objects.count() == 0


@pytest.mark.parametrize("method", ["get", "post"])
def test_the_change_page_is_the_page_of_the_task(
    client: Client, operator: User, method: str
) -> None:
    url = reverse(
        "admin:celery_admin_runner_celerytask_change", args=[quote("tests.tasks.wait_for_file")]
    )

    response = getattr(client, method)(url)

    assert response.status_code == 302
    assert response.url == reverse(
        "admin:celery_admin_runner_celerytask_run", args=["tests.tasks.wait_for_file"]
    )


# What stands in it


def test_a_row_shows_the_task_and_links_to_its_page(client: Client, operator: User) -> None:
    response = client.get(reverse(LIST), {"q": ADD})

    assert "Add two numbers." in response.text
    assert f'href="{reverse("admin:celery_admin_runner_celerytask_run", args=[ADD])}' in (
        response.text
    )
    assert f'<td class="field-queue_name">{get_task_info(ADD).queue}</td>' in response.text


def test_celerys_own_tasks_are_listed_without_a_button(client: Client) -> None:
    client.force_login(make_superuser())

    response = client.get(reverse(LIST), {"q": "celery.backend_cleanup"})

    assert "Not runnable" in response.text
    assert "task-run" not in response.text


def test_who_may_only_view_gets_no_button(client: Client) -> None:
    client.force_login(make_user("view_celerytask"))

    response = client.get(reverse(LIST), {"q": ADD})

    assert "Not allowed" in response.text
    assert "task-run" not in response.text
    assert "run_selected" not in response.text


def test_the_rule_of_a_task_decides_on_its_button(client: Client, operator, configure) -> None:
    configure(RUNNABLE_TASKS={ADD: {"groups": ["Finance"]}, "*": {}})

    response = client.get(reverse(LIST), {"q": "tests.tasks"})

    buttons = {task.info.name: task.may_run for task in response.context["cl"].result_list}
    assert not buttons[ADD]
    assert buttons[FAIL]


def test_tasks_that_cannot_be_run_are_hidden_if_so_set(client, operator, configure) -> None:
    configure(RUNNABLE_TASKS=[ADD], SHOW_ONLY_RUNNABLE=True)

    assert listed(client) == [ADD]


def test_the_figures_of_a_task(client: Client, operator: User) -> None:
    now = timezone.now()
    for seconds in (1, 2, 9):
        make_run(started_at=now - timedelta(seconds=seconds), finished_at=now)
    make_run(state=State.FAILURE, started_at=now - timedelta(hours=1), finished_at=now)
    make_run(state=State.LOST)
    make_run(state=State.FAILURE, created_at=now - timedelta(days=8))
    last = make_run(state=State.STARTED, run_by=operator)

    response = client.get(reverse(LIST), {"q": ADD})

    [task] = response.context["cl"].result_list
    assert task.figures.last_run == last
    assert (task.figures.runs, task.figures.failures) == (6, 2)
    assert task.figures.typical_duration == timedelta(seconds=2)
    assert operator.username in response.text
    assert "Running" in response.text
    assert (
        f'href="{reverse("admin:celery_admin_runner_taskrunrecord_change", args=[last.pk])}"'
        in response.text
    )


def test_no_more_runs_of_a_task_are_counted_than_a_thousand(
    client: Client, operator: User
) -> None:
    make_runs(1000, task_name=ADD)
    make_runs(999, task_name=FAIL)

    text = client.get(reverse(LIST), {"q": "tests.tasks"}).text

    assert '<td class="field-runs">1,000+</td>' in text
    assert '<td class="field-runs">999</td>' in text


def test_more_failures_than_are_counted_are_told_as_more(client: Client, operator: User) -> None:
    make_runs(5000, task_name=FAIL, state=State.FAILURE)

    text = client.get(reverse(LIST), {"q": FAIL}).text

    assert '<td class="field-failures">5,000+</td>' in text


def test_the_typical_duration_is_that_of_the_latest_runs(client: Client, operator: User) -> None:
    now = timezone.now()
    make_runs(100, started_at=now - timedelta(seconds=50), finished_at=now)
    make_runs(20, started_at=now - timedelta(seconds=5), finished_at=now)

    response = client.get(reverse(LIST), {"q": ADD})

    [task] = response.context["cl"].result_list
    assert task.figures.typical_duration == timedelta(seconds=5)


def test_figures_are_made_of_the_runs_that_the_user_may_see(client: Client) -> None:
    user = make_user("run_celerytask")
    own = make_run(run_by=user)
    make_run(run_by=make_user(), state=State.FAILURE)
    client.force_login(user)

    response = client.get(reverse(LIST), {"q": ADD})

    [task] = response.context["cl"].result_list
    assert task.figures.last_run == own
    assert (task.figures.runs, task.figures.failures) == (1, 0)


def test_the_figures_of_few_runs_are_made_as_those_of_all(client: Client) -> None:
    now = timezone.now()
    user = make_user("run_celerytask")
    slow = {"started_at": now - timedelta(seconds=50), "finished_at": now}
    make_runs(30, run_by=user, created_at=now - timedelta(days=8), **slow)
    for seconds in (1, 2, 9):
        make_run(run_by=user, started_at=now - timedelta(seconds=seconds), finished_at=now)
    make_runs(17, run_by=user, state=State.FAILURE)
    make_run(run_by=user, task_name=FAIL, state=State.LOST)
    shown = []

    for viewer in (user, make_superuser()):
        client.force_login(viewer)
        page = client.get(reverse(LIST), {"q": "tests.tasks"})
        shown.append([vars(task.figures) for task in page.context["cl"].result_list])

    assert shown[0] == shown[1]
    of_add = next(each for each in shown[0] if each["runs"] == 20)
    assert (of_add["failures"], of_add["typical_duration"]) == (17, timedelta(seconds=2))


def test_a_hostile_docstring_and_user_name_are_escaped(client: Client, operator: User) -> None:
    def hostile() -> None:
        """<script>alert(1)</script>"""

    app.task(hostile, name="many.<b>hostile</b>")
    make_run(task_name="many.<b>hostile</b>", run_by_name="<i>mallory</i>")

    response = client.get(reverse(LIST), {"q": "hostile"})
    del app.tasks["many.<b>hostile</b>"]

    for text in ("<script>alert", "<b>hostile", "<i>mallory"):
        assert text not in response.text
    assert "&lt;script&gt;alert(1)" in response.text
    assert "&lt;i&gt;mallory" in response.text


# Search, filters, sorting, pages


def test_the_search_finds_words_in_names_and_docstrings(client: Client, operator: User) -> None:
    assert listed(client, q="TWO numbers tests.tasks") == [ADD]
    assert listed(client, q="no such words") == []


def test_tasks_are_filtered_by_package(client: Client, operator: User) -> None:
    names = listed(client, package="tests")

    assert ADD in names
    assert all(name.startswith("tests.") for name in names)
    assert listed(client, package="celery")[0].startswith("celery.")
    assert listed(client, package="nothing") == []


def test_tasks_are_filtered_by_runnable(client: Client, operator: User, configure) -> None:
    configure(RUNNABLE_TASKS=[ADD])

    assert listed(client, runnable="1") == [ADD]
    assert ADD not in listed(client, runnable="0")


def test_tasks_are_filtered_by_last_state(client: Client, operator: User) -> None:
    make_run(task_name=ADD, state=State.FAILURE)
    make_run(task_name=ADD)
    make_run(task_name=FAIL, state=State.FAILURE)

    assert listed(client, last_state="FAILURE") == [FAIL]
    assert listed(client, last_state="SUCCESS") == [ADD]
    never = listed(client, last_state="never")
    assert ADD not in never
    assert "celery.backend_cleanup" in never


def test_filters_show_what_can_be_chosen(client: Client, operator: User) -> None:
    response = client.get(reverse(LIST), {"package": "tests", "runnable": "1"})

    titles = [str(spec.title) for spec in response.context["cl"].filter_specs]
    assert titles == ["package", "runnable", "last state"]
    assert "?package=celery&amp;runnable=1" in response.text
    assert "Clear all filters" in response.text


@pytest.mark.parametrize("query", [{"nonsense": "1"}, {"task_name__startswith": "x"}])
def test_a_query_that_makes_no_sense_is_refused_as_admin_does(
    client: Client, operator: User, query: dict[str, str]
) -> None:
    response = client.get(reverse(LIST), query)

    assert response.status_code == 302
    assert response.url.endswith("?e=1")
    assert client.get(response.url).status_code == 200


@pytest.mark.parametrize("order", ["", "99", "-99", "--1", "x", "1.x.-2", "0", "7"])
def test_an_order_that_makes_no_sense_is_ignored(
    client: Client, operator: User, order: str
) -> None:
    assert set(listed(client, o=order)) == {info.name for info in all_task_infos()}


def test_tasks_are_sorted_by_each_column(client: Client, operator: User) -> None:
    now = timezone.now()
    make_run(task_name=FAIL, state=State.FAILURE)
    make_runs(2, task_name=ADD, started_at=now - timedelta(seconds=3), finished_at=now)
    names = sorted(info.name for info in all_task_infos())

    assert listed(client) == [info.name for info in all_task_infos()]
    assert listed(client, o="1") == names
    assert listed(client, o="-1") == names[::-1]
    assert listed(client, o="3")[:2] == [FAIL, ADD]
    assert listed(client, o="-3")[:2] == [ADD, FAIL]
    assert listed(client, o="-4")[:2] == [ADD, FAIL]
    assert listed(client, o="-5")[0] == FAIL
    assert listed(client, o="6")[0] == ADD
    assert listed(client, o="-6")[0] == ADD
    assert set(listed(client, o="2.-1")) == set(names)


def test_a_page_has_a_hundred_tasks(client: Client, operator: User, many_tasks: int) -> None:
    first = listed(client, q="many.p", p=1)
    last = listed(client, q="many.p", p=50)

    assert (len(first), len(last)) == (100, 100)
    assert first[0] == "many.p0.task_0000"
    assert "5000 tasks" in client.get(reverse(LIST), {"q": "many.p"}).text
    assert client.get(reverse(LIST), {"p": "99"}).url.endswith("?e=1")


def test_a_page_of_five_thousand_tasks_costs_the_queries_of_a_few(
    client: Client, operator: User, request: pytest.FixtureRequest
) -> None:
    # Of a task on the first page too, however many tasks other tests have registered.
    for name in (ADD, all_task_infos()[0].name):
        make_runs(3, task_name=name)
    client.get(reverse(LIST))
    queries = [{}, {"o": "-3"}, {"o": "-6"}, {"last_state": "SUCCESS"}, {"q": "add"}]
    few = [statements_of(client, query) for query in queries]
    names = [f"many.p{number % 7}.task_{number:04}" for number in range(5000)]
    TaskRunRecord.objects.bulk_create(
        [TaskRunRecord(**vars_of(name)) for name in names], batch_size=500
    )
    request.getfixturevalue("many_tasks")

    many = [statements_of(client, query) for query in queries]

    assert (len(many[0]), len(many[-1])) == (len(few[0]), len(few[-1]))
    # Of all tasks it is asked for hundreds at once.
    assert max(map(len, many)) <= len(few[0]) + 60


def statements_of(client: Client, query: dict[str, str]) -> list[str]:
    """Return the statements that a page of the list costs."""
    with CaptureQueriesContext(connection) as captured:
        client.get(reverse(LIST), query)
    return [item["sql"] for item in captured.captured_queries]


def vars_of(name: str) -> dict[str, object]:
    """Return the fields of a finished run of a task."""
    now = timezone.now()
    return {
        "task_id": name,
        "task_name": name,
        "state": State.SUCCESS,
        "created_at": now,
        "started_at": now,
        "finished_at": now,
    }
