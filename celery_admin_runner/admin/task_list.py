"""The list of tasks: what stands in it, and who may see it."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.options import ShowFacets
from django.http import HttpRequest
from django.utils import formats, timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from celery_admin_runner.admin import display, links
from celery_admin_runner.admin.changelist import TaskChangeList, TaskList
from celery_admin_runner.admin.figures import TaskFigures
from celery_admin_runner.admin.task_filters import LastStateFilter, PackageFilter, RunnableFilter
from celery_admin_runner.conf import settings
from celery_admin_runner.exceptions import TaskNotFound
from celery_admin_runner.forms.objects import Viewer
from celery_admin_runner.models import CeleryTask, Source, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.registry import TaskInfo, all_task_infos, get_task_info
from celery_admin_runner.runner import RUN_PERMISSION, TaskRunner

#: Where the name of a task may be broken into lines.
NAME_PARTS = re.compile(r"(?<=[._])")
VIEW_PERMISSION = "celery_admin_runner.view_celerytask"


class TaskListAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The registered tasks: listed, and run by who may run them; none is added or changed."""

    list_display = (
        "task",
        "queue_name",
        "last_run",
        "runs",
        "failures",
        "typical_duration",
        "run_button",
    )
    list_filter = (PackageFilter, RunnableFilter, LastStateFilter)
    #: Makes the search box; ``registry.matching`` does the search.
    search_fields = ("task_name",)
    search_help_text = _("Words in the name or the description")
    list_per_page = 100
    show_facets = ShowFacets.NEVER

    class Media:
        css: ClassVar[dict[str, list[str]]] = {
            "all": [display.CSS, "celery_admin_runner/tasks.css"]
        }

    # Permissions

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Let see the tasks who may view or run them."""
        user = request.user
        return user.is_active and (user.has_perm(VIEW_PERMISSION) or user.has_perm(RUN_PERMISSION))

    def has_run_permission(self, request: HttpRequest) -> bool:
        """Let run tasks who has the permission; a task's rule may ask for more."""
        return request.user.is_active and request.user.has_perm(RUN_PERMISSION)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Answer no: tasks are code."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Answer no: tasks are code."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Answer no: tasks are code."""
        return False

    # What is listed

    def get_runner(self, request: HttpRequest) -> TaskRunner:
        """Return the runner that acts for the user of this request, as this site limits them."""
        viewer = Viewer(user=request.user, admin_site=self.admin_site)
        return TaskRunner(user=request.user, source=Source.ADMIN, objects=viewer.source)

    def get_visible_runs(self, request: HttpRequest) -> TaskRunRecordQuerySet:
        """Return the runs that the user may see."""
        return TaskRunRecord.objects.visible_to(request.user)

    def get_queryset(self, request: HttpRequest) -> TaskList:  # type: ignore[override]
        """Return the registered tasks, which are no rows."""
        figures = TaskFigures(self.get_visible_runs(request), now=timezone.now())
        return TaskList(all_task_infos(), figures=figures, runner=self.get_runner(request))

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: Any = None
    ) -> CeleryTask | None:
        """Return a registered task by its name, or None."""
        try:
            info = self.get_info(object_id)
        except TaskNotFound:
            return None
        return CeleryTask.of(info, may_run=self.get_runner(request).may_run(info))

    def get_info(self, task_name: str) -> TaskInfo:
        """Return a task that may be shown; raises TaskNotFound."""
        info = get_task_info(task_name)
        if settings.SHOW_ONLY_RUNNABLE and not info.is_runnable:
            raise TaskNotFound(task_name)
        return info

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[TaskChangeList]:
        """Return the list that can do without rows."""
        return TaskChangeList

    # Columns

    def action_checkbox(self, task: CeleryTask) -> SafeString:
        """Show the box that selects a task."""
        return display.selection_box(task.info.name, str(task))

    @admin.display(description=_("Task"), ordering="task_name")
    def task(self, task: CeleryTask) -> SafeString:
        """Show the name, and the first line of the docstring."""
        return format_html(
            '<span class="task-name">{}</span> <span class="task-summary">{}</span>',
            format_html_join(
                "", "{}<wbr>", ((part,) for part in NAME_PARTS.split(task.info.name))
            ),
            task.info.summary,
        )

    @admin.display(description=_("Queue"), ordering="queue", empty_value=display.EMPTY)
    def queue_name(self, task: CeleryTask) -> str:
        """Show the queue that the task goes to."""
        return task.info.queue

    @admin.display(description=_("Last run"), ordering="last_run")
    def last_run(self, task: CeleryTask) -> str:
        """Show the state of the last run, when it was asked for and by whom."""
        run = task.figures.last_run
        if run is None:
            return display.EMPTY
        return format_html(
            '{} <span class="task-last-run">{}, {}</span>',
            self._linked_state(run),
            display.time_text(run.created_at),
            display.user_text(run),
        )

    @admin.display(description=_("Runs in 7 days"), ordering="runs")
    def runs(self, task: CeleryTask) -> str:
        """Show how often it was run of late: ``1,000+`` where nobody counted any further."""
        return _number_text(task.figures.runs, has_more=task.figures.has_more_runs)

    @admin.display(description=_("Failures in 7 days"), ordering="failures")
    def failures(self, task: CeleryTask) -> str:
        """Show how many of these runs failed; with ``+`` if there were too many to count."""
        return _number_text(task.figures.failures, has_more=task.figures.has_more_failures)

    @admin.display(description=_("Typical duration"), ordering="typical_duration")
    def typical_duration(self, task: CeleryTask) -> str:
        """Show the median duration of those of the latest runs that succeeded."""
        return display.duration_text(task.figures.typical_duration)

    @admin.display(description=_("Run"))
    def run_button(self, task: CeleryTask) -> SafeString:
        """Link to the page on which the task is run; for others say why not."""
        if task.may_run:
            return format_html(
                '<a class="button task-run" href="{}" aria-label="{}">{}</a>',
                links.run_page_url(self.admin_site, task.info.name),
                gettext("Run %(task)s") % {"task": task.info.name},
                gettext("Run"),
            )
        if task.info.is_runnable:
            text, why = gettext("Not allowed"), gettext("You are not allowed to run this task.")
        else:
            text, why = gettext("Not runnable"), gettext("The settings do not allow to run it.")
        return format_html('<span class="task-no-run" title="{}">{}</span>', why, text)

    def _linked_state(self, task_run: TaskRunRecord) -> SafeString:
        """Return the state of a run as a link to its page, if this site has one."""
        badge = display.state_badge(task_run.state)
        if not self.admin_site.is_registered(TaskRunRecord):
            return badge
        url = links.record_address(self.admin_site, task_run)
        return format_html('<a href="{}">{}</a>', url, badge)


def _number_text(number: int, *, has_more: bool) -> str:
    """Write a number, and whether it is only what was counted."""
    text = str(formats.number_format(number, force_grouping=has_more))
    return f"{text}+" if has_more else text
