"""The hour that the clocks show twice, where a site has no time zones (USE_TZ False)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, islice

import pytest
from django.db.models import Q
from django.test import override_settings

from celery_admin_runner import deletion
from celery_admin_runner.admin.pages import NEWEST_FIRST, OLDEST_FIRST, Place, RunPages
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.retention import Selection, batches
from tests.factories import make_run, make_runs

pytestmark = pytest.mark.django_db
#: In Vienna it was 2 o'clock twice that night: at midnight in UTC, and an hour later.
START = datetime(2025, 10, 25, 23, 30, tzinfo=UTC)
SIZE = 4
#: More pages than there can be.
MANY = 30


@pytest.fixture(autouse=True)
def _night() -> Iterator[None]:
    """Make a run each six minutes, and let the site have no time zones then."""
    for number in range(30):
        moment = START + timedelta(minutes=6 * number)
        make_run(task_name=f"tests.{number % 2}", created_at=moment, finished_at=moment)
    with override_settings(USE_TZ=False):
        yield


def keys(*order: str) -> list[int]:
    return list(TaskRunRecord.objects.order_by(*order).values_list("pk", flat=True))


@pytest.mark.parametrize("ascending", [False, True])
def test_pages_of_that_hour_have_each_run_once(ascending: bool) -> None:
    found: list[int] = []
    parameters = {"p": "1"}
    for _number in range(MANY):
        pages = RunPages(
            TaskRunRecord.objects.all(), size=SIZE, ascending=ascending, count_max=SIZE
        )
        page = pages.asked_for(parameters)
        found += [run.pk for run in page.runs]
        if not page.onward:
            break
        parameters = dict(page.onward[0].parameters)

    assert found == keys(*(OLDEST_FIRST if ascending else NEWEST_FIRST))


@pytest.mark.parametrize("newest_first", [False, True])
def test_runs_that_ended_in_that_hour_are_read_once(
    newest_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "PAGE_SIZE", SIZE)
    pages = deletion.pages_of(
        TaskRunRecord.objects.all(), along="finished_at", newest_first=newest_first
    )

    found = [row[0] for row in chain.from_iterable(islice(pages, MANY))]

    assert found == keys(*(NEWEST_FIRST if newest_first else OLDEST_FIRST))


def test_the_first_runs_of_several_conditions_end_in_that_hour() -> None:
    runs = TaskRunRecord.objects.order_by(*NEWEST_FIRST)
    either = runs.any_of([Q(task_name="tests.0"), Q(task_name="tests.1")])

    for size in range(1, 30):
        assert [run.pk for run in either.rows(0, size)] == keys(*NEWEST_FIRST)[:size]


@pytest.mark.parametrize("number", [3, 8, 12, 20])
def test_the_newest_of_a_task_stay_where_a_site_has_no_time_zones(number: int) -> None:
    TaskRunRecord.objects.update(task_name="tests.some")
    newest = keys(*NEWEST_FIRST)[:number]

    selection = Selection(cutoff=datetime(2026, 1, 1), keep_last=number)
    going = set(chain.from_iterable(batches(selection)))

    assert going == set(keys("pk")) - set(newest)


def test_where_a_task_has_fewer_than_stay_all_stay() -> None:
    make_runs(2, task_name="tests.rare", created_at=START.replace(tzinfo=None))

    selection = Selection(cutoff=datetime(2027, 1, 1), keep_last=40)

    assert not set(chain.from_iterable(batches(selection)))


def test_the_place_of_a_run_before_1970_can_be_read_too() -> None:
    run = make_run(created_at=datetime(1969, 12, 31, 12))
    place = Place.of(run)

    assert Place.read(str(place)) == place
