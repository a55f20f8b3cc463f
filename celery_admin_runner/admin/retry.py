"""Running runs again from admin: at once, or after a page that shows what will be sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from celery_admin_runner.admin.questions import (
    POST,
    READ_OR_POST,
    AskingAdmin,
    digest_of,
    is_confirmed,
    reason_of,
    repeated_run,
)
from celery_admin_runner.admin.sheets import Preview
from celery_admin_runner.encoding import readable_text
from celery_admin_runner.exceptions import (
    AlreadyActive,
    InvalidArguments,
    NotRetryable,
    TaskNotFound,
)
from celery_admin_runner.forms.initial import seconds_to_expire
from celery_admin_runner.forms.objects import Viewer
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.redaction import has_mask
from celery_admin_runner.registry import Rule, get_task_info
from celery_admin_runner.runner import RUN_PERMISSION, TaskRunner, lost_text
from celery_admin_runner.states import State

#: The states of a new run that nobody sent, as ``unsent_text`` tells.
NOT_SENT = frozenset({State.UNSENT, State.IGNORED})


@dataclass
class Outcome:
    """What came of running several runs again."""

    sent: list[tuple[TaskRunRecord, TaskRunRecord]] = field(default_factory=list)
    unsent: list[tuple[TaskRunRecord, TaskRunRecord]] = field(default_factory=list)
    #: The run, and why it was not run again.
    refused: list[tuple[TaskRunRecord, str]] = field(default_factory=list)

    @property
    def found(self) -> int:
        """How many runs there were."""
        return len(self.sent) + len(self.unsent) + len(self.refused)


class RetryAdmin(AskingAdmin):
    """Runs runs again, for who has ``retry_taskrunrecord`` and may run their tasks."""

    def has_retry_permission(self, request: HttpRequest, obj: TaskRunRecord | None = None) -> bool:
        """Tell whether the user may run runs again, sees this one, and runs tasks at all."""
        permission = f"{self.opts.app_label}.retry_{self.opts.model_name}"
        may_retry = request.user.has_perms([permission, RUN_PERMISSION])
        return may_retry and self.has_view_permission(request, obj)

    def get_urls(self) -> list[URLPattern]:
        """Add the pages that run one run again, and several."""
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        return [
            path(
                "run-again-selected/",
                self.protected(self.run_again_selected_view, POST),
                name=f"{name}_run_again_selected",
            ),
            path(
                "<path:object_id>/run-again/",
                self.protected(self.run_again_view, READ_OR_POST),
                name=f"{name}_run_again",
            ),
            *super().get_urls(),
        ]

    def get_retrier(self, request: HttpRequest) -> TaskRunner:
        """Return the runner that runs runs again for this user, and knows what this site hides."""
        viewer = Viewer(user=request.user, admin_site=self.admin_site)
        return TaskRunner(request.user, source=Source.ADMIN, objects=viewer.source)

    # One run

    def run_again_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Run a run again, if nothing has to be asked first; else ask."""
        run = self.asked_run(request, object_id)
        runner = self.get_retrier(request)
        if not self.has_retry_permission(request, run) or is_forbidden(run, runner):
            raise PermissionDenied
        if obstacle := obstacle_of(run, runner):
            self.message_user(request, obstacle, messages.WARNING)
            return redirect(self.run_url(run))
        preview, rule = preview_of(run), get_task_info(run.task_name).rule
        must_ask = rule.confirm or rule.reason
        is_answered = is_confirmed(request, digest_of([preview]))
        reason = reason_of(request)
        if request.method != "POST" or (must_ask and not is_answered):
            return self._ask_again(request, run, preview, rule)
        if rule.reason and not reason:
            return self._ask_again(request, run, preview, rule, _("This task needs a reason."))
        if repeated := repeated_run(request, self.newest_retry(request, [run])):
            return self._ask_again(request, run, preview, rule, repeated=repeated)
        return self._run_again(request, run, runner, reason)

    def _ask_again(
        self,
        request: HttpRequest,
        run: TaskRunRecord,
        preview: Preview,
        rule: Rule,
        error: str = "",
        repeated: TaskRunRecord | None = None,
    ) -> HttpResponse:
        return self.ask(
            request,
            "run_again.html",
            title=_("Run again"),
            form_url=self.view_url("run_again", run.pk),
            yes=_("Yes, run it"),
            previews=[preview],
            **self.before_starting(
                request,
                [preview],
                self.newest_retry(request, [run]),
                needs_reason=rule.reason,
                error=error,
                repeated=repeated,
            ),
            **self.about(run),
        )

    def _run_again(
        self, request: HttpRequest, run: TaskRunRecord, runner: TaskRunner, reason: str
    ) -> HttpResponse:
        outcome = self._retry_all(request, [run], runner, reason)
        for _run, text in outcome.refused:
            self.message_user(request, text, messages.ERROR)
        for _run, again in outcome.unsent:
            self.message_user(request, unsent_text(again), messages.ERROR)
        if outcome.sent:
            self.message_user(request, _("This is the new run."), messages.SUCCESS)
        started = [again for _run, again in (*outcome.sent, *outcome.unsent)]
        return redirect(self.run_url(started[0] if started else run))

    # Several runs

    @admin.action(permissions=["retry"], description=gettext_lazy("Run selected runs again"))
    def run_selected_again(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Show which of the selected runs will be run again, and with what."""
        # The list reads no large columns; what will be sent is one of them.
        runs = queryset.defer(None).defer("whole_result")
        if not self.is_sane_number(request, runs):
            return None
        return self._ask_selected(request, list(runs.order_by("pk")))

    def run_again_selected_view(self, request: HttpRequest) -> HttpResponse:
        """Run the runs of the page again, and say what came of it."""
        if not self.has_retry_permission(request):
            raise PermissionDenied
        runner = self.get_retrier(request)
        runs = self.selected_runs(request)
        again = [run for run in runs if not obstacle_of(run, runner)]
        if not is_confirmed(request, digest_of(map(preview_of, again))):
            return self._ask_selected(request, runs)
        reason = reason_of(request)
        if not reason and _needs_reason(again):
            return self._ask_selected(request, runs, _("One of these tasks needs a reason."))
        if repeated := repeated_run(request, self.newest_retry(request, again)):
            return self._ask_selected(request, runs, repeated=repeated)
        self._tell(request, self._retry_all(request, again, runner, reason))
        return self.back_to_list(request)

    def _ask_selected(
        self,
        request: HttpRequest,
        runs: Sequence[TaskRunRecord],
        error: str = "",
        repeated: TaskRunRecord | None = None,
    ) -> HttpResponse:
        runner = self.get_retrier(request)
        obstacles = {run.pk: obstacle_of(run, runner) for run in runs}
        again = [run for run in runs if not obstacles[run.pk]]
        previews = [preview_of(run) for run in again]
        return self.ask(
            request,
            "run_again_selected.html",
            title=_("Run selected runs again"),
            form_url=self.selected_url(request, "run_again_selected"),
            back_url=self.list_url(request),
            yes=_yes(len(again)),
            items=[self.item(run, _line(run)) for run in again],
            left_out=[self.item(run, obstacles[run.pk]) for run in runs if obstacles[run.pk]],
            **self.before_starting(
                request,
                previews,
                self.newest_retry(request, again),
                needs_reason=_needs_reason(again),
                error=error,
                repeated=repeated,
            ),
        )

    def _tell(self, request: HttpRequest, outcome: Outcome) -> None:
        """Say how many were sent, and why others were not."""
        if outcome.sent:
            count = len(outcome.sent)
            text = ngettext("%(count)s run was sent.", "%(count)s runs were sent.", count)
            self.message_user(request, text % {"count": count}, messages.SUCCESS)
        self.tell_alike(request, [unsent_text(again) for _run, again in outcome.unsent])
        self.tell_alike(request, [_refused_text(run, text) for run, text in outcome.refused])
        if not outcome.found:
            self.message_user(request, _("None of these runs is there any more."), messages.ERROR)

    # Both

    def newest_retry(
        self, request: HttpRequest, runs: Sequence[TaskRunRecord]
    ) -> TaskRunRecord | None:
        """Return the newest run by which this user has run one of these again."""
        mine = self.get_queryset(request).filter(run_by=request.user.pk)
        newest: TaskRunRecord | None = mine.filter(retry_of__in=runs).order_by("-pk").first()
        return newest

    def _retry_all(
        self,
        request: HttpRequest,
        runs: Sequence[TaskRunRecord],
        runner: TaskRunner,
        reason: str,
    ) -> Outcome:
        """Run these again, each for itself, and leave a LogEntry at each that has a new run."""
        outcome = Outcome()
        for run in runs:
            try:
                again = runner.retry(run, reason=reason)
            except AlreadyActive as error:
                outcome.refused.append((run, " ".join(error.lines)))
                continue
            except InvalidArguments as error:
                outcome.refused.append((run, _misfit_text(error)))
                continue
            except (NotRetryable, PermissionDenied) as error:
                outcome.refused.append((run, str(error)))
                continue
            found = outcome.unsent if again.state in NOT_SENT else outcome.sent
            found.append((run, again))
            text = _("Run again as %(task_id)s.") % {"task_id": again.task_id}
            self.log_change(request, run, text)
        return outcome


def is_forbidden(run: TaskRunRecord, runner: TaskRunner) -> bool:
    """Tell whether the run's task could be run, but not by this user."""
    try:
        info = get_task_info(run.task_name)
    except TaskNotFound:
        return False
    return info.is_runnable and not runner.may_run(info)


def obstacle_of(run: TaskRunRecord, runner: TaskRunner) -> str:
    """Return why a run can't be run again as it was, or ""."""
    try:
        info = get_task_info(run.task_name)
    except TaskNotFound:
        return _("There is no such task any more.")
    if not info.is_runnable:
        return _("The settings do not allow to run this task.")
    if not runner.may_run(info):
        return _("You are not allowed to run this task.")
    if not run.is_finished:
        return _("It has not finished yet.")
    if run.has_masked_arguments or has_mask(run.options):
        return _("A secret of it is not stored: use “Edit and run again” on its page.")
    return "" if run.can_be_repeated else lost_text(run)


def preview_of(run: TaskRunRecord) -> Preview:
    """Return what running a run again sends."""
    options = _options(run)
    return Preview(
        task_name=run.task_name,
        args=readable_text(run.args, indent=2),
        kwargs=readable_text(run.kwargs, indent=2),
        options=readable_text(options, indent=2) if options else "",
        reason="",
    )


def _options(run: TaskRunRecord) -> dict[str, Any]:
    """Return the plain options that running a run again sends; a moment to expire in seconds."""
    is_number = isinstance(run.options.get("expires"), int | float)
    seconds = None if is_number else seconds_to_expire(run)
    return dict(run.options) if seconds is None else {**run.options, "expires": seconds}


def _needs_reason(runs: Sequence[TaskRunRecord]) -> bool:
    return any(get_task_info(run.task_name).rule.reason for run in runs)


def _line(run: TaskRunRecord) -> str:
    """Return what will be sent for a run of a list: all of it, in a line a part."""
    parts = [readable_text(part) for part in (run.args, run.kwargs, _options(run)) if part]
    return "\n".join(parts) or _("No arguments.")


def _misfit_text(error: InvalidArguments) -> str:
    text = _("Its arguments do not fit the task any more; use “Edit and run again”. %(problems)s")
    return text % {"problems": "; ".join(error.lines)}


def unsent_text(run: TaskRunRecord) -> str:
    """Return that a run was not sent, why, and what can be done."""
    if run.state == State.IGNORED:
        return _("Not sent: %(task)s. %(why)s") % {"task": run.task_name, "why": run.exception}
    text = _(
        "Not sent: %(task)s. %(error)s The run is kept; when the broker is back, use “Send again” "
        "on the page of the run."
    )
    return text % {"task": run.task_name, "error": run.publish_error}


def _refused_text(run: TaskRunRecord, reason: str) -> str:
    """Return why one of several runs was not run again."""
    text = _("Not run again: %(task)s. %(reason)s")
    return text % {"task": run.task_name, "reason": reason}


def _yes(number: int) -> str:
    """Return the text of the button that runs so many runs again; "" for none."""
    text = ngettext("Yes, run it again", "Yes, run these %(count)s again", number)
    return text % {"count": number} if number else ""
