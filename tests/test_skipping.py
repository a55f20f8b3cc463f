from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.skipping import values_in
from tests.factories import run_fields


def task_names() -> list[str]:
    return values_in(TaskRunRecord, "task_name", using="default")


def make_runs_of(names: list[str]) -> None:
    rows = [TaskRunRecord(**run_fields(task_name=name)) for name in names]
    TaskRunRecord.objects.bulk_create(rows)


@pytest.mark.django_db
def test_an_empty_journal_has_no_names():
    assert task_names() == []


@pytest.mark.django_db
def test_each_name_is_found_once_and_in_order():
    make_runs_of(["shop.b", "shop.a", "shop.b", "it's 100%", "größe", "shop.a"])

    found = task_names()

    assert sorted(found) == ["größe", "it's 100%", "shop.a", "shop.b"]
    assert found == list(
        TaskRunRecord.objects.order_by("task_name").values_list("task_name", flat=True).distinct()
    )


@pytest.mark.django_db
def test_the_empty_text_is_a_value_too():
    make_runs_of(["shop.a"])

    assert values_in(TaskRunRecord, "run_by_name", using="default") == [""]


@pytest.mark.django_db
def test_thousands_of_names_are_found_by_one_statement():
    names = [f"shop.task_{number:05}" for number in range(1500)]
    make_runs_of(names)

    with CaptureQueriesContext(connection) as queries:
        found = task_names()

    assert found == names
    assert len(queries) == 1


@pytest.mark.django_db(transaction=True)
def test_each_name_is_a_look_into_the_index():
    make_runs_of([f"shop.task_{number % 3}" for number in range(1000)])
    with CaptureQueriesContext(connection) as queries:
        task_names()

    explain = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN ANALYZE"}
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute(f"ANALYZE TABLE {TaskRunRecord._meta.db_table}")
        cursor.execute(f"{explain.get(connection.vendor, 'EXPLAIN')} {queries[0]['sql']}")
        plan = str(cursor.fetchall())

    if connection.vendor == "mysql":
        assert "Using index for group-by" in plan
    else:
        looks = re.findall("(?:using|USING COVERING INDEX) taskrun_by_task_idx", plan)
        # The first, and each next.
        assert len(looks) == 2, plan
