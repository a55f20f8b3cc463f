"""RunHistoryAdmin: the runs about an object, and its tasks, in the admin of whatever model."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext_lazy

from celery_admin_runner.admin.history_runs import OBJECT_CSS, READ, ObjectAdmin
from celery_admin_runner.admin.history_selected import SelectedObjects
from celery_admin_runner.admin.questions import POST, READ_OR_POST

#: The action that is added to the list of objects.
ACTION = "run_task_for_selected"


class RunHistoryAdmin(ObjectAdmin):
    """Adds to a ModelAdmin the runs about an object, and buttons that run its tasks.

    Goes before the ModelAdmin's own class: ``class ReportAdmin(RunHistoryAdmin, ModelAdmin)``.
    """

    def __init__(self, model: type[Model], admin_site: admin.AdminSite) -> None:
        """Add the action, unless there are to be none."""
        super().__init__(model, admin_site)
        if self.actions is not None and ACTION not in self.actions:
            self.actions = [*self.actions, ACTION]

    @cached_property
    def object_runs(self) -> SelectedObjects:
        """The pages that are added."""
        return SelectedObjects(self)

    def has_run_tasks_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Tell whether the user may run tasks about this object: who may change it.

        The permission to run the task itself is asked for besides. Without an object: whether
        the action is offered, so there is a task for it that this user may run.
        """
        if not super().has_run_tasks_permission(request, obj):
            return False
        return obj is not None or self.object_runs.may_run_any(request)

    def get_urls(self) -> list[URLPattern]:
        """Add the pages with an object's runs, and those that run tasks."""
        pages, name = self.object_runs, f"{self.opts.app_label}_{self.opts.model_name}"
        return [
            path(
                "run-task-for-selected/",
                pages.protected(pages.run_selected_view, POST),
                name=f"{name}_run_task_for_selected",
            ),
            path(
                "<path:object_id>/runs/",
                pages.protected(pages.runs_view, READ),
                name=f"{name}_runs",
            ),
            path(
                "<path:object_id>/runs/<str:task_name>/",
                pages.protected(pages.run_task_view, READ_OR_POST),
                name=f"{name}_run_task",
            ),
            *super().get_urls(),
        ]

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        """Add the links to whatever page the ModelAdmin shows."""
        response = super().render_change_form(request, context, add, change, form_url, obj)
        if obj is None or not isinstance(response, TemplateResponse):
            return response
        response.context_data = {
            **(response.context_data or {}),
            # A name of its own: another mixin may wrap the page in the same way.
            "run_history_template": response.resolve_template(response.template_name),
            "run_history": {
                "css": OBJECT_CSS,
                "url": self.object_runs.runs_url(obj),
                "offers": self.object_runs.offers(request, obj),
            },
        }
        response.template_name = f"{self.object_runs.templates}/change_form.html"
        return response

    @admin.action(
        permissions=["run_tasks"],
        description=gettext_lazy("Run a task for selected %(verbose_name_plural)s"),
    )
    def run_task_for_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Ask which task is to be run for the selected objects."""
        return self.object_runs.ask_for(request, queryset)
