"""Moving runs from admin that are kept until later: to another earliest start, or to now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import AdminForm
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import conditional_escape
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from celery_admin_runner.admin import display
from celery_admin_runner.admin.questions import POST, READ_OR_POST, AskingAdmin, yes_now
from celery_admin_runner.admin.retry import is_forbidden
from celery_admin_runner.exceptions import NotMovable, TaskNotFound
from celery_admin_runner.forms.move import MoveForm
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.registry import get_task_info
from celery_admin_runner.runner import RUN_PERMISSION, TaskRunner
from celery_admin_runner.scheduling import obstacle
from celery_admin_runner.states import State

#: A dispatcher looks each second: what is due for longer than this, none has seen.
OVERDUE_AFTER = timedelta(minutes=1)


class MoveAdmin(AskingAdmin):
    """Moves runs that are kept, for who may run their tasks and sees them."""

    def has_move_permission(self, request: HttpRequest, obj: TaskRunRecord | None = None) -> bool:
        """Tell whether the user runs tasks at all, and sees this run."""
        may_run = request.user.has_perm(RUN_PERMISSION)
        return may_run and self.has_view_permission(request, obj)

    def get_urls(self) -> list[URLPattern]:
        """Add the pages that move one run, and several."""
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        views: list[tuple[str, str, Any, Any]] = [
            ("run-selected-now/", "run_selected_now", self.run_selected_now_view, POST),
            ("move-selected/", "move_selected", self.move_selected_view, POST),
            ("<path:object_id>/run-now/", "run_now", self.run_now_view, POST),
            ("<path:object_id>/move/", "move", self.move_view, READ_OR_POST),
        ]
        own = [
            path(route, self.protected(view, methods), name=f"{name}_{view_name}")
            for route, view_name, view, methods in views
        ]
        return [*own, *super().get_urls()]

    # One run

    def run_now_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Make a scheduled run due, and say what came of it."""
        run, runner = self._run_to_move(request, object_id)
        problem = _obstacle_now(run, runner) or self._move(request, run, runner, None)
        if problem:
            self.message_user(request, problem, messages.WARNING)
        else:
            text = _("The run is due now: the next dispatcher sends it.")
            self.message_user(request, text, messages.SUCCESS)
        return redirect(self.run_url(run))

    def move_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for the new earliest start of a run; when it is given, move the run there."""
        run, runner = self._run_to_move(request, object_id)
        problem = obstacle_of(run, runner)
        form = _form(request, [run])
        if not problem:
            if request.method != "POST" or not form.is_valid():
                return self._ask_to_move(request, run, form)
            problem = self._move(request, run, runner, form.cleaned_data["eta"])
            if problem and not obstacle(TaskRunRecord.objects.filter(pk=run.pk).first()):
                form.add_error("eta", problem)
                return self._ask_to_move(request, run, form)
        if problem:
            self.message_user(request, problem, messages.WARNING)
        else:
            self.message_user(request, _("The run was moved."), messages.SUCCESS)
        return redirect(self.run_url(run))

    def _run_to_move(
        self, request: HttpRequest, object_id: str
    ) -> tuple[TaskRunRecord, TaskRunner]:
        run = self.asked_run(request, object_id)
        runner = self._mover(request)
        if not self.has_move_permission(request, run) or is_forbidden(run, runner):
            raise PermissionDenied
        return run, runner

    def _ask_to_move(
        self, request: HttpRequest, run: TaskRunRecord, form: MoveForm
    ) -> HttpResponse:
        return self.ask(
            request,
            "move.html",
            title=_("Move a run"),
            form_url=self.view_url("move", run.pk),
            yes=_yes_move(1),
            what_is=kept_text(run, timezone.now()),
            **self._question_of(form),
            **self.about(run),
        )

    # Several runs

    @admin.action(
        permissions=["move"], description=gettext_lazy("Run selected scheduled runs now")
    )
    def run_selected_now(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Show which of the selected runs will be due at once."""
        if not self.is_sane_number(request, queryset):
            return None
        runs = list(queryset.order_by("pk"))
        items, left_out = self._parted(request, runs, _obstacle_now)
        return self.ask(
            request,
            "run_selected_now.html",
            title=_("Run selected scheduled runs now"),
            form_url=self.selected_url(request, "run_selected_now"),
            back_url=self.list_url(request),
            yes=yes_now(len(items)),
            items=items,
            left_out=left_out,
        )

    def run_selected_now_view(self, request: HttpRequest) -> HttpResponse:
        """Make the runs of the page due, and say what came of it."""
        runs, runner = self._runs_to_move(request)
        problems = {run.pk: _obstacle_now(run, runner) for run in runs}
        for run in runs:
            problems[run.pk] = problems[run.pk] or self._move(request, run, runner, None)
        if moved := sum(not problem for problem in problems.values()):
            text = ngettext(
                "%(count)s run is due now: the next dispatcher sends it.",
                "%(count)s runs are due now: the next dispatcher sends them.",
                moved,
            )
            self.message_user(request, text % {"count": moved}, messages.SUCCESS)
        self._tell_problems(request, problems.values())
        return self.back_to_list(request)

    @admin.action(permissions=["move"], description=gettext_lazy("Move selected scheduled runs"))
    def move_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Show which of the selected runs can be moved, and ask where."""
        if not self.is_sane_number(request, queryset):
            return None
        runs = list(queryset.order_by("pk"))
        return self._ask_to_move_selected(request, runs, _form(request, runs, is_shown=True))

    def move_selected_view(self, request: HttpRequest) -> HttpResponse:
        """Move the runs of the page to the moment that was given, and say what came of it."""
        runs, runner = self._runs_to_move(request)
        form = _form(request, runs)
        if not form.is_valid():
            return self._ask_to_move_selected(request, runs, form)
        eta = form.cleaned_data["eta"]
        problems = {
            run.pk: obstacle_of(run, runner) or self._move(request, run, runner, eta)
            for run in runs
        }
        if moved := sum(not problem for problem in problems.values()):
            text = ngettext("%(count)s run was moved.", "%(count)s runs were moved.", moved)
            self.message_user(request, text % {"count": moved}, messages.SUCCESS)
        self._tell_problems(request, problems.values())
        return self.back_to_list(request)

    def _ask_to_move_selected(
        self, request: HttpRequest, runs: Sequence[TaskRunRecord], form: MoveForm
    ) -> HttpResponse:
        items, left_out = self._parted(request, runs, obstacle_of)
        return self.ask(
            request,
            "move_selected.html",
            title=_("Move selected scheduled runs"),
            form_url=self.selected_url(request, "move_selected"),
            back_url=self.list_url(request),
            yes=_yes_move(len(items)),
            items=items,
            left_out=left_out,
            **self._question_of(form),
        )

    def _runs_to_move(self, request: HttpRequest) -> tuple[list[TaskRunRecord], TaskRunner]:
        if not self.has_move_permission(request):
            raise PermissionDenied
        runs = self.selected_runs(request)
        if not runs:
            self.message_user(request, _("None of these runs is there any more."), messages.ERROR)
        return runs, self._mover(request)

    def _parted(
        self,
        request: HttpRequest,
        runs: Sequence[TaskRunRecord],
        obstacle_of_one: Callable[[TaskRunRecord, TaskRunner], str],
    ) -> tuple[list[Any], list[Any]]:
        """Return the runs that will be moved, and those that will not, as the page shows them."""
        runner, now = self._mover(request), timezone.now()
        problems = {run.pk: obstacle_of_one(run, runner) for run in runs}
        return (
            [self.item(run, kept_text(run, now)) for run in runs if not problems[run.pk]],
            [self.item(run, problems[run.pk]) for run in runs if problems[run.pk]],
        )

    def _tell_problems(self, request: HttpRequest, problems: Any) -> None:
        """Say how many runs could not be moved, by the reason."""
        for reason, count in Counter(filter(None, problems)).items():
            text = ngettext(
                "%(count)s run stays as it is: %(reason)s",
                "%(count)s runs stay as they are: %(reason)s",
                count,
            )
            self.message_user(request, text % {"count": count, "reason": reason}, messages.WARNING)

    # Both

    def _move(
        self, request: HttpRequest, run: TaskRunRecord, runner: TaskRunner, eta: datetime | None
    ) -> str:
        """Move a run, and log it; return why not, or ""."""
        before = run.eta or run.due_at
        try:
            runner.reschedule(run, eta=eta)
        except (NotMovable, PermissionDenied) as error:
            return str(error)
        self.log_change(request, run, _log_text(run, before, eta))
        return ""

    def _question_of(self, form: MoveForm) -> dict[str, Any]:
        form.fields["eta"].help_text = conditional_escape(form.fields["eta"].help_text)
        return {
            "form": form,
            "fieldsets": AdminForm(form, [(None, {"fields": ["eta"]})], {}),  # type: ignore[arg-type]
            "errors": bool(form.errors),
            "media": self.media + form.media,
        }

    def _mover(self, request: HttpRequest) -> TaskRunner:
        return TaskRunner(request.user, source=Source.ADMIN)


def obstacle_of(run: TaskRunRecord, runner: TaskRunner) -> str:
    """Return why a run can't be moved by this user, who sees it, or ""."""
    if text := obstacle(run):
        return text
    try:
        info = get_task_info(run.task_name)
    except TaskNotFound:
        return _("There is no such task any more.")
    if not info.is_runnable:
        return _("The settings do not allow to run this task.")
    return "" if runner.may_run(info) else _("You are not allowed to run this task.")


