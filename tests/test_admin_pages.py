"""The pages of the journal's list: by number, by place, and how much they read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from urllib.parse import urlencode

import pytest
from django.contrib import admin
from django.contrib.admin.templatetags.admin_list import items_for_result
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse

from celery_admin_runner.admin import pages
from celery_admin_runner.admin.pages import Place, RunPages, WrongPlace
from celery_admin_runner.admin.runs import TaskRunRecordAdmin
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_superuser, make_user, run_fields

pytestmark = pytest.mark.django_db
START = datetime(2026, 1, 31, 12, tzinfo=UTC)


class FewRunsAdmin(TaskRunRecordAdmin):
    """A journal with five runs on a page."""

    list_per_page = 5
    list_max_show_all = 7


few_site = admin.AdminSite(name="few")
few_site.register(TaskRunRecord, FewRunsAdmin)
few_site.register(User)
urlpatterns = [path("admin/", admin.site.urls), path("few/", few_site.urls)]


@pytest.fixture(autouse=True)
def _urls() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__):
        yield


@pytest.fixture
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no more than 20 runs be counted, and of several conditions 10."""
    monkeypatch.setattr("celery_admin_runner.admin.run_list.COUNT_MAX", 20)
    monkeypatch.setattr("celery_admin_runner.admin.run_list.COUNT_MAX_OF_SEVERAL", 10)


@pytest.fixture
def client() -> Client:
    client = Client()
    client.force_login(make_superuser())
    return client


