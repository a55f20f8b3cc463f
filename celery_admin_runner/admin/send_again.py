"""Sending runs again, from admin, of which it is not known that the broker took them."""

from __future__ import annotations

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext as _

from celery_admin_runner.admin import display
from celery_admin_runner.admin.questions import POST, TASKS_CSS, AskingAdmin, is_confirmed
from celery_admin_runner.admin.sheets import Preview
from celery_admin_runner.encoding import readable_text
from celery_admin_runner.exceptions import NotSendable
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State


class SendAgainAdmin(AskingAdmin):
    """Sends the same run once more, for who may run its task."""

    def get_urls(self) -> list[URLPattern]:
        """Add the view that sends a run again."""
        name = f"{self.opts.app_label}_{self.opts.model_name}_send_again"
        view = self.protected(self.send_again_view, POST)
        return [path("<path:object_id>/send-again/", view, name=name), *super().get_urls()]

    def send_again_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Send a run again, and say how that went; ask first if it may run twice then."""
        run = self.asked_run(request, object_id)
        runner = TaskRunner(request.user, source=Source.ADMIN)
        try:
            runner.check_can_send_again(run)
            if run.may_have_been_sent and not is_confirmed(request, _digest(run)):
                return self._ask_to_send(request, run)
            runner.send_again(run)
        except NotSendable as error:
            self.message_user(request, str(error), messages.ERROR)
        else:
            self._tell_of_sending(request, run)
        return redirect(self.run_url(run))

    def _ask_to_send(self, request: HttpRequest, run: TaskRunRecord) -> HttpResponse:
        return self.ask(
            request,
            "send_again.html",
            title=_("Send again"),
            form_url=self.view_url("send_again", run.pk),
            yes=_("Yes, send it again"),
            is_harmful=True,
            digest=_digest(run),
            doubt=doubt_of(run),
            previews=[_preview_of(run)],
            **self.about(run),
            media=self.media + forms.Media(css={"all": [TASKS_CSS]}),
        )

    def _tell_of_sending(self, request: HttpRequest, run: TaskRunRecord) -> None:
        run.refresh_from_db(fields=["state", "publish_error", "claimed_at", "published_at"])
        if run.state == State.UNSENT:
            text = _("The broker still does not take this run: %(error)s")
            self.message_user(request, text % {"error": run.publish_error}, messages.ERROR)
            return
        self.log_change(request, run, _("Sent again."))
        self.message_user(request, _("The run was sent."), messages.SUCCESS)


def shown_doubt(run: TaskRunRecord) -> str:
    """Return why nobody knows whether a run was sent; "" for one of which it is known.

    And for one that a dispatcher has in hand just now.
    """
    is_left = run.state == State.UNSENT or run.is_stale_scheduled(timezone.now())
    return doubt_of(run) if is_left and run.may_have_been_sent else ""


def doubt_of(run: TaskRunRecord) -> str:
    """Return why nobody knows whether a run that may have been sent was sent."""
    if run.claimed_at is None:
        return _("The broker did not confirm that it took this run: it may have it, or not.")
    values = {"moment": display.time_text(run.claimed_at)}
    if run.state == State.SCHEDULED:
        text = _(
            "A dispatcher took this run on %(moment)s to send it, and has not said since how "
            "that went: the broker may have the run, or not. It is not sent again by itself."
        )
        return text % values
    text = _(
        "Somebody began to send this run on %(moment)s, and has not said since how that went: "
        "the broker may have it, or not."
    )
    return text % values


def _preview_of(run: TaskRunRecord) -> Preview:
    """Return what is sent again: the same as before."""
    return Preview(
        task_name=run.task_name,
        args=readable_text(run.args, indent=2),
        kwargs=readable_text(run.kwargs, indent=2),
        options=readable_text(run.options, indent=2) if run.options else "",
        reason="",
    )


def _digest(run: TaskRunRecord) -> str:
    """Return what only this server can make of just this doubt about a run.

    So a page that asks does not answer for a later doubt: one more message may be out then.
    """
    text = f"{run.pk} {run.dispatch_id} {run.claimed_at} {run.publish_error}"
    return salted_hmac("celery_admin_runner.send_again", text, algorithm="sha256").hexdigest()
