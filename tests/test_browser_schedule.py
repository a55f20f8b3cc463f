"""Runs that are kept until later, in a real browser: started, moved, and run now."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.factories import make_run
from tests.waiting import wait_for_state

pytest_plugins = ["tests.browser"]
pytestmark = pytest.mark.django_db(transaction=True)

JOURNAL = "/admin/celery_admin_runner/taskrunrecord/"


def schedule(page: Page) -> TaskRunRecord:
    """Fill in the form so that the task runs in an hour; return the run."""
    page.goto("/admin/celery_admin_runner/celerytask/tests.tasks.add/run/")
    page.locator("[name='args-a']").fill("40")
    page.locator("details summary").first.click()
    page.locator("[name='options-countdown']").fill("3700")
    page.get_by_role("button", name=re.compile("^Run")).click()
    page.wait_for_url("**/taskrunrecord/*/change/")
    return TaskRunRecord.objects.get()


@pytest.mark.parametrize(
    "javascript", [True, False], ids=["with JavaScript", "without JavaScript"]
)
def test_a_run_is_scheduled_moved_and_run_now(worker: object, page: Page) -> None:
    run = schedule(page)
    expect(page.locator(".messagelist")).to_contain_text("Scheduled: tests.tasks.add.")
    expect(page.locator(".run-kept")).to_contain_text("in 1 h 1 min")

    page.get_by_role("link", name="Move", exact=True).click()
    page.locator("[name='eta_0']").fill("2030-07-01")
    page.locator("[name='eta_1']").fill("12:00")
    page.get_by_role("button", name="Move it").click()
    expect(page.locator(".run-kept")).to_contain_text("July 1, 2030, noon")

    page.get_by_role("button", name="Run now").click()
    expect(page.locator(".messagelist")).to_contain_text("The run is due now")
    Dispatcher(app).dispatch()
    wait_for_state(run, State.SUCCESS)
    page.reload()
    expect(page.locator(".run-head .run-state")).to_have_text("Succeeded")
    expect(page.locator(".field-result_field")).to_contain_text("42")


def test_a_page_of_a_scheduled_run_follows_it_when_it_is_sent(page: Page) -> None:
    page.clock.install()
    later = timezone.now() + timedelta(hours=1, minutes=1)
    run = make_run(state=State.SCHEDULED, eta=later, due_at=later)
    page.goto(f"{JOURNAL}{run.pk}/change/")
    expect(page.get_by_role("button", name="Run now")).to_be_visible()

    fields = {"state": State.PENDING, "due_at": None, "published_at": timezone.now()}
    TaskRunRecord.objects.filter(pk=run.pk).update(**fields)
    page.clock.run_for(16_000)

    expect(page.locator(".run-head .run-state")).to_have_text("Queued")
    expect(page.get_by_role("button", name="Run now")).to_have_count(0)
    expect(page.locator(".run-kept")).to_have_count(0)


def test_the_calendar_helps_to_move_several_runs(page: Page) -> None:
    later = timezone.now() + timedelta(hours=1)
    runs = [make_run(state=State.SCHEDULED, eta=later, due_at=later) for _ in range(2)]
    page.goto(f"{JOURNAL}?state=SCHEDULED")
    page.locator("#action-toggle").check()
    page.locator("select[name='action']").select_option("move_selected")
    # What these are called, and whether they are links or buttons, differs with Django's version.
    page.locator(".actions button[name='index']").click()
    page.locator("#calendarlink0").click()
    page.locator(".calendar-shortcuts a", has_text="Tomorrow").click()
    page.locator("[name='eta_1']").fill("04:00")
    page.get_by_role("button", name="Move these 2").click()

    expect(page.locator(".messagelist")).to_contain_text("2 runs were moved.")
    dues = set(TaskRunRecord.objects.values_list("due_at", flat=True))
    assert len(dues) == 1
    assert dues.pop() > later - timedelta(hours=1)
    assert len(runs) == 2
