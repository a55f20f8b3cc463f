"""The journal as rows of a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.models import Q
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone as django_timezone
from import_export.fields import Field

from celery_admin_runner import export
from celery_admin_runner.copying import can_copy
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_runs, make_user

pytestmark = pytest.mark.django_db


class AsBefore(export.TaskRunRecordResource):
    """A resource that makes the same cells, but itself: each run is read whole for it."""

    def export_field(self, field: Any, instance: Any, **kwargs: Any) -> Any:
        return super().export_field(field, instance, **kwargs)


RESOURCES = [export.TaskRunRecordResource, AsBefore]


def is_copied() -> bool:
    columns = export.plain_columns(export.TaskRunRecordResource())
    return columns is not None and can_copy("default", columns)


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

    row = next(row for row in exported() if row["task_id"] == "one")

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


@pytest.mark.parametrize("resource", RESOURCES)
def test_runs_of_one_condition_or_another_are_exported_in_order(resource: Any) -> None:
    runs = [make_run(label=str(number % 4)) for number in range(20)]
    chosen = TaskRunRecord.objects.all().any_of([Q(label="1"), Q(label="3"), Q(label="2")])

    batches = list(export.csv_batches(chosen, resource(), ["id"], batch_size=4))

    keys = [int(row["id"]) for row in rows_of("".join(batch.text for batch in batches))]
    assert chosen.has_parts
    assert keys == [run.pk for run in reversed(runs) if run.label != "0"]


def test_the_conditions_of_a_search_are_asked_one_by_one() -> None:
    make_runs(3, label="1")
    runs = TaskRunRecord.objects.all().any_of([Q(label="1"), Q(label="2")])

    with CaptureQueriesContext(connection) as queries:
        rows = rows_of("".join(csv_lines(runs, batch_size=2)))

    assert len(rows) == 3
    assert len([query for query in queries if " UNION " in query["sql"]]) == 2


def test_the_columns_can_be_chosen() -> None:
    make_run(task_id="one")

    rows = exported(fields=["task_id", "state"])

    assert rows == [{"task_id": "one", "state": "SUCCESS"}]


def test_no_runs_are_a_header() -> None:
    make_run()

    for runs in (TaskRunRecord.objects.filter(pk=0), TaskRunRecord.objects.none()):
        lines = list(csv_lines(runs))
        assert len(lines) == 1

    assert lines[0].startswith("id,task_id,")


def test_wide_rows_make_small_batches() -> None:
    make_runs(150, traceback="x" * 60_000)

    batches = list(export.csv_batches(TaskRunRecord.objects.all(), export.TaskRunRecordResource()))

    assert sum(batch.rows for batch in batches) == 150
    assert max(len(batch.text) for batch in batches) < 2.1 * export.BATCH_CHARACTERS


@pytest.mark.parametrize("resource", RESOURCES)
def test_wide_rows_behind_narrow_ones_make_small_batches(resource: Any) -> None:
    make_runs(30, traceback="x" * 500_000)
    make_runs(700)

    batches = list(export.csv_batches(TaskRunRecord.objects.all(), resource()))

    assert [batch.rows for batch in batches[:2]] == [0, 100]
    assert sum(batch.rows for batch in batches) == 730
    assert max(len(batch.text) for batch in batches) < 2.6 * export.BATCH_CHARACTERS


def test_what_has_no_column_is_not_read() -> None:
    make_run()

    with CaptureQueriesContext(connection) as queries:
        exported()

    assert queries.captured_queries
    assert not [query for query in queries if "whole_result" in query["sql"]]


def test_a_batch_is_read_by_one_query() -> None:
    make_runs(5, cancel_requested_by=make_user(), content_type=None)

    with CaptureQueriesContext(connection) as queries:
        list(csv_lines(TaskRunRecord.objects.defer("args", "result"), batch_size=3))

    # The others ask how wide the rows are.
    assert len([query for query in queries if "task_id" in query["sql"]]) == 2
    assert len(queries) == 2 if is_copied() else 4


def test_a_batch_begins_where_the_last_one_ended_though_many_are_of_one_moment() -> None:
    now = django_timezone.now()
    runs = make_runs(7, created_at=now) + make_runs(7, created_at=now - timedelta(seconds=1))

    lines = list(csv_lines(TaskRunRecord.objects.all(), batch_size=3))

    keys = [int(row["id"]) for row in rows_of("".join(lines))]
    assert keys == [run.pk for run in (*runs[6::-1], *runs[:6:-1])]


@override_settings(USE_TZ=False)
def test_without_timezones_every_run_is_exported_once_when_the_clocks_go_back() -> None:
    with override_settings(USE_TZ=True):
        start = datetime(2026, 10, 24, 22, tzinfo=UTC)
        moments = [start + timedelta(minutes=10 * number) for number in range(40)]
        runs = [make_run(created_at=moment) for moment in moments]

    lines = list(csv_lines(TaskRunRecord.objects.all(), batch_size=3))

    keys = [int(row["id"]) for row in rows_of("".join(lines))]
    assert keys == [run.pk for run in reversed(runs)]


def test_writing_tells_how_many() -> None:
    make_runs(3)
    file = io.StringIO()

    written = export.write_csv([TaskRunRecord.objects.all()], file)

    assert written == 3
    assert len(rows_of(file.getvalue())) == 3


def test_parts_are_written_below_one_line_of_headings() -> None:
    runs = make_runs(4)
    file = io.StringIO()
    parts = [TaskRunRecord.objects.filter(pk__in=[run.pk for run in runs[n::2]]) for n in (1, 0)]

    written = export.write_csv(parts, file)

    assert written == 4
    keys = [int(row["id"]) for row in rows_of(file.getvalue())]
    assert keys == [runs[number].pk for number in (3, 1, 2, 0)]


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


def test_the_cells_of_a_plain_resource_are_not_made_run_by_run() -> None:
    columns = export.plain_columns(export.TaskRunRecordResource())

    assert columns is not None
    assert len(columns) == len(export.EXPORT_FIELDS)


def test_a_resource_that_makes_a_cell_itself_is_asked_for_each() -> None:
    class WithMethod(export.TaskRunRecordResource):
        def dehydrate_state(self, run: TaskRunRecord) -> str:
            return run.get_state_display()

    class WithField(export.TaskRunRecordResource):
        state = Field(column_name="state", attribute="get_state_display", readonly=True)

    class WithColumn(export.TaskRunRecordResource):
        state = export.RunColumn(
            column_name="state", dehydrate_method=lambda run: run.get_state_display()
        )

    make_run(state=State.SUCCESS)

    for resource in (WithMethod(), WithField(), WithColumn()):
        batches = export.csv_batches(TaskRunRecord.objects.all(), resource, ["state"])
        assert export.plain_columns(resource, ["state"]) is None
        assert rows_of("".join(batch.text for batch in batches)) == [{"state": "Succeeded"}]
        assert export.plain_columns(resource, ["id"]) is not None


def test_other_fields_of_a_run_can_be_columns_too() -> None:
    class WithMore(export.TaskRunRecordResource):
        class Meta:
            fields = ("dispatch_id", "progress_total", "run_by", "heartbeat_at")

    token, user = uuid4(), make_user(username="ada")
    make_run(dispatch_id=token, progress_total=7, run_by=user)

    for fields in (["dispatch_id", "progress_total", "heartbeat_at"], ["run_by", "dispatch_id"]):
        batches = export.csv_batches(TaskRunRecord.objects.all(), WithMore(), fields)
        row = rows_of("".join(batch.text for batch in batches))[0]
        expected = {"dispatch_id": str(token), "progress_total": "7", "run_by": "ada"}
        assert row == {name: expected.get(name, "") for name in row}
        assert set(row) == set(fields)


def test_a_user_model_with_names_of_its_own_is_asked_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(User, "get_username", lambda user: f"-{user.username}")
    make_run(cancel_requested_by=make_user(username="ada"))

    assert exported()[0]["cancel_requested_by"] == "'-ada"


@override_settings(USE_TZ=False)
def test_naive_times_are_taken_for_the_projects_timezone() -> None:
    run = TaskRunRecord(created_at=datetime(2026, 1, 31, 12, 30))

    with django_timezone.override("Europe/Vienna"):
        cell = export.cell_of(run, "created_at")

    assert cell == "2026-01-31T11:30:00+00:00"
