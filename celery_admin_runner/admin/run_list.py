"""The list of the journal: which runs stand on a page of it, and how it is shown."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import InvalidPage
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _

from celery_admin_runner.admin.filters import CreatedFilter
from celery_admin_runner.admin.pages import (
    AFTER,
    BEFORE,
    COUNT_MAX,
    COUNT_MAX_OF_SEVERAL,
    NEWEST_FIRST,
    OLDEST_FIRST,
    Counted,
    RunPage,
    RunPages,
    Way,
)
from celery_admin_runner.admin.rows import Table
from celery_admin_runner.querysets import TaskRunRecordQuerySet

#: Columns that may be large and that no list shows.
LARGE_FIELDS = (
    *("args", "kwargs", "options", "result", "whole_result", "children"),
    *("exception", "traceback", "publish_error"),
)


class RunChangeList(ChangeList):
    """The list of runs, which reads and counts no more than it shows."""

    page: RunPage
    queryset: TaskRunRecordQuerySet

    def get_queryset(self, *args: Any, **kwargs: Any) -> TaskRunRecordQuerySet:
        """Return the runs of the page's search and filters without their large columns."""
        for name in (BEFORE, AFTER):
            # No filter: it goes on no link that leads to other runs.
            self.params.pop(name, None)
            self.filter_params.pop(name, None)
        return super().get_queryset(*args, **kwargs).defer(*LARGE_FIELDS)  # type: ignore[return-value]

    def get_ordering_field(self, field_name: Any) -> Any:
        """Return what a column sorts by: nothing for a column that no index serves."""
        sortable = self.sortable_by is None or field_name in self.sortable_by
        return super().get_ordering_field(field_name) if sortable else None

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        """Return the order of creation, as one index has it either way."""
        ordering = super().get_ordering(request, queryset)
        return list(OLDEST_FIRST if "created_at" in ordering[:1] else NEWEST_FIRST)

    def get_results(self, request: HttpRequest) -> None:
        """Read the runs of the page; raises IncorrectLookupParameters where there is none."""
        pages = RunPages(
            self.queryset,
            size=self._size(),
            ascending=self.queryset.query.order_by == OLDEST_FIRST,
            count_max=self._count_max(request),
        )
        try:
            self.page = pages.asked_for(request.GET)
        except InvalidPage as error:
            raise IncorrectLookupParameters(str(error)) from error
        self.page_num = self.page.number or 1
        self.paginator = self.page.paginator
        self.result_list = self.page.runs
        self.result_count = self.counted.number
        self.full_result_count = None
        self.show_full_result_count = False
        # Without a count nobody knows that there is nothing to act on.
        self.show_admin_actions = True
        self.can_show_all = self.result_count <= self.list_max_show_all
        self.multi_page = bool(self.page.number) and self.result_count > self.list_per_page

    @property
    def counted(self) -> Counted:
        """How many runs the filters leave, as far as they were counted."""
        return self.page.counted

    @property
    def all_selected(self) -> str:
        """What the page says when all runs are selected, on this page and on the others."""
        return _("All %(number)s selected") % {"number": self.counted}

    @cached_property
    def table(self) -> Table:
        """The runs as they are shown."""
        return Table(self)

    @property
    def back(self) -> list[tuple[Way, str]]:
        """The links toward the start of the list, and their addresses."""
        return [(way, self.get_query_string(dict(way.parameters))) for way in self.page.back]

    @property
    def onward(self) -> list[tuple[Way, str]]:
        """The links toward the end of the list, and their addresses."""
        return [(way, self.get_query_string(dict(way.parameters))) for way in self.page.onward]

    def _size(self) -> int:
        """Return how many runs stand on a page: all, if that is asked for and they are few."""
        if self.show_all:
            most = self.list_max_show_all
            if self.queryset.count_up_to(most + 1) <= most:
                return most
        return self.list_per_page

    def _count_max(self, request: HttpRequest) -> int:
        """Return how far runs are counted: less far where not one index tells which they are."""
        filters = {*self.get_filters_params()} - {*CreatedFilter.parameters}
        conditions = len(filters) + len(self.query.split())
        if not self.model_admin.sees_all_runs(request):  # type: ignore[attr-defined]
            conditions += 1
        is_one = conditions <= 1 and not self.queryset.has_parts
        return COUNT_MAX if is_one else COUNT_MAX_OF_SEVERAL
