"""A page that follows its user's runs by a websocket of a real server, in a real browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

pytest.importorskip("daphne", reason="the extra [websocket] is not installed")

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_user
from tests.waiting import PATIENCE, wait_until
from tests.websockets import PATH, cookie_of

pytest_plugins = ["tests.browser"]
pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/live-pages/list/"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running_daphne(port: int, websocket_url: str = PATH) -> Iterator[str]:
    """Run the test project under daphne, on the database of the tests; gives its address."""
    log = Path(settings.FOLDER) / f"daphne-{port}.log"
    environment = {
        **os.environ,
        "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
        "TEST_WEBSOCKET_URL": websocket_url,
        "TEST_CHANNEL_PREFIX": f"tests-{uuid4().hex}",
    }
    command = [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "tests.asgi:application"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:

        def is_up() -> bool:
            assert process.poll() is None, f"daphne has ended:\n{log.read_text()[-4000:]}"
            return listens(port)

        wait_until(is_up, why="daphne does not answer")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def server(django_db_setup: None, django_db_blocker: object) -> Iterator[str]:
    """daphne for all tests of this file; gives its address."""
    with running_daphne(free_port()) as url:
        yield url


Open = Callable[[User, str], Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open the list in a browser of its own in which a user is signed in."""
    contexts, complaints = [], []

    def open_list(user: User, url: str) -> Page:
        context = browser.new_context(base_url=url)
        contexts.append(context)
        cookie = {"name": settings.SESSION_COOKIE_NAME, "value": cookie_of(user), "url": url}
        context.add_cookies([cookie])
        page = context.new_page()
        # Not what it says of a server that is away.
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(LIST)
        return page

    yield open_list
    for context in contexts:
        context.close()
    assert complaints == []


def move(run: TaskRunRecord, target: State) -> None:
    ends = {} if target == State.STARTED else {"finished_at": timezone.now()}
    runs = TaskRunRecord.objects.filter(pk=run.pk)
    assert runs.transition(sources=list(State), target=target, **ends)


def own_run(user: User, label: str, state: State = State.PENDING) -> TaskRunRecord:
    return make_run(run_by=user, label=label, state=state)


def state_in(page: Page, label: str) -> object:
    return page.locator(".task-run", has_text=label).locator(".task-run-state")


def test_a_page_hears_by_its_websocket_and_asks_nothing(server: str, open_page: Open) -> None:
    user = make_user()
    run = own_run(user, "Report")
    page = open_page(user, server)
    frames: list[str] = []
    page.on(
        "websocket", lambda each: each.on("framereceived", lambda frame: frames.append(str(frame)))
    )
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))

    page.reload()
    expect(state_in(page, "Report")).to_have_text("Queued")
    wait_for(page, lambda: any("snapshot" in frame for frame in frames))
    asked.clear()
    move(run, State.STARTED)
    expect(state_in(page, "Report")).to_have_text("Running")
    new = own_run(user, "Another")
    expect(state_in(page, "Another")).to_have_text("Queued")
    for each in (run, new):
        move(each, State.SUCCESS)
    expect(state_in(page, "Report")).to_have_text("Succeeded")
    wait_for(page, lambda: not TaskRunRecord.objects.filter(seen_at=None).exists())

    assert asked == []


def test_two_users_see_and_mark_each_their_own(server: str, open_page: Open) -> None:
    one, two = make_user(), make_user()
    first, second = own_run(one, "Of one"), own_run(two, "Of two")
    pages = {one: open_page(one, server), two: open_page(two, server)}
    for user, label in ((one, "Of one"), (two, "Of two")):
        expect(state_in(pages[user], label)).to_have_count(1)

    move(first, State.SUCCESS)
    expect(state_in(pages[one], "Of one")).to_have_text("Succeeded")
    wait_for(pages[one], lambda: TaskRunRecord.objects.get(pk=first.pk).seen_at)
    move(second, State.FAILURE)
    expect(state_in(pages[two], "Of two")).to_have_text("Failed")

    expect(pages[one].locator(".task-run")).to_have_count(1)
    expect(pages[two].locator(".task-run")).to_have_count(1)
    expect(pages[one].get_by_text("Of two")).to_have_count(0)
    expect(pages[two].get_by_text("Of one")).to_have_count(0)


def test_what_ended_while_the_server_was_away_is_shown_when_it_is_there_again(
    open_page: Open,
) -> None:
    user, port = make_user(), free_port()
    run = own_run(user, "Report", State.STARTED)
    with running_daphne(port) as url:
        page = open_page(user, url)
        expect(state_in(page, "Report")).to_have_text("Running")
    move(run, State.SUCCESS)

    sockets: list[str] = []
    page.on("websocket", lambda each: sockets.append(each.url))
    with running_daphne(port):
        expect(state_in(page, "Report")).to_have_text("Succeeded", timeout=PATIENCE * 1000)
        wait_for(page, lambda: sockets)
        own = own_run(user, "Another", State.STARTED)
        expect(state_in(page, "Another")).to_have_text("Running", timeout=PATIENCE * 1000)
        move(own, State.FAILURE)
        expect(state_in(page, "Another")).to_have_text("Failed", timeout=PATIENCE * 1000)


def test_where_no_websocket_can_be_had_the_page_asks(open_page: Open) -> None:
    user = make_user()
    run = own_run(user, "Report", State.STARTED)

    with running_daphne(free_port(), "/ws/nothing-there/") as url:
        page = open_page(user, url)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(urlsplit(request.url).path))
        move(run, State.SUCCESS)
        expect(state_in(page, "Report")).to_have_text("Succeeded")

    assert any(path.startswith("/live/") for path in asked)


def wait_for(page: Page, condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds, and let the page's events come meanwhile."""

    def holds() -> object:
        page.wait_for_timeout(50)
        return condition()

    wait_until(holds)
