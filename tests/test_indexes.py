"""Each index of the journal serves a query; and each that costs every insert has to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.sparse import SparseIndex
from celery_admin_runner.states import State
from tests.factories import make_run

runs = TaskRunRecord.objects
now = timezone.now()
NEWEST_FIRST = ("-created_at", "-pk")

#: What is asked by help of each index.
QUERIES: dict[str, Callable[[], QuerySet[Any, Any]]] = {
    "taskrun_created_idx": lambda: runs.filter(created_at__gte=now).order_by(*NEWEST_FIRST),
    "taskrun_by_task_idx": lambda: runs.filter(task_name="shop.a").order_by(*NEWEST_FIRST),
    "taskrun_by_state_idx": lambda: runs.filter(state=State.FAILURE).order_by(*NEWEST_FIRST),
    "taskrun_by_source_idx": lambda: runs.filter(source="retry").order_by(*NEWEST_FIRST),
    "taskrun_by_user_name_idx": lambda: runs.filter(run_by_name="a").order_by(*NEWEST_FIRST),
    "taskrun_by_user_idx": lambda: runs.filter(run_by=17).order_by(*NEWEST_FIRST),
    "taskrun_seen_idx": lambda: runs.filter(seen_at__lte=now).order_by("seen_at", "pk"),
    "taskrun_by_periodic_idx": lambda: runs.filter(periodic_task_name="nightly").order_by(
        *NEWEST_FIRST
    ),
    "taskrun_by_object_idx": lambda: runs.for_object(
        ContentType.objects.get_for_model(TaskRunRecord)
    ).order_by(*NEWEST_FIRST),
    "taskrun_due_idx": lambda: runs.filter(due_at__lte=now).order_by("due_at"),
    "taskrun_finished_idx": lambda: runs.filter(finished_at__lt=now).order_by("finished_at", "pk"),
    "taskrun_ignored_idx": lambda: runs.filter(unique_key="key", ignore_until__gt=now).order_by(
        "-ignore_until"
    ),
    "taskrun_retry_of_idx": lambda: runs.filter(retry_of=17).order_by(),
    "taskrun_cancelled_by_idx": lambda: runs.filter(cancel_requested_by=17).order_by(),
}
#: What is asked by help of these is that no two runs are the same.
UNIQUE = {"taskrun_task_id_uniq", "taskrun_active_key_uniq"}


def plan_of(rows: QuerySet[Any, Any]) -> str:
    """Return how the database finds the first of some rows, if it does not just read all."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        elif "sqlite_stat1" in connection.introspection.table_names(cursor):
            # What another test let it learn of its own rows.
            cursor.execute("DELETE FROM sqlite_stat1")
            cursor.execute("ANALYZE sqlite_schema")
        return rows[:100].explain()


@pytest.mark.django_db
@pytest.mark.parametrize("name", QUERIES)
def test_an_index_serves_its_query(name: str) -> None:
    for number in range(30):
        make_run(task_name=f"shop.{number}", run_by=None)

    assert name in plan_of(QUERIES[name]())


def test_each_index_has_a_query_that_needs_it() -> None:
    meta = TaskRunRecord._meta

    indexes = {index.name for index in meta.indexes}
    uniques = {each.name for each in meta.total_unique_constraints}

    assert (set(QUERIES), UNIQUE) == (indexes, uniques)


@pytest.mark.django_db
def test_the_table_has_no_other_index() -> None:
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, TaskRunRecord._meta.db_table)

    made = {name for name, about in found.items() if about["index"] or about["unique"]}
    primary = {name for name, about in found.items() if about["primary_key"]}

    assert made - primary == QUERIES.keys() | UNIQUE


@pytest.mark.django_db
def test_a_sparse_index_has_only_rows_with_a_value() -> None:
    if not connection.features.supports_partial_indexes:
        pytest.skip("all rows are in each index of this database")
    sparse = {
        index.name for index in TaskRunRecord._meta.indexes if isinstance(index, SparseIndex)
    }
    texts = {
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes",
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL",
    }

    with connection.cursor() as cursor:
        cursor.execute(texts[connection.vendor])
        made = {name for name, sql in cursor.fetchall() if "NOT NULL" in sql.partition("WHERE")[2]}

    assert {name for name in made if name.startswith("taskrun_")} == sparse


@pytest.mark.django_db
def test_nobody_is_warned_of_sparse_indexes() -> None:
    assert [each.id for each in TaskRunRecord.check(databases=["default"])] == []
