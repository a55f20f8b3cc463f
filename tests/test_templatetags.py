"""``{% task_runs %}`` and ``{% task_run run %}``, as they are rendered."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.template import Context, Template, TemplateSyntaxError, engines
from django.test import Client, RequestFactory
from django.utils import timezone, translation
from django.utils.formats import time_format
from pytest_django import DjangoAssertNumQueries

from celery_admin_runner.live import payload
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_runs, make_user
from tests.models import Report

pytestmark = pytest.mark.django_db

HOSTILE = "<script>alert(1)</script>\"'&{{ x }}"


@pytest.fixture
def user() -> User:
    return make_user(username="waits")


def request_of(user: User | AnonymousUser) -> HttpRequest:
    request = RequestFactory().get("/")
    request.user = user
    return request


def render(user: User | AnonymousUser, text: str, **context: Any) -> str:
    """Render tags for a page of this user."""
    template = engines["django"].from_string(f"{{% load task_runs %}}{text}")
    return template.render(context, request_of(user))


def ids_in(html: str) -> list[int]:
    return [int(found) for found in re.findall(r'data-task-run="(\d+)"', html)]


# ---- Whose runs ----


def test_the_list_shows_the_runs_for_display_the_newest_first(user: User) -> None:
    waiting = make_run(run_by=user, state=State.PENDING)
    ended = make_run(run_by=user)
    make_run(run_by=user, seen_at=timezone.now() - timedelta(minutes=5))

    html = render(user, "{% task_runs %}")

    assert ids_in(html) == [ended.pk, waiting.pk]


def test_nobody_sees_the_runs_of_others_even_who_may_see_all(user: User) -> None:
    staff = make_user("view_taskrunrecord", is_superuser=True)
    others = [make_run(run_by=user), make_run(run_by=None)]

    html = render(
        staff, "{% task_runs %}{% for run in runs %}{% task_run run %}{% endfor %}", runs=others
    )

    assert ids_in(html) == []
    assert "Nothing is running." in html


def test_a_single_run_of_ones_own_is_shown_also_long_after(user: User) -> None:
    run = make_run(run_by=user, seen_at=timezone.now() - timedelta(days=5))

    assert ids_in(render(user, "{% task_run run %}", run=run)) == [run.pk]


@pytest.mark.parametrize("tag", ["{% task_runs %}", "{% task_run run %}"])
def test_the_anonymous_see_nothing_at_all(tag: str) -> None:
    run = make_run(run_by=None)

    assert render(AnonymousUser(), tag, run=run).strip() == ""


def test_a_page_without_authentication_shows_nothing(user: User) -> None:
    request = RequestFactory().get("/")
    template = engines["django"].from_string(
        "{% load task_runs %}{% task_runs %}{% task_run run %}"
    )

    assert template.render({"run": make_run(run_by=user)}, request).strip() == ""


@pytest.mark.parametrize("context", [{}, {"run": None}], ids=["no variable", "None"])
def test_no_run_is_shown_as_nothing(user: User, context: dict[str, None]) -> None:
    assert render(user, "{% task_run run %}", **context).strip() == ""


def test_what_is_no_run_is_refused(user: User) -> None:
    with pytest.raises(TemplateSyntaxError, match="shows a TaskRunRecord, and 'x' is none"):
        render(user, "{% task_run run %}", run="x")


# ---- What a row says ----


def test_a_row_says_label_state_progress_and_when(user: User) -> None:
    run = make_run(
        run_by=user,
        label="Yearly report",
        state=State.STARTED,
        started_at=timezone.now(),
        progress_current=3,
        progress_total=8,
        progress_message="Page 3",
    )

    html = render(user, "{% task_run run %}", run=run)

    assert ">Yearly report</span>" in html
    assert ">Running</span>" in html
    assert 'max="100" value="37"' in html
    assert 'aria-label="Progress of Yearly report"' in html
    assert ">Page 3</span>" in html
    assert f'<time class="task-run-time" datetime="{run.started_at.isoformat()}">since ' in html


def test_progress_of_which_nobody_knows_the_end_has_no_value(user: User) -> None:
    run = make_run(run_by=user, state=State.STARTED, progress_message="Page 3")

    html = render(user, "{% task_run run %}", run=run)

    assert "<progress" in html
    assert "value=" not in html


def test_a_finished_run_shows_no_progress_and_a_link_to_its_result(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "result_url", lambda run: "/result/?a=1&b=2")
    run = make_run(run_by=user, label="Report", progress_current=3, progress_total=8)

    html = render(user, "{% task_run run %}", run=run)

    assert "<progress" not in html
    assert '<a class="task-run-result" href="/result/?a=1&amp;b=2" ' in html
    assert "data-finished" in html


@pytest.mark.parametrize("state", State)
def test_each_state_has_its_text_and_a_drawing(user: User, state: State) -> None:
    run = make_run(run_by=user, state=state)

    html = render(user, "{% task_run run %}", run=run)

    assert f">{state.label}</span>" in html
    assert "<circle" in html


def test_the_row_is_what_the_script_gets_later(user: User) -> None:
    run = make_run(run_by=user, state=State.STARTED, progress_current=1)

    html = render(user, "{% task_runs %}{% task_run run %}", run=run)

    assert html.count(payload.run_payload(run)["html"]) == 2


def test_a_moment_of_another_day_has_its_date_in_the_time_zone_of_the_page(user: User) -> None:
    run = make_run(run_by=user, finished_at=datetime(2026, 1, 31, 22, 15, tzinfo=UTC))

    with timezone.override("Asia/Tokyo"):
        html = render(user, "{% task_run run %}", run=run)

    assert ">02/01/2026 7:15 a.m.</time>" in html


def test_a_moment_of_today_has_only_its_time(user: User) -> None:
    moment = timezone.now()
    run = make_run(run_by=user, finished_at=moment)

    with timezone.override("Asia/Tokyo"):
        html = render(user, "{% task_run run %}", run=run)
        expected = time_format(timezone.localtime(moment), "TIME_FORMAT")

    assert f">{expected}</time>" in html


def test_nothing_that_comes_from_a_user_is_html(user: User) -> None:
    fields = {"label": HOSTILE, "progress_message": HOSTILE, "progress_current": 1}
    make_run(run_by=user, state=State.STARTED, **fields)

    html = render(user, "{% task_runs title=title %}", title=HOSTILE)

    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4


def test_a_row_stands_where_only_phrases_may(user: User) -> None:
    """In ``<p>``, in a button's or a cell's text: no block closes what is around it."""
    run = make_run(run_by=user, state=State.STARTED, progress_current=1)

    html = payload.run_payload(run)["html"]

    tags = set(re.findall(r"<([a-z]+)", html))
    assert tags <= {"span", "svg", "circle", "path", "progress", "time", "a"}


def test_a_site_that_groups_digits_still_has_ids_that_the_script_can_read(
    user: User, settings: Any
) -> None:
    settings.USE_THOUSAND_SEPARATOR = True
    make_run(pk=1234567, run_by=user)

    assert ids_in(render(user, "{% task_runs %}")) == [1234567]


# ---- The list ----


def test_an_empty_list_says_so_and_a_full_one_does_not(user: User) -> None:
    empty = render(user, "{% task_runs %}")
    make_run(run_by=user)
    full = render(user, "{% task_runs %}")

    assert re.search(r"data-task-runs-empty>Nothing is running", empty)
    assert re.search(r"data-task-runs-empty hidden>", full)


def test_the_list_has_a_name_that_the_page_can_choose(user: User) -> None:
    assert 'aria-label="Your tasks"' in render(user, "{% task_runs %}")
    assert 'aria-label="My reports"' in render(user, '{% task_runs title="My reports" %}')


def test_the_list_shows_no_more_than_its_most_and_says_so(user: User) -> None:
    make_runs(payload.RUNS_MAX + 1, run_by=user)

    html = render(user, "{% task_runs %}")

    assert len(ids_in(html)) == payload.RUNS_MAX
    assert "data-task-runs-more>" in html


def test_the_number_of_queries_is_fixed(
    user: User, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    def queries(text: str, number: int, **context: Any) -> None:
        with django_assert_num_queries(number):
            render(user, text, **context)

    for _ in range(3):
        make_run(run_by=user, obj=Report.objects.create(title="x"))
    queries("{% task_runs %}", 2)
    for _ in range(10):
        make_run(run_by=user, obj=Report.objects.create(title="x"))
        make_run(run_by=user, state=State.STARTED)
    queries("{% task_runs %}", 2)
    runs = list(TaskRunRecord.objects.filter(state=State.STARTED))
    queries("{% for run in runs %}{% task_run run %}{% endfor %}", 0, runs=runs)


# ---- The page around it ----


def test_style_sheet_and_script_come_once_a_page_however_many_tags(user: User) -> None:
    runs = make_runs(3, run_by=user)
    text = (
        "{% for run in runs %}{% task_run run %}{% endfor %}{% task_runs %}{% task_runs %}"
        '{% include "live_tag.html" %}'
    )

    html = render(user, text, runs=runs)
    again = render(user, text, runs=runs)

    assert [html.count("<script"), html.count("<link")] == [1, 1]
    assert len(ids_in(html)) == 12
    assert again.count("<script") == 1


def test_two_pages_of_one_request_have_their_own_script(user: User) -> None:
    request = request_of(user)
    template = engines["django"].from_string("{% load task_runs %}{% task_runs %}")

    pages = [template.render({}, request) for _ in range(2)]

    assert [page.count("<script") for page in pages] == [1, 1]


def test_the_script_is_told_where_to_ask(user: User, configure: Callable[..., None]) -> None:
    configure(WEBSOCKET_URL='/ws/"task-runs"/')

    html = render(user, "{% task_runs %}")

    assert 'data-changes="/live/changes/"' in html
    assert 'data-snapshot="/live/"' in html
    assert 'data-seen="/live/seen/"' in html
    assert 'data-websocket="/ws/&quot;task-runs&quot;/"' in html


def test_without_the_setting_there_is_no_websocket(user: User) -> None:
    assert 'data-websocket=""' in render(user, "{% task_runs %}")


def test_the_token_in_the_page_lets_its_user_mark_runs_as_seen(user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    run = make_run(run_by=user)
    page = client.get("/live-pages/list/").content.decode()
    token = re.search(r'data-token="(\w+)"', page)
    assert token is not None

    refused = client.post("/live/seen/", {"ids": str(run.pk)})
    answer = client.post("/live/seen/", {"ids": str(run.pk), "csrfmiddlewaretoken": token[1]})

    assert refused.status_code == 403
    assert answer.json() == {"type": "seen", "ids": [run.pk]}


@pytest.mark.parametrize("tag", ["{% task_runs %}", "{% task_run run %}"])
def test_without_the_request_the_error_says_what_to_do(tag: str, user: User) -> None:
    template = Template(f"{{% load task_runs %}}{tag}")

    with pytest.raises(ImproperlyConfigured, match=r"context_processors\.request"):
        template.render(Context({"run": make_run(run_by=user)}))


@pytest.mark.parametrize("tag", ["{% task_runs %}", "{% task_run run %}"])
def test_without_the_urls_the_error_says_what_to_include(
    tag: str, user: User, settings: Any
) -> None:
    settings.ROOT_URLCONF = "django.contrib.auth.urls"

    with pytest.raises(ImproperlyConfigured, match=r"include\('celery_admin_runner.live.urls'\)"):
        render(user, tag, run=make_run(run_by=user))


def test_the_texts_are_those_of_the_language_of_the_page(user: User) -> None:
    run = make_run(run_by=user, state=State.STARTED)

    with translation.override("de"):
        html = render(user, "{% task_run run %}", run=run)

    assert ">Läuft</span>" in html
