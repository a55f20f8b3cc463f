"""Schedulers that send the number of the run, and who sends it, as arguments."""

from __future__ import annotations

import os
from typing import Any

from django.apps import apps

from celery_admin_runner import beat


class Numbered:
    """Numbers what is sent by its name."""

    def send_task(self, name: str, args: Any, kwargs: Any, **options: Any) -> Any:
        numbers = [os.getpid(), self._reserved.total_run_count]
        return super().send_task(name, numbers, kwargs, **options)


class NumberedPersistentScheduler(Numbered, beat.LockedPersistentScheduler):
    """For the schedule in the app's settings."""


if apps.is_installed("django_celery_beat"):

    class NumberedDatabaseScheduler(Numbered, beat.LockedDatabaseScheduler):
        """For django-celery-beat's."""
