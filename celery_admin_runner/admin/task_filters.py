"""The filters of the task list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.contrib.admin import ModelAdmin, SimpleListFilter
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from celery_admin_runner.admin.changelist import TaskList
from celery_admin_runner.states import State

#: In the address, in place of a state: tasks without a run.
NEVER_RUN = "never"


class PackageFilter(SimpleListFilter):
    """Tasks of one package: the part of the name before the first dot."""

    title = _("package")
    parameter_name = "package"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, str]]:
        """Return nothing yet: the packages are those of the list, which comes with ``choices``."""
        return []

    def has_output(self) -> bool:
        """Show the filter always."""
        return True

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """Offer the packages of all tasks."""
        packages = sorted({info.package for info in changelist.root_queryset.infos})  # type: ignore[attr-defined]
        self.lookup_choices = [(package, package) for package in packages]
        return super().choices(changelist)

    def queryset(  # type: ignore[override]
        self, request: HttpRequest, queryset: TaskList
    ) -> TaskList:
        """Return the tasks of the chosen package."""
        package = self.value()
        if package is None:
            return queryset
        return queryset.where(lambda info: info.package == package)


class RunnableFilter(SimpleListFilter):
    """Tasks that RUNNABLE_TASKS allows, or does not allow, to run."""

    title = _("runnable")
    parameter_name = "runnable"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Offer yes and no."""
        return [("1", _("Yes")), ("0", _("No"))]

    def queryset(  # type: ignore[override]
        self, request: HttpRequest, queryset: TaskList
    ) -> TaskList:
        """Return the tasks that are, or are not, runnable."""
        if self.value() not in {"0", "1"}:
            return queryset
        wanted = self.value() == "1"
        return queryset.where(lambda info: info.is_runnable is wanted)


class LastStateFilter(SimpleListFilter):
    """Tasks by the state of their last run that the user may see."""

    title = _("last state")
    parameter_name = "last_state"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Offer every state, and tasks that have not been run."""
        return [*State.choices, (NEVER_RUN, _("Never run"))]

    def queryset(  # type: ignore[override]
        self, request: HttpRequest, queryset: TaskList
    ) -> TaskList:
        """Return the tasks whose last run is in the chosen state."""
        wanted = self.value()
        if wanted is None:
            return queryset
        queryset.load_figures()

        def matches(name: str) -> bool:
            run = queryset.figures.of(name).last_run
            return wanted == (NEVER_RUN if run is None else run.state)

        return queryset.where(lambda info: matches(info.name))
