"""What may be given to ``apply_async`` with a run: its options, and the moments among them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext as _

from celery_admin_runner.encoding import from_plain, to_plain
from celery_admin_runner.exceptions import ALL, InvalidArguments, NotEncodable
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import masked

#: The first year of a moment that can be asked for, and the first one after the last. Others
#: can't be shown, or not even compared, in every time zone, and what PostgreSQL stores as a
#: moment of the year 10000 nobody can read: neither it nor the rows beside it.
FIRST_YEAR, END_YEAR = 1970, 9999
#: By these headers a worker knows which task to run, and as which run; Celery 5.7 lets a given
#: one take the place of its own. Who may run one task could run any.
IDENTITY_HEADERS = frozenset({"id", "task"})
#: What may be given with a run; the rest of ``apply_async`` is the runner's own.
OPTIONS = frozenset(
    {
        "compression",
        "exchange",
        "expires",
        "headers",
        "ignore_result",
        "priority",
        "queue",
        "routing_key",
        "serializer",
        "shadow",
        "soft_time_limit",
        "time_limit",
    }
)


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as JSON data, without those that are None.

    Raises TypeError for one that is not in ``OPTIONS``, and InvalidArguments for what is
    no JSON, and for a header that would make another task, or another run, of it.
    """
    if unknown := options.keys() - OPTIONS:
        raise TypeError(f"run() got unexpected options: {', '.join(sorted(unknown))}.")
    given = {name: value for name, value in options.items() if value is not None}
    if taken := IDENTITY_HEADERS & set(given.get("headers") or ()):
        text = _("These headers are Celery's own: %(names)s.")
        raise InvalidArguments({ALL: [text % {"names": ", ".join(sorted(taken))}]})
    try:
        return dict(to_plain(given))
    except NotEncodable as error:
        raise InvalidArguments({ALL: [str(error)]}) from error


def stored_options(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain options as the row holds them: secret headers masked."""
    return {name: masked(value) for name, value in plain.items()}


def options_again(run: TaskRunRecord, now: datetime) -> dict[str, Any]:
    """Return the options with which ``run`` would be run again ``now``.

    Those that it was run with. Where ``expires`` was a moment, the new one is as far from
    now as the old one was from when its run was made.
    """
    options = {name: value for name, value in from_plain(run.options).items() if name in OPTIONS}
    if isinstance(options.get("expires"), datetime) and run.expires_at is not None:
        options["expires"] = now + (run.expires_at - run.created_at)
    return options


def is_far(day: date) -> bool:
    """Tell whether not every time zone, and not every database, can show this day or moment."""
    return not FIRST_YEAR <= day.year < END_YEAR


def earliest_start(
    eta: datetime | None, countdown: float | None, now: datetime
) -> datetime | None:
    """Return the earliest start that ``eta`` or ``countdown`` asks for."""
    if eta is not None and countdown is not None:
        raise InvalidArguments({ALL: [_("Give an earliest start or a countdown, not both.")]})
    return moment_of(eta if countdown is None else countdown, now)


def moment_of(value: datetime | float | None, now: datetime) -> datetime | None:
    """Return the moment that a datetime, or a number of seconds from now, means."""
    if value is None:
        return None
    try:
        moment = value if isinstance(value, datetime) else now + timedelta(seconds=value)
    except (OverflowError, ValueError) as error:
        raise InvalidArguments({ALL: [_("That is too far from now.")]}) from error
    if is_far(moment):
        raise InvalidArguments({ALL: [_("That is too far from now.")]})
    return _stored_moment(moment) if isinstance(value, datetime) else moment


def _stored_moment(moment: datetime) -> datetime:
    """Return a moment as the database takes it: aware, but naive on a site without USE_TZ."""
    if timezone.is_naive(moment):
        if settings.USE_TZ:
            raise InvalidArguments({ALL: [_("A moment needs a time zone.")]})
        return moment
    if settings.USE_TZ:
        return moment
    return timezone.make_naive(moment, timezone.get_default_timezone())
