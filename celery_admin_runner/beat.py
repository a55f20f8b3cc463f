"""Schedulers for ``celery beat`` of which one sends at a time, however many are started.

``celery -A shop beat --scheduler celery_admin_runner.beat:LockedPersistentScheduler``
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.apps import apps

from celery_admin_runner.exceptions import BeatMisconfigured
from celery_admin_runner.leadership import Booking, LockedScheduler

if apps.is_installed("django_celery_beat"):
    from celery_admin_runner.beat_database import (
        LockedDatabaseScheduler as LockedDatabaseScheduler,
    )

#: For how long the last run of an entry that is in the schedule no more is remembered: it may
#: be in that of a newer release already.
REMEMBERED_FOR = timedelta(days=400)


class LockedPersistentScheduler(LockedScheduler):
    """Sends what ``beat_schedule`` says, of however many beats one at a time.

    Its last runs are in the database and not in a file (``--schedule`` counts for nothing): so
    whoever takes over has them, on whatever machine.
    """

    def setup_schedule(self) -> None:
        """Make sure that there can be a lease, and that the schedule makes sense."""
        super().setup_schedule()
        self._fill()

    def load(self) -> None:
        """Load the app's schedule, and book what is new in it."""
        self._fill()
        for entry in self.schedule.values():
            booking = self.bookings.get(entry.name, Booking.of(entry))
            entry.last_run_at = booking.last_run_at
            entry.total_run_count = booking.total_run_count
        oldest = datetime.now(UTC) - REMEMBERED_FOR
        self.bookings = {
            name: booking
            for name, booking in self.bookings.items()
            if name in self.schedule or booking.last_run_at > oldest
        }
        # The intervals of what never ran yet begin now, for whoever takes over too.
        self.book(*self.schedule.values())

    def unload(self) -> None:
        """Forget the schedule and its last runs."""
        super().unload()
        self.set_schedule({})

    def _fill(self) -> None:
        """Make the schedule new from the app's settings; every interval begins now."""
        self.set_schedule({})
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)


def __getattr__(name: str) -> Any:
    """Say what ``LockedDatabaseScheduler`` needs, where it is not."""
    if name == "LockedDatabaseScheduler":
        raise BeatMisconfigured(
            "LockedDatabaseScheduler needs django-celery-beat: install "
            "celery-admin-runner[beat], add 'django_celery_beat' to INSTALLED_APPS, and run "
            "manage.py migrate."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
