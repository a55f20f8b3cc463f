"""How a run's values look in admin. Whatever comes from a user is escaped."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.utils import display_for_value
from django.utils import formats
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from celery_admin_runner.encoding import readable_text
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.states import State

#: Shown where there is nothing.
EMPTY = "–"
#: The style sheet that the classes given here need.
CSS = "celery_admin_runner/runs.css"


def state_badge(state: str) -> SafeString:
    """Return the state's label in the colour of its class; text alone says the same."""
    label = State(state).label if state in State else state
    return format_html('<span class="run-state run-state-{}">{}</span>', state.lower(), label)


def duration_text(duration: timedelta | None) -> str:
    """Return a duration in its two largest units: ``45 ms``, ``1.2 s``, ``3 min 4 s``."""
    if duration is None:
        return EMPTY
    seconds = duration.total_seconds()
    if seconds < 0.1:
        return _("%(milliseconds)s ms") % {"milliseconds": round(seconds * 1000)}
    if round(seconds, 1) < 60:
        return _("%(seconds)s s") % {"seconds": formats.number_format(round(seconds, 1), 1)}
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return _("%(minutes)s min %(seconds)s s") % {"minutes": minutes, "seconds": rest}
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return _("%(hours)s h %(minutes)s min") % {"hours": hours, "minutes": minutes}
    days, hours = divmod(hours, 24)
    return _("%(days)s d %(hours)s h") % {"days": days, "hours": hours}


def time_text(moment: datetime | None) -> str:
    """Return a moment in the current timezone, as admin writes it."""
    return str(display_for_value(moment, EMPTY))


def user_text(run: TaskRunRecord) -> str:
    """Return the name of who asked for the run; else what did."""
    if run.run_by_name:
        return run.run_by_name
    return str(Source(run.source).label) if run.source in Source else EMPTY


def pretty_json(plain: Any) -> str:
    """Return plain JSON data indented, for people to read."""
    return preformatted(readable_text(plain, indent=2))


def preformatted(text: str) -> str:
    """Return a text with its lines as they are; nothing for no text."""
    return format_html('<pre class="run-text">{}</pre>', text) if text else EMPTY
