"""Rows for which any of several conditions holds, read in order without reading all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import reduce
from operator import or_
from typing import Any, Self, TypeVar

from django.core.exceptions import EmptyResultSet
from django.db import connections, models
from django.db.models import Q

from celery_admin_runner.moments import exactly

Row = TypeVar("Row", bound=models.Model)

#: So many conditions are asked for one by one. More of them leave few rows out, as a rule.
PARTS_MAX = 50
_PART = "SELECT * FROM ({text}) AS part{place}"


class AlternativesQuerySet(models.QuerySet[Row]):
    """Rows that may have been chosen by ``any_of``, and knows still by which conditions.

    No index gives the rows of two values in the order of a third column: a database either
    reads and sorts all of them, or walks through the whole table until it has met enough. So
    the first rows of each condition are asked for, which its index gives in order, and the
    first of these are the first of all.
    """

    #: Sets of rows whose union this is; () where nobody knows them any more.
    _parts: tuple[Self, ...] = ()
    #: The set as a whole can be counted by an index.
    _is_countable = False
    #: It reaches as far as was asked before: if rows have gone since, more may follow.
    is_cut_off = False

    def any_of(self, conditions: Sequence[Q], whole: Q | None = None) -> Self:
        """Rows for which one of ``conditions`` holds at least; without a condition none.

        ``whole``: the same in one condition that an index serves, so of one column; then rows
        are counted by it.
        """
        if not conditions:
            return self.none()
        is_countable = whole is not None and not self._parts
        if whole is None or len(conditions) == 1:
            whole = reduce(or_, conditions)
        chosen = self.filter(whole)
        parts = self._parts or (self,)
        if 1 < len(parts) * len(conditions) <= PARTS_MAX:
            chosen._parts = tuple(part.filter(each) for part in parts for each in conditions)
            chosen._is_countable = is_countable
        return chosen

    @property
    def has_parts(self) -> bool:
        """Tell whether several conditions are asked for one by one."""
        return bool(self._parts)

    def rows(self, start: int, stop: int) -> list[Row]:
        """Return the rows from ``start`` on, before ``stop``, in the order of this set."""
        return list(self.head(stop)[start:])

    def head(self, size: int) -> Self:
        """The first ``size`` of these rows.

        Of several conditions it is asked at once how far along the order so many rows reach.
        """
        if self._parts:
            values = self._first(size, self._order[0].lstrip("-"))
            if not values:
                return self.none()
            head = self._until(values[-1])[:size]
            head.is_cut_off = len(values) == size
            return head
        if connections[self.db].vendor == "mysql":
            # Where its index has one more column before the primary key it sorts all rows.
            name = self._order[0]
            first = super().order_by(name).values_list(name.lstrip("-"), flat=True)
            if values := list(first[size - 1 : size]):
                head = self._until(values[0])[:size]
                head.is_cut_off = True
                return head
        return self[:size]

    def _until(self, last: Any) -> Self:
        """Those of these rows that come no later in the order than this value."""
        name = self._order[0]
        lookup = f"{name[1:]}__gte" if name.startswith("-") else f"{name}__lte"
        if isinstance(last, datetime):
            last = exactly(last, self.db)
        return super().filter(**{lookup: last})

    def count_up_to(self, limit: int) -> int:
        """Return how many rows there are, at most ``limit``: no more are looked at."""
        name = self._order[0].lstrip("-")
        if self._parts and not self._is_countable:
            return len(self._first(limit, name, "pk"))
        # What they are sorted by stands in the index that finds them, which alone can answer.
        return self.order_by().values(name)[:limit].count()

    # What is asked of the whole is asked of its parts. Whatever else makes a set of this one
    # knows no parts, and is read as any other.

    def filter(self, *args: Any, **kwargs: Any) -> Self:
        """Rows for which all of this holds."""
        return self._with_parts(
            super().filter(*args, **kwargs), lambda part: part.filter(*args, **kwargs)
        )

    def exclude(self, *args: Any, **kwargs: Any) -> Self:
        """Rows for which not all of this holds."""
        return self._with_parts(
            super().exclude(*args, **kwargs), lambda part: part.exclude(*args, **kwargs)
        )

    def all(self) -> Self:
        """The same rows."""
        return self._with_parts(super().all())

    def order_by(self, *names: Any) -> Self:
        """The same rows, in this order."""
        return self._with_parts(super().order_by(*names))

    def defer(self, *names: Any) -> Self:
        """The same rows, of which these columns are not read."""
        return self._with_parts(super().defer(*names))

    def only(self, *names: Any) -> Self:
        """The same rows, of which only these columns are read."""
        return self._with_parts(super().only(*names))

    def select_related(self, *names: Any) -> Self:
        """The same rows, read with what these columns refer to."""
        return self._with_parts(super().select_related(*names))

    def using(self, alias: str | None) -> Self:
        """The same rows, read from this database."""
        return self._with_parts(super().using(alias), lambda part: part.using(alias))

    def _with_parts(self, changed: Self, change: Callable[[Self], Self] | None = None) -> Self:
        changed._parts = self._parts if change is None else tuple(map(change, self._parts))
        changed._is_countable = self._is_countable
        return changed

    @property
    def _order(self) -> list[str]:
        return [str(name) for name in self.query.order_by] or ["-pk"]

    def _first(self, number: int, *names: str) -> list[Any]:
        """Return the first values of these columns in all parts, each once: one query.

        The first of ``names`` is what the set is sorted by. Django's own union can't cut off its
        parts on SQLite.
        """
        order = self._order
        texts, params = [], []
        for place, part in enumerate(self._parts):
            first = part.order_by(*order[: len(names)]).values_list(*names)[:number]
            with suppress(EmptyResultSet):
                text, values = first.query.get_compiler(self.db).as_sql()
                texts.append(_PART.format(text=text, place=place))
                params += values
        if not texts:
            return []
        connection = connections[self.db]
        direction = "DESC" if order[0].startswith("-") else "ASC"
        with connection.cursor() as cursor:
            cursor.execute(
                f"{' UNION '.join(texts)} ORDER BY 1 {direction} LIMIT {int(number)}", params
            )
            found = [row[0] for row in cursor.fetchall()]
        return self._converted(found, names[0])

    def _converted(self, values: list[Any], name: str) -> list[Any]:
        """Return values of a column as Django gives them."""
        field: Any = self.model._meta.pk if name == "pk" else self.model._meta.get_field(name)
        column = field.get_col(self.model._meta.db_table)
        connection = connections[self.db]
        for convert in (
            *connection.ops.get_db_converters(column),
            *column.get_db_converters(connection),
        ):
            values = [convert(value, column, connection) for value in values]
        return values
