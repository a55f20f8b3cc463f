"""What stands in the columns of an export: the same text by Python and by PostgreSQL."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.db import connections
from django.db.models import (
    CharField,
    DateTimeField,
    Expression,
    Field,
    IntegerField,
    JSONField,
    TextField,
)
from django.db.models.functions import Cast
from django.utils import timezone

from celery_admin_runner.encoding import readable_json
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet

Cell = str | int | float | None
#: When a run was created, and its primary key: where it stands in the journal.
Key = tuple[datetime, int]

#: A spreadsheet takes a text that begins so for a formula, and runs it.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
#: The columns that tell where a run stands in the journal.
KEY_PATHS = ("created_at", "id")
#: JSON texts up to so many characters are often the same: "{}", "[]".
SHORT = 64

_STARTS_AS_FORMULA = f"ascii({{0}}) IN ({', '.join(str(ord(start)) for start in FORMULA_STARTS)})"
#: PostgreSQL writes JSON as Python does, but for what Python would not write: envelopes, and
#: numbers that are no text of a float (1.50, 0.00001, more than 15 digits).
_DOUBTFUL_JSON = (
    "strpos({0}, '\"__type__\"') > 0 OR (strpos({0}, '.') > 0 "
    "AND {0} ~ '[.]([0-9]+0([^0-9]|$)|0000|[0-9]{{7}})|[0-9]{{10}}[.][0-9]')"
)
#: NULL and "" are nothing in between two commas; a "" of its own would be put in quotes.
_SQL_OF_TEXT = (
    f"CASE WHEN {{0}} = '' THEN NULL WHEN {_STARTS_AS_FORMULA} THEN '''' || {{0}} ELSE {{0}} END"
)
_SQL_OF_JSON = "CASE WHEN ascii({0}) = 45 THEN '''' || {0} ELSE nullif({0}, 'null') END"
_SQL_OF_TIME = (
    "replace(to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"'), "
    "'.000000', '')"
)
#: Seconds as Python writes a float: 90.0, 0.5, 1e-05.
_SQL_OF_DURATION = (
    "CASE WHEN {1} <= {0} THEN '0.0' "
    "WHEN date_trunc('second', {1} - {0}) = {1} - {0} "
    "THEN extract(epoch FROM {1} - {0})::bigint || '.0' "
    "ELSE extract(epoch FROM {1} - {0})::float8::text END"
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some runs as lines of CSV."""

    text: str
    rows: int
    #: Where the last of them stands.
    last: Key | None
    #: Whether no runs can follow.
    is_end: bool


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column, and how its cells are made of what is read of a run."""

    #: What is read: paths of fields, as ``values_list`` takes them.
    reads: tuple[str, ...]
    #: Makes the cells of many runs; takes their values, a sequence for each of ``reads``.
    cells: Callable[..., Sequence[Cell]]
    #: The cell as SQL of PostgreSQL, ``{0}`` for the first of ``reads``; None: only Python can.
    sql: str | None = None
    #: The condition, as SQL, on which that is not certain to be the very same text.
    doubt: str = ""


def column_of(name: str) -> Column | None:
    """Return the column of this name; None for what is no plain value of a run."""
    if name == "duration":
        return Column(
            reads=("started_at", "finished_at"), cells=_durations, sql=_SQL_OF_DURATION
        )
    if name == "content_type":
        labels = ("content_type__app_label", "content_type__model")
        return Column(reads=labels, cells=_kinds, sql="{0} || '.' || {1}")
    if name == "retry_of":
        return Column(reads=("retry_of_id",), cells=_as_they_are, sql="{0}")
    if name == "cancel_requested_by":
        return _column_of_user(name)
    fields = {field.name: field for field in TaskRunRecord._meta.concrete_fields}
    field = fields.get(name)
    return None if field is None or field.is_relation else _column_of_field(name, field)


def _column_of_user(name: str) -> Column | None:
    """Return the column with the name of a user; None if the user's model makes up names."""
    model = get_user_model()
    if model.get_username is not AbstractBaseUser.get_username:
        return None
    field = model._meta.get_field(model.USERNAME_FIELD)
    return _column_of_field(f"{name}__{field.name}", field)


def _column_of_field(path: str, field: Any) -> Column:
    if isinstance(field, JSONField):
        return Column(reads=(path,), cells=_json_texts, sql=_SQL_OF_JSON, doubt=_DOUBTFUL_JSON)
    if isinstance(field, DateTimeField):
        return Column(reads=(path,), cells=_times, sql=_SQL_OF_TIME)
    if isinstance(field, IntegerField):
        return Column(reads=(path,), cells=_as_they_are, sql="{0}")
    if isinstance(field, CharField | TextField) and not hasattr(field, "from_db_value"):
        return Column(reads=(path,), cells=_texts, sql=_SQL_OF_TEXT)
    return Column(reads=(path,), cells=_escaped)


