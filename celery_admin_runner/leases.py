"""Hold a lease: the right to do something alone, on the database's word.

Whether a lease has run out is asked of one clock only, the database server's (of SQLite, which
has no server: this machine's). How long a holder may still act on it, each process measures by
its own clock, which nobody sets and which runs on while the process or the machine sleeps,
from before it asked: so it stops before the database lets another in, however wrong the time
of day is on either machine. What is assumed: that clocks run about equally fast, and that the
time of the database server does not jump.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from django.conf import settings as django_settings
from django.db import connections

from celery_admin_runner.conf import settings
from celery_admin_runner.exceptions import BeatMisconfigured, LeaseLost
from celery_admin_runner.models import Lease
from celery_admin_runner.recording import database, record

#: How the time is asked for, in seconds since 1970, whatever the time zone of the session is.
CLOCKS = {
    "postgresql": "SELECT EXTRACT(EPOCH FROM CLOCK_TIMESTAMP())",
    "mysql": "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1000000",
    "sqlite": "",
}
#: Of what length the lease of beats can be, in seconds.
SHORTEST, LONGEST = 1, 24 * 60 * 60
#: This part of a lease is left at its end: in it nobody acts.
MARGIN = 1 / 10
#: A lease is renewed when this part of it is over.
RENEWED_AFTER = 1 / 4


def beat_lease_seconds() -> float:
    """Return how long the lease of beats lasts; raises BeatMisconfigured."""
    seconds = settings.BEAT_LEASE_SECONDS
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not math.isfinite(seconds) or not SHORTEST <= seconds <= LONGEST:
        raise BeatMisconfigured(
            f"CELERY_ADMIN_RUNNER['BEAT_LEASE_SECONDS'] is {seconds!r}, and should be a number "
            f"of seconds from {SHORTEST} to {LONGEST}."
        )
    return float(seconds)


def elapsed() -> float:
    """Return the seconds since some moment; they pass also while the machine is suspended."""
    # Linux: there the monotonic clock stands still meanwhile.
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def database_now(alias: str) -> datetime:
    """Return the time of the database's clock, as leases keep it.

    Without USE_TZ it is UTC still: local time goes back by an hour once a year.
    """
    connection = connections[alias]
    sql = CLOCKS[connection.vendor]
    seconds = time.time()
    if sql:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            seconds = float(cursor.fetchone()[0])
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment if django_settings.USE_TZ else moment.replace(tzinfo=None)


class Claim:
    """What one process has of a lease. Every method may raise one of ``recording.FAULTS``.

    Each statement is guarded, so that it may be executed once more after a broken connection.
    """

    def __init__(self, name: str, *, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.holder = uuid4()
        #: The fencing counter of the term that was begun last; 0: there was none yet, or it was
        #: given back.
        self.counter = 0
        #: What the holder before left.
        self.data: Any = None
        self._asked_at = -math.inf

    @property
    def alias(self) -> str:
        """The connection to ask by; in a worker's beat (``-B``) none that it was forked with."""
        return database()

    @property
    def is_held(self) -> bool:
        """Whether nobody else can have the lease now, and for a moment still (MARGIN)."""
        return elapsed() < self._asked_at + self.seconds * (1 - MARGIN)

    def take(self) -> bool:
        """Begin a term, unless somebody else has the lease; read what was left in ``data``.

        Who has it already begins a term anew: what it sent to the database before, and was
        never answered, can then do nothing any more.
        """
        return record(self._take)

    def renew(self) -> None:
        """Hold the lease for its whole length from now on. Raises LeaseLost."""
        record(self._renew)

    def renew_if_due(self) -> None:
        """Renew the lease if a part of it is over (RENEWED_AFTER). Raises LeaseLost."""
        if elapsed() >= self._asked_at + self.seconds * RENEWED_AFTER:
            self.renew()

    def keep(self, data: Any) -> None:
        """Leave ``data`` to the next holder. One guarded statement; raises LeaseLost."""
        record(lambda: self._keep(data))

    def confirm(self) -> None:
        """Raise LeaseLost unless the lease is held. Asks this process's clock alone."""
        if not self.is_held:
            raise LeaseLost(self.name)

    def give_back(self) -> None:
        """Let the next one take the lease at once, if we still have it."""
        self._asked_at = -math.inf
        record(self._give_back)
        self.counter = 0

    def _take(self) -> bool:
        leases = Lease.objects.using(self.alias)
        asked_at, now = elapsed(), database_now(self.alias)
        lease = leases.filter(name=self.name).first()
        # Who stands by only reads.
        if lease is not None and lease.holder != self.holder and lease.expires_at > now:
            return False
        until = now + timedelta(seconds=self.seconds)
        if not leases.take(self.name, holder=self.holder, now=now, until=until):
            return False
        lease = leases.filter(name=self.name, holder=self.holder).first()
        if lease is None:
            return False
        self.counter, self.data, self._asked_at = lease.counter, lease.data, asked_at
        return True

    def _renew(self) -> None:
        asked_at, now = elapsed(), database_now(self.alias)
        until = now + timedelta(seconds=self.seconds)
        if not self._own().renew(until):
            raise LeaseLost(self.name)
        self._asked_at = asked_at

    def _keep(self, data: Any) -> None:
        if not self._own().keep(data):
            raise LeaseLost(self.name)

    def _give_back(self) -> None:
        self._own().give_back(database_now(self.alias))

    def _own(self) -> Any:
        """Return the lease as long as this term lasts, else nothing."""
        leases = Lease.objects.using(self.alias)
        return leases.in_term(self.name, holder=self.holder, counter=self.counter)
