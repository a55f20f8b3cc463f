"""Running periodic tasks by hand, from the admin of django-celery-beat.

Nothing of django-celery-beat is imported here: the mixin goes with its ModelAdmin, or with a
project's own, on any site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from celery_admin_runner.admin import display, links
from celery_admin_runner.admin.pages import NEWEST_FIRST
from celery_admin_runner.admin.questions import (
    POST,
    QUESTIONS_CSS,
    READ_OR_POST,
    AskingAdmin,
    digest_of,
    is_confirmed,
    reason_of,
    repeated_run,
    yes_now,
)
from celery_admin_runner.admin.retry import NOT_SENT, unsent_text
from celery_admin_runner.admin.run_views import RECENT_FIELDS, RECENT_RUNS, recent_run
from celery_admin_runner.admin.sheets import Preview
from celery_admin_runner.calls import prepare_call
from celery_admin_runner.encoding import readable_text
from celery_admin_runner.exceptions import InvalidArguments, TaskNotRunnable
from celery_admin_runner.forms.objects import Viewer
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.options import plain_options, stored_options
from celery_admin_runner.periodic import read_periodic_task
from celery_admin_runner.publishing import is_tracked_by_name
from celery_admin_runner.registry import NamedTask, TaskInfo, find_task, find_task_info
from celery_admin_runner.runner import RUN_PERMISSION, TaskRunner


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A periodic task that is to be run, as a page shows it."""

    #: The row, and its page.
    periodic_task: Any
    url: str
    info: TaskInfo
    #: What will be sent; None if nothing can be.
    preview: Preview | None
    #: Why it can't be run; one line a reason.
    problems: Sequence[str] = ()

    @cached_property
    def notes(self) -> list[str]:
        """What is to be known of it before it is run."""
        notes = []
        if not self.periodic_task.enabled:
            notes.append(_("It is disabled: beat does not send it. By hand it runs all the same."))
        elif self.periodic_task.one_off:
            notes.append(_("It is a one-off task: beat still sends it when its time comes."))
        if isinstance(find_task(self.info.name), NamedTask):
            notes.append(
                _(
                    "No task of this name is registered here: it is sent by its name to the "
                    "workers that know it, and its arguments are not checked."
                )
            )
        return notes


