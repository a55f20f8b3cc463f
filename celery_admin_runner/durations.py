"""Durations as people write them in a command."""

from __future__ import annotations

import re
from datetime import timedelta

from django.utils.dateparse import parse_duration as parse_iso_duration

#: The units of the short form.
UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def parse_duration(text: str) -> timedelta:
    """Return the duration that ``28d``, ``12h``, ``90m``, ``120s`` or ISO 8601 (``P28D``) names.

    Raises ValueError, with a message for people, for anything else, also for a
    negative duration.
    """
    try:
        short = _short(text)
        duration = _iso(text) if short is None else short
    except OverflowError as error:
        raise ValueError(f"{text!r} is too long.") from error
    if duration is None or duration < timedelta():
        raise ValueError(
            f"{text!r} is not a duration. Write it as 28d, 12h, 90m, 120s, "
            "or in ISO 8601 as P28D or PT12H."
        )
    return duration


def _short(text: str) -> timedelta | None:
    found = re.fullmatch(r"([0-9]+)([dhms])", text.strip().lower())
    return timedelta(**{UNITS[found[2]]: int(found[1])}) if found else None


def _iso(text: str) -> timedelta | None:
    """Django reads ISO 8601 and also forms of its own, which all have a digit first."""
    found = re.fullmatch(r"P(?=.*[0-9]).*", text.strip().upper())
    return parse_iso_duration(found[0]) if found else None