def paths_of(columns: Iterable[Column]) -> list[str]:
    """Return what is to be read for these columns, each path once, and where the run stands."""
    paths = (path for column in columns for path in column.reads)
    return list(dict.fromkeys((*KEY_PATHS, *paths)))


def expression_of(path: str, using: str) -> str | Expression:
    """Return what ``values_list`` is asked for.

    JSON is the text that the database keeps, and so is a time where it keeps no timezone
    (SQLite, MySQL): Django would make an object of each, and we a text again.
    """
    is_text = path in JSON_COLUMNS or (path in TIME_COLUMNS and has_times_as_text(using))
    return Cast(path, TextField()) if is_text else path


def has_times_as_text(using: str) -> bool:
    """Tell whether a database keeps times in UTC without saying so."""
    connection = connections[using]
    return not connection.features.supports_timezones and connection.timezone is UTC


def rows_of(
    runs: TaskRunRecordQuerySet, columns: Sequence[Column]
) -> tuple[list[Key], list[tuple[Cell, ...]]]:
    """Return where these runs stand in the journal, and their cells."""
    paths = paths_of(columns)
    rows = list(runs.values_list(*(expression_of(path, runs.db) for path in paths)))
    if not rows:
        return [], []
    # Column by column: each is the same work for all of its cells.
    read = dict(zip(paths, zip(*rows, strict=True), strict=True))
    cells = [column.cells(*(read[path] for path in column.reads)) for column in columns]
    places = zip(*(read[path] for path in KEY_PATHS), strict=True)
    keys = [(_moment(created_at), pk) for created_at, pk in places]
    return keys, list(zip(*cells, strict=True))


def csv_text(rows: Iterable[Sequence[Cell]]) -> str:
    """Return the rows as lines of CSV."""
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


def escape_formula(cell: Cell) -> Cell:
    """Return the cell so that no spreadsheet takes it for a formula: a text, as it says."""
    if isinstance(cell, str) and cell.startswith(FORMULA_STARTS):
        return f"'{cell}"
    return cell


def utc_text(moment: datetime | None) -> str | None:
    """Return a moment in ISO 8601, in UTC; a naive one is in the current timezone."""
    if moment is None:
        return None
    if moment.tzinfo is UTC:
        return moment.isoformat()
    aware = timezone.make_aware(moment) if timezone.is_naive(moment) else moment
    return aware.astimezone(UTC).isoformat()


def _moment(read: datetime | str) -> datetime:
    """Return a time that was read, perhaps as the text of one in UTC."""
    if isinstance(read, datetime):
        return read
    moment = datetime.fromisoformat(read)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _time_text(read: datetime | str) -> str | None:
    if isinstance(read, datetime):
        return utc_text(read)
    if read[10:11] == " " and (len(read) == 19 or (len(read) == 26 and read[19] == ".")):
        return f"{read[:10]}T{read[11:].removesuffix('.000000')}+00:00"
    return utc_text(_moment(read))


def _as_they_are(values: Sequence[Any]) -> Sequence[Cell]:
    return values


def _escaped(values: Sequence[Any]) -> Sequence[Cell]:
    return [escape_formula(value) for value in values]


def _texts(values: Sequence[str | None]) -> Sequence[Cell]:
    starts = {value[:1] for value in values if value}
    return values if starts.isdisjoint(FORMULA_STARTS) else _escaped(values)


def _times(values: Sequence[datetime | str | None]) -> Sequence[Cell]:
    return [None if value is None else _time_text(value) for value in values]


def _durations(
    starts: Sequence[datetime | str | None], ends: Sequence[datetime | str | None]
) -> Sequence[Cell]:
    return [
        None
        if start is None or end is None
        else max((_moment(end) - _moment(start)).total_seconds(), 0.0)
        for start, end in zip(starts, ends, strict=True)
    ]


def _kinds(app_labels: Sequence[str | None], models: Sequence[str | None]) -> Sequence[Cell]:
    return [
        "" if app_label is None else f"{app_label}.{model}"
        for app_label, model in zip(app_labels, models, strict=True)
    ]


def _json_texts(values: Sequence[str | None]) -> Sequence[Cell]:
    return [
        None if text is None else (_short_json if len(text) <= SHORT else _json_cell)(text)
        for text in values
    ]


def _json_cell(text: str) -> Cell:
    return escape_formula(readable_json(text))


_short_json = lru_cache(maxsize=512)(_json_cell)


def _columns_of(*kinds: type[Field[Any, Any]]) -> frozenset[str]:
    fields = TaskRunRecord._meta.concrete_fields
    return frozenset(field.name for field in fields if isinstance(field, kinds))


JSON_COLUMNS = _columns_of(JSONField)
TIME_COLUMNS = _columns_of(DateTimeField)
#: What can be large.
WIDE_COLUMNS = _columns_of(JSONField, TextField)
