"""Customers of the example project who watch their reports: real processes, both transports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, StorageState, expect

from tests.demos import Demo, running_demo
from tests.waiting import wait_until

pytest_plugins = ["tests.browser"]

JOURNAL = "celery_admin_runner_taskrunrecord"
HAS_WEBSOCKET = all(map(find_spec, ("channels", "daphne")))
#: What the demo prints of how its page learns of changes.
PRINTED = {"polling": "Their page asks for changes", "websocket": "The server is daphne"}
#: What the page asks when it has no websocket.
CHANGES = "/task-runs/changes/"


@pytest.fixture(scope="module", params=["polling", "websocket"])
def transport(request: pytest.FixtureRequest) -> str:
    """How the page learns of changes."""
    if request.param == "websocket" and not HAS_WEBSOCKET:
        pytest.skip("channels and daphne are not installed")
    return str(request.param)


@pytest.fixture(scope="module")
def demo(
    browser: Browser, transport: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Demo]:
    """A demo whose page has this transport."""
    folder = tmp_path_factory.mktemp(transport)
    wanted = str(int(transport == "websocket"))
    with running_demo(folder, EXAMPLE_WEBSOCKET=wanted) as demo:
        assert PRINTED[transport] in demo.printed
        yield demo


class Customer:
    """A customer with a browser of his or her own."""

    def __init__(self, context: BrowserContext, name: str, complaints: list[str]) -> None:
        self.name = name
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: complaints.append(str(error)))
        self.page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
        self.sockets: list[str] = []
        self.questions: list[str] = []
        self.page.on("websocket", lambda socket: self.sockets.append(socket.url))
        self.page.on("request", lambda request: self.questions.append(request.url))
        self.page.goto("/reports/")

    def build(self, period: str) -> None:
        """Press the button."""
        self.page.get_by_label("Period").select_option(label=period)
        with self.page.expect_navigation():
            self.page.get_by_role("button", name="Build my report").click()

    def run(self, label: str) -> Locator:
        """Find what the page shows of the run that builds a report."""
        runs = self.page.get_by_role("region", name="Your tasks").get_by_role("listitem")
        return runs.filter(has_text=label)

    def asked(self) -> bool:
        """Tell whether the page asked for changes."""
        return any(CHANGES in url for url in self.questions)


@pytest.fixture(scope="module")
def sessions(browser: Browser, demo: Demo) -> dict[str, StorageState]:
    """The cookies of two customers who have logged in, each with a browser of their own."""
    return {name: log_in(browser, demo, name) for name in ("customer", "customer2")}


def log_in(browser: Browser, demo: Demo, name: str) -> StorageState:
    context = browser.new_context(base_url=demo.site)
    page = context.new_page()
    page.goto("/reports/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(name)
    page.get_by_role("main").get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="My reports")).to_be_visible()
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def customers(
    browser: Browser, demo: Demo, sessions: dict[str, StorageState]
) -> Iterator[list[Customer]]:
    """Two customers, each on the page with the reports; a complaint of it fails the test."""
    complaints: list[str] = []
    contexts = [
        browser.new_context(base_url=demo.site, storage_state=state) for state in sessions.values()
    ]
    yield [
        Customer(context, name, complaints)
        for context, name in zip(contexts, sessions, strict=True)
    ]
    for context in contexts:
        context.close()
    assert complaints == []


def seen_by(demo: Demo, customer: Customer) -> list[bool]:
    """Return of each run of a customer whether it is marked as seen, the oldest first."""
    query = f"SELECT seen_at IS NOT NULL FROM {JOURNAL} WHERE run_by_name = ? ORDER BY id"
    return [bool(seen) for (seen,) in demo.rows(query, customer.name)]


def unfinished(demo: Demo) -> bool:
    query = f"SELECT count(*) FROM {JOURNAL} WHERE finished_at IS NULL AND source = 'code'"
    return demo.rows(query) != [(0,)]


def is_within(page: Page) -> bool:
    """Tell whether the page is no wider than the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_two_customers_at_once_each_watch_their_own_report(
    demo: Demo, transport: str, customers: list[Customer]
) -> None:
    anna, bruno = customers

    anna.build("Everything so far")
    bruno.build("The last 7 days")

    mine, other = anna.run("My orders: everything so far"), bruno.run("My orders: the last 7 days")
    for run in (mine, other):
        expect(run).to_contain_text("Running")
        expect(run.get_by_role("progressbar")).to_be_visible()
        expect(run).to_contain_text(re.compile("paid|to pay|Sorting"))
    # He does not wait for the end of his.
    bruno.page.goto("/")
    expect(mine).to_contain_text("Succeeded")
    wait_until(lambda: seen_by(demo, anna)[-1:] == [True], why="What she saw is not marked")
    wait_until(lambda: not unfinished(demo), why="His report is not built")
    assert seen_by(demo, bruno)[-1:] == [False]
    bruno.page.goto("/reports/")
    expect(other).to_contain_text("Succeeded")
    wait_until(lambda: seen_by(demo, bruno)[-1:] == [True], why="What he saw is not marked")
    expect(bruno.page.get_by_role("main")).not_to_contain_text("everything so far")
    expect(anna.page.get_by_role("main")).not_to_contain_text("the last 7 days")
    for customer in customers:
        assert bool(customer.sockets) is (transport == "websocket")
        assert customer.asked() is (transport == "polling")


