"""The journal in admin: every run, read-only."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import router, transaction
from django.db.models import Model, Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy
from django.views.decorators.http import require_POST

from celery_admin_runner.admin import display, filters
from celery_admin_runner.admin.export import RunExportMixin
from celery_admin_runner.admin.links import model_url, run_page_url
from celery_admin_runner.admin.run_page import RunFields, has_content, links_of
from celery_admin_runner.exceptions import NotSendable, TaskNotFound
from celery_admin_runner.models import CeleryTask, Source, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.registry import get_task_info
from celery_admin_runner.runner import RUN_PERMISSION, TaskRunner
from celery_admin_runner.states import State

#: Columns that may be large and that no list shows.
LARGE_FIELDS = ("args", "kwargs", "options", "result", "exception", "traceback", "publish_error")


class RunChangeList(ChangeList):
    """The list of runs, which reads only what it shows."""

    def get_queryset(self, *args: Any, **kwargs: Any) -> TaskRunRecordQuerySet:
        """Return the runs of the page's search and filters without their large columns."""
        return super().get_queryset(*args, **kwargs).defer(*LARGE_FIELDS)  # type: ignore[return-value]

    def get_ordering_field(self, field_name: Any) -> Any:
        """Return what a column sorts by: nothing for a column that no index serves."""
        sortable = self.sortable_by is None or field_name in self.sortable_by
        return super().get_ordering_field(field_name) if sortable else None


class TaskRunRecordAdmin(RunFields, RunExportMixin, admin.ModelAdmin):  # type: ignore[type-arg, misc]
    """Every run, for who has ``view_taskrunrecord``; else the runs that the user started."""

    change_form_template = "admin/celery_admin_runner/taskrunrecord/change_form.html"
    import_export_change_list_template = "admin/celery_admin_runner/taskrunrecord/change_list.html"

    list_display = ("state_column", "task_name", "by", "created", "started", "took", "label")
    list_display_links = ("task_name",)
    list_filter = (
        filters.StateFilter,
        filters.TaskFilter,
        filters.UserFilter,
        filters.SourceFilter,
        filters.CreatedFilter,
    )
    #: Only the order of the primary key, which is the order of creation, is an index of its own.
    sortable_by = ("created",)
    ordering = ("-id",)
    search_fields = ("task_id", "task_name", "run_by_name")
    search_help_text = gettext_lazy("A task id, the beginning of a task's name, or a user name.")
    list_per_page = 100
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    empty_value_display = display.EMPTY

    class Media:
        css: ClassVar[dict[str, list[str]]] = {"all": [display.CSS]}

    # Who may do what

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: runs are made by running tasks."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Refuse: the journal is append-only."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Refuse: finished runs go when they are pruned."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tell whether the user sees all runs, or runs tasks and so sees his or her own."""
        if super().has_view_permission(request, obj):
            return True
        is_own = obj is None or obj.run_by_id == request.user.pk
        return is_own and request.user.has_perm(RUN_PERMISSION)

    def get_queryset(self, request: HttpRequest) -> TaskRunRecordQuerySet:
        """Return the runs that the user may see: the base of every page, search and export."""
        return super().get_queryset(request).visible_to(request.user)  # type: ignore[attr-defined, no-any-return]

    # The list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that reads only what it shows."""
        return RunChangeList

    def get_search_results(
        self, request: HttpRequest, queryset: Any, search_term: str
    ) -> tuple[Any, bool]:
        """Find every word as a task id, the beginning of a task's name, or a user name."""
        for word in search_term.split():
            queryset = queryset.filter(
                Q(task_id=word) | Q(task_name__startswith=word) | Q(run_by_name=word)
            )
        return queryset, False

    @admin.display(description=pgettext_lazy("of a run", "state"))
    def state_column(self, run: TaskRunRecord) -> SafeString:
        """Show the state in its colour."""
        return display.state_badge(run.state)

    @admin.display(description=gettext_lazy("by"))
    def by(self, run: TaskRunRecord) -> str:
        """Show who asked for it."""
        return display.user_text(run)

    @admin.display(description=gettext_lazy("created"), ordering="id")
    def created(self, run: TaskRunRecord) -> str:
        """Show when it was asked for."""
        return display.time_text(run.created_at)

    @admin.display(description=gettext_lazy("started"))
    def started(self, run: TaskRunRecord) -> str:
        """Show when a worker began."""
        return display.time_text(run.started_at)

    @admin.display(description=gettext_lazy("duration"))
    def took(self, run: TaskRunRecord) -> str:
        """Show how long it took."""
        return display.duration_text(run.duration)

    # The page of a run

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Return every field of the page: nothing of a run is edited."""
        return [name for _title, group in self.fieldsets for name in group["fields"]]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Return the groups with the fields that have something to show for this run."""
        shown = (
            (title, {**group, "fields": [n for n in group["fields"] if has_content(n, obj)]})
            for title, group in self.fieldsets
        )
        return [(title, group) for title, group in shown if group["fields"]]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add the links and the buttons that this user may use."""
        run: TaskRunRecord = context["original"]
        may_run = self._may_run(request, run)
        is_unsent = run.state == State.UNSENT
        context |= {
            "run": run,
            "is_unsent": is_unsent,
            "state_badge": display.state_badge(run.state),
            "user_text": display.user_text(run),
            "links": list(links_of(run, request, self.admin_site)),
            "run_again_url": self._run_again_url(run) if may_run else None,
            "send_again_url": self._url("send_again", run.pk)
            if may_run and is_unsent and not run.has_masked_arguments
            else None,
        }
        return super().render_change_form(request, context, *args, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        """Add the view that sends a run again."""
        opts = self.opts
        view = transaction.non_atomic_requests(using=router.db_for_write(TaskRunRecord))(
            self.admin_site.admin_view(self.send_again_view)
        )
        name = f"{opts.app_label}_{opts.model_name}_send_again"
        return [path("<path:object_id>/send-again/", view, name=name), *super().get_urls()]

    @method_decorator(require_POST)
    def send_again_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Send a run that stayed UNSENT, and say how that went."""
        run = self.get_object(request, unquote(object_id))
        if run is None:
            raise Http404
        if not self.has_view_permission(request, run):
            raise PermissionDenied
        try:
            TaskRunner(request.user, source=Source.ADMIN).send_again(run)
        except NotSendable as error:
            self.message_user(request, str(error), messages.ERROR)
        else:
            self._tell_of_sending(request, run)
        return redirect(self._url("change", run.pk))

    def _tell_of_sending(self, request: HttpRequest, run: TaskRunRecord) -> None:
        run.refresh_from_db(fields=["state", "publish_error"])
        if run.state == State.UNSENT:
            text = _("The broker still does not take this run: %(error)s")
            self.message_user(request, text % {"error": run.publish_error}, messages.ERROR)
            return
        self.log_change(request, run, _("Sent again."))
        self.message_user(request, _("The run was sent."), messages.SUCCESS)

    def _may_run(self, request: HttpRequest, run: TaskRunRecord) -> bool:
        try:
            return TaskRunner(request.user).may_run(get_task_info(run.task_name))
        except TaskNotFound:
            return False

    def _run_again_url(self, run: TaskRunRecord) -> str | None:
        """Return the run form filled with the run's arguments, if this site has the tasks."""
        if not self.admin_site.is_registered(CeleryTask):
            return None
        return f"{run_page_url(self.admin_site, run.task_name)}?{urlencode({'retry': run.pk})}"

    def _url(self, view: str, *args: object) -> str:
        return model_url(self.admin_site, self.model, view, *args)
