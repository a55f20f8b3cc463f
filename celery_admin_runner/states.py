"""The states of a run. Celery's own words where Celery has one."""

from __future__ import annotations

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class State(TextChoices):
    """Where a run stands."""

    #: Committed, not handed to the broker: not yet, or that failed (``publish_error``).
    UNSENT = "UNSENT", _("Not sent")
    #: Kept in the database until ``eta``.
    SCHEDULED = "SCHEDULED", _("Scheduled")
    #: Waits for the runs in ``depends_on``.
    WAITING = "WAITING", _("Waiting")
    #: Handed to the broker.
    PENDING = "PENDING", _("Queued")
    STARTED = "STARTED", _("Running")
    #: Failed, and Celery will try again.
    RETRY = "RETRY", _("Retrying")
    #: Asked to stop, not confirmed.
    CANCELLING = "CANCELLING", _("Cancelling")
    SUCCESS = "SUCCESS", _("Succeeded")
    FAILURE = "FAILURE", _("Failed")
    REVOKED = "REVOKED", _("Cancelled")
    #: Its ``expires`` passed before it started.
    EXPIRED = "EXPIRED", _("Expired")
    #: Deliberately not run.
    IGNORED = "IGNORED", _("Skipped")
    #: Nobody has heard of it for too long; a real report corrects it.
    LOST = "LOST", _("Lost")


FINISHED = frozenset(
    {State.SUCCESS, State.FAILURE, State.REVOKED, State.EXPIRED, State.IGNORED, State.LOST}
)
UNFINISHED = frozenset(State) - FINISHED
#: Nobody but the database knows of a run in these states.
KEPT = frozenset({State.SCHEDULED, State.WAITING})
#: The states that a report of a worker may move: all that are not finished, and LOST.
REPORTABLE = UNFINISHED | {State.LOST}
#: Ended other than asked for: what the figures count as failures.
FAILED = frozenset({State.FAILURE, State.LOST})