class PeriodicTaskRunMixin(AskingAdmin):
    """Adds "Run now" to a ModelAdmin of periodic tasks, for who may run tasks and sees these.

    Goes before that ModelAdmin's own class: its action ``run_tasks`` then takes the place of
    django-celery-beat's, which asks for no permission and leaves no trace.
    """

    templates = "admin/celery_admin_runner/periodictask"

    class Media:
        css: ClassVar[dict[str, list[str]]] = {"all": [display.CSS, QUESTIONS_CSS]}

    def has_run_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Tell whether the user sees periodic tasks, and runs tasks at all."""
        may_run = request.user.has_perm(RUN_PERMISSION)
        return may_run and self.has_view_or_change_permission(request, obj)

    def get_urls(self) -> list[URLPattern]:
        """Add the pages that run one periodic task, and several."""
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        return [
            path(
                "run-now-selected/",
                self.protected(self.run_now_selected_view, POST),
                name=f"{name}_run_now_selected",
            ),
            path(
                "<path:object_id>/run-now/",
                self.protected(self.run_now_view, READ_OR_POST),
                name=f"{name}_run_now",
            ),
            *super().get_urls(),
        ]

    def get_starter(self, request: HttpRequest) -> TaskRunner:
        """Return the runner that runs tasks for this user, and knows what this site hides."""
        viewer = Viewer(user=request.user, admin_site=self.admin_site)
        return TaskRunner(request.user, source=Source.ADMIN, objects=viewer.source)

    # The page of a periodic task

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        """Add the button, and the runs, to whatever page the ModelAdmin shows."""
        response = super().render_change_form(request, context, add, change, form_url, obj)
        if obj is None or not isinstance(response, TemplateResponse):
            return response
        response.context_data = {
            **(response.context_data or {}),
            "shown_template": response.resolve_template(response.template_name),
            **self._page_context(request, obj),
        }
        response.template_name = f"{self.templates}/change_form.html"
        return response

    def _page_context(self, request: HttpRequest, periodic_task: Any) -> dict[str, Any]:
        """Return what the page shows of "Run now", and of the runs that this user may see."""
        info = find_task_info(periodic_task.task)
        may_run = self._may_run(request, periodic_task, info)
        journal = links.journal_url(self.admin_site, request)
        runs = TaskRunRecord.objects.visible_to(request.user).order_by(*NEWEST_FIRST)
        runs = runs.filter(periodic_task_name=periodic_task.name).only(*RECENT_FIELDS)
        return {
            "run_now_url": self.view_url("run_now", periodic_task.pk) if may_run else "",
            "shows_runs": journal is not None,
            "periodic_runs": [
                recent_run(run, request, self.admin_site) for run in runs.head(RECENT_RUNS)
            ],
            "all_runs_url": f"{journal}?{urlencode({'periodic': periodic_task.name})}",
            "is_tracked": is_tracked_by_name(periodic_task.task),
        }

    # One periodic task

    def run_now_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show what will be sent; when that is confirmed, send it."""
        periodic_task = self.get_object(request, unquote(object_id))
        if periodic_task is None:
            raise Http404
        if not self.has_run_permission(request, periodic_task):
            raise PermissionDenied
        asked = self._asked(request, periodic_task, timezone.now())
        if asked.info.is_runnable and not self.get_starter(request).may_run(asked.info):
            raise PermissionDenied
        is_answered = asked.preview and is_confirmed(request, digest_of([asked.preview]))
        if request.method != "POST" or not is_answered:
            return self._ask_one(request, asked)
        if asked.info.rule.reason and not reason_of(request):
            return self._ask_one(request, asked, _("This task needs a reason."))
        if repeated := repeated_run(request, self._newest_run(request, [asked])):
            return self._ask_one(request, asked, repeated=repeated)
        return self._run_one(request, asked)

    def _ask_one(
        self,
        request: HttpRequest,
        asked: Asked,
        error: str = "",
        repeated: TaskRunRecord | None = None,
    ) -> HttpResponse:
        return self.ask(
            request,
            "run_now.html",
            title=_("Run now"),
            form_url=self.view_url("run_now", asked.periodic_task.pk),
            back_url=asked.url,
            yes=yes_now(1) if asked.preview else "",
            asked=asked,
            **self._question(request, [asked] if asked.preview else [], error, repeated),
        )

    def _run_one(self, request: HttpRequest, asked: Asked) -> HttpResponse:
        try:
            run = self._start(request, self.get_starter(request), asked)
        except (InvalidArguments, TaskNotRunnable) as error:
            self.message_user(request, _refusal(error), messages.ERROR)
            return redirect(asked.url)
        if run.state in NOT_SENT:
            self.message_user(request, unsent_text(run), messages.ERROR)
        else:
            self.message_user(request, _("This is the new run."), messages.SUCCESS)
        return redirect(links.record_url(self.admin_site, request, run) or asked.url)

    # Several periodic tasks

    @admin.action(permissions=["run"], description=gettext_lazy("Run selected tasks now"))
    def run_tasks(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Show which of the selected periodic tasks will be run, and with what."""
        if not self.is_sane_number(request, queryset):
            return None
        return self._ask_several(request, self._all_asked(request, queryset.order_by("pk")))

    def run_now_selected_view(self, request: HttpRequest) -> HttpResponse:
        """Run the periodic tasks of the page, and say what came of it."""
        if not self.has_run_permission(request):
            raise PermissionDenied
        every = self._all_asked(request, self.selected_runs(request))
        ready = [asked for asked in every if asked.preview]
        if not is_confirmed(request, digest_of(_previews(ready))):
            return self._ask_several(request, every)
        if _needs_reason(ready) and not reason_of(request):
            return self._ask_several(request, every, _("One of these tasks needs a reason."))
        if repeated := repeated_run(request, self._newest_run(request, ready)):
            return self._ask_several(request, every, repeated=repeated)
        self._run_several(request, ready)
        return self.back_to_list(request)

    def _ask_several(
        self,
        request: HttpRequest,
        every: Sequence[Asked],
        error: str = "",
        repeated: TaskRunRecord | None = None,
    ) -> HttpResponse:
        ready = [asked for asked in every if asked.preview]
        return self.ask(
            request,
            "run_now_selected.html",
            title=_("Run selected tasks now"),
            form_url=self.selected_url(request, "run_now_selected"),
            back_url=self.list_url(request),
            yes=yes_now(len(ready)),
            items=ready,
            left_out=[asked for asked in every if not asked.preview],
            **self._question(request, ready, error, repeated),
        )

    def _run_several(self, request: HttpRequest, ready: Sequence[Asked]) -> None:
        """Run these, each for itself, and say how many were sent, and why others were not."""
        runner = self.get_starter(request)
        runs, refused = [], []
        for asked in ready:
            try:
                runs.append(self._start(request, runner, asked))
            except (InvalidArguments, TaskNotRunnable, PermissionDenied) as error:
                text = _("“%(name)s” was not run: %(problems)s")
                names = {"name": asked.periodic_task.name, "problems": _refusal(error)}
                refused.append(text % names)
        unsent = [run for run in runs if run.state in NOT_SENT]
        if sent := len(runs) - len(unsent):
            text = ngettext("%(count)s run was sent.", "%(count)s runs were sent.", sent)
            self.message_user(request, text % {"count": sent}, messages.SUCCESS)
        self.tell_alike(request, [*map(unsent_text, unsent), *refused])
        if not ready:
            self.message_user(request, _("None of these can be run any more."), messages.ERROR)

    # Both

    def _all_asked(self, request: HttpRequest, periodic_tasks: Sequence[Any]) -> list[Asked]:
        now = timezone.now()
        return [self._asked(request, periodic_task, now) for periodic_task in periodic_tasks]

    def _may_run(self, request: HttpRequest, periodic_task: Any, info: TaskInfo) -> bool:
        """Tell whether the user sees this periodic task, and may run its task."""
        is_seen = self.has_run_permission(request, periodic_task)
        return is_seen and self.get_starter(request).may_run(info)

    def _asked(self, request: HttpRequest, periodic_task: Any, now: datetime) -> Asked:
        """Return a periodic task with what will be sent for it, or why nothing can be."""
        info = find_task_info(periodic_task.task)
        preview, problems = None, []
        if not info.is_runnable:
            problems = [_("The settings do not allow to run this task.")]
        elif not self._may_run(request, periodic_task, info):
            problems = [_("You are not allowed to run this task.")]
        else:
            try:
                preview = self._preview(request, periodic_task, now)
            except InvalidArguments as error:
                problems = error.lines
        return Asked(
            periodic_task=periodic_task,
            url=self.view_url("change", periodic_task.pk),
            info=info,
            preview=preview,
            problems=problems,
        )

    def _preview(self, request: HttpRequest, periodic_task: Any, now: datetime) -> Preview:
        """Return what will be sent; raises InvalidArguments."""
        viewer = Viewer(user=request.user, admin_site=self.admin_site)
        asked_for = read_periodic_task(periodic_task, now)
        task = find_task(asked_for.task_name)
        call = prepare_call(
            task, asked_for.args, asked_for.kwargs, user=viewer.user, objects=viewer.source
        )
        options = stored_options(plain_options(asked_for.options))
        return Preview(
            task_name=asked_for.task_name,
            args=readable_text(call.stored_args, indent=2),
            kwargs=readable_text(call.stored_kwargs, indent=2),
            options=readable_text(options, indent=2) if options else "",
            reason="",
        )

    def _start(self, request: HttpRequest, runner: TaskRunner, asked: Asked) -> TaskRunRecord:
        """Run a periodic task, and leave a LogEntry at it."""
        run = runner.run_periodic(asked.periodic_task, reason=reason_of(request))
        text = _("Run now as %(task_id)s.") % {"task_id": run.task_id}
        self.log_change(request, asked.periodic_task, text)
        return run

    def _newest_run(self, request: HttpRequest, asked: Sequence[Asked]) -> TaskRunRecord | None:
        """Return the newest run that this user has started of these by hand."""
        mine = TaskRunRecord.objects.filter(run_by=request.user.pk, source=Source.PERIODIC)
        names = [one.periodic_task.name for one in asked]
        return mine.filter(periodic_task_name__in=names).order_by(*NEWEST_FIRST).first()

    def _question(
        self,
        request: HttpRequest,
        ready: Sequence[Asked],
        error: str,
        repeated: TaskRunRecord | None,
    ) -> dict[str, Any]:
        return self.before_starting(
            request,
            _previews(ready),
            self._newest_run(request, ready),
            needs_reason=_needs_reason(ready),
            error=error,
            repeated=repeated,
        )


def _previews(ready: Sequence[Asked]) -> list[Preview]:
    return [asked.preview for asked in ready if asked.preview]


def _needs_reason(ready: Sequence[Asked]) -> bool:
    return any(asked.info.rule.reason for asked in ready)


def _refusal(error: Exception) -> str:
    return "; ".join(error.lines) if isinstance(error, InvalidArguments) else str(error)
