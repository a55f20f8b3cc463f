"""Why a run was never begun, or was ended from outside, in the user's language."""

from __future__ import annotations

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from celery_admin_runner import dispatch, tracking
from celery_admin_runner.admin import display
from celery_admin_runner.dependencies import SKIPPED
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State

#: What the journal keeps for it, which is English, by the state that goes with it.
TOLD = {
    (State.REVOKED, dispatch.CANCELLED): gettext_lazy("Cancelled before it was sent."),
    (State.REVOKED, tracking.CANCELLED): gettext_lazy("Cancelled before it started."),
    (State.REVOKED, tracking.REVOKED): gettext_lazy("Revoked before it started."),
    (State.REVOKED, tracking.TERMINATED): gettext_lazy("Terminated while it ran."),
    (State.EXPIRED, dispatch.EXPIRED): gettext_lazy("Expired before it was sent."),
    (State.EXPIRED, tracking.EXPIRED): gettext_lazy("Expired before it started."),
}


def exception_text(run: TaskRunRecord) -> str:
    """Return the exception of a run, or, if it is one of ours, what that says."""
    for state, text in SKIPPED.items():
        if run.state == State.IGNORED and run.exception == text:
            return _("Skipped: a run that it waited for ended as “%(state)s”.") % {
                "state": display.state_label(state)
            }
    return str(TOLD.get((State(run.state), run.exception), run.exception))
