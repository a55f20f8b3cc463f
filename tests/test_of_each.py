from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.of_each import PARTS_MAX, of_each
from tests.factories import make_run, make_runs, run_fields

runs = TaskRunRecord.objects


@pytest.mark.django_db
def test_each_value_gets_its_own_answer_and_only_so_many_rows():
    now = timezone.now()
    for name, ages in {"shop.a": [3, 1, 2], "it's 100%": [5], "shop.never_asked": [1]}.items():
        for days in ages:
            make_run(task_name=name, label=str(days), created_at=now - timedelta(days=days))

    answers = of_each(
        ["shop.a", "shop.none", "it's 100%"],
        lambda name: runs.filter(task_name=name).order_by("-created_at").values_list("label")[:2],
        using="default",
    )

    assert sorted(answers) == [("it's 100%", "5"), ("shop.a", "1"), ("shop.a", "2")]


@pytest.mark.django_db
def test_an_answer_can_be_wrapped():
    make_runs(3, task_name="shop.a")

    answers = of_each(
        ["shop.a", "shop.none"],
        lambda name: runs.filter(task_name=name).order_by().values_list("pk")[:2],
        using="default",
        wrapped="SELECT COUNT(*) FROM ({}) AS found",
    )

    assert sorted(answers) == [("shop.a", 2), ("shop.none", 0)]


@pytest.mark.django_db
def test_nothing_is_asked_about_no_value(django_assert_num_queries):
    with django_assert_num_queries(0):
        assert list(of_each([], lambda name: runs.filter(task_name=name), using="default")) == []


@pytest.mark.django_db
def test_hundreds_of_values_are_asked_about_at_once():
    names = [f"shop.task_{number}" for number in range(2 * PARTS_MAX + 1)]
    runs.bulk_create([TaskRunRecord(**run_fields(task_name=name)) for name in names])

    with CaptureQueriesContext(connection) as queries:
        answers = list(
            of_each(
                names,
                lambda name: runs.filter(task_name=name).values_list("task_name")[:1],
                using="default",
            )
        )

    assert sorted(answers) == sorted((name, name) for name in names)
    assert len(queries) == (1 if connection.vendor == "postgresql" else 3)
