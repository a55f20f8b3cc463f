"""``{% load task_runs %}``: a user's own runs in any page, which follows them by itself."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import template
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.middleware.csrf import get_token
from django.template import Context
from django.urls import NoReverseMatch, reverse
from django.utils import formats, timezone
from django.utils.translation import gettext as _

from celery_admin_runner.conf import settings
from celery_admin_runner.live import payload
from celery_admin_runner.models import TaskRunRecord

register = template.Library()

#: Where a page remembers that it has its style sheet and script.
_MARK = "celery_admin_runner.live"


@register.inclusion_tag("celery_admin_runner/live/task_runs.html", takes_context=True)
def task_runs(context: Context, title: str = "") -> dict[str, Any]:
    """Show the runs that ``for_display`` names for the user of the page, RUNS_MAX at most.

    ``title`` is the accessible name of the list. One query, and one for each model that the
    runs are about. Nothing for the anonymous.
    """
    request = _request(context)
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {}
    runs = payload.with_shown_columns(TaskRunRecord.objects.for_display(user))
    message = payload.snapshot(runs[: payload.RUNS_MAX + 1])
    return {
        "is_shown": True,
        "title": title or _("Your tasks"),
        "runs": message["runs"],
        "more": message["more"],
        "config": _config(context, request),
    }


@register.inclusion_tag("celery_admin_runner/live/single_run.html", takes_context=True)
def task_run(context: Context, run: TaskRunRecord | str | None) -> dict[str, Any]:
    """Show one run, if it is one of the user of the page; nothing for anybody else's.

    Nothing for None either, and for a variable that the template does not have ("").
    """
    request = _request(context)
    user = getattr(request, "user", None)
    if run is None or run == "":
        return {}
    if not isinstance(run, TaskRunRecord):
        raise template.TemplateSyntaxError(
            f"{{% task_run %}} shows a TaskRunRecord, and {run!r} is none."
        )
    if user is None or not user.is_authenticated or run.run_by_id != user.pk:
        return {}
    return {
        "is_shown": True,
        "run": payload.run_payload(run),
        "config": _config(context, request),
    }


@register.filter
def run_moment(text: str) -> str:
    """Write a moment of a run's payload for people: its time, before today its date too."""
    moment = timezone.localtime(datetime.fromisoformat(text))
    if moment.date() == timezone.localdate():
        return formats.time_format(moment, "TIME_FORMAT")
    return formats.date_format(moment, "SHORT_DATETIME_FORMAT")


def _request(context: Context) -> HttpRequest:
    request = context.get("request")
    if request is None:
        raise ImproperlyConfigured(
            "The tags of task_runs need the request in the context of the template: render it "
            "with the request, and add 'django.template.context_processors.request' to the "
            "context processors in TEMPLATES."
        )
    return request  # type: ignore[no-any-return]


def _config(context: Context, request: HttpRequest) -> dict[str, str] | None:
    """Return what the script of the page must know; None if the page has its script already.

    The lowest layer of a render context is the same for all templates of a page, whereas a
    request may render several pages, such as a mail, or an error page after a broken one.
    """
    page = context.render_context.dicts[0]
    if _MARK in page:
        return None
    page[_MARK] = "there"
    return {
        "changes_url": _url("changes"),
        "snapshot_url": _url("snapshot"),
        "seen_url": _url("mark_seen"),
        "csrf_token": get_token(request),
        "websocket_url": settings.WEBSOCKET_URL,
    }


def _url(name: str) -> str:
    try:
        return reverse(f"celery_admin_runner_live:{name}")
    except NoReverseMatch as error:
        raise ImproperlyConfigured(
            "The tags of task_runs need the URLs that their script asks: add "
            "path('task-runs/', include('celery_admin_runner.live.urls')) to your urlpatterns."
        ) from error
