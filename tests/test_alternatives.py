"""Rows for which any of several conditions holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models import Q
from django.test.utils import CaptureQueriesContext

from celery_admin_runner import alternatives
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from tests.factories import run_fields

pytestmark = pytest.mark.django_db
START = datetime(2026, 1, 1, tzinfo=UTC)
TASKS = ("shop.a", "shop.b", "shop.c")


@pytest.fixture(autouse=True)
def runs() -> list[TaskRunRecord]:
    """Runs of three tasks in turn; each three of them were made at the same moment."""
    return TaskRunRecord.objects.bulk_create(
        TaskRunRecord(
            **run_fields(
                task_id=str(number),
                task_name=TASKS[number % 3],
                label="odd" if number % 2 else "",
                created_at=START + timedelta(minutes=number // 3),
            )
        )
        for number in range(30)
    )


def newest() -> TaskRunRecordQuerySet:
    return TaskRunRecord.objects.order_by("-created_at", "-id")


def of_tasks(*names: str) -> list[Q]:
    return [Q(task_name=name) for name in names]


def numbers(rows: list[TaskRunRecord]) -> list[int]:
    return [int(run.task_id) for run in rows]


def test_the_rows_of_several_conditions_come_in_the_order_of_all() -> None:
    found = newest().any_of(of_tasks("shop.a", "shop.c"))

    assert numbers(found.rows(0, 5)) == [29, 27, 26, 24, 23]
    assert numbers(found.rows(3, 6)) == [24, 23, 21]
    assert numbers(found.rows(0, 100)) == [int(run.task_id) for run in found]
    assert numbers(found.order_by("created_at", "id").rows(0, 3)) == [0, 2, 3]


def test_a_row_for_which_two_conditions_hold_comes_once() -> None:
    found = newest().any_of([Q(task_name="shop.b"), Q(label="odd")])

    assert numbers(found.rows(0, 6)) == [29, 28, 27, 25, 23, 22]
    assert found.count_up_to(100) == found.count() == 20


def test_what_is_asked_of_the_whole_is_asked_of_each_part() -> None:
    found = newest().any_of(of_tasks("shop.a", "shop.b")).filter(label="odd").exclude(task_id=27)

    assert numbers(found.rows(0, 3)) == [25, 21, 19]
    assert numbers(found.all().defer("args").only("task_id").rows(0, 3)) == [25, 21, 19]


def test_conditions_on_conditions_are_asked_for_together() -> None:
    odd_or_late = [Q(label="odd"), Q(created_at__gte=START + timedelta(minutes=9))]
    found = newest().any_of(of_tasks("shop.a", "shop.b")).any_of(odd_or_late)

    assert numbers(found.rows(0, 4)) == [28, 27, 25, 21]


def test_of_each_condition_only_the_first_rows_are_read() -> None:
    with CaptureQueriesContext(connection) as queries:
        newest().any_of(of_tasks("shop.a", "shop.c")).rows(0, 5)

    union, rows = (query["sql"] for query in queries)
    assert union.count("LIMIT 5)") == 2
    assert "UNION" in union
    assert " OR " not in union
    assert "created_at" in rows.partition("WHERE")[2].partition("ORDER")[0]


def test_rows_that_were_made_at_the_same_moment_are_all_found() -> None:
    TaskRunRecord.objects.update(created_at=START)
    found = newest().any_of(of_tasks("shop.a", "shop.b"))

    assert numbers(found.rows(0, 3)) == [28, 27, 25]
    assert numbers(found.rows(18, 30)) == [1, 0]
    assert numbers(found.order_by("created_at", "id").rows(1, 3)) == [1, 3]


def test_rows_beyond_the_last_are_none() -> None:
    assert newest().any_of(of_tasks("shop.a", "shop.b")).rows(20, 30) == []
    assert newest().any_of(of_tasks("shop.x", "shop.y")).rows(0, 30) == []


def test_conditions_on_one_column_are_counted_by_one() -> None:
    found = newest().any_of(of_tasks("shop.a", "shop.b"), Q(task_name__in=["shop.a", "shop.b"]))

    with CaptureQueriesContext(connection) as queries:
        assert found.count_up_to(100) == found.filter(label__gte="").count_up_to(100) == 20
        assert found.any_of([Q(label="odd"), Q(task_id="28")]).count_up_to(100) == 11

    counted, _again, united = (query["sql"] for query in queries)
    assert "UNION" not in counted
    assert "UNION" in united
    assert numbers(found.rows(0, 2)) == [28, 27]


def test_one_condition_is_an_ordinary_filter() -> None:
    with CaptureQueriesContext(connection) as queries:
        found = newest().any_of(of_tasks("shop.a")).rows(0, 2)

    assert numbers(found) == [27, 24]
    assert "UNION" not in queries[0]["sql"]


def test_without_a_condition_there_is_no_row_and_no_query() -> None:
    with CaptureQueriesContext(connection) as queries:
        assert newest().any_of([]).rows(0, 5) == []
        assert newest().any_of([]).count_up_to(5) == 0

    assert len(queries) == 0


def test_conditions_that_can_not_hold_are_left_out() -> None:
    never = Q(task_id__in=[])

    assert numbers(newest().any_of([*of_tasks("shop.a"), never]).rows(0, 1)) == [27]
    assert newest().any_of([never, never]).rows(0, 1) == []


def test_too_many_conditions_are_one_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternatives, "PARTS_MAX", 1)

    with CaptureQueriesContext(connection) as queries:
        found = newest().any_of(of_tasks("shop.a", "shop.c")).rows(0, 3)

    assert numbers(found) == [29, 27, 26]
    assert "UNION" not in queries[0]["sql"]


def test_sets_made_in_another_way_hold_the_same_rows() -> None:
    found = newest().any_of(of_tasks("shop.a", "shop.b"))

    assert numbers((found | newest().filter(task_id="29")).rows(0, 3)) == [29, 28, 27]
    assert found.none().rows(0, 3) == []
    assert numbers(found.reverse().rows(0, 2)) == [0, 1]


def test_no_more_rows_are_counted_than_asked_for() -> None:
    found = newest().any_of(of_tasks("shop.a", "shop.b"))

    for runs in (newest(), newest().filter(task_name="shop.a"), found, TaskRunRecord.objects):
        assert runs.count_up_to(7) == 7
    assert found.count_up_to(100) == 20
    assert newest().count_up_to(100) == 30