def kept_text(run: TaskRunRecord, now: datetime) -> str:
    """Return, in words, until when a run is kept; "" for one that is not."""
    if run.state == State.WAITING:
        if run.eta is None or run.eta <= now:
            return _("It starts when all runs have succeeded that it waits for.")
        text = _(
            "It starts when all runs have succeeded that it waits for, and not before "
            "%(moment)s: %(until)s."
        )
        return text % _moment(run.eta, now)
    if run.state != State.SCHEDULED:
        return ""
    if run.dispatch_id is not None:
        return _("It is being sent just now.")
    if run.due_at is None or run.due_at <= now:
        return _("It is due: the next dispatcher sends it.")
    return _("Earliest start: %(moment)s, %(until)s.") % _moment(run.due_at, now)


def overdue_text(run: TaskRunRecord, now: datetime) -> str:
    """Return that nobody sends a run that is due, or ""."""
    is_free = run.state == State.SCHEDULED and run.dispatch_id is None
    if not is_free or run.due_at is None or now - run.due_at <= OVERDUE_AFTER:
        return ""
    text = _(
        "It has been due since %(moment)s, and no dispatcher has sent it: is one running, and "
        "can it keep up? Workers send what is due, unless the setting DISPATCH says otherwise."
    )
    return text % {"moment": display.time_text(run.due_at)}


