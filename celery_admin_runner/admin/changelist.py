"""The task list: a changelist over the registered tasks, which are no rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.translation import gettext as _

from celery_admin_runner.admin.figures import TaskFigures
from celery_admin_runner.admin.links import run_page_url
from celery_admin_runner.admin.rows import Table
from celery_admin_runner.figures import Figures
from celery_admin_runner.models import CeleryTask
from celery_admin_runner.registry import TaskInfo, matching
from celery_admin_runner.runner import TaskRunner

#: The columns that need figures, and by what they are sorted; None comes last.
FIGURE_ORDERS: Mapping[str, Callable[[Figures], Any]] = {
    "last_run": lambda figures: (run := figures.last_run) and (run.created_at, run.pk),
    "runs": lambda figures: figures.runs,
    "failures": lambda figures: figures.failures,
    "typical_duration": lambda figures: figures.typical_duration,
}
#: The columns that the registry can sort alone.
INFO_ORDERS: Mapping[str, Callable[[TaskInfo], Any]] = {
    "task_name": lambda info: info.name,
    "queue": lambda info: info.queue or None,
}


class TaskList:
    """Registered tasks, with the few methods of a query set that admin's list asks for."""

    def __init__(
        self, infos: Sequence[TaskInfo], *, figures: TaskFigures, runner: TaskRunner
    ) -> None:
        """Take the tasks, their figures, and the runner that knows what its user may run."""
        self.infos = infos
        self.figures = figures
        self._runner = runner

    def __len__(self) -> int:
        return len(self.infos)

    def __iter__(self) -> Iterator[CeleryTask]:
        for info in self.infos:
            yield CeleryTask.of(
                info,
                may_run=self._runner.may_run(info),
                figures=self.figures.of(info.name),
            )

    def __getitem__(self, part: slice) -> TaskList:
        return self.of(self.infos[part])

    def _clone(self) -> TaskList:
        return self.of(self.infos)

    def of(self, infos: Sequence[TaskInfo]) -> TaskList:
        """Return a list of these tasks, with the same figures and runner."""
        return TaskList(infos, figures=self.figures, runner=self._runner)

    def count(self) -> int:
        """Return how many tasks there are."""
        return len(self.infos)

    def filter(self, *, pk__in: Collection[str]) -> TaskList:
        """Return the tasks with these names: what the user ticked."""
        names = set(pk__in)
        return self.where(lambda info: info.name in names)

    def where(self, condition: Callable[[TaskInfo], bool]) -> TaskList:
        """Return the tasks for which ``condition`` holds."""
        return self.of([info for info in self.infos if condition(info)])

    def load_figures(self) -> None:
        """Ask for the figures of the tasks of this list."""
        self.figures.load(info.name for info in self.infos)

    def ordered(self, order: str, *, descending: bool) -> TaskList:
        """Return the list sorted by a column; tasks without a value come last."""
        if order in FIGURE_ORDERS:
            self.load_figures()
            value_of = FIGURE_ORDERS[order]
            values = [(value_of(self.figures.of(info.name)), info) for info in self.infos]
        else:
            values = [(INFO_ORDERS[order](info), info) for info in self.infos]
        known = [pair for pair in values if pair[0] is not None]
        known.sort(key=lambda pair: pair[0], reverse=descending)
        unknown = [info for value, info in values if value is None]
        return self.of([info for _value, info in known] + unknown)


class TaskChangeList(ChangeList):
    """Admin's list, over a TaskList in place of a query set."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make the list, and say in the title what it is for."""
        super().__init__(*args, **kwargs)
        self.title = _("Select a task to run")

    def get_queryset(  # type: ignore[override]
        self, request: HttpRequest, exclude_parameters: Any = None
    ) -> TaskList:
        """Return the tasks that search and filters leave, sorted."""
        (self.filter_specs, self.has_filters, unknown, _duplicates, self.has_active_filters) = (
            self.get_filters(request)
        )
        if unknown:
            raise IncorrectLookupParameters(", ".join(unknown))
        tasks: TaskList = self.root_queryset  # type: ignore[assignment]
        tasks = tasks.of(matching(tasks.infos, self.query))
        for spec in self.filter_specs:
            filtered = spec.queryset(request, tasks)  # type: ignore[arg-type]
            tasks = tasks if filtered is None else filtered  # type: ignore[assignment]
        self.clear_all_filters_qs = self.get_query_string(remove=self.get_filters_params())
        for order, descending in reversed(self._orders()):
            tasks = tasks.ordered(order, descending=descending)
        return tasks

    def get_results(self, request: HttpRequest) -> None:
        """Cut out the page, and ask for the figures of its tasks."""
        super().get_results(request)
        self.result_list.load_figures()

    def url_for_result(self, result: CeleryTask) -> str:  # type: ignore[override]
        """Return the address of the page on which the task is run."""
        return run_page_url(self.model_admin.admin_site, str(result.pk))

    @cached_property
    def table(self) -> Table:
        """The tasks as they are shown."""
        return Table(self)

    def _orders(self) -> list[tuple[str, bool]]:
        """Return the columns to sort by, the most important first; unknown ones are left out."""
        orders = []
        for index, direction in self.get_ordering_field_columns().items():
            if index in range(len(self.list_display)):
                order = self.get_ordering_field(self.list_display[index])
                if isinstance(order, str) and order in {**FIGURE_ORDERS, **INFO_ORDERS}:
                    orders.append((order, direction == "desc"))
        return orders
