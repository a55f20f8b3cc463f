"""The tasks in admin: the list of them, their pages, and their JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import router, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from celery_admin_runner import answers
from celery_admin_runner.admin import api, links
from celery_admin_runner.admin.changelist import TaskList
from celery_admin_runner.admin.run_views import (
    MAX_SELECTED,
    TASK,
    RunPage,
    RunTaskPage,
)
from celery_admin_runner.admin.task_list import TaskListAdmin
from celery_admin_runner.exceptions import TaskNotFound
from celery_admin_runner.models import CeleryTask, TaskRunRecord
from celery_admin_runner.registry import all_task_infos

#: A view as URLs know it.
View = Callable[..., HttpResponse]
READ = ("GET", "HEAD")
READ_OR_POST = (*READ, "POST")
#: So many names of tasks are shown in a message.
MAX_NAMES_SHOWN = 10


class CeleryTaskAdmin(TaskListAdmin):
    """The registered tasks: listed, run from their pages and by JSON."""

    actions = ("run_selected",)

    def get_urls(self) -> list[URLPattern]:
        """Add our pages to admin's own, of which only the list shows something."""
        return [
            path(
                "api/",
                self._page(self.api_view, READ, is_api=True),
                name="celery_admin_runner_celerytask_api",
            ),
            path(
                "run-selected/",
                self._page(self.run_selected_view, READ_OR_POST),
                name="celery_admin_runner_celerytask_run_selected",
            ),
            path(
                "<path:task_name>/run/",
                self._page(self.run_view, READ_OR_POST),
                name="celery_admin_runner_celerytask_run",
            ),
            *super().get_urls(),
        ]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Send on to the page of the task: there is nothing to change."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(links.run_page_url(self.admin_site, unquote(object_id)))

    @admin.action(permissions=["run"], description=_("Run selected tasks"))
    def run_selected(self, request: HttpRequest, queryset: TaskList) -> HttpResponse | None:
        """Show one page with a form for each selected task that the user may run."""
        selected = list(queryset)
        tasks = [task for task in selected if task.may_run]
        refused = [task.info.name for task in selected if not task.may_run]
        self._warn(request, gettext("Left out, because you may not run them: %(tasks)s"), refused)
        self._tell_of_gone(request, request.POST.getlist(ACTION_CHECKBOX_NAME))
        if not self._is_sane_number(request, len(tasks)):
            return None
        return self.get_run_page(request, tasks).show()

    def run_selected_view(self, request: HttpRequest) -> HttpResponse:
        """Show, or start, the tasks that the request names."""
        if not self.has_run_permission(request):
            raise PermissionDenied
        posted = request.POST if request.method == "POST" else None
        names = list(dict.fromkeys((posted or request.GET).getlist(TASK)))
        gone = self._tell_of_gone(request, names)
        if not self._is_sane_number(request, len(names) - len(gone)):
            return HttpResponseRedirect(links.task_list_url(self.admin_site))
        tasks = [task for name in names if (task := self.get_object(request, name))]
        if not all(task.may_run for task in tasks):
            raise PermissionDenied
        page = self.get_run_page(request, tasks)
        return page.show(posted) if posted is None or gone else page.submit()

    def run_view(self, request: HttpRequest, task_name: str) -> HttpResponse:
        """Show a task, and start it: with what its form says, or a JSON request."""
        if answers.is_json(request):
            return self._run_json(request, task_name)
        if not self.has_view_permission(request):
            raise PermissionDenied
        task = self.get_object(request, task_name)
        if task is None:
            self._tell_of_gone(request, [task_name])
            return HttpResponseRedirect(links.task_list_url(self.admin_site))
        page = self.get_run_page(request, [task], page_class=RunTaskPage)
        return page.submit() if request.method == "POST" else page.show()

    def api_view(self, request: HttpRequest) -> HttpResponse:
        """Answer with the tasks as JSON."""
        if not self.has_view_permission(request):
            return answers.forbidden()
        return api.tasks_response(request, all_task_infos(), admin_site=self.admin_site)

    def get_run_page(
        self,
        request: HttpRequest,
        tasks: Sequence[CeleryTask],
        page_class: type[RunPage] = RunPage,
    ) -> RunPage:
        """Return the page that shows and starts these tasks."""
        return page_class(
            request,
            tasks,
            model_admin=self,
            runner=self.get_runner(request),
            visible_runs=self.get_visible_runs(request),
        )

    def _run_json(self, request: HttpRequest, task_name: str) -> HttpResponse:
        if not self.has_run_permission(request):
            return answers.forbidden()
        try:
            info = self.get_info(task_name)
        except TaskNotFound as error:
            return api.not_found(error)
        return api.run_response(
            request, info, admin_site=self.admin_site, runner=self.get_runner(request)
        )

    def _page(self, view: View, methods: Sequence[str], *, is_api: bool = False) -> View:
        """Protect a view as admin does, but answer JSON with JSON.

        Non-atomic, so that with ATOMIC_REQUESTS too a run is committed before it is
        sent, and its user is told what came of it.
        """
        # What is posted may hold secrets: it stands in no report of an error.
        discreet = sensitive_post_parameters()(require_http_methods(methods)(view))
        protected = self.admin_site.admin_view(discreet)

        @wraps(view)
        def page(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            is_answered_in_json = is_api or answers.is_json(request)
            if is_answered_in_json and not self.admin_site.has_permission(request):
                return answers.forbidden()
            return protected(request, *args, **kwargs)

        return transaction.non_atomic_requests(using=router.db_for_write(TaskRunRecord))(page)

    def _tell_of_gone(self, request: HttpRequest, names: Sequence[str]) -> list[str]:
        """Return the tasks of these that there are not, and say so."""
        gone = [name for name in names if self.get_object(request, name) is None]
        text = gettext("There are no such tasks any more, and nothing was sent: %(tasks)s")
        self._warn(request, text, gone)
        return gone

    def _warn(self, request: HttpRequest, text: str, names: Sequence[str]) -> None:
        """Show a message about these tasks, if there are any."""
        if names:
            shown = ", ".join(names[:MAX_NAMES_SHOWN])
            more = ", …" if len(names) > MAX_NAMES_SHOWN else ""
            self.message_user(request, text % {"tasks": shown + more}, messages.WARNING)

    def _is_sane_number(self, request: HttpRequest, number: int) -> bool:
        """Tell whether one page can hold forms for so many tasks; if not, say why."""
        if number == 0:
            self.message_user(
                request, gettext("No task that you may run is selected."), messages.ERROR
            )
        elif number > MAX_SELECTED:
            text = gettext("%(number)s tasks are selected; at most %(limit)s can be run at once.")
            self.message_user(
                request, text % {"number": number, "limit": MAX_SELECTED}, messages.ERROR
            )
        return 0 < number <= MAX_SELECTED
