"""The journal in admin: every run, read-only."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy, pgettext_lazy

from celery_admin_runner.admin import display, filters
from celery_admin_runner.admin.cancel import CancelAdmin
from celery_admin_runner.admin.dependencies import found_to_wait_for
from celery_admin_runner.admin.export import RunExportMixin
from celery_admin_runner.admin.links import run_page_url
from celery_admin_runner.admin.live import RunLiveMixin
from celery_admin_runner.admin.move import MoveAdmin
from celery_admin_runner.admin.pages import NEWEST_FIRST, CappedPaginator
from celery_admin_runner.admin.questions import QUESTIONS_CSS, key_of
from celery_admin_runner.admin.retry import RetryAdmin, obstacle_of
from celery_admin_runner.admin.run_list import RunChangeList
from celery_admin_runner.admin.run_page import RunFields, has_content, links_of
from celery_admin_runner.admin.search import found
from celery_admin_runner.admin.send_again import SendAgainAdmin, shown_doubt
from celery_admin_runner.exceptions import TaskNotFound
from celery_admin_runner.models import CeleryTask, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.registry import get_task_info
from celery_admin_runner.runner import RUN_PERMISSION, TaskRunner
from celery_admin_runner.scheduling import obstacle
from celery_admin_runner.states import KEPT, State


class TaskRunRecordAdmin(
    RunFields, SendAgainAdmin, RetryAdmin, MoveAdmin, CancelAdmin, RunExportMixin, RunLiveMixin
):
    """Every run, for who has ``view_taskrunrecord``; else the runs that the user started."""

    change_form_template = "admin/celery_admin_runner/taskrunrecord/change_form.html"
    import_export_change_list_template = "admin/celery_admin_runner/taskrunrecord/change_list.html"

    list_display = ("state_column", "task_name", "by", "created", "started", "took", "subject")
    list_display_links = ("task_name",)
    list_filter = (
        filters.StateFilter,
        filters.EarliestStartFilter,
        filters.TaskFilter,
        filters.UserFilter,
        filters.SourceFilter,
        filters.PeriodicFilter,
        filters.CreatedFilter,
    )
    #: Each index of the journal ends with the moment of creation.
    sortable_by = ("created",)
    ordering = NEWEST_FIRST
    search_fields = ("task_id", "task_name", "run_by_name")
    search_help_text = gettext_lazy("A task id, the beginning of a task's name, or a user name.")
    list_per_page = 100
    show_full_result_count = False
    paginator = CappedPaginator
    show_facets = admin.ShowFacets.NEVER
    actions: Any = (
        "run_selected_again",
        "run_selected_now",
        "move_selected",
        "cancel_selected",
        "export_admin_action",
    )
    empty_value_display = display.EMPTY

    class Media:
        css: ClassVar[dict[str, list[str]]] = {"all": [display.CSS, QUESTIONS_CSS]}
        js: ClassVar[list[str]] = [display.LIVE_JS]

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
        if self.sees_all_runs(request):
            return True
        is_own = obj is None or obj.run_by_id == request.user.pk
        return is_own and request.user.has_perm(RUN_PERMISSION)

    def sees_all_runs(self, request: HttpRequest) -> bool:
        """Tell whether the user sees the runs of others too."""
        return super().has_view_permission(request)

    def get_queryset(self, request: HttpRequest) -> TaskRunRecordQuerySet:
        """Return the runs that the user may see: the base of every page, search and export."""
        runs: TaskRunRecordQuerySet = super().get_queryset(request)  # type: ignore[assignment]
        # No page shows the whole of a large result.
        return runs.visible_to(request.user).defer("whole_result")

    # The list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that reads only what it shows."""
        return RunChangeList

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        """Return the columns; of a list of kept runs when they may start, for none has started."""
        columns: list[Any] = list(super().get_list_display(request))
        if not filters.are_all_kept(request):
            return columns
        instead = {"started": "earliest_start"}
        return [instead.get(name, name) for name in columns if name != "took"]

    def get_search_results(
        self, request: HttpRequest, queryset: Any, search_term: str
    ) -> tuple[Any, bool]:
        """Find every word as a task id, the beginning of a task's name, or a user name."""
        if request.resolver_match and request.resolver_match.url_name == "autocomplete":
            return found_to_wait_for(queryset, search_term), False
        # What a word is must be known before runs are asked for: see ``search``.
        return found(queryset, search_term.split()), False

    @admin.display(description="")
    def action_checkbox(self, run: TaskRunRecord) -> SafeString:
        """Show the box that selects a run: admin's own, without a template for each."""
        return display.selection_box(str(run.pk), str(run))

    @admin.display(description=pgettext_lazy("of a run", "state"))
    def state_column(self, run: TaskRunRecord) -> SafeString:
        """Show the state in its colour; it follows an unfinished run."""
        return display.live_badge(run)

    @admin.display(description=gettext_lazy("by"))
    def by(self, run: TaskRunRecord) -> str:
        """Show who asked for it."""
        return display.user_text(run)

    @admin.display(description=gettext_lazy("created"), ordering="created_at")
    def created(self, run: TaskRunRecord) -> str:
        """Show when it was asked for."""
        return display.time_text(run.created_at)

    @admin.display(description=gettext_lazy("earliest start"))
    def earliest_start(self, run: TaskRunRecord) -> str:
        """Show when a run may start that is kept until then."""
        moment = run.due_at or run.eta
        return display.time_text(moment if run.state in KEPT else None)

    @admin.display(description=gettext_lazy("started"))
    def started(self, run: TaskRunRecord) -> str:
        """Show when a worker began, or in how long one may begin."""
        now = timezone.now()
        if run.state == State.SCHEDULED and run.due_at is not None and run.due_at > now:
            return display.until_text(run.due_at, now)
        return display.time_text(run.started_at)

    @admin.display(description=gettext_lazy("duration"))
    def took(self, run: TaskRunRecord) -> str:
        """Show how long it took."""
        return display.duration_text(run.duration)

    @admin.display(description=gettext_lazy("label"))
    def subject(self, run: TaskRunRecord) -> str:
        """Show the label, or what the run is about."""
        return display.subject_text(run)

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
        """Add the links to what belongs to the run."""
        run: TaskRunRecord = context["original"]
        context["links"] = list(links_of(run, request, self.admin_site))
        return super().render_change_form(request, context, *args, **kwargs)

    def get_head_context(self, request: HttpRequest, run: TaskRunRecord) -> dict[str, Any]:
        """Return what the head of the page shows: the state, and the buttons for this user."""
        return {
            "run": run,
            "is_unsent": run.state == State.UNSENT,
            "state_badge": display.state_badge(run.state),
            "user_text": display.user_text(run),
            "doubt": shown_doubt(run),
            "is_unknown": _is_unknown(run),
            **self._button_urls(request, run),
        }

    def _button_urls(self, request: HttpRequest, run: TaskRunRecord) -> dict[str, str]:
        """Return the addresses of what this user may do with the run."""
        runner = self.get_retrier(request)
        urls = {}
        if _may_run(runner, run) and self.admin_site.is_registered(CeleryTask):
            form = run_page_url(self.admin_site, run.task_name)
            urls["edit_url"] = f"{form}?{urlencode({'retry': run.pk})}"
        is_sendable = run.state == State.UNSENT or run.is_stale_scheduled(timezone.now())
        if is_sendable and runner.may_run_task_of(run) and run.can_be_repeated:
            urls["send_again_url"] = self.view_url("send_again", run.pk)
        if self.has_retry_permission(request, run) and not obstacle_of(run, runner):
            urls["run_again_url"] = self.view_url("run_again", run.pk)
            urls["known"] = key_of(self.newest_retry(request, [run]))
        if _may_run(runner, run) and not obstacle(run):
            urls["move_url"] = self.view_url("move", run.pk)
            if run.state == State.SCHEDULED and run.due_at and run.due_at > timezone.now():
                urls["run_now_url"] = self.view_url("run_now", run.pk)
        if self.has_cancel_permission(request, run) and not run.is_finished:
            urls["cancel_url"] = self.view_url("cancel", run.pk)
        return urls


def _is_unknown(run: TaskRunRecord) -> bool:
    """Tell whether the worker that got the run did not know its task."""
    error = run.exception.partition(":")[0]
    return run.state == State.FAILURE and not run.started_at and error.endswith("NotRegistered")


def _may_run(runner: TaskRunner, run: TaskRunRecord) -> bool:
    try:
        return runner.may_run(get_task_info(run.task_name))
    except TaskNotFound:
        return False
