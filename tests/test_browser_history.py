"""The runs about an object, and its tasks, in a real browser under a strict policy."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from celery_admin_runner.models import TaskRunRecord
from tests.models import Report
from tests.test_admin_history import SHOUT, finish, url

pytest_plugins = ["tests.browser"]
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.test_admin_history"),
]


def test_a_task_is_run_by_keyboard_and_followed_on_the_page_of_its_object(page: Page) -> None:
    report = Report.objects.create(title="June")

    page.goto(url("change", report.pk))
    page.get_by_role("link", name="Run: Shout").press("Enter")
    page.get_by_role("textbox", name="Reason").fill("Audit")
    page.get_by_role("button", name="Yes, run it now").press("Enter")
    page.wait_for_url("**/taskrunrecord/*/change/")
    page.goto(url("change", report.pk))
    expect(page.get_by_role("link", name="Shout: Queued")).to_be_visible()
    page.get_by_role("link", name="Runs", exact=True).press("Enter")

    row = page.get_by_role("row", name=re.compile("Shout.*Audit"))
    expect(row.locator(".run-state")).to_have_text("Queued")
    finish()
    expect(row.locator(".run-state")).to_have_text("Succeeded")
    assert TaskRunRecord.objects.get().task_name == SHOUT
