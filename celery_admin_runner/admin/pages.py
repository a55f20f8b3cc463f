"""The pages of a list of runs: numbered near its start, and beyond that by where one is.

Nobody counts all runs of a large journal, and none is skipped to come to a page. Each page is
one walk along an index: from the start, or from the run that stood last on the page before. So a
page far away costs what the first one does, and while new runs come none is shown twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from math import ceil
from typing import Any, Self

from django.conf import settings
from django.contrib.admin.views.main import PAGE_VAR
from django.core.paginator import EmptyPage, InvalidPage, Paginator
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.moments import exactly
from celery_admin_runner.querysets import TaskRunRecordQuerySet

#: In the address: the page with the runs created before, or after, this place in the journal.
BEFORE, AFTER = "before", "after"
#: In place of a run: before the end, and after the start, of all.
END, START = "end", "start"
#: No more runs are counted than this; beyond it pages have no numbers.
COUNT_MAX = 10_000
#: The same where several conditions are to hold: for each run that is counted a database may
#: look at many.
COUNT_MAX_OF_SEVERAL = 500
NEWEST_FIRST, OLDEST_FIRST = ("-created_at", "-id"), ("created_at", "id")

#: Microseconds since 1970, and a primary key.
_PLACE = re.compile(r"(-?[0-9]{1,18})-([0-9]{1,19})")
_PK_MAX = 2**63 - 1
_MICROSECOND = timedelta(microseconds=1)
_TEXTS = {
    "newest": (pgettext_lazy("runs", "Newest"), gettext_lazy("Newest runs")),
    "newer": (pgettext_lazy("runs", "Newer"), gettext_lazy("Newer runs")),
    "older": (pgettext_lazy("runs", "Older"), gettext_lazy("Older runs")),
    "oldest": (pgettext_lazy("runs", "Oldest"), gettext_lazy("Oldest runs")),
}


class WrongPlace(InvalidPage):
    """The address names no place in the journal."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run stands in the journal, also when it is there no more."""

    moment: datetime
    pk: int

    @classmethod
    def of(cls, run: TaskRunRecord) -> Self:
        """Return the place of a run."""
        return cls(moment=exactly(run.created_at, str(run._state.db)), pk=run.pk)

    @classmethod
    def read(cls, text: str, *, using: str = DEFAULT_DB_ALIAS) -> Self:
        """Return the place that was written into an address; raises WrongPlace.

        Its moment is aware or naive as this database wants to be asked for it.
        """
        numbers = _PLACE.fullmatch(text)
        if numbers is None or int(numbers[2]) > _PK_MAX:
            raise WrongPlace(text)
        try:
            is_aware = settings.USE_TZ or connections[using].features.supports_timezones
            moment = _epoch(is_aware=is_aware) + int(numbers[1]) * _MICROSECOND
        except OverflowError as error:
            raise WrongPlace(text) from error
        return cls(moment=moment, pk=int(numbers[2]))

    def __str__(self) -> str:
        since = self.moment - _epoch(is_aware=timezone.is_aware(self.moment))
        return f"{since // _MICROSECOND}-{self.pk}"

    @property
    def older(self) -> Q:
        """What holds for the runs that stand before it in time; an index gives them in order."""
        at_once = Q(created_at__lt=self.moment) | Q(pk__lt=self.pk)
        return Q(at_once, created_at__lte=self.moment)

    @property
    def newer(self) -> Q:
        """What holds for the runs that stand after it in time."""
        at_once = Q(created_at__gt=self.moment) | Q(pk__gt=self.pk)
        return Q(at_once, created_at__gte=self.moment)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How many runs there are, as far as they were counted."""

    number: int
    #: There are more.
    is_capped: bool

    @classmethod
    def of(cls, rows: QuerySet[Any], *, at_most: int) -> Self:
        """Count rows, up to a number."""
        if isinstance(rows, TaskRunRecordQuerySet):
            number = rows.count_up_to(at_most + 1)
        else:
            number = rows.order_by()[: at_most + 1].count()
        return cls(number=min(number, at_most), is_capped=number > at_most)

    def __str__(self) -> str:
        if not self.is_capped:
            return str(number_format(self.number))
        return _("%(number)s+") % {"number": number_format(self.number, force_grouping=True)}


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """Pages of a query set, of which no more rows are counted than COUNT_MAX."""

    @cached_property
    def count(self) -> int:
        """How many rows there are, as far as they are counted."""
        return Counted.of(self.object_list, at_most=COUNT_MAX).number  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Way:
    """A link to another page."""

    text: Any
    #: What it is called where it is read out alone.
    label: Any
    parameters: Mapping[str, str]
    #: What the other page is to this one, as HTML has it; "" for no neighbour.
    rel: str = ""

    @property
    def query(self) -> str:
        """What stands in the address of the other page, if nothing else does."""
        return f"?{urlencode(self.parameters)}"


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """A page of a list of runs."""

    runs: list[TaskRunRecord]
    counted: Counted
    #: Its number; 0 for a page beyond the numbered ones.
    number: int
    paginator: Paginator[Any]
    #: Where it leads to, toward the start of the list and toward its end.
    back: Sequence[Way] = ()
    onward: Sequence[Way] = ()

    @property
    def numbers(self) -> list[Any]:
        """The numbers of pages to offer, with an ellipsis where some are left out."""
        if not self.number or self.paginator.num_pages < 2:
            return []
        return list(self.paginator.get_elided_page_range(self.number))


class RunPages:
    """The pages of runs in the order of their creation, the newest first unless ``ascending``."""

    def __init__(
        self,
        runs: TaskRunRecordQuerySet,
        *,
        size: int,
        ascending: bool = False,
        count_max: int = COUNT_MAX,
    ) -> None:
        """Take the runs; nothing is read yet."""
        self._runs = runs.order_by(*(OLDEST_FIRST if ascending else NEWEST_FIRST))
        self._ascending = ascending
        self._size = size
        self._count_max = count_max

    @cached_property
    def counted(self) -> Counted:
        """How many runs there are, up to the number that is counted."""
        return Counted.of(self._runs, at_most=self._count_max)

    def asked_for(self, parameters: Mapping[str, str]) -> RunPage:
        """Return the page that an address asks for: at a place, or of a number.

        Raises InvalidPage for a place that can't be read, and for a number that is too large.
        """
        places = {name: parameters[name] for name in (BEFORE, AFTER) if name in parameters}
        if len(places) > 1:
            raise WrongPlace(places)
        for name, text in places.items():
            is_outermost = text == (END if name == BEFORE else START)
            place = None if is_outermost else Place.read(text, using=self._runs.db)
            return self._beside(place, is_older=name == BEFORE)
        try:
            number = int(parameters.get(PAGE_VAR, 1))
        except ValueError:
            # As in admin: what is no number is the first page.
            number = 1
        return self.numbered(number)

    def numbered(self, number: int) -> RunPage:
        """Return a numbered page; raises InvalidPage if there is none of this number.

        Where the first one holds all, nothing is counted.
        """
        rows: list[TaskRunRecord] | None = None
        if number == 1:
            rows = self._runs.rows(0, self._size + 1)
            if len(rows) <= self._size:
                self.counted = Counted(number=len(rows), is_capped=False)
        last = ceil(self.counted.number / self._size)
        if last <= 1:
            # As in admin: where there is one page only, it is that one.
            number = 1
        elif not 1 <= number <= last:
            raise EmptyPage(number)
        if rows is None:
            rows = self._runs.rows((number - 1) * self._size, number * self._size)
        rows = rows[: self._size]
        onward: Sequence[Way] = ()
        if self.counted.is_capped and rows:
            is_last = number == last
            following = self._from(rows[-1]) if is_last else {PAGE_VAR: str(number + 1)}
            onward = self._onward(following)
        return self._page(rows, number=number, onward=onward)

    def _beside(self, place: Place | None, *, is_older: bool) -> RunPage:
        """Return the page next to a place; None: at the very end that lies that way."""
        runs = self._runs.order_by(*(NEWEST_FIRST if is_older else OLDEST_FIRST))
        if place is not None:
            runs = runs.filter(place.older if is_older else place.newer)
        rows = runs.rows(0, self._size + 1)
        is_more = len(rows) > self._size
        rows = rows[: self._size]
        is_onward = is_older != self._ascending
        if not rows or not (is_onward or is_more):
            # The start, where pages have numbers, or nothing is left here.
            return self.numbered(1)
        if not is_onward:
            rows.reverse()
        has_next = is_more if is_onward else place is not None
        onward = self._onward(self._from(rows[-1])) if has_next else ()
        return self._page(rows, back=self._back(rows[0]), onward=onward)

    def _page(
        self,
        rows: list[TaskRunRecord],
        *,
        number: int = 0,
        back: Sequence[Way] = (),
        onward: Sequence[Way] = (),
    ) -> RunPage:
        paginator: Paginator[Any] = Paginator((), self._size)
        paginator.count = self.counted.number
        return RunPage(
            runs=rows,
            counted=self.counted,
            number=number,
            paginator=paginator,
            back=back,
            onward=onward,
        )

    def _from(self, run: TaskRunRecord, *, back: bool = False) -> dict[str, str]:
        """Return what names the page after a run of the list; ``back``: the one before it."""
        return {AFTER if back != self._ascending else BEFORE: str(Place.of(run))}

    def _back(self, run: TaskRunRecord) -> list[Way]:
        first, previous = ("oldest", "older") if self._ascending else ("newest", "newer")
        return [_way(first, {}), _way(previous, self._from(run, back=True), rel="prev")]

    def _onward(self, following: Mapping[str, str]) -> list[Way]:
        names = ("newer", "newest") if self._ascending else ("older", "oldest")
        outermost = {BEFORE: END} if self._ascending else {AFTER: START}
        return [_way(names[0], following, rel="next"), _way(names[1], outermost)]


def _way(name: str, parameters: Mapping[str, str], rel: str = "") -> Way:
    text, label = _TEXTS[name]
    return Way(text=text, label=label, parameters=parameters, rel=rel)


def _epoch(*, is_aware: bool) -> datetime:
    """Return the moment that places count from."""
    return datetime(1970, 1, 1, tzinfo=UTC if is_aware else None)
