"""Write to who asked for a long run that it has ended: nobody has to wait before the screen."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.core.mail import EmailMessage

from celery_admin_runner.signals import run_changed
from celery_admin_runner.states import State

if TYPE_CHECKING:
    from celery_admin_runner.models import TaskRunRecord

#: Who waits for less than this is still there.
LONG = timedelta(minutes=1)
#: A run comes into one of these once, and stays there. One that is LOST may still come back, and
#: who cancelled a run knows of that.
ENDS = {State.SUCCESS: "is ready", State.FAILURE: "has failed"}


def connect() -> None:
    """Listen, in every process of the shop: a worker tells of the end of what it ran."""
    run_changed.connect(mail_owner, dispatch_uid="shop.mail_owner")


def mail_owner(run: TaskRunRecord, to_state: State, **kwargs: Any) -> None:
    """Write to the owner of a long run how it has ended; a receiver of ``run_changed``.

    It is called when the end is recorded: a mail server that is away is waited for as long as the
    mail settings say, its error is logged by Django, and the run has ended all the same.
    """
    if to_state not in ENDS or run.duration is None or run.duration < LONG:
        return
    owner = run.run_by
    if owner is None or not owner.is_active or not owner.email:
        return
    # Whoever gave it a label with several lines adds no header by that.
    name = " ".join((run.label or run.task_name).split())
    minutes = round(run.duration.total_seconds() / 60)
    EmailMessage(
        subject=f"{name} {ENDS[to_state]}",
        body=f"Dear {owner.get_username()},\n\n{name} {ENDS[to_state]}. It took {minutes} min.\n",
        to=[owner.email],
    ).send()
