"""Rows for which any of several conditions holds, read in order without reading all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import reduce
from operator import or_
from typing import Any, Self, TypeVar

from django.core.exceptions import EmptyResultSet
from django.db import connections, models
from django.db.models import Q

Row = TypeVar("Row", bound=models.Model)

#: So many conditions are asked for one by one. More of them leave few rows out, as a rule.
PARTS_MAX = 50
_PART = "SELECT * FROM ({text}) AS part{number}"


class AlternativesQuerySet(models.QuerySet[Row]):
    """Rows that may have been chosen by ``any_of``, and knows still by which conditions.

    No index gives the rows of two values in the order of a third column: a database either
    reads and sorts all of them, or walks through the whole table until it has met enough. So
    the first rows of each condition are asked for, which its index gives in order, and the
    first of these are the first of all.
    """

    #: Sets of rows whose union this is; () where nobody knows them any more.
    _parts: tuple[Self, ...] = ()

    def any_of(self, conditions: Sequence[Q]) -> Self:
        """Rows for which one of ``conditions`` holds at least; without a condition none."""
        if not conditions:
            return self.none()
        chosen = self.filter(reduce(or_, conditions))
        parts = self._parts or (self,)
        if 1 < len(parts) * len(conditions) <= PARTS_MAX:
            chosen._parts = tuple(part.filter(each) for part in parts for each in conditions)
        return chosen

    @property
    def has_parts(self) -> bool:
        """Tell whether several conditions are asked for one by one."""
        return bool(self._parts)

    def rows(self, start: int, stop: int) -> list[Row]:
        """Return the rows from ``start`` on, before ``stop``, in the order of this set."""
        if not self._parts:
            return list(self[start:stop])
        return list(super().filter(pk__in=self._keys(start, stop)))

    def count_up_to(self, limit: int) -> int:
        """Return how many rows there are, at most ``limit``: no more are looked at."""
        if self._parts:
            return len(self._keys(0, limit))
        # What they are sorted by stands in the index that finds them, which alone can answer.
        name = next((str(name).lstrip("-") for name in self.query.order_by), "pk")
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

    def _with_parts(self, changed: Self, change: Callable[[Self], Self] | None = None) -> Self:
        changed._parts = self._parts if change is None else tuple(map(change, self._parts))
        return changed

    def _keys(self, start: int, stop: int) -> list[Any]:
        """Return the primary keys of the rows from ``start`` on: one query over all parts.

        Django's own union can't cut off its parts on SQLite.
        """
        order = [str(name) for name in self.query.order_by]
        names = [name.lstrip("-") for name in order]
        texts, values = [], []
        for number, part in enumerate(self._parts):
            first = part.order_by(*order).values_list(*names, "pk")[:stop]
            with suppress(EmptyResultSet):
                text, params = first.query.get_compiler(self.db).as_sql()
                texts.append(_PART.format(text=text, number=number))
                values += params
        if not texts:
            return []
        columns = (
            f"{place} {'DESC' if name.startswith('-') else 'ASC'}"
            for place, name in enumerate(order, start=1)
        )
        with connections[self.db].cursor() as cursor:
            cursor.execute(
                f"{' UNION '.join(texts)} ORDER BY {', '.join(columns)} "
                f"LIMIT {int(stop - start)} OFFSET {int(start)}",
                values,
            )
            return [row[-1] for row in cursor.fetchall()]
