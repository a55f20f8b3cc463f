"""The journal as rows of a table, for people, spreadsheets and archives."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from django.contrib.contenttypes.models import ContentType
from django.db.models import DateTimeField, JSONField
from django.utils import timezone
from import_export.fields import Field
from import_export.resources import ModelResource

from celery_admin_runner.encoding import readable_text
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet

#: The columns of an export, in their order.
EXPORT_FIELDS: tuple[str, ...] = (
    "id",
    "task_id",
    "task_name",
    "label",
    "state",
    "created_at",
    "started_at",
    "finished_at",
    "duration",
    "run_by_name",
    "source",
    "periodic_task_name",
    "reason",
    "args",
    "kwargs",
    "options",
    "queue",
    "content_type",
    "object_id",
    "retry_of",
    "parent_id",
    "root_id",
    "eta",
    "expires_at",
    "published_at",
    "publish_error",
    "retries",
    "worker",
    "cancel_requested_at",
    "cancel_requested_by",
    "result",
    "exception",
    "traceback",
)
#: A spreadsheet takes a text that begins so for a formula, and runs it.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
#: Rows of the first batch, before it is known how wide they are.
FIRST_BATCH_SIZE = 100
#: Characters of a batch that the next ones aim at, so that memory stays the same for wide rows.
BATCH_CHARACTERS = 2 * 1024 * 1024

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class CsvBatch:
    """Some lines of CSV, and how many runs they tell of."""

    text: str
    rows: int


def write_csv(queryset: TaskRunRecordQuerySet, file: TextIO) -> int:
    """Write the runs as CSV to ``file`` and return how many; open it with ``newline=""``."""
    rows = 0
    for batch in csv_batches(queryset, TaskRunRecordResource()):
        file.write(batch.text)
        rows += batch.rows
    return rows


def csv_batches(
    queryset: TaskRunRecordQuerySet,
    resource: ModelResource,
    fields: Sequence[str] | None = None,
    *,
    batch_size: int = 2000,
) -> Iterator[CsvBatch]:
    """Yield the header, then the runs in batches of at most ``batch_size``, newest first.

    Times are ISO 8601 in UTC, durations seconds, JSON is text without envelopes.

    Each batch is one query by primary key, so that no database, client or cursor
    holds the whole answer, and no transaction stays open while a client reads.
    ``fields`` None: all of the resource.
    """
    columns = resource.get_export_fields(fields)
    yield CsvBatch(text=_csv_text([resource.get_export_headers(fields)]), rows=0)
    runs = for_export(queryset)
    size = min(batch_size, FIRST_BATCH_SIZE)
    batch = list(runs[:size])
    while batch:
        text = _csv_text(
            [escape_formula(resource.export_field(column, run)) for column in columns]
            for run in batch
        )
        yield CsvBatch(text=text, rows=len(batch))
        size = max(1, min(batch_size, len(batch) * BATCH_CHARACTERS // len(text)))
        batch = list(runs.filter(pk__lt=batch[-1].pk)[:size])


def for_export(queryset: TaskRunRecordQuerySet) -> TaskRunRecordQuerySet:
    """Return the runs with all that their cells need, newest first."""
    runs = queryset.defer(None).defer("whole_result", "children")
    return runs.select_related("cancel_requested_by").order_by("-pk")


def escape_formula(cell: Cell) -> Cell:
    """Return the cell so that no spreadsheet takes it for a formula: a text, as it says."""
    if isinstance(cell, str) and cell.startswith(FORMULA_STARTS):
        return f"'{cell}"
    return cell


def _csv_text(rows: Iterable[Sequence[Cell]]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


def _utc_text(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    aware = timezone.make_aware(moment) if timezone.is_naive(moment) else moment
    return aware.astimezone(UTC).isoformat()


def _seconds(run: TaskRunRecord) -> float | None:
    return None if run.duration is None else run.duration.total_seconds()


def _about(run: TaskRunRecord) -> str:
    """Return the kind of object a run is about, as ``app_label.model``; cached by Django."""
    if run.content_type_id is None:
        return ""
    kind = ContentType.objects.db_manager(run._state.db).get_for_id(run.content_type_id)
    return f"{kind.app_label}.{kind.model}"


def _cancelled_by(run: TaskRunRecord) -> str:
    user = run.cancel_requested_by
    return "" if user is None else user.get_username()


_SPECIAL: Mapping[str, Callable[[TaskRunRecord], Cell]] = {
    "duration": _seconds,
    "content_type": _about,
    "retry_of": lambda run: run.retry_of_id,
    "cancel_requested_by": _cancelled_by,
}


def cell_of(run: TaskRunRecord, name: str) -> Cell:
    """Return what stands in the column ``name`` for a run, not escaped."""
    special = _SPECIAL.get(name)
    if special is not None:
        return special(run)
    value = getattr(run, name)
    if name in _JSON_COLUMNS:
        return None if value is None else readable_text(value)
    if name in _TIME_COLUMNS:
        return _utc_text(value)
    return value  # type: ignore[no-any-return]


def _columns_of(kind: type[Any]) -> frozenset[str]:
    return frozenset(
        field.name for field in TaskRunRecord._meta.get_fields() if isinstance(field, kind)
    )


_JSON_COLUMNS = _columns_of(JSONField)
_TIME_COLUMNS = _columns_of(DateTimeField)


class RunColumn(Field):  # type: ignore[misc]
    """A column of the export; ``column_name`` is the name in EXPORT_FIELDS."""

    def export(self, instance: TaskRunRecord, **kwargs: Any) -> Cell:
        """Return the cell: a text or a number in every format."""
        return cell_of(instance, self.column_name)


class TaskRunRecordResource(ModelResource):  # type: ignore[misc]
    """Runs for django-import-export, in every format with the same cells as in CSV."""

    duration = RunColumn(column_name="duration", readonly=True)

    class Meta:
        model = TaskRunRecord
        fields = EXPORT_FIELDS
        export_order = EXPORT_FIELDS

    @classmethod
    def get_display_name(cls) -> str:
        """Return the name of what is exported."""
        return str(TaskRunRecord._meta.verbose_name_plural)

    @classmethod
    def field_from_django_field(
        cls, field_name: str, django_field: Any, readonly: bool
    ) -> RunColumn:
        """Return our column for a field of the model."""
        return RunColumn(column_name=field_name, readonly=True)

    def get_field_name(self, field: Field) -> str:
        """Return the name of a column; import-export 4.4 would look through all, for each cell."""
        if isinstance(field, RunColumn):
            return field.column_name  # type: ignore[no-any-return]
        return super().get_field_name(field)  # type: ignore[no-any-return]

    def filter_export(
        self, queryset: TaskRunRecordQuerySet, **kwargs: Any
    ) -> TaskRunRecordQuerySet:
        """Return the runs with all that their cells need, newest first."""
        return for_export(queryset)

    def export_resource(
        self,
        instance: TaskRunRecord,
        selected_fields: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> list[Cell]:
        """Return the cells of a run, formulas escaped."""
        cells = super().export_resource(instance, selected_fields, **kwargs)
        return [escape_formula(cell) for cell in cells]
