"""The locked scheduler for django-celery-beat: imported only where that is installed."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from celery.beat import ScheduleEntry
from celery.utils.time import maybe_make_aware
from django.conf import settings as django_settings
from django.db.models import Q
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler

from celery_admin_runner.leadership import Booking, LockedScheduler
from celery_admin_runner.recording import FAULTS

logger = logging.getLogger("celery_admin_runner")

#: The lease's row is written for each send: it is to stay small.
MANY = 100


class LockedDatabaseScheduler(LockedScheduler, DatabaseScheduler):  # type: ignore[misc]
    """django-celery-beat's DatabaseScheduler, of however many beats one at a time.

    An entry is booked in the lease's row before it is sent. Its PeriodicTask's row gets the
    last run later, as ever; until then it stands in the lease, for whoever takes over.
    """

    def load(self) -> None:
        """Write the last runs that the beat before left to their rows, and read the schedule."""
        self.sync()
        DatabaseScheduler.setup_schedule(self)

    def unload(self) -> None:
        """Forget the schedule, so that it is read again."""
        super().unload()
        self._schedule: dict[str, ScheduleEntry] = {}
        self._initial_read = True
        self._last_timestamp = None

    def all_as_schedule(self) -> dict[str, ScheduleEntry]:
        """Read the schedule; an entry whose row lags behind still knows its last run."""
        schedule: dict[str, ScheduleEntry] = super().all_as_schedule()
        for entry in schedule.values():
            booking = self.bookings.get(entry.name)
            if booking and _stored(entry.last_run_at) < _stored(booking.last_run_at):
                _tell(entry, booking)
        return schedule

    def reserve(self, entry: ScheduleEntry) -> ScheduleEntry:
        """Return the entry as it is after this run.

        The schedule learns it too: django-celery-beat 2.9 keeps the old entry there, and sends
        it again when the heap is made anew before the next look at the database.
        """
        reserved = super().reserve(entry)
        current = self._schedule.get(entry.name)
        if current is not None:
            _tell(current, Booking.of(reserved))
        return reserved

    def should_sync(self) -> bool:
        """Tell whether it is time to write last runs to their rows, or there are many."""
        return super().should_sync() or len(self.bookings) >= MANY

    def sync(self) -> None:
        """Write the last runs to their rows; those that are there leave the lease's row.

        One guarded statement each, which only ever writes a later run than the row has. What
        fails is written the next time.
        """
        self._dirty.clear()
        if not self.is_leading:
            return
        try:
            for name, booking in list(self.bookings.items()):
                _save(name, booking)
                del self.bookings[name]
        except FAULTS as error:
            logger.warning("beat: Last runs could not be written to periodic tasks: %s", error)


def _save(name: str, booking: Booking) -> None:
    """Write a last run to its row, unless that has a later one, or was changed since."""
    last_run_at = _stored(booking.last_run_at)
    # A row that was disabled has lost its last run: then it counts from that change on.
    is_older = Q(last_run_at__lt=last_run_at) | Q(last_run_at=None, date_changed__lte=last_run_at)
    rows = PeriodicTask.objects.filter(is_older, name=name)
    rows.update(last_run_at=last_run_at, total_run_count=booking.total_run_count)


def _tell(entry: ScheduleEntry, booking: Booking) -> None:
    """Set the last run of an entry, and of the row that its next one is computed from."""
    for told in (entry, entry.model):
        told.last_run_at = _stored(booking.last_run_at)
        told.total_run_count = booking.total_run_count


def _stored(moment: datetime) -> datetime:
    """Return a moment as rows have it: without USE_TZ django-celery-beat keeps naive UTC."""
    aware: datetime = maybe_make_aware(moment)
    return aware if django_settings.USE_TZ else aware.astimezone(UTC).replace(tzinfo=None)
