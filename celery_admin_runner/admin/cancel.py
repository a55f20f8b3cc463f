"""Cancelling runs from admin: the pages that ask, and what they lead to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from celery_admin_runner.admin.questions import POST, READ_OR_POST, AskingAdmin
from celery_admin_runner.cancelling import AWAITED, expected_state
from celery_admin_runner.control import Answer
from celery_admin_runner.exceptions import NotCancellable
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State

#: The field that says how a run is stopped; "" for the gentlest way.
HOW = "how"
TERMINATE = "terminate"
KILL = "kill"


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to stop a run that can be chosen on the page."""

    value: str
    label: str
    text: str


class CancelAdmin(AskingAdmin):
    """Cancels runs, for who has ``cancel_taskrunrecord`` and may see them."""

    def has_cancel_permission(
        self, request: HttpRequest, obj: TaskRunRecord | None = None
    ) -> bool:
        """Tell whether the user may cancel runs, and sees this one."""
        permission = f"{self.opts.app_label}.cancel_{self.opts.model_name}"
        return request.user.has_perm(permission) and self.has_view_permission(request, obj)

    def get_urls(self) -> list[URLPattern]:
        """Add the pages that cancel one run, and several."""
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        return [
            path(
                "cancel-selected/",
                self.protected(self.cancel_selected_view, POST),
                name=f"{name}_cancel_selected",
            ),
            path(
                "<path:object_id>/cancel/",
                self.protected(self.cancel_view, READ_OR_POST),
                name=f"{name}_cancel",
            ),
            *super().get_urls(),
        ]

    # One run

    def cancel_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask what shall happen to a run; when that is answered, do it."""
        run = self.asked_run(request, object_id)
        if not self.has_cancel_permission(request, run):
            raise PermissionDenied
        how = request.POST.get(HOW, "")
        is_answered = request.method == "POST" and how in _known_ways(run)
        if run.is_finished:
            self.message_user(request, _("This run has finished already."), messages.WARNING)
        elif not is_answered:
            return self._ask_how(request, run)
        else:
            self._cancel(request, run, how)
        return redirect(self.run_url(run))

    def _ask_how(self, request: HttpRequest, run: TaskRunRecord) -> HttpResponse:
        return self.ask(
            request,
            "cancel.html",
            title=_("Cancel a run"),
            form_url=self.view_url("cancel", run.pk),
            yes=_("Yes, cancel it"),
            is_harmful=True,
            what_happens=consequence_of(run),
            how_field=HOW,
            ways=ways_of(run),
            **self.about(run),
        )

    def _cancel(self, request: HttpRequest, run: TaskRunRecord, how: str) -> None:
        runner = self._canceller(request)
        try:
            cancellation = runner.cancel(run, terminate=how == TERMINATE, kill=how == KILL)
        except NotCancellable as error:
            self.message_user(request, str(error), messages.WARNING)
            return
        self.log_change(request, run, _log_text(run, how))
        level = messages.SUCCESS if cancellation.state == State.REVOKED else messages.INFO
        self.message_user(request, _outcome(run, how), level)
        self._tell_answers(request, cancellation.answers)

    # Several runs

    @admin.action(permissions=["cancel"], description=gettext_lazy("Cancel selected runs"))
    def cancel_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Show what will happen to which of the selected runs."""
        if not self.is_sane_number(request, queryset):
            return None
        runs = list(queryset.order_by("pk"))
        unfinished = [run for run in runs if not run.is_finished]
        finished = [run for run in runs if run.is_finished]
        running = [run for run in unfinished if run.state in {State.STARTED, State.CANCELLING}]
        return self.ask(
            request,
            "cancel_selected.html",
            title=_("Cancel selected runs"),
            form_url=self.selected_url(request, "cancel_selected"),
            back_url=self.list_url(request),
            yes=_yes(len(unfinished)),
            is_harmful=True,
            items=[self.item(run, consequence_of(run)) for run in unfinished],
            left_out=[self.item(run, _("It has finished already.")) for run in finished],
            how_field=HOW,
            terminate=TERMINATE,
            running=len(running),
        )

    def cancel_selected_view(self, request: HttpRequest) -> HttpResponse:
        """Cancel the runs of the page, and say what came of it."""
        if not self.has_cancel_permission(request):
            raise PermissionDenied
        is_terminated = request.POST.get(HOW) == TERMINATE
        runner = self._canceller(request)
        done: list[TaskRunRecord] = []
        answers: list[Answer] = []
        refused: list[str] = []
        for run in self.selected_runs(request):
            try:
                answers.extend(runner.cancel(run).answers)
            except (NotCancellable, PermissionDenied) as error:
                refused.append(str(error))
            else:
                done.append(run)
        if is_terminated:
            answers.extend(runner.terminate_many(done))
        self._tell_done(request, done, TERMINATE if is_terminated else "")
        self._tell_answers(request, answers)
        self._tell_refused(request, refused)
        if not done and not refused:
            self.message_user(request, _("None of these runs is there any more."), messages.ERROR)
        return self.back_to_list(request)

    def _tell_done(self, request: HttpRequest, done: Sequence[TaskRunRecord], how: str) -> None:
        """Say, and log, how many runs were cancelled and how many were asked to stop."""
        texts: dict[str, list[TaskRunRecord]] = {}
        for run in done:
            texts.setdefault(_log_text(run, how), []).append(run)
        for text, runs in texts.items():
            self.log_runs(request, runs, text)
        states = Counter(run.state for run in done)
        cancelled, asked = states.pop(State.REVOKED, 0), states.pop(State.CANCELLING, 0)
        if cancelled:
            text = ngettext(
                "%(count)s run was cancelled.", "%(count)s runs were cancelled.", cancelled
            )
            self.message_user(request, text % {"count": cancelled}, messages.SUCCESS)
        if asked:
            text = ngettext(
                "%(count)s run was told to stop; until that is confirmed, it shows as cancelling.",
                "%(count)s runs were told to stop; until that is confirmed, they show as "
                "cancelling.",
                asked,
            )
            self.message_user(request, text % {"count": asked}, messages.INFO)
        if ended := sum(states.values()):
            text = ngettext(
                "%(count)s run ended by itself before it was stopped.",
                "%(count)s runs ended by themselves before they were stopped.",
                ended,
            )
            self.message_user(request, text % {"count": ended}, messages.INFO)

    def _tell_refused(self, request: HttpRequest, refused: Sequence[str]) -> None:
        """Say how many runs could not be cancelled, by the reason."""
        for reason, count in Counter(refused).items():
            text = ngettext(
                "%(count)s run was not cancelled: %(reason)s",
                "%(count)s runs were not cancelled: %(reason)s",
                count,
            )
            self.message_user(request, text % {"count": count, "reason": reason}, messages.WARNING)

    def _tell_answers(self, request: HttpRequest, answers: Iterable[Answer]) -> None:
        """Say what each worker answered, the same answer once."""
        for answer in dict.fromkeys(answers):
            level = messages.INFO if answer.is_ok else messages.WARNING
            # Admin would give a message that begins with the worker's name a capital there.
            text = _("Worker %(worker)s: %(answer)s")
            known = {"worker": answer.worker, "answer": answer.text}
            self.message_user(request, text % known if answer.worker else answer.text, level)

    def _canceller(self, request: HttpRequest) -> TaskRunner:
        return TaskRunner(request.user, source=Source.ADMIN)