def make(number: int, **fields: object) -> list[TaskRunRecord]:
    """Make runs, the first of which is the oldest; three at a time are of the same moment."""
    TaskRunRecord.objects.bulk_create(
        TaskRunRecord(**run_fields(**{"created_at": START + timedelta(minutes=n // 3), **fields}))
        for n in range(number)
    )
    return list(TaskRunRecord.objects.order_by("created_at", "id"))


def url(site: str = "few", **query: object) -> str:
    address = reverse(f"{site}:celery_admin_runner_taskrunrecord_changelist")
    return f"{address}?{urlencode(query)}"


def page_of(client: Client, address: str) -> HttpResponse:
    response = client.get(address)
    assert response.status_code == 200
    return response


def shown(response: HttpResponse) -> list[int]:
    return [run.pk for run in response.context["cl"].result_list]


def link(response: HttpResponse, text: str) -> str | None:
    """Return the address of a link of the list's pages, or None."""
    nav = re.search(r'<nav class="paginator.*?</nav>', response.text, re.DOTALL)
    assert nav
    found = re.search(rf'<a href="([^"]*)"[^>]*aria-label="{text} runs"', nav[0])
    return url().partition("?")[0] + found[1].replace("&amp;", "&") if found else None


def keys(runs: list[TaskRunRecord]) -> list[int]:
    return [run.pk for run in runs]


# Numbers


def test_few_runs_are_on_one_page_and_not_counted(client: Client) -> None:
    runs = make(5)

    with CaptureQueriesContext(connection) as queries:
        response = page_of(client, url())

    assert shown(response) == keys(runs)[::-1]
    assert "5 task runs" in response.text
    assert not any("COUNT" in query["sql"] for query in queries)


def test_pages_have_numbers_as_everywhere_in_admin(client: Client) -> None:
    runs = make(12)[::-1]

    assert shown(page_of(client, url())) == keys(runs[:5])
    assert shown(page_of(client, url(p=2))) == keys(runs[5:10])
    last = page_of(client, url(p=3))
    assert shown(last) == keys(runs[10:])
    assert "12 task runs" in last.text
    assert link(last, "Oldest") is None
    assert link(last, "Newest") is None


@pytest.mark.parametrize("number", ["0", "-1", "4", "99999999999999999999"])
def test_a_page_that_is_not_there_is_a_wrong_parameter(client: Client, number: str) -> None:
    make(12)

    response = client.get(url(p=number))

    assert response.status_code == 302
    assert response["Location"].endswith("?e=1")


def test_as_in_admin_one_page_has_any_number(client: Client) -> None:
    runs = make(3)

    assert shown(page_of(client, url(p=7))) == keys(runs)[::-1]
    assert shown(page_of(client, url(p="x"))) == keys(runs)[::-1]


def test_not_too_many_are_shown_at_once_if_that_is_asked_for(client: Client) -> None:
    runs = make(7)
    response = page_of(client, url())
    assert "Show all" in response.text

    assert shown(page_of(client, url(all=""))) == keys(runs)[::-1]
    make(1)
    assert len(shown(page_of(client, url(all="")))) == 5


@pytest.mark.usefixtures("small_counts")
def test_no_more_are_counted_than_pages_have_numbers(client: Client) -> None:
    make(30)

    response = page_of(client, url())

    assert response.text.count("20+ task runs") == 2
    assert "20+ results" in response.text
    assert response.context["cl"].result_count == 20
    assert response.context["cl"].paginator.num_pages == 4
    assert client.get(url(p=5)).status_code == 302


@pytest.mark.usefixtures("small_counts")
@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({"state": "SUCCESS"}, "20+ task runs"),
        ({"task": "tests.tasks.add"}, "20+ task runs"),
        ({"task": "tests.*"}, "20+ task runs"),
        ({"created_from": "2026-01-01", "state": "SUCCESS"}, "20+ task runs"),
        ({"state": "SUCCESS", "task": "tests.tasks.add"}, "10+ task runs"),
        ({"state": "SUCCESS", "q": "tests.tasks.add"}, "10+ task runs"),
        ({"state": "SUCCESS", "created_until": "2026-01-01"}, "0 task runs"),
    ],
)
def test_runs_are_counted_less_far_where_several_conditions_are_to_hold(
    client: Client, query: dict[str, str], text: str
) -> None:
    make(30)

    assert text in page_of(client, url(**query)).text


@pytest.mark.usefixtures("small_counts")
def test_large_numbers_are_grouped(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pages.Counted, "of", lambda *args, **kwargs: pages.Counted(number=10_000, is_capped=True)
    )
    make(6)

    text = page_of(client, url()).text

    assert "Select all 10,000+ task runs" in text
    assert "All 10,000+ selected" in text


# Places


@pytest.mark.usefixtures("small_counts")
@pytest.mark.parametrize("query", [{}, {"state": "SUCCESS"}, {"q": "tests.tasks.add"}])
def test_one_comes_to_every_run_once_and_back_again(client: Client, query: dict[str, str]) -> None:
    runs = make(33)[::-1]
    response = page_of(client, url(**query))
    there = [shown(response)]
    while address := link(response, "Older"):
        response = page_of(client, address)
        there.append(shown(response))

    assert list(chain(*there)) == keys(runs)
    assert link(response, "Oldest") is None
    back = [shown(response)]
    while address := link(response, "Newer"):
        response = page_of(client, address)
        back.append(shown(response))
    assert list(chain(*reversed(back)))[-33:] == keys(runs)
    assert response.context["cl"].page_num == 1


@pytest.mark.usefixtures("small_counts")
def test_the_oldest_runs_are_one_click_away(client: Client) -> None:
    runs = make(33)[::-1]

    oldest = page_of(client, link(page_of(client, url()), "Oldest"))

    assert shown(oldest) == keys(runs[-5:])
    assert link(oldest, "Older") is None
    assert shown(page_of(client, link(oldest, "Newer"))) == keys(runs[-10:-5])
    assert shown(page_of(client, link(oldest, "Newest"))) == keys(runs[:5])


@pytest.mark.usefixtures("small_counts")
def test_the_other_way_round_the_newest_are_last(client: Client) -> None:
    runs = make(33)
    response = page_of(client, url(o="4"))
    assert shown(response) == keys(runs[:5])

    newest = page_of(client, link(response, "Newest"))
    assert shown(newest) == keys(runs[-5:])
    assert shown(page_of(client, link(newest, "Older"))) == keys(runs[-10:-5])
    assert link(newest, "Newer") is None
    seen = shown(response)
    while address := link(response, "Newer"):
        response = page_of(client, address)
        seen += shown(response)
    assert seen == keys(runs)


@pytest.mark.usefixtures("small_counts")
def test_runs_that_come_meanwhile_move_no_page(client: Client) -> None:
    runs = make(40)[::-1]
    far = page_of(client, url(before=str(Place.of(runs[24]))))
    assert shown(far) == keys(runs[25:30])

    make_run()
    TaskRunRecord.objects.filter(pk=runs[24].pk).delete()

    assert shown(page_of(client, link(far, "Older"))) == keys(runs[30:35])
    assert shown(page_of(client, link(far, "Newer"))) == keys([runs[19], *runs[20:24]])


@pytest.mark.usefixtures("small_counts")
def test_where_no_run_is_left_one_is_shown_the_newest(client: Client) -> None:
    runs = make(30)[::-1]

    assert shown(page_of(client, url(before=str(Place.of(runs[-1]))))) == keys(runs[:5])
    assert shown(page_of(client, url(after=str(Place.of(runs[3]))))) == keys(runs[:5])


@pytest.mark.parametrize(
    "query",
    [
        {"before": "x"},
        {"before": ""},
        {"after": "end"},
        {"before": "start"},
        {"before": "1-"},
        {"before": "1--1"},
        {"before": "1-99999999999999999999"},
        {"before": "1-9223372036854775808"},
        {"before": "999999999999999999-1"},
        {"before": "٣-٣"},
        {"after": "1-1 OR 1=1"},
        {"before": "1-1", "after": "1-1"},
    ],
)
def test_a_place_that_can_not_be_read_is_a_wrong_parameter(
    client: Client, query: dict[str, str]
) -> None:
    make(3)

    response = client.get(url(**query))

    assert response.status_code == 302
    assert response["Location"].endswith("?e=1")


def test_places_are_those_of_moments_to_the_microsecond() -> None:
    place = Place(moment=datetime(2026, 1, 31, 12, 30, 1, 123456, tzinfo=UTC), pk=7)

    assert Place.read(str(place)) == place
    with override_settings(USE_TZ=False):
        naive = Place.read("1769862601123456-7").moment.replace(tzinfo=None)
        assert naive == place.moment.replace(tzinfo=None)
    with pytest.raises(WrongPlace):
        Place.read("no place")


@pytest.mark.usefixtures("small_counts")
def test_another_filter_or_search_begins_at_the_start(client: Client) -> None:
    runs = make(40)

    page = page_of(client, url(after=str(Place.of(runs[3])), state="SUCCESS"))

    assert page.context["cl"].page.number == 0
    without_pages = re.sub(r'<nav class="paginator.*?</nav>', "", page.text, flags=re.DOTALL)
    without_ways_back = re.sub(r"_changelist_filters=[^\"]*", "", without_pages)
    assert "after=" not in without_ways_back
    assert 'name="after"' not in page.text


@pytest.mark.usefixtures("small_counts")
def test_what_is_done_to_all_is_done_to_the_runs_of_every_page(client: Client) -> None:
    runs = make(30)
    place = str(Place.of(runs[10]))

    response = client.post(
        url(after=place),
        {
            "action": "cancel_selected",
            "select_across": "1",
            "index": "0",
            "_selected_action": [runs[0].pk],
        },
    )

    assert response.status_code == 200
    assert len(response.context["left_out"]) == 30


# What is read


def queries_of(client: Client, address: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        page_of(client, address)
    return len(queries)


@pytest.mark.parametrize("site", ["admin", "few"])
@pytest.mark.parametrize("permission", ["view_taskrunrecord", "run_celerytask"])
def test_a_page_has_a_fixed_number_of_queries_for_everybody(site: str, permission: str) -> None:
    user = make_user(permission)
    client = Client()
    client.force_login(user)
    make(6, run_by=user)
    page_of(client, url(site))
    few = queries_of(client, url("few"))
    make(300, run_by=user)

    # Session, user, two of permissions, the count, the runs; MariaDB: how far they reach.
    expected = 7 if connection.vendor == "mysql" else 6
    assert queries_of(client, url(site)) == few == expected
    assert queries_of(client, url(site, state="SUCCESS")) == expected
    assert queries_of(client, url(site, before="end", o="4")) == expected


def test_a_search_for_nothing_asks_for_no_runs(client: Client) -> None:
    make(6)

    with CaptureQueriesContext(connection) as queries:
        assert shown(page_of(client, url(q="no-such-thing"))) == []

    # Session, user, task id, user name, names of tasks.
    assert len(queries) == 5


def test_a_filter_that_leaves_nothing_asks_once(client: Client) -> None:
    make(6)

    with CaptureQueriesContext(connection) as queries:
        assert shown(page_of(client, url(state=State.LOST))) == []

    # Session, user, runs; MariaDB: how far they reach.
    assert len(queries) == (4 if connection.vendor == "mysql" else 3)


def test_a_search_is_resolved_before_runs_are_asked_for(client: Client) -> None:
    make(6, task_name="shop.close")
    make(6, task_name="other.open")

    with CaptureQueriesContext(connection) as queries:
        assert len(shown(page_of(client, url(q="shop.")))) == 5

    assert "LIKE" not in queries[-1]["sql"]
    assert "= 'shop.close'" in queries[-1]["sql"]
    assert " OR " not in queries[-1]["sql"]


def test_a_word_that_is_typed_again_asks_for_nothing_more(client: Client) -> None:
    make(2, task_name="shop.close")
    make(2, task_name="other.open")
    page_of(client, url())

    once = queries_of(client, url(q="shop."))

    assert queries_of(client, url(q="shop. " * 200)) == once


def test_the_beginning_of_all_names_leaves_out_nothing(client: Client) -> None:
    make(6, task_name="shop.close")
    make(6, task_name="shop.open")

    with CaptureQueriesContext(connection) as queries:
        page_of(client, url(q="shop."))
        page_of(client, url(task="shop.*"))

    assert not any("'shop." in query["sql"] for query in queries)


def test_a_word_may_be_a_name_and_the_beginning_of_another(client: Client) -> None:
    make(2, task_name="ada.tasks")
    make(2, task_name="other", run_by_name="ada")
    make(2, task_name="third")

    assert len(shown(page_of(client, url(q="ada")))) == 4
    assert len(shown(page_of(client, url(q="ada other")))) == 2
    assert len(shown(page_of(client, url(task="a*")))) == 2


def test_unfinished_runs_of_all_states_are_listed_in_order(client: Client) -> None:
    runs = make(3) + make(3, state=State.PENDING) + make(3, state=State.STARTED)
    unfinished = TaskRunRecord.objects.exclude(state=State.SUCCESS)

    expected = list(unfinished.order_by("-created_at", "-id").values_list("pk", flat=True))
    assert len(runs) > len(expected) == 6
    assert shown(page_of(client, url(state="unfinished"))) == expected[:5]
    assert shown(page_of(client, url(state="unfinished", p=2))) == expected[5:]


# The rows


@pytest.mark.parametrize(
    "query",
    [{}, {"state": "SCHEDULED"}, {"q": "tests"}, {"_popup": "1"}, {"state": "SUCCESS", "p": "1"}],
)
def test_rows_are_what_admin_makes_of_them(rf: RequestFactory, query: dict[str, str]) -> None:
    make(2, label="<b>", run_by_name="o'brien", started_at=START)
    make(2, state=State.SCHEDULED, due_at=START, task_name="tests.tasks.<later>")
    make(1, state=State.STARTED, started_at=START, label="  ")
    request = rf.get(url(**query))
    request.user = make_superuser()
    model_admin = few_site.get_model_admin(TaskRunRecord)

    changelist = model_admin.get_changelist_instance(request)

    ours = ["".join(row) for row in changelist.table.rows]
    theirs = ["".join(items_for_result(changelist, run, None)) for run in changelist.result_list]
    assert len(ours) > 0
    assert [line.replace("  ", "") for line in ours] == [line.replace("  ", "") for line in theirs]


class MixedAdmin(TaskRunRecordAdmin):
    """A project's own columns, of many kinds."""

    list_display = ("created_at", "task_name", "is_late", "moment", "nothing", "run_by", "queue")
    list_display_links = ("queue", "moment")

    @admin.display(boolean=True)
    def is_late(self, run: TaskRunRecord) -> bool:
        return True

    @admin.display(empty_value="?")
    def nothing(self, run: TaskRunRecord) -> str:
        return ""

    def moment(self, run: TaskRunRecord) -> datetime | None:
        return run.started_at


class TextsAdmin(MixedAdmin):
    list_display = ("task_name", "moment", "nothing", "active_key", "queue")


@pytest.mark.parametrize("kind", [MixedAdmin, TextsAdmin])
def test_columns_of_a_project_are_what_admin_makes_of_them(
    rf: RequestFactory, kind: type[TaskRunRecordAdmin]
) -> None:
    make(2, queue="<celery>", started_at=START)
    make(2, run_by=make_user())
    request = rf.get(url())
    request.user = make_superuser()

    with override_settings(ROOT_URLCONF=__name__):
        changelist = kind(TaskRunRecord, few_site).get_changelist_instance(request)
        ours = ["".join(row) for row in changelist.table.rows]
        theirs = [
            "".join(items_for_result(changelist, run, None)) for run in changelist.result_list
        ]

    assert ours == theirs
    assert len(ours) == 4


def test_a_row_leads_back_to_the_page_it_was_on(client: Client) -> None:
    [run] = make(1)

    text = page_of(client, url(state="SUCCESS")).text

    assert (
        f'/few/celery_admin_runner/taskrunrecord/{run.pk}/change/?_changelist_filters=state%3DSUCCESS"'
        in text
    )


def test_the_runs_of_an_object_have_the_same_pages() -> None:
    make(12)

    listed = RunPages(TaskRunRecord.objects.all(), size=5, count_max=5)
    first = listed.asked_for({})

    assert [way.parameters for way in first.onward][-1] == {"after": "start"}
    second = listed.asked_for(dict(first.onward[0].parameters))
    assert second.runs[0].pk < first.runs[-1].pk
    assert str(second.counted) == "5+"
