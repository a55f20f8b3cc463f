"""A real browser for the tests: ``pytest_plugins = ["tests.browser"]`` brings its fixtures.

Imported by nobody else, so that pytest can rewrite its asserts.

``TEST_BROWSER`` names the Chromium to use; without it these tests are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from django.conf import settings
from django.test import Client
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)
from pytest_django.live_server_helper import LiveServer

from tests.factories import make_superuser

# Five seconds, which is the default, are short for a machine that does a dozen other things.
expect.set_options(timeout=30_000)

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, headless."""
    if not BROWSER:
        pytest.skip("TEST_BROWSER names no Chromium")
    # Playwright runs an event loop in this thread, which Django would take for async code.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=list(OPTIONS))
        yield chromium
        chromium.close()
    if before is None:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture
def javascript() -> bool:
    """Whether the page runs scripts; a test parametrizes this."""
    return True


@pytest.fixture
def complaints() -> list[str]:
    """What the page complained about; what is left here at the end fails the test."""
    return []


@pytest.fixture
def page(
    browser: Browser, live_server: LiveServer, javascript: bool, complaints: list[str]
) -> Iterator[Page]:
    """A page of a superuser who is logged in; whatever it complains about fails the test."""
    client = Client()
    client.force_login(make_superuser(username="operator"))
    cookie = client.cookies[settings.SESSION_COOKIE_NAME].value
    context = browser.new_context(java_script_enabled=javascript, base_url=live_server.url)
    context.add_cookies(
        [{"name": settings.SESSION_COOKIE_NAME, "value": cookie, "url": live_server.url}]
    )
    yield watched_page(context, complaints.append)
    context.close()
    assert complaints == []


def watched_page(context: BrowserContext, complain: Callable[[str], None]) -> Page:
    """Open a page; its errors are complaints."""
    page = context.new_page()
    page.on("pageerror", lambda error: complain(str(error)))

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.location["url"].endswith("/favicon.ico"):
            complain(message.text)

    page.on("console", listen)
    return page
