"""The journal as rows of a table, for people, spreadsheets and archives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

from django.contrib.contenttypes.models import ContentType
from django.db.models import Q, Sum, TextField
from django.db.models.functions import Cast, Coalesce, Length
from import_export.fields import Field
from import_export.resources import ModelResource

from celery_admin_runner.cells import (
    JSON_COLUMNS,
    TIME_COLUMNS,
    WIDE_COLUMNS,
    Cell,
    Column,
    Key,
    Page,
    column_of,
    csv_text,
    escape_formula,
    paths_of,
    rows_of,
    utc_text,
)
from celery_admin_runner.copying import can_copy, copied
from celery_admin_runner.encoding import readable_text
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.moments import exactly
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
#: Rows of the first batch, before it is known how wide they are, and most rows of a batch.
FIRST_BATCH_SIZE, BATCH_SIZE = 100, 5000
#: Characters of a batch that the next ones aim at, so that memory stays the same for wide rows.
BATCH_CHARACTERS = 1024 * 1024

#: Reads so many of the runs at most, from the newest on.
Read = Callable[[TaskRunRecordQuerySet, int], Page]


@dataclass(frozen=True, kw_only=True)
class CsvBatch:
    """Some lines of CSV, and how many runs they tell of."""

    text: str
    rows: int


def write_csv(parts: Iterable[TaskRunRecordQuerySet], file: TextIO) -> int:
    """Write the runs of each part as CSV to ``file`` and return how many.

    Open the file with ``newline=""``. The parts are all of the same database.
    """
    resource = TaskRunRecordResource()
    file.write(_headings(resource).text)
    rows = 0
    pace = _Pace(most=BATCH_SIZE)
    for runs in parts:
        for batch in _batches(runs, _reader(runs.db, resource), pace):
            file.write(batch.text)
            rows += batch.rows
    return rows


def csv_batches(
    queryset: TaskRunRecordQuerySet,
    resource: ModelResource,
    fields: Sequence[str] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Iterator[CsvBatch]:
    """Yield the header, then the runs in batches of at most ``batch_size``, newest first.

    Times are ISO 8601 in UTC, durations seconds, JSON is text without envelopes.

    Each batch is one query from where the one before ended, so that no database, client or
    cursor holds the whole answer, and no transaction stays open while a client reads.
    ``fields`` None: all of the resource.
    """
    yield _headings(resource, fields)
    # Of several replicas the same one answers, for all the batches.
    runs = queryset.using(queryset.db)
    yield from _batches(runs, _reader(runs.db, resource, fields), _Pace(most=batch_size))


def for_export(queryset: TaskRunRecordQuerySet) -> TaskRunRecordQuerySet:
    """Return the runs with all that their cells need, newest first."""
    runs = queryset.defer(None).defer("whole_result", "children")
    return runs.select_related("cancel_requested_by").order_by("-created_at", "-id")


def plain_columns(
    resource: ModelResource, fields: Sequence[str] | None = None
) -> list[Column] | None:
    """Return the columns that a resource exports, if it leaves their cells to us; else None.

    A subclass of TaskRunRecordResource may have fields of another class, or more methods that
    make a cell, or one that makes all. Then each run is read whole, and the resource asked.
    """
    if type(resource).export_field is not ModelResource.export_field:
        return None
    columns: list[Column] = []
    for field in resource.get_export_fields(fields):
        column = column_of(field.column_name) if type(field) is RunColumn else None
        if column is None or _is_dehydrated(resource, field):
            return None
        columns.append(column)
    return columns


def _is_dehydrated(resource: ModelResource, field: Field) -> bool:
    method = field.get_dehydrate_method(resource.get_field_name(field))
    return callable(method) or hasattr(resource, method)


@dataclass(kw_only=True)
class _Pace:
    """How many runs the next batch reads: as many as fit, as wide as the last ones were."""

    most: int
    size: int = FIRST_BATCH_SIZE

    def __post_init__(self) -> None:
        self.size = min(self.size, self.most)

    def follow(self, page: Page) -> None:
        self.size = max(1, min(self.most, page.rows * BATCH_CHARACTERS // len(page.text)))


def _headings(resource: ModelResource, fields: Sequence[str] | None = None) -> CsvBatch:
    return CsvBatch(text=csv_text([resource.get_export_headers(fields)]), rows=0)


def _reader(using: str, resource: ModelResource, fields: Sequence[str] | None = None) -> Read:
    """Return what reads runs the fastest: the database, Python, or the resource one by one."""
    columns = plain_columns(resource, fields)
    if columns is None:
        return partial(_read_by_resource, resource=resource, fields=fields)
    if can_copy(using, columns):
        return partial(copied, columns=columns, enough=BATCH_CHARACTERS)
    return partial(_read_plainly, columns=columns)


def _batches(runs: TaskRunRecordQuerySet, read: Read, pace: _Pace) -> Iterator[CsvBatch]:
    """Yield the runs, newest first, by one query a batch."""
    runs = for_export(runs)
    rest = runs
    while True:
        page = read(rest, pace.size)
        if page.rows:
            yield CsvBatch(text=page.text, rows=page.rows)
            pace.follow(page)
        if page.is_end:
            return
        # All that were to be read may have gone just before.
        if page.last is not None:
            rest = runs.filter(_beyond(page.last, runs.db))


def _beyond(key: Key, using: str) -> Q:
    """Return the condition that a run stands below this place, for an index on the time."""
    created_at, pk = exactly(key[0], using), key[1]
    return Q(created_at__lte=created_at) & (Q(created_at__lt=created_at) | Q(pk__lt=pk))


def _read_plainly(
    runs: TaskRunRecordQuerySet, size: int, *, columns: Sequence[Column]
) -> Page:
    page = runs.head(size)
    size = _affordable(page, size, WIDE_COLUMNS.intersection(paths_of(columns)))
    keys, rows = rows_of(page[:size], columns)
    return _page(keys, rows, is_end=len(rows) < size and not page.is_cut_off)


def _read_by_resource(
    runs: TaskRunRecordQuerySet,
    size: int,
    *,
    resource: ModelResource,
    fields: Sequence[str] | None,
) -> Page:
    page = runs.head(size)
    size = _affordable(page, size, WIDE_COLUMNS.intersection(EXPORT_FIELDS))
    columns = resource.get_export_fields(fields)
    read = list(page[:size])
    rows = [
        [escape_formula(resource.export_field(column, run)) for column in columns] for run in read
    ]
    keys = [(run.created_at, run.pk) for run in read]
    return _page(keys, rows, is_end=len(rows) < size and not page.is_cut_off)


def _page(keys: Sequence[Key], rows: Sequence[Sequence[Cell]], *, is_end: bool) -> Page:
    last = keys[-1] if keys else None
    return Page(text=csv_text(rows), rows=len(rows), last=last, is_end=is_end)


def _affordable(runs: TaskRunRecordQuerySet, size: int, wide: Iterable[str]) -> int:
    """Return how many of the runs to read, ``size`` at most, for their texts to fit into memory.

    The database is asked how long they are: among narrow runs may be thousands of wide ones.
    """
    lengths = [Coalesce(Length(Cast(name, TextField())), 0) for name in sorted(wide)]
    if not lengths:
        return size
    measured = runs.annotate(_length=sum(lengths[1:], start=lengths[0])).values("_length")
    while size > 1:
        length = measured[:size].aggregate(Sum("_length"))["_length__sum"] or 0
        if length <= 2 * BATCH_CHARACTERS:
            break
        size = max(1, size * BATCH_CHARACTERS // length)
    return size


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
    if name in JSON_COLUMNS:
        return None if value is None else readable_text(value)
    if name in TIME_COLUMNS:
        return utc_text(value)
    return value  # type: ignore[no-any-return]


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
