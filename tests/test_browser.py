"""The main job in a real browser, with a real server, broker and worker."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.waiting import wait_for_state

pytest_plugins = ["tests.browser"]
pytestmark = pytest.mark.parametrize(
    "javascript", [True, False], ids=["with JavaScript", "without JavaScript"]
)


def test_a_task_is_run_from_the_list_to_its_success(worker: object, page: Page) -> None:
    page.goto("/admin/")
    page.get_by_role("link", name="Tasks", exact=True).first.click()
    # Not the search box of admin's sidebar.
    page.locator("#searchbar").fill("tests.tasks.add")
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


def test_no_column_of_the_task_list_is_cut_off_on_a_small_screen(page: Page) -> None:
    page.set_viewport_size({"width": 1300, "height": 800})
    page.goto("/admin/celery_admin_runner/celerytask/?q=tests.tasks.")

    table = page.locator("#result_list")
    widths = table.evaluate("table => [table.offsetWidth, table.parentElement.clientWidth]")

    assert widths[0] <= widths[1]
