"""Hear in this process which runs have changed, from whoever changed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models.signals import post_save

from celery_admin_runner.changes import Owner, touched
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.signals import run_progressed


class Hearing:
    """Calls ``tell`` with the key of a run's user, as text, and that of the run.

    For each run of a user that was made, saved, moved or has come further, after the commit, in
    the thread that did so. While it is connected, a move of a run costs one statement more: whose
    the run is.
    """

    def __init__(self, tell: Callable[[str, int], None]) -> None:
        self._tell = tell

    def connect(self) -> None:
        """Hear from now on."""
        touched.connect(self._on_touched, sender=TaskRunRecord)
        run_progressed.connect(self._on_progressed, sender=TaskRunRecord)
        post_save.connect(self._on_saved, sender=TaskRunRecord)

    def disconnect(self) -> None:
        """Hear no more."""
        touched.disconnect(self._on_touched, sender=TaskRunRecord)
        run_progressed.disconnect(self._on_progressed, sender=TaskRunRecord)
        post_save.disconnect(self._on_saved, sender=TaskRunRecord)

    def _on_touched(self, owners: Sequence[Owner], **kwargs: Any) -> None:
        for user_pk, run_pk in owners:
            self._tell(str(user_pk), run_pk)

    def _on_progressed(self, run_pk: int, user_pk: str, **kwargs: Any) -> None:
        if user_pk:
            self._tell(user_pk, run_pk)

    def _on_saved(self, instance: TaskRunRecord, using: str, **kwargs: Any) -> None:
        """Tell of a run once it can be seen: a new one, or one that the site's code has saved."""
        if instance.run_by_id is not None:
            tell = partial(self._tell, str(instance.run_by_id), instance.pk)
            transaction.on_commit(tell, using=using, robust=True)