def consequence_of(run: TaskRunRecord) -> str:
    """Return what cancelling an unfinished run leads to, in words."""
    if run.state == State.CANCELLING:
        return _("It was asked to stop, and no worker has confirmed that yet.")
    if run.state == State.STARTED:
        return _("A worker runs it now: it shows as cancelling until it has stopped, or ended.")
    is_at_once = expected_state(run, timezone.now()) == State.REVOKED
    if run.state not in AWAITED:
        if is_at_once and run.may_have_been_sent:
            return _(
                "It may have been sent, or not: it is cancelled at once, and the workers are told "
                "to drop it."
            )
        if is_at_once:
            return _("No worker knows of it yet: it is cancelled at once, and does not start.")
        return _("It is being sent just now: it shows as cancelling until a worker drops it.")
    if is_at_once:
        return _("It waits for a worker: it is cancelled at once, and does not start.")
    return _(
        "It waits for a worker: the workers are told to drop it. It shows as cancelling until "
        "one of them has."
    )


def ways_of(run: TaskRunRecord) -> list[Way]:
    """Return the ways to stop a run that there are in its state, the gentlest first."""
    ask = Way(
        value="",
        label=_("Ask it to stop"),
        text=_("The task ends itself where it looks for this; one that does not look runs on."),
    )
    terminate = Way(
        value=TERMINATE,
        label=_("Stop it at once"),
        text=_("The worker terminates it (SIGTERM): what it had begun may stay half done."),
    )
    kill = Way(
        value=KILL,
        label=_("Kill it"),
        text=_("If it does not stop: its process is killed (SIGKILL) and can’t tidy up."),
    )
    if run.state == State.STARTED:
        return [ask, terminate]
    is_begun = run.state == State.CANCELLING and run.started_at is not None
    return [terminate, kill] if is_begun else []


def _known_ways(run: TaskRunRecord) -> set[str]:
    """Return what may be answered: also by a page that was shown when the run waited."""
    return {way.value for way in ways_of(run)} or {"", TERMINATE}


def _outcome(run: TaskRunRecord, how: str) -> str:
    """Return what has become of a run that was told to stop."""
    if run.state == State.REVOKED and run.started_at is None:
        return _("The run was cancelled: it will not start.")
    if run.state == State.REVOKED:
        return _("The run was stopped.")
    if run.is_finished:
        return _("The run ended by itself before it was stopped.")
    if how:
        return _("The workers were told to stop it. Until one confirms, it shows as cancelling.")
    return _("The run was asked to stop. Until that is confirmed, it shows as cancelling.")


def _log_text(run: TaskRunRecord, how: str) -> str:
    """Return what was done, for the history of the run."""
    if run.state == State.REVOKED and run.started_at is None:
        return _("Cancelled.")
    texts = {
        TERMINATE: _("Asked to stop at once (SIGTERM)."),
        KILL: _("Asked to be killed (SIGKILL)."),
    }
    return texts.get(how, _("Asked to stop."))


def _yes(number: int) -> str:
    """Return the text of the button that cancels so many runs; "" for none."""
    text = ngettext("Yes, cancel %(count)s run", "Yes, cancel %(count)s runs", number)
    return text % {"count": number} if number else ""
