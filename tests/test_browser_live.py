"""Pages that follow their runs, in a real browser under a strict Content-Security-Policy."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path

import pytest
from django.contrib.sessions.models import Session
from django.utils import timezone
from playwright.sync_api import Page, Request, Route, expect

from celery_admin_runner.models import TaskRunOutput, TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run

pytest_plugins = ["tests.browser"]
pytestmark = pytest.mark.django_db(transaction=True)

JOURNAL = "/admin/celery_admin_runner/taskrunrecord/"


def page_of(run: TaskRunRecord) -> str:
    return f"{JOURNAL}{run.pk}/change/"


def change(run: TaskRunRecord, **fields: object) -> None:
    TaskRunRecord.objects.filter(pk=run.pk).update(**fields)


def finish(run: TaskRunRecord, state: State = State.SUCCESS, **fields: object) -> None:
    change(run, state=state, finished_at=timezone.now(), **fields)


def add_output(run: TaskRunRecord, *texts: str, stream: str = "stdout") -> None:
    start = 10 * run.output.count() + 10
    TaskRunOutput.objects.bulk_create(
        TaskRunOutput(run=run, seq=number, stream=stream, text=text)
        for number, text in zip(count(start, 10), texts, strict=False)
    )


@pytest.fixture(autouse=True)
def clock(page: Page) -> None:
    """A clock that tests can hurry; left alone it goes as ever."""
    page.clock.install()


def hurry(page: Page) -> None:
    """Let the page ask now."""
    page.clock.run_for(16_000)


def is_quiet(page: Page, asked: list[Request]) -> bool:
    """Tell whether the page asks nothing any more."""
    number = len(asked)
    for _ in range(3):
        hurry(page)
        page.wait_for_timeout(50)
    return len(asked) == number


@pytest.fixture
def asked(page: Page) -> list[Request]:
    """The questions that the page has asked."""
    requests: list[Request] = []
    page.on(
        "request", lambda request: ("/live/" in request.url and requests.append(request)) or None
    )
    return requests


@pytest.fixture
def hide(page: Page) -> Callable[[bool], None]:
    """Hide or show the tab, as far as its scripts can tell."""

    def set_hidden(is_hidden: bool) -> None:
        page.evaluate(
            """isHidden => {
                Object.defineProperty(document, 'hidden', {value: isHidden, configurable: true});
                document.dispatchEvent(new Event('visibilitychange'));
            }""",
            is_hidden,
        )

    return set_hidden


def test_a_run_is_followed_from_the_queue_to_its_success(
    worker: object, page: Page, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    page.goto("/admin/celery_admin_runner/celerytask/tests.talking_tasks.talk_until/run/")
    page.locator("[name='args-path']").fill(str(gate))
    page.get_by_role("button", name=re.compile("^Run")).click()
    page.wait_for_url("**/taskrunrecord/*/change/")
    page.evaluate("window.isSamePage = true")

    expect(page.locator(".run-head .run-state")).to_have_text("Running")
    expect(page.locator("#run-output pre")).to_have_text("one")
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "3")
    expect(page.locator(".run-progress")).to_contain_text("3 / 10 third")
    gate.write_text("the result")
    expect(page.locator(".run-head .run-state")).to_have_text("Succeeded")
    expect(page.locator(".field-result_field")).to_contain_text("the result")
    expect(page.locator("#run-output pre .run-piece-log")).to_contain_text("two")
    assert page.evaluate("window.isSamePage")


def test_a_finished_run_is_not_asked_for_again(page: Page, asked: list[Request]) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    finish(run)
    hurry(page)
    expect(page.locator(".run-head .run-state")).to_have_text("Succeeded")

    assert is_quiet(page, asked)


def test_it_asks_more_and_more_seldom_while_nothing_changes(
    page: Page, asked: list[Request]
) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    times = []
    for second in range(0, 60, 2):
        before = len(asked)
        page.clock.run_for(2000)
        page.wait_for_timeout(30)
        times += [second] * (len(asked) - before)

    waits = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] == 0
    assert 6 <= len(times) <= 9
    assert max(waits[-2:]) > waits[0]


def test_a_hidden_tab_does_not_ask(
    page: Page, asked: list[Request], hide: Callable[[bool], None]
) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    hide(True)
    finish(run)

    assert is_quiet(page, asked)
    hide(False)
    expect(page.locator(".run-head .run-state")).to_have_text("Succeeded")


def test_without_the_server_the_page_says_so_and_tries_again(
    page: Page, complaints: list[str]
) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    page.route("**/live/*", lambda route: route.abort("connectionrefused"))
    hurry(page)
    expect(page.locator("#run-live-note")).to_have_text("No answer from the server; trying again.")
    page.unroute("**/live/*")
    finish(run)
    hurry(page)

    expect(page.locator(".run-head .run-state")).to_have_text("Succeeded")
    expect(page.locator("#run-live-note")).to_have_text("")
    assert all("net::ERR" in text for text in complaints)
    complaints.clear()


@pytest.mark.parametrize(("status", "body"), [(502, "Bad gateway"), (200, "<html>Later</html>")])
def test_an_answer_that_is_none_is_asked_for_again(
    page: Page, complaints: list[str], status: int, body: str
) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    page.route("**/live/*", lambda route: route.fulfill(status=status, body=body))
    hurry(page)

    expect(page.locator("#run-live-note")).to_have_text("No answer from the server; trying again.")
    expect(page.locator(".run-head .run-state")).to_have_text("Running")
    complaints.clear()


def test_who_is_logged_out_is_told_so(
    page: Page, asked: list[Request], complaints: list[str]
) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    Session.objects.all().delete()
    hurry(page)

    expect(page.locator("#run-live-note")).to_contain_text("you are logged out")
    assert is_quiet(page, asked)
    expect(page.get_by_role("link", name="Reload")).to_be_visible()
    complaints.clear()


def test_a_redirect_to_a_login_is_being_logged_out(page: Page) -> None:
    def redirect(route: Route) -> None:
        route.fulfill(status=302, headers={"Location": "/admin/login/"})

    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    page.route("**/live/*", redirect)
    hurry(page)

    expect(page.locator("#run-live-note")).to_contain_text("you are logged out")


def test_a_run_that_was_pruned_is_said_to_be_gone(page: Page, complaints: list[str]) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    TaskRunRecord.objects.all().delete()
    hurry(page)

    expect(page.locator("#run-live-note")).to_contain_text("it is not in the journal")
    complaints.clear()


def test_the_output_is_followed_at_its_end_only(page: Page) -> None:
    run = make_run(state=State.STARTED)
    add_output(run, *(f"line {number}\n" for number in range(200)))
    page.goto(page_of(run))
    output = page.locator("#run-output pre")
    distance = "pre => pre.scrollHeight - pre.scrollTop - pre.clientHeight"
    assert output.evaluate(distance) < 2

    add_output(run, "new 1\n" * 20)
    hurry(page)
    expect(output).to_contain_text("new 1")
    assert output.evaluate(distance) < 2

    output.evaluate("pre => { pre.scrollTop = 40; }")
    add_output(run, "new 2\n" * 20)
    hurry(page)
    expect(output).to_contain_text("new 2")
    assert output.evaluate("pre => pre.scrollTop") == 40


def test_much_output_arrives_whole(page: Page, asked: list[Request]) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    add_output(run, *("x" * 60_000 + "\n" for _ in range(10)), "the end")
    finish(run)
    hurry(page)

    expect(page.locator("#run-output pre")).to_contain_text("the end")
    assert page.locator("#run-output pre").evaluate("pre => pre.textContent.length") == 600_017


def test_the_page_holds_the_end_of_endless_output(page: Page) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    add_output(run, *("x" * 60_000 + "\n" for _ in range(20)), "the end")
    hurry(page)

    expect(page.locator("#run-output pre")).to_contain_text("the end")
    length = page.locator("#run-output pre").evaluate("pre => pre.textContent.length")
    assert 2**20 - 60_001 < length <= 2**20
    expect(page.locator("#run-output-cut")).to_be_visible()


def test_a_note_of_what_was_left_out_stands_where_that_was(page: Page) -> None:
    run = make_run(state=State.STARTED)
    add_output(run, "head\n", "tail\n")
    page.goto(page_of(run))
    TaskRunOutput.objects.create(run=run, seq=15, stream="note", text="left out\n")
    add_output(run, "end\n")
    hurry(page)
    output = page.locator("#run-output pre")

    expect(output).to_have_text("head\nleft out\ntail\nend")
    add_output(run, "more\n")
    hurry(page)
    expect(output).to_have_text("head\nleft out\ntail\nend\nmore")


def test_a_button_keeps_its_focus(page: Page) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    button = page.get_by_role("link", name="Edit and run again")
    button.focus()
    finish(run)
    hurry(page)
    expect(page.locator(".run-head .run-state")).to_have_text("Succeeded")

    expect(button).to_be_focused()


def test_who_had_the_focus_on_a_button_that_is_gone_stays_in_its_place(page: Page) -> None:
    run = make_run(state=State.UNSENT)
    page.goto(page_of(run))
    page.get_by_role("button", name="Send again").focus()
    change(run, state=State.STARTED)
    hurry(page)
    expect(page.locator(".run-head .run-state")).to_have_text("Running")

    expect(page.locator("[data-live-part=head]")).to_be_focused()


def test_a_button_works_after_the_page_has_changed(page: Page) -> None:
    run = make_run(state=State.STARTED)
    page.goto(page_of(run))
    change(run, state=State.UNSENT, args=[1])
    hurry(page)
    page.get_by_role("button", name="Send again").click()

    expect(page.locator(".messagelist")).to_contain_text("The run was sent.")


def test_the_state_is_announced_and_the_output_is_not(page: Page) -> None:
    run = make_run(state=State.STARTED)
    add_output(run, "one")
    page.goto(page_of(run))

    expect(page.locator("[aria-live=polite] .run-state")).to_have_text("Running")
    assert page.locator("[aria-live] pre, pre[aria-live], [role=status] pre").count() == 0
    output = page.get_by_role("region", name="Output")
    output.focus()
    expect(output).to_be_focused()


def test_the_list_follows_its_unfinished_runs(page: Page, asked: list[Request]) -> None:
    now = timezone.now()
    first = make_run(state=State.PENDING, task_name="tests.tasks.add")
    second = make_run(state=State.PENDING, task_name="tests.tasks.fail")
    page.goto(JOURNAL)
    rows = {
        run: page.get_by_role("row", name=run.task_name).locator(".run-state")
        for run in (first, second)
    }

    change(first, state=State.STARTED, started_at=now)
    hurry(page)
    expect(rows[first]).to_have_text("Running")
    finish(first)
    hurry(page)
    expect(rows[first]).to_have_text("Succeeded")
    expect(page.get_by_role("row", name="tests.tasks.add")).to_contain_text(re.compile(r"\d m?s"))
    expect(rows[second]).to_have_text("Queued")
    finish(second, State.FAILURE)
    hurry(page)
    expect(rows[second]).to_have_text("Failed")

    assert is_quiet(page, asked)


def test_a_list_of_finished_runs_asks_nothing(page: Page, asked: list[Request]) -> None:
    make_run()
    page.goto(JOURNAL)

    assert is_quiet(page, asked)
    assert asked == []


@pytest.mark.parametrize("javascript", [False], ids=["without JavaScript"])
def test_without_javascript_a_reload_shows_the_same(page: Page) -> None:
    run = make_run(state=State.PENDING)
    page.goto(page_of(run))
    change(run, state=State.STARTED, progress_current=3, progress_total=10)
    add_output(run, "one\n")

    page.get_by_role("link", name="Reload").click()

    expect(page.locator(".run-head .run-state")).to_have_text("Running")
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "3")
    expect(page.locator("#run-output pre")).to_have_text("one")


def test_with_javascript_there_is_no_reload_button(page: Page) -> None:
    page.goto(page_of(make_run(state=State.STARTED)))

    expect(page.get_by_role("link", name="Reload")).to_be_hidden()


def test_the_page_allows_nothing_from_elsewhere_and_nothing_inline(page: Page) -> None:
    response = page.goto(page_of(make_run(state=State.STARTED)))

    assert response is not None
    assert response.headers["content-security-policy"] == "default-src 'self'"
