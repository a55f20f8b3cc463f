"""The journal as rows of a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.contrib.contenttypes.models import ContentType
from django.test import override_settings
from django.utils import timezone as django_timezone
from import_export.fields import Field
from pytest_django import DjangoAssertNumQueries

from celery_admin_runner import export
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_runs, make_user

pytestmark = pytest.mark.django_db


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def csv_lines(queryset: Any, **options: Any) -> Iterator[str]:
    """Yield the text of each batch."""
    resource = export.TaskRunRecordResource()
    for batch in export.csv_batches(queryset, resource, **options):
        yield batch.text


def exported(**options: Any) -> list[dict[str, str]]:
    return rows_of("".join(csv_lines(TaskRunRecord.objects.all(), **options)))


def test_every_column_says_what_the_run_says() -> None:
    start = datetime(2026, 1, 31, 12, 30, tzinfo=timezone(timedelta(hours=2)))
    user = make_user(username="ada")
    about = Group.objects.create(name="Finance")
    first = make_run()
    run = make_run(
        task_id="one",
        task_name="shop.tasks.close",
        label="Close May",
        state=State.FAILURE,
        created_at=start,
        started_at=start,
        finished_at=start + timedelta(seconds=90, milliseconds=500),
        run_by=user,
        source="admin",
        reason="Because",
        args=[1, {"__type__": "decimal", "__value__": "1.50"}],
        kwargs={"name": "Zoë"},
        options={"queue": "slow"},
        queue="slow",
        content_type=ContentType.objects.get_for_model(Group),
        object_id=str(about.pk),
        retry_of=first,
        cancel_requested_by=user,
        result=None,
        exception="ValueError: no",
        traceback="line 1\nline 2",
        retries=2,
        worker="w1@host",
        periodic_task_name="each night",
    )

    row = exported()[0]

    assert tuple(row) == export.EXPORT_FIELDS
    assert row == {
        **dict.fromkeys(export.EXPORT_FIELDS, ""),
        "id": str(run.pk),
        "task_id": "one",
        "task_name": "shop.tasks.close",
        "label": "Close May",
        "state": "FAILURE",
        "created_at": "2026-01-31T10:30:00+00:00",
        "started_at": "2026-01-31T10:30:00+00:00",
        "finished_at": "2026-01-31T10:31:30.500000+00:00",
        "duration": "90.5",
        "run_by_name": "ada",
        "source": "admin",
        "periodic_task_name": "each night",
        "reason": "Because",
        "args": '[1, "1.50"]',
        "kwargs": '{"name": "Zoë"}',
        "options": '{"queue": "slow"}',
        "queue": "slow",
        "content_type": "auth.group",
        "object_id": str(about.pk),
        "retry_of": str(first.pk),
        "cancel_requested_by": "ada",
        "exception": "ValueError: no",
        "traceback": "line 1\nline 2",
        "retries": "2",
        "worker": "w1@host",
    }


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_text_that_a_spreadsheet_would_run_is_escaped(start: str) -> None:
    make_run(reason=f"{start}1+1", label=f"a{start}1", exception=f"'{start}1")

    row = exported()[0]

    assert row["reason"] == f"'{start}1+1"
    assert row["label"] == f"a{start}1"
    assert row["exception"] == f"'{start}1"


def test_a_negative_result_is_escaped_and_numbers_are_not() -> None:
    make_run(result=-5, retries=0)

    row = exported()[0]

    assert row["result"] == "'-5"
    assert row["retries"] == "0"


def test_the_newest_run_is_first_over_all_batches() -> None:
    runs = make_runs(7)

    lines = list(csv_lines(TaskRunRecord.objects.all(), batch_size=3))

    assert len(lines) == 1 + 3
    assert [row["id"] for row in rows_of("".join(lines))] == [
        str(run.pk) for run in reversed(runs)
    ]


def test_only_the_runs_of_the_queryset_are_exported() -> None:
    make_run(state=State.PENDING)
    failed = make_run(state=State.FAILURE)

    lines = csv_lines(TaskRunRecord.objects.filter(state=State.FAILURE))

    assert [row["id"] for row in rows_of("".join(lines))] == [str(failed.pk)]


def test_the_columns_can_be_chosen() -> None:
    make_run(task_id="one")

    rows = exported(fields=["task_id", "state"])

    assert rows == [{"task_id": "one", "state": "SUCCESS"}]


def test_no_runs_are_a_header() -> None:
    lines = list(csv_lines(TaskRunRecord.objects.all()))

    assert len(lines) == 1
    assert lines[0].startswith("id,task_id,")


def test_wide_rows_make_small_batches() -> None:
    make_runs(150, traceback="x" * 60_000)

    batches = list(export.csv_batches(TaskRunRecord.objects.all(), export.TaskRunRecordResource()))

    assert [batch.rows for batch in batches] == [0, 100, 34, 16]


def test_what_has_no_column_is_not_read(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    make_run()

    with django_assert_num_queries(2) as queries:
        exported()

    assert not [query for query in queries if "whole_result" in query["sql"]]


def test_a_batch_is_one_query(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    make_runs(6, cancel_requested_by=make_user(), content_type=None)

    with django_assert_num_queries(3):
        list(csv_lines(TaskRunRecord.objects.defer("args", "result"), batch_size=3))


def test_writing_tells_how_many() -> None:
    make_runs(3)
    file = io.StringIO()

    written = export.write_csv(TaskRunRecord.objects.all(), file)

    assert written == 3
    assert len(rows_of(file.getvalue())) == 3


def test_the_resource_of_import_export_has_the_same_cells() -> None:
    run = make_run(args=[1], kwargs={"a": "="}, reason="=1", created_at=datetime.now(UTC))

    dataset = export.TaskRunRecordResource().export(TaskRunRecord.objects.defer("args"))

    assert tuple(dataset.headers) == export.EXPORT_FIELDS
    row = dataset.dict[0]
    assert row["id"] == run.pk
    assert row["reason"] == "'=1"
    assert [str(cell) if cell is not None else "" for cell in row.values()] == list(
        exported()[0].values()
    )


def test_a_resource_can_be_extended() -> None:
    class WithMore(export.TaskRunRecordResource):
        more = Field(column_name="more", readonly=True)

        class Meta:
            fields = (*export.EXPORT_FIELDS, "more")

        def dehydrate_more(self, run: TaskRunRecord) -> str:
            return f"={run.task_id}"

    make_run(task_id="one")

    texts = [
        batch.text
        for batch in export.csv_batches(
            TaskRunRecord.objects.all(), WithMore(), ["task_id", "more"]
        )
    ]

    assert rows_of("".join(texts)) == [{"task_id": "one", "more": "'=one"}]


@override_settings(USE_TZ=False)
def test_naive_times_are_taken_for_the_projects_timezone() -> None:
    run = TaskRunRecord(created_at=datetime(2026, 1, 31, 12, 30))

    with django_timezone.override("Europe/Vienna"):
        cell = export.cell_of(run, "created_at")

    assert cell == "2026-01-31T11:30:00+00:00"
