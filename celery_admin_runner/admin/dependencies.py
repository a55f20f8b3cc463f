"""What the page of a run tells of the runs that it waits for, and of those that wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.admin import AdminSite
from django.db.models import Count, Q
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_admin_runner.admin import display
from celery_admin_runner.admin.links import model_url, record_address
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.states import State

#: More runs that a run waits for, or that wait for it, are counted and not shown.
SHOWN_MAX = 50
#: So many of the latest runs are looked through for what was typed; an older one is found by
#: its whole id. No index serves a part of a word.
LOOKED_THROUGH = 10_000
#: What is read of each.
_FIELDS = ("pk", "label", "task_name", "task_id", "state")


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A run that the page's run waits for, or that waits for it."""

    badge: SafeString
    text: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Some of the runs that the page's run waits for, or that wait for it."""

    label: str
    runs: Sequence[Neighbour]
    #: What is said of those that are not shown; "" if all are.
    rest: str


def dependencies_context(
    run: TaskRunRecord, visible: TaskRunRecordQuerySet, admin_site: AdminSite
) -> dict[str, Any]:
    """Return what the page shows of the runs before and after this one; three queries at most.

    ``visible``: the runs that the user may see; the others are counted, and not named.
    """
    links = TaskRunRecord.depends_on.through._base_manager.using(visible.db)
    counts = links.filter(Q(from_taskrunrecord=run) | Q(to_taskrunrecord=run)).aggregate(
        before=Count("pk", filter=Q(from_taskrunrecord=run)),
        after=Count("pk", filter=Q(to_taskrunrecord=run)),
    )
    before = visible.filter(dependents=run.pk).order_by("pk")
    after = visible.filter(depends_on=run.pk).order_by("pk")
    earlier = _("Waits for") if run.state == State.WAITING else _("Waited for")
    later = _("Was waited for by") if run.is_finished else _("Is waited for by")
    groups = ((earlier, before, counts["before"]), (later, after, counts["after"]))
    return {
        "neighbours": [
            _neighbours(label, runs, number, admin_site)
            for label, runs, number in groups
            if number
        ],
        "whole_output_url": model_url(admin_site, TaskRunRecord, "output", run.pk)
        if counts["before"]
        else "",
    }


def _neighbours(
    label: str, runs: TaskRunRecordQuerySet, number: int, admin_site: AdminSite
) -> Neighbours:
    shown = [
        Neighbour(
            badge=display.state_badge(other.state),
            text=str(other),
            url=record_address(admin_site, other),
        )
        for other in runs.only(*_FIELDS)[:SHOWN_MAX]
    ]
    return Neighbours(label=label, runs=shown, rest=_rest_text(len(shown), number))


def _rest_text(shown: int, number: int) -> str:
    """Return what is said of the runs that are not shown."""
    rest = number - shown
    if not rest:
        return ""
    text = (
        ngettext("%(count)s more run", "%(count)s more runs", rest)
        if shown >= SHOWN_MAX
        else ngettext(
            "%(count)s run that you may not see", "%(count)s runs that you may not see", rest
        )
    )
    return text % {"count": rest}


def found_to_wait_for(runs: TaskRunRecordQuerySet, term: str) -> TaskRunRecordQuerySet:
    """Return the runs with each word at the beginning of their id, in their task or label."""
    words = term.split()
    if not words:
        return runs
    latest = runs.order_by("-pk").values_list("pk", flat=True)
    oldest = latest[LOOKED_THROUGH - 1 : LOOKED_THROUGH].first() or 0
    found = Q(pk__gte=oldest)
    for word in words:
        found &= (
            Q(task_id__startswith=word) | Q(task_name__icontains=word) | Q(label__icontains=word)
        )
    return runs.filter(found | Q(task_id=term.strip()))
