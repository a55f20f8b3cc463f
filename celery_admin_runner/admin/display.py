"""How a run's values look in admin. Whatever comes from a user is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import display_for_value
from django.contrib.contenttypes.models import ContentType
from django.utils import formats
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from celery_admin_runner.encoding import readable_text
from celery_admin_runner.models import Source, TaskRunOutput, TaskRunRecord
from celery_admin_runner.states import State

#: Shown where there is nothing.
EMPTY = "–"
#: The style sheet that the classes given here need.
CSS = "celery_admin_runner/runs.css"
#: The script that lets pages follow their runs.
LIVE_JS = "celery_admin_runner/live.js"


def state_badge(state: str) -> SafeString:
    """Return the state's label in the colour of its class; text alone says the same."""
    return format_html(
        '<span class="run-state run-state-{}">{}</span>', state.lower(), state_label(state)
    )


def state_label(state: str) -> str:
    """Return the name of a state in the current language."""
    return str(State(state).label) if state in State else state


def live_badge(run: TaskRunRecord) -> SafeString:
    """Return the state's badge; that of an unfinished run is marked for the script to follow."""
    badge = state_badge(run.state)
    if run.is_finished:
        return badge
    return format_html('<span data-live-run="{}">{}</span>', str(run.pk), badge)


def selection_box(key: str, text: str) -> SafeString:
    """Return the box that selects an object: admin's own, without a template for each."""
    label = format_html(_("Select this object for an action - {}"), text)
    return format_html(
        '<input type="checkbox" name="{}" value="{}" class="action-select" aria-label="{}">',
        ACTION_CHECKBOX_NAME,
        key,
        label,
    )


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


def until_text(moment: datetime, now: datetime) -> str:
    """Return how long it is until a moment to come: ``in 3 h 5 min``."""
    seconds = round((moment - now).total_seconds())
    if seconds < 60:
        return _("in less than a minute")
    # By the minute, so that a page that follows the run changes no oftener.
    minutes = timedelta(minutes=seconds // 60)
    if minutes < timedelta(hours=1):
        return _("in %(minutes)s min") % {"minutes": seconds // 60}
    return _("in %(duration)s") % {"duration": duration_text(minutes)}


def time_text(moment: datetime | None) -> str:
    """Return a moment in the current timezone, as admin writes it."""
    return str(display_for_value(moment, EMPTY))


def user_text(run: TaskRunRecord) -> str:
    """Return the name of who asked for the run; else what did."""
    if run.run_by_name:
        return run.run_by_name
    return str(Source(run.source).label) if run.source in Source else EMPTY


def subject_text(run: TaskRunRecord) -> str:
    """Return the label of a run; else the kind and the key of what it is about.

    Never the object's own text: who sees the run may not see that one.
    """
    if run.label or run.content_type_id is None:
        return run.label
    # Its cache is asked: this stands in each row of a list.
    kind = ContentType.objects.db_manager(run._state.db).get_for_id(run.content_type_id)
    return f"{capfirst(kind.name)} {run.object_id}"


def pretty_json(plain: Any) -> str:
    """Return plain JSON data indented, for people to read."""
    return preformatted(readable_text(plain, indent=2))


def preformatted(text: str) -> str:
    """Return a text with its lines as they are; nothing for no text."""
    return format_html('<pre class="run-text">{}</pre>', text) if text else EMPTY


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, as a bar and a text."""

    #: ``3 / 10 third``
    text: str
    #: Where the bar stands, and where it ends; "" for a bar that shows no more than that it runs.
    value: str
    end: str
    has_bar: bool

    @property
    def percent(self) -> str:
        """How much of it is done; nothing while that is unknown."""
        if not self.end:
            return ""
        return _("%(percent)s %%") % {"percent": 100 * int(self.value) // int(self.end)}


def progress_of(run: TaskRunRecord) -> Progress | None:
    """Return how far a run is; None if it has never said so."""
    current, total = run.progress_current, run.progress_total
    if total is None and not current and not run.progress_message:
        return None
    numbers = "" if total is None and not current else formats.localize(current)
    if total is not None:
        numbers = f"{numbers} / {formats.localize(total)}"
    return Progress(
        text=f"{numbers} {run.progress_message}".strip(),
        value=str(min(current, total)) if total else "",
        end=str(total) if total else "",
        has_bar=bool(total) or not run.is_finished,
    )


def output_pieces(pieces: Iterable[TaskRunOutput]) -> SafeString:
    """Return pieces of output, each in the colour of its stream; nothing stands between them."""
    return format_html_join(
        "",
        '<span class="run-piece run-piece-{}" data-seq="{}">{}</span>',
        ((piece.stream, str(piece.seq), piece.text) for piece in pieces),
    )
