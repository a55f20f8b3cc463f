"""Moments that were read from a database, and that it is asked for again."""

from __future__ import annotations

from datetime import UTC, datetime

from django.db import connections
from django.utils import timezone


def exactly(moment: datetime, using: str) -> datetime:
    """Return a moment that was read, so that the database takes it for the very same one.

    Without USE_TZ it is naive, and once a year a naive time is two moments: it knows itself
    which of the two it is ("fold"), but a database that keeps moments is not told.
    """
    if timezone.is_naive(moment) and connections[using].features.supports_timezones:
        aware = timezone.make_aware(moment, timezone.get_default_timezone())
        # Of the same timezone Python would compare what the clocks show.
        return aware.astimezone(UTC)
    return moment
