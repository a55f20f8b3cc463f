"""A user's own runs in any page, in a real browser under a strict Content-Security-Policy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone
from playwright.sync_api import (
    APIResponse,
    Browser,
    Page,
    Request,
    Route,
    WebSocketRoute,
    expect,
)
from pytest_django.live_server_helper import LiveServer

from celery_admin_runner.live import payload
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.factories import make_run, make_runs, make_user
from tests.threads import in_another_thread
from tests.waiting import wait_until

pytest_plugins = ["tests.browser"]
pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/live-pages/list/"
MANY = "/live-pages/many/"
SINGLES = "/live-pages/singles/"
SOCKET = "/ws/task-runs/"


@pytest.fixture(autouse=True)
def clock(page: Page) -> None:
    """A clock that tests can hurry; left alone it goes as ever."""
    page.clock.install()


@pytest.fixture
def user(page: Page) -> User:
    """Who looks at the page."""
    return User.objects.get(username="operator")


@pytest.fixture
def own_run(user: User) -> Callable[..., TaskRunRecord]:
    """Make runs of who looks at the page."""

    def make(**fields: Any) -> TaskRunRecord:
        return make_run(**{"run_by": user, "state": State.STARTED, "label": "Report", **fields})

    return make


@pytest.fixture
def asked(page: Page) -> list[Request]:
    """The questions that the page has asked, but for what it marked as seen."""
    requests: list[Request] = []

    def listen(request: Request) -> None:
        if urlsplit(request.url).path in ("/live/", "/live/changes/"):
            requests.append(request)

    page.on("request", listen)
    return requests


def change(run: TaskRunRecord, **fields: object) -> None:
    TaskRunRecord.objects.filter(pk=run.pk).update(**fields)


def finish(run: TaskRunRecord, state: State = State.SUCCESS) -> None:
    change(run, state=state, finished_at=timezone.now(), seen_at=None)


def is_seen(run: TaskRunRecord) -> bool:
    return TaskRunRecord.objects.get(pk=run.pk).seen_at is not None


def hurry(page: Page, seconds: float = 31) -> None:
    """Let time pass for the page, which is answered in between."""
    for _ in range(8):
        tick(page, seconds / 8)


def tick(page: Page, seconds: float) -> None:
    """Let time pass, and then an answer come."""
    page.clock.run_for(seconds * 1000)
    page.wait_for_timeout(25)


def wait_for(page: Page, condition: Callable[[], object]) -> None:
    wait_until(lambda: page.wait_for_timeout(20) or condition())


def is_quiet(page: Page, asked: list[Request]) -> bool:
    """Tell whether the page asks nothing any more."""
    number = len(asked)
    # An answer has to come in less than what the page takes for silence.
    for _ in range(30):
        tick(page, 7)
    return len(asked) == number


def set_hidden(page: Page, is_hidden: bool) -> None:
    """Hide or show the tab, as far as its scripts can tell."""
    page.evaluate(
        """isHidden => {
            Object.defineProperty(document, 'hidden', {value: isHidden, configurable: true});
            document.dispatchEvent(new Event('visibilitychange'));
        }""",
        is_hidden,
    )


def state_in(page: Page, label: str = "Report") -> Any:
    return page.locator(".task-run", has_text=label).locator(".task-run-state")


# ---- Asking ----


def test_a_run_is_followed_from_the_queue_to_its_end_and_marked_as_seen(
    worker: object, page: Page, user: User, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    page.goto(LIST)
    expect(page.get_by_text("Nothing is running.")).to_be_visible()
    run = TaskRunner(user).run("tests.talking_tasks.talk_until", [str(gate)])

    expect(state_in(page, "Talk until")).to_have_text("Running")
    bar = page.get_by_role("progressbar", name="Progress of Talk until")
    expect(bar).to_have_attribute("value", "30")
    expect(page.locator(".task-run-message")).to_have_text("third")
    gate.write_text("the result")
    expect(state_in(page, "Talk until")).to_have_text("Succeeded")
    expect(bar).to_have_count(0)
    wait_until(lambda: TaskRunRecord.objects.get(task_id=run.task_id).seen_at)


def test_a_new_run_stands_at_its_place_by_age(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    first = own_run(label="First")
    page.goto(LIST)
    own_run(label="Third")
    page.evaluate("document.dispatchEvent(new Event('task-runs:refresh'))")
    expect(page.locator(".task-run-label")).to_have_text(["Third", "First"])
    change(first, label="First of all")
    hurry(page)

    expect(page.locator(".task-run-label")).to_have_text(["Third", "First of all"])
    expect(page.locator("ul > li")).to_have_count(2)


def test_progress_and_state_come_without_making_the_row_anew(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    run = own_run(progress_current=1, progress_total=10)
    page.goto(LIST)
    page.evaluate("window.bar = document.querySelector('progress')")
    change(run, progress_current=7, progress_message="nearly")
    hurry(page)
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "70")
    change(run, state=State.RETRY)
    hurry(page)
    expect(state_in(page)).to_have_text("Retrying")

    assert page.evaluate("window.bar.isConnected")


def test_it_asks_more_and_more_seldom_while_nothing_changes(
    page: Page, own_run: Callable[..., TaskRunRecord], asked: list[Request]
) -> None:
    run = own_run()
    page.goto(LIST)

    def waits(seconds: int) -> list[int]:
        times = []
        for second in range(seconds):
            before = len(asked)
            tick(page, 1)
            for request in asked[before:]:
                times.append(second)
                # A busy machine answers later than the tick ends.
                request.response().finished()
                page.wait_for_timeout(25)
        return [later - earlier for earlier, later in pairwise(times)]

    busy = waits(45)
    finish(run)
    change(run, seen_at=timezone.now() - timedelta(hours=1))
    idle = waits(150)

    assert busy[0] <= 3
    assert 9 <= max(busy) <= 11
    assert 28 <= max(idle) <= 31


def test_a_hidden_tab_does_not_ask_and_asks_at_once_when_it_is_shown(
    page: Page, own_run: Callable[..., TaskRunRecord], asked: list[Request]
) -> None:
    run = own_run()
    page.goto(LIST)
    set_hidden(page, True)
    finish(run)

    assert is_quiet(page, asked)
    assert not is_seen(run)
    set_hidden(page, False)
    expect(state_in(page)).to_have_text("Succeeded")


def test_a_page_that_is_opened_in_the_background_waits_until_it_is_shown(
    page: Page, own_run: Callable[..., TaskRunRecord], asked: list[Request]
) -> None:
    run = own_run()
    page.add_init_script(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true})"
    )
    page.goto(LIST)
    finish(run)
    assert is_quiet(page, asked)
    set_hidden(page, False)

    expect(state_in(page)).to_have_text("Succeeded")


@pytest.mark.parametrize("body", ["Bad gateway", "<html>Later</html>", "null", "[]", "{}"])
def test_without_the_server_the_page_says_so_and_tries_again(
    page: Page,
    own_run: Callable[..., TaskRunRecord],
    asked: list[Request],
    complaints: list[str],
    body: str,
) -> None:
    run = own_run()
    page.goto(LIST)
    status = 502 if body.startswith("Bad") else 200
    page.route("**/live/**", lambda route: route.fulfill(status=status, body=body))
    note = page.locator(".task-runs-note")
    for _ in range(8):
        tick(page, 2)
    expect(note).to_have_text("No answer from the server; trying again.")
    before = len(asked)
    for _ in range(40):
        tick(page, 30)
    assert 13 <= len(asked) - before <= 40
    page.unroute("**/live/**")
    finish(run)
    hurry(page, 80)
    hurry(page, 80)

    expect(state_in(page)).to_have_text("Succeeded")
    expect(note).to_be_hidden()
    assert all("502" in text for text in complaints)
    complaints.clear()


def test_when_the_net_is_back_the_page_asks_at_once(
    page: Page, own_run: Callable[..., TaskRunRecord], complaints: list[str]
) -> None:
    run = own_run()
    page.goto(LIST)
    page.context.set_offline(True)
    for _ in range(8):
        tick(page, 60)
    finish(run)
    page.context.set_offline(False)

    expect(state_in(page)).to_have_text("Succeeded")
    complaints.clear()


@pytest.mark.parametrize("address", [LIST, SINGLES])
def test_who_is_logged_out_is_told_so_and_nothing_is_asked_any_more(
    page: Page,
    own_run: Callable[..., TaskRunRecord],
    asked: list[Request],
    complaints: list[str],
    address: str,
) -> None:
    own_run()
    own_run()
    page.goto(address)
    Session.objects.all().delete()
    hurry(page)

    note = page.locator(".task-runs-note:visible")
    expect(note).to_have_text("You are logged out: reload the page to see how it goes on.")
    assert is_quiet(page, asked)
    assert all("403" in text for text in complaints)
    complaints.clear()


def test_a_redirect_to_a_login_is_being_logged_out(
    page: Page, own_run: Callable[..., TaskRunRecord], asked: list[Request]
) -> None:
    def redirect(route: Route) -> None:
        route.fulfill(status=302, headers={"Location": "/admin/login/"})

    own_run()
    page.goto(LIST)
    page.route("**/live/**", redirect)
    hurry(page)

    expect(page.locator(".task-runs-note")).to_contain_text("You are logged out")
    assert is_quiet(page, asked)


def test_many_tags_in_a_page_ask_one_question(
    page: Page, user: User, asked: list[Request]
) -> None:
    make_runs(50, run_by=user, state=State.STARTED, label="Report")
    page.goto(MANY)
    finish(TaskRunRecord.objects.latest("pk"))
    with page.expect_request("**/live/changes/**"):
        hurry(page, 2)

    # In two lists, and by itself.
    expect(page.locator(".task-run[data-state=SUCCESS]")).to_have_count(3)
    assert len(asked) <= 2
    assert page.locator("script").count() == 1
    assert page.locator("link[rel=stylesheet]").count() == 1


def test_what_would_make_the_address_too_long_is_asked_another_way(
    page: Page, user: User, asked: list[Request]
) -> None:
    make_runs(payload.RUNS_MAX + 20, run_by=user, state=State.STARTED, label="Report")
    page.goto(LIST)
    expect(page.get_by_text("There are more; these are the newest.")).to_be_visible()
    finish(TaskRunRecord.objects.latest("pk"))
    hurry(page)

    expect(page.locator(".task-run[data-state=SUCCESS]")).to_have_count(1)
    assert max(len(request.url) for request in asked) < 4000


def test_of_many_single_runs_so_many_are_asked_for_as_the_server_takes(
    page: Page, user: User, asked: list[Request]
) -> None:
    make_runs(payload.RUNS_MAX + 20, run_by=user, state=State.STARTED, label="Report")
    page.goto(SINGLES)
    finish(TaskRunRecord.objects.earliest("pk"))
    hurry(page)

    expect(page.locator(".task-run[data-state=SUCCESS]")).to_have_count(1)
    ids = parse_qs(urlsplit(asked[0].url).query)["ids"][0].split(",")
    assert len(ids) == payload.RUNS_MAX


def test_single_runs_are_asked_for_until_they_have_ended(
    page: Page, own_run: Callable[..., TaskRunRecord], asked: list[Request]
) -> None:
    run = own_run()
    page.goto(SINGLES)
    finish(run)
    hurry(page)
    expect(state_in(page)).to_have_text("Succeeded")

    assert is_quiet(page, asked)
    assert is_seen(run)


def test_a_page_of_single_runs_that_have_ended_asks_nothing(
    page: Page, own_run: Callable[..., TaskRunRecord], asked: list[Request]
) -> None:
    own_run(state=State.SUCCESS)
    page.goto(SINGLES)

    assert is_quiet(page, asked)
    assert asked == []


def test_a_single_run_that_was_deleted_does_not_keep_the_others_from_going_on(
    page: Page,
    own_run: Callable[..., TaskRunRecord],
    asked: list[Request],
    complaints: list[str],
) -> None:
    own_run(label="Deleted").delete()
    deleted, other = own_run(label="Deleted"), own_run(label="Other")
    page.goto(SINGLES)
    deleted.delete()
    hurry(page, 2)
    wait_for(page, lambda: len(asked) >= 3)
    finish(other)
    hurry(page)

    expect(state_in(page, "Other")).to_have_text("Succeeded")
    expect(state_in(page, "Deleted")).to_have_text("Running")
    expect(page.locator(".task-runs-note:visible")).to_have_count(0)
    assert is_quiet(page, asked)
    assert all("403" in text for text in complaints)
    complaints.clear()


# ---- The end, and after ----


def test_a_run_that_ended_is_shown_for_half_a_minute_and_leaves(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    run = own_run()
    page.goto(LIST)
    finish(run)
    hurry(page, 12)
    expect(state_in(page)).to_have_text("Succeeded")
    # Another tab saw it, and it was pruned at once.
    run.delete()
    hurry(page, 12)
    page.wait_for_timeout(100)
    expect(state_in(page)).to_have_text("Succeeded")
    hurry(page, 40)
    page.wait_for_timeout(100)
    hurry(page, 40)

    expect(page.locator(".task-run")).to_have_count(0)
    expect(page.get_by_text("Nothing is running.")).to_be_visible()


def test_a_run_under_the_focus_does_not_leave(
    page: Page, own_run: Callable[..., TaskRunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "result_url", lambda run: "#result")
    run = own_run(state=State.SUCCESS, seen_at=timezone.now())
    page.goto(LIST)
    link = page.get_by_role("link", name="Show the result: Report")
    link.focus()
    run.delete()
    hurry(page, 20)
    page.wait_for_timeout(100)
    hurry(page, 20)
    expect(link).to_be_focused()
    link.blur()
    hurry(page, 5)

    expect(page.locator(".task-run")).to_have_count(0)


def test_the_ends_of_many_runs_are_marked_in_one_question(page: Page, user: User) -> None:
    runs = make_runs(40, run_by=user, label="Report")
    marks: list[Request] = []
    page.on("request", lambda request: request.method == "POST" and marks.append(request))
    page.goto(MANY)
    hurry(page, 3)

    wait_for(page, lambda: all(map(is_seen, runs)))
    assert len(marks) == 1


def test_what_is_not_to_be_seen_is_not_marked(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    run = own_run(state=State.SUCCESS)
    page.goto(LIST)
    page.evaluate("document.querySelector('main').hidden = true")
    hurry(page, 20)
    page.wait_for_timeout(100)
    assert not is_seen(run)
    page.evaluate("document.querySelector('main').hidden = false")
    hurry(page, 3)

    wait_for(page, lambda: is_seen(run))


def test_a_deleted_run_does_not_keep_others_from_being_marked(
    page: Page, own_run: Callable[..., TaskRunRecord], complaints: list[str]
) -> None:
    runs = [own_run(state=State.SUCCESS) for _ in range(5)]
    page.goto(SINGLES)
    runs[1].delete()
    hurry(page, 3)

    wait_for(page, lambda: all(is_seen(run) for run in (runs[0], runs[2], runs[3], runs[4])))
    assert all("403" in text for text in complaints)
    complaints.clear()


def test_a_run_that_goes_on_after_all_is_followed_again(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    run = own_run(state=State.LOST)
    page.goto(LIST)
    hurry(page, 3)
    wait_for(page, lambda: is_seen(run))
    change(run, state=State.STARTED, finished_at=None, seen_at=None)
    hurry(page)
    expect(state_in(page)).to_have_text("Running")
    finish(run)
    hurry(page, 3)
    expect(state_in(page)).to_have_text("Succeeded")
    hurry(page, 3)
    wait_for(page, lambda: is_seen(run))
    run.delete()
    hurry(page, 12)

    # Its time is that since it ended again.
    expect(state_in(page)).to_have_text("Succeeded")


def test_what_another_tab_has_seen_leaves_here_too(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    own_run(state=State.SUCCESS)
    page.goto(LIST)
    other = page.context.new_page()
    other.goto(LIST)
    expect(other.locator(".task-run[data-seen]")).to_have_count(1)
    TaskRunRecord.objects.update(seen_at=timezone.now() - timedelta(minutes=1))
    for _ in range(5):
        hurry(page, 15)
        page.wait_for_timeout(50)

    expect(page.locator(".task-run")).to_have_count(0)


# ---- Whoever else is in the page ----


def test_rows_that_other_scripts_remove_are_asked_for_no_more(
    page: Page, own_run: Callable[..., TaskRunRecord], asked: list[Request]
) -> None:
    own_run()
    page.goto(SINGLES)
    page.evaluate("document.querySelector('main').replaceChildren()")
    hurry(page, 3)
    page.wait_for_timeout(50)

    assert is_quiet(page, asked)


def test_rows_that_other_scripts_add_are_followed(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    run = own_run()
    page.goto(SINGLES)
    page.evaluate("window.kept = document.querySelector('main'); kept.remove()")
    hurry(page, 60)
    page.wait_for_timeout(50)
    finish(run)
    page.evaluate("document.body.append(kept)")

    expect(state_in(page)).to_have_text("Succeeded")


@pytest.mark.parametrize(
    "selector",
    [
        "[data-task-runs-list]",
        "[data-task-runs-empty]",
        "[data-task-runs-news]",
        "[data-task-runs-note]",
        "[data-task-run-progress]",
        "[data-task-runs]",
        "[data-task-runs-config]",
        "head",
        "body",
    ],
)
def test_an_element_that_is_missing_breaks_nothing(
    page: Page, own_run: Callable[..., TaskRunRecord], complaints: list[str], selector: str
) -> None:
    run = own_run()
    page.goto(LIST)
    page.evaluate("s => document.querySelectorAll(s).forEach(found => found.remove())", selector)
    change(run, progress_current=3, progress_total=4)
    hurry(page)
    page.wait_for_timeout(50)
    own_run()
    finish(run)
    hurry(page)
    page.wait_for_timeout(50)
    run.delete()
    Session.objects.all().delete()
    hurry(page)
    page.wait_for_timeout(50)

    assert [text for text in complaints if "403" not in text] == []
    complaints.clear()


def test_a_page_that_comes_back_from_the_cache_goes_on(
    page: Page, own_run: Callable[..., TaskRunRecord], asked: list[Request]
) -> None:
    run = own_run()
    page.goto(LIST)
    page.evaluate("window.dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    assert is_quiet(page, asked)
    finish(run)
    page.evaluate("window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")

    expect(state_in(page)).to_have_text("Succeeded")


def test_a_clock_that_is_put_back_changes_nothing(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    run = own_run()
    page.goto(LIST)
    page.evaluate("Date.now = () => 0")
    finish(run)
    hurry(page)
    expect(state_in(page)).to_have_text("Succeeded")
    hurry(page, 3)

    wait_for(page, lambda: is_seen(run))


def test_a_script_that_is_loaded_twice_works_once(
    page: Page, own_run: Callable[..., TaskRunRecord], asked: list[Request]
) -> None:
    own_run()
    page.goto(LIST)
    source = page.locator("script").get_attribute("src")
    page.add_script_tag(url=source)
    with page.expect_request("**/live/changes/**"):
        hurry(page, 1.2)
    page.wait_for_timeout(50)

    assert len(asked) == 1


# ---- For everybody ----


def test_the_list_has_a_name_and_states_are_announced_and_steps_are_not(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    run = own_run(progress_current=1, progress_total=4)
    page.goto(LIST)
    region = page.get_by_role("region", name="Your tasks")
    expect(region.get_by_role("list").get_by_role("listitem")).to_have_count(1)
    expect(region.get_by_role("progressbar", name="Progress of Report")).to_be_visible()
    news = region.get_by_role("status")
    change(run, progress_current=2, retries=1)
    hurry(page, 3)
    expect(region.get_by_role("progressbar")).to_have_attribute("value", "50")
    tick(page, 0.5)
    assert news.text_content() == ""
    finish(run, State.FAILURE)

    wait_for(page, lambda: tick(page, 0.3) or news.text_content() == "Report: Failed")
    assert page.locator("[aria-live], [role=status], [role=alert]").count() == 1


def test_a_page_of_single_runs_announces_their_states_too(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    run = own_run()
    page.goto(SINGLES)
    finish(run)
    news = page.get_by_role("status")

    wait_for(page, lambda: tick(page, 0.3) or news.text_content() == "Report: Succeeded")


@pytest.mark.parametrize("width", [1200, 390, 240])
@pytest.mark.parametrize("address", [LIST, MANY])
def test_nothing_is_wider_than_the_page(
    page: Page, own_run: Callable[..., TaskRunRecord], width: int, address: str
) -> None:
    own_run(label="x" * 200, progress_current=1, progress_total=3, progress_message="y" * 255)
    page.set_viewport_size({"width": width, "height": 600})
    page.goto(address)

    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_state_is_to_be_read_on_its_ground(
    page: Page, own_run: Callable[..., TaskRunRecord], scheme: str
) -> None:
    for state in State:
        own_run(state=state)
    page.emulate_media(color_scheme=scheme)
    page.goto(LIST)
    page.evaluate("document.documentElement.style.colorScheme = 'light dark'")

    # Colours are painted on each other as the browser does it, and compared as WCAG says.
    contrasts = page.evaluate(
        """() => {
            const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
            const paint = canvas.getContext('2d', {willReadFrequently: true});
            const over = colours => {
                paint.clearRect(0, 0, 1, 1);
                for (const colour of colours) {
                    paint.fillStyle = colour;
                    paint.fillRect(0, 0, 1, 1);
                }
                return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
            };
            const luminance = parts => parts
                .map(part => part / 255)
                .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
                .reduce((sum, part, number) => sum + part * [0.2126, 0.7152, 0.0722][number], 0);
            const isDark = matchMedia('(prefers-color-scheme: dark)').matches;
            return [...document.querySelectorAll(
                '.task-run-state, .task-run-time, .task-run-label',
            )].map(element => {
                const grounds = [];
                for (let around = element; around; around = around.parentElement) {
                    grounds.unshift(getComputedStyle(around).backgroundColor);
                }
                grounds.unshift(isDark ? '#121212' : '#fff');
                const pair = [over(grounds), over([...grounds, getComputedStyle(element).color])]
                    .map(luminance).sort((one, other) => other - one);
                return (pair[0] + 0.05) / (pair[1] + 0.05);
            });
        }"""
    )

    assert len(contrasts) == 3 * len(State)
    assert min(contrasts) >= 4.5


def test_who_wants_no_motion_gets_none(page: Page, own_run: Callable[..., TaskRunRecord]) -> None:
    own_run(progress_message="somewhere")
    page.emulate_media(reduced_motion="reduce")
    page.goto(LIST)
    expect(page.get_by_role("progressbar")).to_be_visible()

    assert page.evaluate("document.getAnimations().length") == 0


def test_the_page_allows_nothing_from_elsewhere_and_nothing_inline(
    page: Page, own_run: Callable[..., TaskRunRecord]
) -> None:
    own_run()
    response = page.goto(LIST)

    assert response is not None
    assert response.headers["content-security-policy"] == "default-src 'self'"


@pytest.mark.parametrize("javascript", [False], ids=["without JavaScript"])
def test_without_javascript_a_reload_shows_the_same(
    page: Page, own_run: Callable[..., TaskRunRecord], clock: None
) -> None:
    run = own_run()
    page.goto(LIST)
    change(run, state=State.STARTED, progress_current=3, progress_total=10)
    page.reload()

    expect(state_in(page)).to_have_text("Running")
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "30")


@pytest.fixture
def other_page(browser: Browser, live_server: LiveServer, complaints: list[str]) -> Iterator[Page]:
    """A page of another user."""
    client = Client()
    client.force_login(make_user(username="other"))
    cookie = client.cookies[django_settings.SESSION_COOKIE_NAME].value
    context = browser.new_context(base_url=live_server.url)
    context.add_cookies(
        [{"name": django_settings.SESSION_COOKIE_NAME, "value": cookie, "url": live_server.url}]
    )
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()


def test_of_two_users_neither_sees_nor_marks_the_runs_of_the_other(
    page: Page, own_run: Callable[..., TaskRunRecord], other_page: Page
) -> None:
    mine = own_run(label="Mine")
    theirs = own_run(label="Theirs", run_by=User.objects.get(username="other"))
    page.goto(MANY)
    other_page.goto(MANY)
    finish(theirs)
    hurry(page, 20)

    expect(other_page.locator(".task-run[data-state=SUCCESS]")).to_have_count(3)
    wait_until(lambda: other_page.wait_for_timeout(30) or is_seen(theirs))
    expect(page.locator(".task-run-label")).to_have_text(["Mine"] * 3)
    expect(other_page.locator(".task-run-label")).to_have_text(["Theirs"] * 3)
    assert not is_seen(mine)


# ---- By websocket: what the script says, and does with what it hears ----


class Server:
    """The other end of the page's websockets, in the test's hands.

    Playwright calls it where Django would open one more connection, which nobody closes: so it
    asks the database in another thread.
    """

    def __init__(self, user: User) -> None:
        self.user = user
        self.frames: list[dict[str, Any]] = []
        self.sockets: list[WebSocketRoute] = []
        self.is_there = True

    def accept(self, socket: WebSocketRoute) -> None:
        """Do as the consumer does: a snapshot, and answers."""
        self.sockets.append(socket)
        if not self.is_there:
            socket.close(code=1011)
            return
        socket.on_message(lambda text: self.hear(json.loads(text)))
        self.say_all()

    def hear(self, frame: dict[str, Any]) -> None:
        """Answer a frame of the page."""
        self.frames.append(frame)
        if frame["type"] == "snapshot":
            self.say_all()
            return
        for message in in_another_thread(lambda: list(self.answers_to(frame))):
            self.say(message)

    def answers_to(self, frame: dict[str, Any]) -> Iterator[Any]:
        """Do what a frame asks for."""
        runs = TaskRunRecord.objects.for_user(self.user).filter(pk__in=frame["ids"])
        if len(runs) != len(frame["ids"]):
            yield {"type": "error", "errors": {"__all__": ["No."]}}
        elif frame["type"] == "seen":
            runs.mark_seen(timezone.now())
            yield {"type": "seen", "ids": frame["ids"]}
        else:
            for run in runs:
                yield {"type": "state", "run": payload.run_payload(run)}

    def say(self, message: Any) -> None:
        """Send a message by the last websocket."""
        self.sockets[-1].send(json.dumps(message))

    def say_all(self) -> None:
        """Send what is for display."""
        runs = TaskRunRecord.objects.for_display(self.user)
        self.say(in_another_thread(lambda: payload.snapshot(runs)))

    def say_state(self, run: TaskRunRecord) -> None:
        """Send a run as it is."""
        run.refresh_from_db()
        self.say({"type": "state", "run": payload.run_payload(run)})


@pytest.fixture
def server(page: Page, user: User, configure: Callable[..., None]) -> Server:
    """A websocket that the page is told of."""
    configure(WEBSOCKET_URL=SOCKET)
    server = Server(user)
    page.route_web_socket(re.compile(SOCKET), server.accept)
    return server


def test_by_websocket_the_page_shows_what_it_hears_and_does_not_ask(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server, asked: list[Request]
) -> None:
    run = own_run(progress_current=1, progress_total=10)
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    change(run, progress_current=9)
    run.refresh_from_db()
    server.say(payload.progress_message(run))
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "90")
    new = own_run(label="New")
    server.say_state(new)
    expect(state_in(page, "New")).to_have_text("Running")
    finish(run)
    server.say_state(run)
    expect(state_in(page, "Report")).to_have_text("Succeeded")
    hurry(page, 3)
    wait_for(page, lambda: is_seen(run))
    hurry(page, 60)

    assert [frame for frame in server.frames if frame["type"] == "seen"] == [
        {"type": "seen", "ids": [run.pk]}
    ]
    assert asked == []
    assert len(server.sockets) == 1
    assert server.sockets[0].url.startswith("ws://")


def test_by_websocket_a_step_in_another_state_than_is_shown_has_the_page_ask(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server
) -> None:
    run = own_run()
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    change(run, state=State.RETRY, progress_current=1, progress_total=2)
    run.refresh_from_db()
    server.say(payload.progress_message(run))

    expect(state_in(page)).to_have_text("Retrying")
    assert {"type": "snapshot"} in server.frames


def test_by_websocket_single_runs_are_followed_by_their_ids(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server
) -> None:
    # In nobody's list: a run that another started, without a label of its own.
    run = own_run(label="", parent_id="parent")
    page.goto(MANY)
    wait_for(page, lambda: {"type": "follow", "ids": [run.pk]} in server.frames)
    finish(run)
    server.say_state(run)

    expect(page.locator(".task-run-state")).to_have_text(["Succeeded"])


def test_by_websocket_runs_that_are_gone_leave(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server
) -> None:
    run = own_run(state=State.SUCCESS, seen_at=timezone.now())
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    server.say({"type": "gone", "ids": [run.pk]})
    page.wait_for_timeout(50)
    hurry(page, 2)

    expect(page.get_by_text("Nothing is running.")).to_be_visible()


def test_without_the_websocket_the_page_asks_and_has_it_again_when_it_is_back(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server, asked: list[Request]
) -> None:
    run = own_run()
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    server.is_there = False
    server.sockets[-1].close(code=1001)
    page.wait_for_timeout(50)
    for _ in range(30):
        tick(page, 10)
    tried = len(server.sockets)
    assert 5 <= tried <= 16
    change(run, state=State.RETRY)
    hurry(page, 15)
    expect(state_in(page)).to_have_text("Retrying")
    assert asked
    server.is_there = True
    for _ in range(16):
        tick(page, 5)
    wait_for(page, lambda: len(server.sockets) > tried)
    page.wait_for_timeout(50)

    assert is_quiet(page, asked)


def test_while_no_websocket_answers_the_page_asks(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server
) -> None:
    run = own_run()
    server.say_all = lambda: None  # type: ignore[method-assign]
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    finish(run)
    hurry(page, 3)

    expect(state_in(page)).to_have_text("Succeeded")


def test_an_answer_that_is_older_than_what_the_websocket_has_said_is_dropped(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server
) -> None:
    run = own_run()
    server.say_all = lambda: None  # type: ignore[method-assign]
    answers: list[tuple[Route, APIResponse]] = []
    page.route("**/live/changes/**", lambda route: answers.append((route, route.fetch())))
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    change(run, state=State.RETRY)
    tick(page, 2)
    wait_for(page, lambda: answers)
    finish(run)
    Server.say_all(server)
    expect(state_in(page)).to_have_text("Succeeded")
    route, response = answers[0]
    assert "RETRY" in response.text()
    route.fulfill(response=response)
    page.wait_for_timeout(100)

    expect(state_in(page)).to_have_text("Succeeded")


def test_a_websocket_that_is_silent_when_asked_is_given_up(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server
) -> None:
    run = own_run()
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    server.say_all = lambda: None  # type: ignore[method-assign]
    set_hidden(page, True)
    set_hidden(page, False)
    finish(run)
    hurry(page, 12)
    page.wait_for_timeout(50)
    hurry(page, 3)

    expect(state_in(page)).to_have_text("Succeeded")
    assert {"type": "snapshot"} in server.frames


def test_a_websocket_that_has_gone_without_a_word_is_given_up(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server
) -> None:
    run = own_run()
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    server.say_all = lambda: None  # type: ignore[method-assign]
    finish(run)
    for seconds in (46, 11, 3):
        tick(page, seconds)

    expect(state_in(page)).to_have_text("Succeeded")
    assert server.frames == [{"type": "snapshot"}]


def test_not_all_pages_have_their_lost_websocket_again_in_the_same_second(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server
) -> None:
    own_run()
    page.add_init_script("Math.random = () => 0.99;")
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    tick(page, 20)
    server.sockets[-1].close(code=1001)
    page.wait_for_timeout(50)
    tick(page, 5)
    number = len(server.sockets)
    tick(page, 5)
    wait_for(page, lambda: len(server.sockets) == 2)

    assert number == 1


def test_a_page_that_is_hidden_for_long_closes_its_websocket(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server, asked: list[Request]
) -> None:
    run = own_run()
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    closed: list[object] = []
    server.sockets[-1].on_close(lambda *reason: closed.append(reason))
    set_hidden(page, True)
    hurry(page, 70)
    wait_for(page, lambda: closed)
    assert is_quiet(page, asked)
    finish(run)
    set_hidden(page, False)

    expect(state_in(page)).to_have_text("Succeeded")
    assert len(server.sockets) == 2


def test_what_ends_while_the_page_is_hidden_is_seen_when_it_is_shown(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server
) -> None:
    run = own_run()
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    page.wait_for_timeout(50)
    set_hidden(page, True)
    finish(run)
    server.say_state(run)
    expect(state_in(page)).to_have_text("Succeeded")
    hurry(page, 10)
    assert not is_seen(run)
    set_hidden(page, False)
    hurry(page, 3)

    wait_for(page, lambda: is_seen(run))


def test_an_error_by_websocket_finds_out_by_asking(
    page: Page,
    own_run: Callable[..., TaskRunRecord],
    server: Server,
    complaints: list[str],
) -> None:
    deleted, other = own_run(label="Deleted"), own_run(label="Other")
    say_all = server.say_all

    def delete_and_say_all() -> None:
        in_another_thread(TaskRunRecord.objects.filter(label="Deleted").delete)
        say_all()

    server.say_all = delete_and_say_all  # type: ignore[method-assign]
    page.goto(SINGLES)
    wait_for(page, lambda: {"type": "follow", "ids": [deleted.pk, other.pk]} in server.frames)
    wait_for(page, lambda: {"type": "follow", "ids": [other.pk]} in server.frames)
    finish(other)
    server.say_state(other)

    expect(state_in(page, "Other")).to_have_text("Succeeded")
    complaints.clear()


@pytest.mark.parametrize(
    "junk",
    ["", "{", "null", "[]", "3", '"x"', "{}", '{"type": "later"}', '{"type": "error"}'],
)
def test_what_the_page_does_not_understand_does_no_harm(
    page: Page, own_run: Callable[..., TaskRunRecord], server: Server, junk: str
) -> None:
    run = own_run()
    page.goto(LIST)
    wait_for(page, lambda: server.sockets)
    server.sockets[-1].send(junk)
    finish(run)
    server.say_state(run)

    expect(state_in(page)).to_have_text("Succeeded")


@pytest.mark.parametrize("url", ["gopher://elsewhere/", "http://["])
def test_a_websocket_that_can_not_be_is_no_error(
    page: Page, own_run: Callable[..., TaskRunRecord], configure: Callable[..., None], url: str
) -> None:
    configure(WEBSOCKET_URL=url)
    run = own_run()
    page.goto(LIST)
    finish(run)
    hurry(page, 3)

    expect(state_in(page)).to_have_text("Succeeded")