def test_the_report_is_a_click_away_when_it_is_built(
    demo: Demo, customers: list[Customer]
) -> None:
    anna, bruno = customers

    built = anna.page.locator("#reports").get_by_role("link", name="everything so far")
    before = built.count()

    anna.build("Everything so far")
    # In the list below too, without a reload.
    expect(built).to_have_count(before + 1)
    anna.run("My orders: everything so far").first.get_by_role("link").click()

    expect(anna.page.get_by_role("heading", name="My orders: everything so far")).to_be_visible()
    expect(anna.page.get_by_text("What you like best")).to_be_visible()
    [(key,)] = demo.rows("SELECT max(id) FROM shop_report")
    assert anna.page.url == f"{demo.site}reports/{key}/"
    refused = bruno.page.request.get(anna.page.url)
    assert refused.status == 404


def test_a_reload_shows_a_run_where_it_is(demo: Demo, customers: list[Customer]) -> None:
    anna = customers[0]
    anna.build("The last 30 days")
    run = anna.run("My orders: the last 30 days").filter(has_text="Running")
    expect(run.get_by_role("progressbar")).to_be_visible()

    anna.page.reload()

    expect(run).to_have_count(1)
    expect(run).to_have_count(0)
    expect(anna.run("My orders: the last 30 days").get_by_role("link")).to_be_visible()


def test_a_report_that_fails_is_seen_to_fail(demo: Demo, customers: list[Customer]) -> None:
    anna = customers[0]

    anna.build("The years before (fails, to see that too)")

    run = anna.run("My orders: the years before")
    expect(run).to_contain_text("Failed")
    expect(run.get_by_role("link")).to_have_count(0)
    expect(anna.page.get_by_role("main")).not_to_contain_text("archive does not answer")


def test_the_page_of_a_report_follows_its_run_too(demo: Demo, customers: list[Customer]) -> None:
    anna = customers[0]
    anna.build("The last 7 days")
    [(key,)] = demo.rows("SELECT max(id) FROM shop_report")

    anna.page.goto(f"/reports/{key}/")

    expect(anna.page.get_by_text("This report is being built.")).to_be_visible()
    anna.page.get_by_role("link", name="Show the result").click()
    expect(anna.page.get_by_text("Still to pay")).to_be_visible()


def test_all_pages_fit_a_phone(demo: Demo, customers: list[Customer]) -> None:
    anna = customers[0]
    anna.page.set_viewport_size({"width": 390, "height": 800})

    anna.build("Everything so far")
    run = anna.run("My orders: everything so far").first

    expect(run.get_by_role("progressbar")).to_be_visible()
    assert is_within(anna.page)
    run.get_by_role("link").click()
    expect(anna.page.get_by_text("Week by week")).to_be_visible()
    assert is_within(anna.page)
    for path in ("/", "/login/"):
        anna.page.goto(path)
        assert is_within(anna.page)
