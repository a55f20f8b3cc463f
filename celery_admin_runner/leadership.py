"""One beat at a time: what a scheduler does while it leads, and while it stands by.

An entry that is due is booked first (its last run goes into the lease's row, by one statement
that only the present holder can do), then sent. So whatever happens in between, and whatever a
clock says, nobody else sends what was booked: nothing is sent twice. A beat that dies, or loses
the lease, between the two has missed that one interval.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from celery.utils.time import maybe_make_aware
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils import timezone

from celery_admin_runner.exceptions import BeatMisconfigured, LeaseLost
from celery_admin_runner.leases import (
    CLOCKS,
    RENEWED_AFTER,
    Claim,
    beat_lease_seconds,
    database_now,
)
from celery_admin_runner.models import Lease
from celery_admin_runner.recording import FAULTS

logger = logging.getLogger("celery_admin_runner")

#: A beat that stands by looks after this part of the lease, but at least so often (seconds).
LOOKS_AFTER, LOOKS_AT_LEAST_EVERY = 1 / 10, 5
#: How many characters the name of a lease can have.
_NAME_LENGTH = Lease._meta.get_field("name").max_length


@dataclass(frozen=True, kw_only=True)
class Booking:
    """When an entry of the schedule was last sent, or was to be, and how often so far."""

    #: Aware.
    last_run_at: datetime
    total_run_count: int

    @classmethod
    def of(cls, entry: ScheduleEntry) -> Self:
        """Return what is to be remembered of an entry."""
        return cls(
            last_run_at=maybe_make_aware(entry.last_run_at),
            total_run_count=entry.total_run_count,
        )


def lease_name(app: Celery) -> str:
    """Return the name of the lease that the beats of an app share."""
    return f"beat {app.main or ''}".strip()[:_NAME_LENGTH]


class LockedScheduler(Scheduler):  # type: ignore[misc]
    """A scheduler of Celery that sends only while it holds the lease.

    A subclass says in ``load`` where its schedule comes from.
    """

    #: Whether the schedule is loaded and this beat sends; it may have lost the lease since.
    is_leading = False

    def __init__(self, app: Celery, *args: Any, **kwargs: Any) -> None:
        self.claim = Claim(lease_name(app), seconds=beat_lease_seconds())
        #: The last runs that stand in the lease's row, by the entries' names.
        self.bookings: dict[str, Booking] = {}
        self._reserved: ScheduleEntry = None
        self._is_busy = False
        self._has_said_that_it_stands_by = False
        super().__init__(app, *args, **kwargs)

    @property
    def info(self) -> str:
        """What the banner of ``celery beat`` says of the scheduler."""
        return f"    . lease -> {self.claim.name} (in the database)"

    def setup_schedule(self) -> None:
        """Make sure that there can be a lease; the schedule is loaded when we have it.

        Raises BeatMisconfigured.
        """
        _check_database(self.claim)

    def load(self) -> None:
        """Load the schedule, with the last runs in ``bookings``: we lead from now on."""
        raise NotImplementedError

    def unload(self) -> None:
        """Forget the schedule: somebody else may be ahead of it now."""
        self._heap = None
        self.old_schedulers = None

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send one entry that is due, if the lease is ours; return seconds until the next tick.

        Takes and renews the lease. While the database can't be asked, nothing is sent.
        """
        with self._busy():
            try:
                if not self._leads():
                    return self._looks_every()
                delay: float = super().tick(*args, **kwargs)
                return min(delay, self.claim.seconds * RENEWED_AFTER)
            except LeaseLost as error:
                logger.warning("beat: %s It stands by.", error)
            except FAULTS as error:
                logger.error("beat: The database can't be asked, nothing is sent: %s", error)
            self._step_down()
            return self._looks_every()

    def reserve(self, entry: ScheduleEntry) -> ScheduleEntry:
        """Return the entry as it is after this run; it is booked before it is sent."""
        self._reserved = super().reserve(entry)
        return self._reserved

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        """Book an entry that is due, then send it. Raises LeaseLost, or one of FAULTS."""
        # Since the tick began the broker was waited for, which can take long.
        self.claim.renew_if_due()
        self.book(self._reserved)
        super().apply_entry(entry, producer=producer)

    def apply_async(
        self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """Send an entry if the lease is still held; raises LeaseLost, which Celery logs."""
        self.claim.confirm()
        return super().apply_async(entry, producer=producer, advance=advance, **kwargs)

    def book(self, *entries: ScheduleEntry) -> None:
        """Write the last runs of these entries to the lease. Raises LeaseLost."""
        self.bookings.update({entry.name: Booking.of(entry) for entry in entries})
        self.claim.keep(_to_data(self.bookings))

    def _do_sync(self) -> None:
        with self._busy():
            super()._do_sync()

    def close(self) -> None:
        """End cleanly: the next beat can have the lease at once.

        Celery 5.5 also calls this from its signal handler, and then again at the end. What
        the signal interrupted may be in the middle of a statement: then only at the end.
        """
        if self._is_busy:
            return
        try:
            with self._busy():
                super().close()
        finally:
            self._step_down()
            # Also if we do not lead because the database was away for a moment.
            if self.claim.counter:
                self._give_back()

    def _leads(self) -> bool:
        """Tell whether the lease is ours, and renew or take it. Raises LeaseLost."""
        claim = self.claim
        if self.is_leading:
            claim.renew_if_due()
            return True
        if not claim.take():
            if not self._has_said_that_it_stands_by:
                logger.info("beat: Another beat has the lease %r: standing by.", claim.name)
                self._has_said_that_it_stands_by = True
            return False
        logger.info("beat: Has the lease %r (term %d).", claim.name, claim.counter)
        self._has_said_that_it_stands_by = False
        self.bookings = _from_data(claim.data)
        self._warn_of_clocks()
        self.is_leading = True
        self.load()
        return True

    def _step_down(self) -> None:
        """Send nothing more; what was booked stands in the lease's row."""
        self.is_leading = False
        self.bookings = {}
        self.unload()

    def _give_back(self) -> None:
        # A signal may have interrupted a statement on this connection.
        connections[self.claim.alias].close()
        try:
            self.claim.give_back()
        except FAULTS as error:
            logger.warning("beat: The lease could not be given back, it runs out: %s", error)

    def _warn_of_clocks(self) -> None:
        """Say so if the beat before us had another time of day: intervals would be too long."""
        latest = max((b.last_run_at for b in self.bookings.values()), default=None)
        ahead = latest and (latest - timezone.now().astimezone(UTC)).total_seconds()
        if ahead and ahead > 1:
            logger.warning("beat: The clock of the beat before was %.0f s ahead of ours.", ahead)

    def _looks_every(self) -> float:
        """How long to wait until the lease is asked for again, in seconds."""
        longest: float = min(LOOKS_AT_LEAST_EVERY, self.max_interval)
        return min(self.claim.seconds * LOOKS_AFTER, longest)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        was_busy, self._is_busy = self._is_busy, True
        try:
            yield
        finally:
            self._is_busy = was_busy


def _check_database(claim: Claim) -> None:
    """Make sure that the lease's row exists, where others see it. Raises BeatMisconfigured."""
    connection = connections[claim.alias]
    if connection.vendor not in CLOCKS:
        raise BeatMisconfigured(
            f"The database {claim.alias!r} ({connection.vendor}) can't keep beat's lease: it "
            "should be PostgreSQL, MySQL, MariaDB or SQLite."
        )
    if connection.vendor == "sqlite" and connection.is_in_memory_db():  # type: ignore[attr-defined]
        raise BeatMisconfigured(
            f"The database {claim.alias!r} is in memory, where no other beat sees the lease. "
            "Name a file."
        )
    leases = Lease.objects.using(claim.alias)
    try:
        row = Lease(name=claim.name, expires_at=database_now(claim.alias))
        leases.bulk_create([row], ignore_conflicts=True)
    except (*FAULTS, ImproperlyConfigured) as error:
        raise BeatMisconfigured(
            f"The database {claim.alias!r} can't keep beat's lease: {error} "
            "Does it answer, and has manage.py migrate been run?"
        ) from error


def _to_data(bookings: dict[str, Booking]) -> dict[str, Any]:
    """Return bookings as the lease's row keeps them."""
    return {
        "entries": {
            name: [booking.last_run_at.astimezone(UTC).isoformat(), booking.total_run_count]
            for name, booking in bookings.items()
        }
    }


def _from_data(data: Any) -> dict[str, Booking]:
    """Return the bookings in what the beat before left; None: there was none.

    What no beat of ours can have left, as by a hand in the row, counts as nothing: it would end
    each beat that takes over.
    """
    if not data:
        return {}
    try:
        return {name: _booking(*kept) for name, kept in data["entries"].items()}
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        logger.warning("beat: The last runs in the lease's row can't be read: %r", error)
        return {}


def _booking(moment: str, count: int) -> Booking:
    """Return a booking from what the lease's row keeps of it."""
    last_run_at = datetime.fromisoformat(moment)
    if last_run_at.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone.")
    return Booking(last_run_at=last_run_at.astimezone(UTC), total_run_count=int(count))
