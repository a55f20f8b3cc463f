"""The main job in a real browser, with a real server, broker and worker.

``TEST_BROWSER`` names the Chromium to use; without it these tests are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from pytest_django.live_server_helper import LiveServer

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_superuser
from tests.waiting import wait_for_state

BROWSER = os.environ.get("TEST_BROWSER", "")
#: So that Chromium starts in a container, and asks nobody outside of it.
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
PASSWORD = "only for tests"

pytestmark = pytest.mark.skipif(not BROWSER, reason="TEST_BROWSER names no Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, headless."""
    # Playwright runs an event loop in this thread, which Django would take for async code.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=list(OPTIONS))
        yield chromium
        chromium.close()
    if before is None:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def page(
    request: pytest.FixtureRequest, browser: Browser, live_server: LiveServer
) -> Iterator[Page]:
    """A page of a superuser who is logged in; whatever it complains about fails the test."""
    user = make_superuser(username="operator")
    user.set_password(PASSWORD)
    user.save()
    context = browser.new_context(java_script_enabled=request.param, base_url=live_server.url)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.location["url"].endswith("/favicon.ico"):
            complaints.append(message.text)

    page.on("console", listen)
    page.goto("/admin/")
    page.get_by_label("Username").fill("operator")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    yield page
    context.close()
    assert complaints == []


def test_a_task_is_run_from_the_list_to_its_success(worker: object, page: Page) -> None:
    page.get_by_role("link", name="Tasks", exact=True).first.click()
    page.get_by_role("searchbox").or_(page.locator("#searchbar")).first.fill("tests.tasks.add")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("row", name="tests.tasks.add").get_by_role("link", name="Run").click()
    page.locator("[name='args-a']").fill("40")
    page.get_by_role("button", name=re.compile("^Run")).click()
    run = TaskRunRecord.objects.get()
    wait_for_state(run, State.SUCCESS)
    page.reload()

    expect(page.locator("#content-main")).to_contain_text("Succeeded")
    expect(page.locator("#content-main")).to_contain_text("42")


def test_what_was_typed_is_kept_on_an_error(worker: object, page: Page) -> None:
    page.goto("/admin/celery_admin_runner/celerytask/tests.tasks.fail/run/")
    page.locator("[name='args-message']").fill("<b>kept</b>")
    page.locator("details summary").first.click()
    page.locator("[name='options-priority']").fill("-7")
    page.get_by_role("button", name=re.compile("^Run")).click()

    expect(page.locator("[name='args-message']")).to_have_value("<b>kept</b>")
    expect(page.locator("[name='options-priority']")).to_have_value("-7")
    assert not TaskRunRecord.objects.exists()


def test_a_task_is_run_with_json(worker: object, page: Page) -> None:
    page.goto("/admin/celery_admin_runner/celerytask/tests.tasks.add/run/")
    page.get_by_text("JSON", exact=True).first.click()
    page.locator("[name='json-args']").fill("[1]")
    page.locator("[name='json-kwargs']").fill('{"b": 3}')
    page.get_by_role("button", name=re.compile("^Run")).click()
    run = TaskRunRecord.objects.get()
    wait_for_state(run, State.SUCCESS)

    assert (run.args, run.kwargs, run.result) == ([1], {"b": 3}, 4)