def _moment(moment: datetime, now: datetime) -> dict[str, str]:
    return {"moment": display.time_text(moment), "until": display.until_text(moment, now)}


def _obstacle_now(run: TaskRunRecord, runner: TaskRunner) -> str:
    """Return why a run can't be made due by this user, who sees it, or ""."""
    text = obstacle_of(run, runner)
    if not text and run.state == State.WAITING:
        return _("It waits for other runs: it starts when all of them have succeeded.")
    return text


def _form(
    request: HttpRequest, runs: Sequence[TaskRunRecord], *, is_shown: bool = False
) -> MoveForm:
    """Return the form as it was posted, or as it is shown at first."""
    return MoveForm(
        data=request.POST if request.method == "POST" and not is_shown else None,
        initial={"eta": runs[0].eta or runs[0].due_at} if len(runs) == 1 else {},
        is_optional=bool(runs) and all(run.state == State.WAITING for run in runs),
    )


def _log_text(run: TaskRunRecord, before: datetime | None, eta: datetime | None) -> str:
    """Return what was done, for the history of the run."""
    moments = {"was": _log_moment(before), "new": _log_moment(eta)}
    if eta is None and run.state == State.SCHEDULED:
        return _("Made due at once; the earliest start was: %(was)s.") % moments
    return _("Moved. Earliest start: %(new)s; before: %(was)s.") % moments


def _log_moment(moment: datetime | None) -> str:
    """Return a moment that can't be mistaken whoever reads it: with its distance from UTC."""
    if moment is None:
        return _("none")
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return local.isoformat(" ", "minutes")


def _yes_move(number: int) -> str:
    """Return the text of the button that moves so many runs; "" for none."""
    text = ngettext("Move it", "Move these %(count)s", number)
    return text % {"count": number} if number else ""
