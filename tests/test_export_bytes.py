"""Whatever stands in a run, every way to export it writes the very same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.models import JSONField, Q, Value
from django.test import override_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_admin_runner import export
from celery_admin_runner.copying import can_copy
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.states import State
from tests.factories import make_run, make_user, run_fields

pytestmark = pytest.mark.django_db

HOSTILE = "=+-@\t\r\n,\"'\\. ;|%{}$_\u2028\U0001f600\x7f\x01é"
TEXT = st.text(
    st.sampled_from(HOSTILE) | st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    max_size=12,
) | st.sampled_from(["\\.", "\\N", '""', "NULL", "null", "''", " =1", "'=1", "a\r\nb", "1.50"])
NUMBER = (
    st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.decimals(-99, 99, places=2).map(float)
    | st.sampled_from([0.0, -0.0, 1e16, 1e-5, 0.0001, 1.5e300, 5e-324, 0.1 + 0.2, 100000.5])
)


def envelope(inner: Any) -> Any:
    names = st.sampled_from(["decimal", "uuid", "datetime", "set"])
    return st.fixed_dictionaries({"__type__": names, "__value__": inner})


JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3) | envelope(inner)
    ),
    max_leaves=6,
)
MOMENT = st.datetimes(
    min_value=datetime(1000, 1, 1), timezones=st.just(UTC), allow_imaginary=False
) | st.sampled_from(
    [
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 3, 29, 1, tzinfo=UTC),
        datetime(2026, 10, 25, 0, 30, 0, 500000, tzinfo=UTC),
    ]
)
DURATION = st.timedeltas(timedelta(0), timedelta(days=30)) | st.sampled_from(
    [timedelta(seconds=-1), timedelta(microseconds=1), timedelta(microseconds=100)]
)
ROW = st.fixed_dictionaries(
    {
        **dict.fromkeys(["label", "reason", "exception", "traceback", "queue", "worker"], TEXT),
        **dict.fromkeys(["task_name", "periodic_task_name", "object_id", "publish_error"], TEXT),
        **dict.fromkeys(["parent_id", "root_id", "run_by_name"], TEXT),
        "args": st.lists(JSON, max_size=3),
        "kwargs": st.dictionaries(TEXT, JSON, max_size=3),
        "options": st.dictionaries(TEXT, JSON, max_size=1),
        "result": JSON,
        "created_at": MOMENT,
        "started_at": st.none() | MOMENT,
        "eta": st.none() | MOMENT,
        "took": st.none() | DURATION,
        "retries": st.integers(0, 1000),
        "is_cancelled": st.booleans(),
        "is_about_something": st.booleans(),
    }
)
FEW = settings(
    max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


class AsBefore(export.TaskRunRecordResource):
    """A resource that makes the cells itself, run by run."""

    def export_field(self, field: Any, instance: Any, **kwargs: Any) -> Any:
        return super().export_field(field, instance, **kwargs)


def text_of(resource: Any, fields: list[str] | None, batch_size: int) -> str:
    batches = export.csv_batches(
        TaskRunRecord.objects.all(), resource, fields, batch_size=batch_size
    )
    return "".join(batch.text for batch in batches)


def assert_all_ways_agree(
    monkeypatch: pytest.MonkeyPatch, fields: list[str] | None = None, batch_size: int = 2
) -> str:
    """Export by the resource, by Python and (on PostgreSQL) by COPY; return the text."""
    fastest = text_of(export.TaskRunRecordResource(), fields, batch_size)
    with monkeypatch.context() as patch:
        patch.setattr(export, "can_copy", lambda using, columns: False)
        by_python = text_of(export.TaskRunRecordResource(), fields, batch_size)
    by_resource = text_of(AsBefore(), fields, batch_size)
    assert by_python == by_resource
    assert fastest == by_resource
    return fastest


def make_hostile_run(
    *,
    user: User,
    took: timedelta | None,
    is_cancelled: bool,
    is_about_something: bool,
    **fields: Any,
) -> TaskRunRecord:
    begun_at = fields["started_at"] or fields["created_at"]
    limit = datetime(9999, 12, 1, tzinfo=UTC)
    finished_at = None if took is None else min(begun_at, limit) + took
    return TaskRunRecord(
        **run_fields(
            **fields,
            state=State.STARTED,
            finished_at=finished_at,
            cancel_requested_by=user if is_cancelled else None,
            content_type=(
                ContentType.objects.get_for_model(User) if is_about_something else None
            ),
        )
    )


@FEW
@given(rows=st.lists(ROW, min_size=1, max_size=5), fields=st.sampled_from([None, ["reason"]]))
def test_every_way_to_export_runs_writes_the_same(
    rows: list[dict[str, Any]], fields: list[str] | None
) -> None:
    TaskRunRecord.objects.all()._raw_delete("default")
    user, _ = User.objects.get_or_create(username="=ada")
    TaskRunRecord.objects.bulk_create([make_hostile_run(user=user, **row) for row in rows])

    with pytest.MonkeyPatch.context() as monkeypatch:
        assert_all_ways_agree(monkeypatch, fields)


@pytest.mark.parametrize(
    "text",
    [
        *("1.50", "0.10", "1e-7", "0.00001", "12345678901234567.5", "-1.50", "-0", "1E400"),
        *("null", '"="', "-5", "1.0", "10.0", "123456789.1234567", '"\\u00e9\\ud83d\\ude00\\/"'),
        *('{"a":1.5,"b" : [ ]}', '{"\\u005f_type__": "decimal", "__value__": "1"}'),
    ],
)
def test_json_that_somebody_else_wrote_is_exported_the_same(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text == "1E400" and connection.vendor != "postgresql":
        text = "1E300"
    run = make_run(reason="here")
    with connection.cursor() as cursor:
        table = TaskRunRecord._meta.db_table
        cursor.execute(f"UPDATE {table} SET result = %s WHERE id = %s", [text, run.pk])

    assert_all_ways_agree(monkeypatch)


def test_null_of_json_is_an_empty_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(result=Value(None, JSONField()))
    make_run(result=None)

    assert assert_all_ways_agree(monkeypatch, ["result"]) == 'result\r\n""\r\n""\r\n'


def test_a_column_alone_is_exported_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for reason in ("", "\\.", "=1", ",", "a"):
        make_run(reason=reason, cancel_requested_by=make_user() if reason else None)

    for name in export.EXPORT_FIELDS:
        assert_all_ways_agree(monkeypatch, [name])


@pytest.mark.parametrize("time_zone", [None, "Europe/Vienna"])
@pytest.mark.parametrize("use_tz", [True, False])
def test_times_are_exported_the_same_however_the_site_keeps_them(
    use_tz: bool, time_zone: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    with kept_in(time_zone):
        make_run(created_at=start, started_at=start, finished_at=start + timedelta(hours=2))
        make_run(created_at=start.replace(microsecond=10), eta=start.replace(year=1960))

        with override_settings(USE_TZ=use_tz):
            assert_all_ways_agree(monkeypatch)


@contextmanager
def kept_in(time_zone: str | None) -> Iterator[None]:
    """Let the database keep times in a time zone of its own, and only here."""
    was = connection.settings_dict["TIME_ZONE"]
    connection.settings_dict["TIME_ZONE"] = time_zone
    _forget_time_zone()
    try:
        yield
    finally:
        connection.settings_dict["TIME_ZONE"] = was
        _forget_time_zone()


def _forget_time_zone() -> None:
    """Let the connection ask its settings again, as Django 5.2 does when they change."""
    for name in ("timezone", "timezone_name"):
        with suppress(AttributeError):
            delattr(connection, name)
    connection.ensure_timezone()


def test_postgresql_writes_the_runs_itself() -> None:
    columns = export.plain_columns(export.TaskRunRecordResource())

    assert columns is not None
    is_postgresql = connection.vendor == "postgresql"
    assert can_copy("default", columns) is (
        is_postgresql and connection.Database.__name__ == "psycopg"
    )


def test_a_filter_with_a_percent_sign_is_exported_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = make_run(reason="100 % 's", kwargs={"a": "%s"})
    make_run(reason="100")
    runs = TaskRunRecord.objects.filter(reason__contains="% '", kwargs__a="%s").distinct()

    batches = list(export.csv_batches(runs, export.TaskRunRecordResource(), ["id"]))

    assert "".join(batch.text for batch in batches) == f"id\r\n{wanted.pk}\r\n"


@pytest.mark.parametrize("way", ["as it is", "by Python", "by the resource"])
@pytest.mark.parametrize("deleted", [1, 5])
def test_runs_that_go_while_others_are_exported_end_no_export(
    way: str, deleted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(task_name=f"tests.{number % 2}") for number in range(20)]
    until = TaskRunRecordQuerySet._until

    def meanwhile(asked: TaskRunRecordQuerySet, last: object) -> TaskRunRecordQuerySet:
        newest = TaskRunRecord.objects.order_by("-pk").values_list("pk", flat=True)
        if len(newest) == 20:
            TaskRunRecord.objects.filter(pk__in=list(newest[:deleted])).delete()
        return until(asked, last)

    monkeypatch.setattr(TaskRunRecordQuerySet, "_until", meanwhile)
    if way != "as it is":
        monkeypatch.setattr(export, "can_copy", lambda *_arguments: False)
    if way == "by the resource":
        monkeypatch.setattr(export, "plain_columns", lambda *_arguments: None)
    either = TaskRunRecord.objects.any_of([Q(task_name="tests.0"), Q(task_name="tests.1")])

    resource = export.TaskRunRecordResource()
    batches = list(export.csv_batches(either, resource, ["id"], batch_size=5))

    lines = "".join(batch.text for batch in batches).split()
    assert lines[1:] == [str(run.pk) for run in reversed(runs[: 20 - deleted])]
