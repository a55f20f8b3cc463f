"""The filters of the journal: each a question that an index answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Any, ClassVar

from django.apps import apps
from django.conf import settings
from django.contrib.admin import ListFilter, ModelAdmin, SimpleListFilter
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.db.models import Q
from django.forms import DateField, ValidationError
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html_join
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from celery_admin_runner.admin.pages import AFTER, BEFORE
from celery_admin_runner.admin.search import of_tasks_like
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.registry import all_task_names, celery_app
from celery_admin_runner.states import KEPT, State
from celery_admin_runner.states import UNFINISHED as UNFINISHED_STATES

#: In the address, in place of a state: every state that is not the end.
UNFINISHED = "unfinished"
#: In the address, in place of a state: scheduled, and a dispatcher died while it sent the run.
STALE_SCHEDULED = "stale_scheduled"
#: More names than these are not offered: the page would be larger than its list.
SUGGESTIONS_MAX = 500
_TEMPLATES = "admin/celery_admin_runner/taskrunrecord"


class StateFilter(SimpleListFilter):
    """Runs in one state, or in any that is not the end."""

    title = pgettext_lazy("of a run", "state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Offer every state, and what needs somebody to look."""
        return [
            (UNFINISHED, _("Not finished")),
            *State.choices,
            (STALE_SCHEDULED, _("Scheduled, and perhaps sent")),
        ]

    def queryset(  # type: ignore[override]
        self, request: HttpRequest, queryset: TaskRunRecordQuerySet
    ) -> TaskRunRecordQuerySet:
        """Return the runs in the chosen state."""
        state = self.value()
        if state is None:
            return queryset
        if state == UNFINISHED:
            states = sorted(UNFINISHED_STATES)
            return queryset.any_of([Q(state=each) for each in states], Q(state__in=states))
        if state == STALE_SCHEDULED:
            return queryset.stale_scheduled()
        return queryset.filter(state=_one_of(state, State.values))


class EarliestStartFilter(SimpleListFilter):
    """Scheduled runs, by when they are due."""

    title = pgettext_lazy("of a filter", "earliest start")
    parameter_name = "due"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Offer what is due, and what will be soon."""
        return [
            ("now", _("Due, and not sent yet")),
            ("hour", _("Within an hour")),
            ("day", _("Within 24 hours")),
            ("week", _("Within 7 days")),
            ("later", _("Later")),
        ]

    def queryset(  # type: ignore[override]
        self, request: HttpRequest, queryset: TaskRunRecordQuerySet
    ) -> TaskRunRecordQuerySet:
        """Return the scheduled runs that are due in the chosen time."""
        choice = self.value()
        if choice is None:
            return queryset
        spans = {
            "now": timedelta(),
            "hour": timedelta(hours=1),
            "day": timedelta(days=1),
            "week": timedelta(days=7),
        }
        limit = timezone.now() + spans.get(_one_of(choice, [*spans, "later"]), spans["week"])
        scheduled = queryset.filter(state=State.SCHEDULED)
        if choice == "later":
            return scheduled.filter(due_at__gt=limit)
        return scheduled.filter(due_at__lte=limit)


class SourceFilter(SimpleListFilter):
    """Runs that one kind of source asked for."""

    title = _("source")
    parameter_name = "source"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Offer every source."""
        return list(Source.choices)

    def queryset(  # type: ignore[override]
        self, request: HttpRequest, queryset: TaskRunRecordQuerySet
    ) -> TaskRunRecordQuerySet:
        """Return the runs of the chosen source."""
        source = self.value()
        if source is None:
            return queryset
        return queryset.filter(source=_one_of(source, Source.values))


class TypedFilter(ListFilter):
    """A filter that is typed into a small form, which keeps all other parameters.

    It works without JavaScript; ``spec`` in its template is the filter itself.
    """

    #: The names in the address.
    parameters: ClassVar[Sequence[str]]

    def __init__(
        self,
        request: HttpRequest,
        params: dict[str, list[str]],
        model: type[TaskRunRecord],
        model_admin: ModelAdmin[Any],
    ) -> None:
        """Take our parameters out of ``params``."""
        super().__init__(request, params, model, model_admin)
        self.request = request
        for name in self.parameters:
            value = params.pop(name, [""])[-1].strip()
            if "\x00" in value:
                raise IncorrectLookupParameters(name)
            if value:
                self.used_parameters[name] = value

    def has_output(self) -> bool:
        """Show the filter always."""
        return True

    def expected_parameters(self) -> list[str]:  # type: ignore[override]
        """Return the names in the address."""
        return list(self.parameters)

    def text(self, name: str) -> str:
        """Return what was typed, or ""."""
        return str(self.used_parameters.get(name, ""))

    @property
    def hidden_fields(self) -> list[tuple[str, str]]:
        """The other parameters of the page, for the form to keep."""
        own = {*self.parameters, PAGE_VAR, BEFORE, AFTER}
        return [
            (name, value)
            for name, values in self.request.GET.lists()
            if name not in own
            for value in values
        ]

    def links(self) -> Sequence[tuple[Any, dict[str, str]]]:
        """Return the shortcuts below the form: what they are called, what they set."""
        return ()

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """Offer the shortcuts, the first of which undoes the filter."""
        for label, values in ((_("All"), {}), *self.links()):
            yield {
                "selected": self.used_parameters == values,
                "query_string": changelist.get_query_string(values, self.expected_parameters()),
                "display": label,
            }


class TextFilter(TypedFilter):
    """A filter by one text."""

    template = f"{_TEMPLATES}/text_filter.html"
    placeholder: Any = ""

    @property
    def name(self) -> str:
        """The name in the address."""
        return self.parameters[0]

    @property
    def value(self) -> str:
        """What was typed, or ""."""
        return self.text(self.name)

    @property
    def suggestions(self) -> Sequence[str]:
        """What the browser offers while one types."""
        return ()

    @cached_property
    def options(self) -> str:
        """The suggestions as HTML, which a template would take long for; "" for none."""
        names = self.suggestions
        return format_html_join("", '<option value="{}"></option>', ((name,) for name in names))


class TaskFilter(TextFilter):
    """Runs of one task, or of all whose names begin with what stands before a final star."""

    title = _("task")
    parameters = ("task",)
    placeholder = _("name, or start*")

    @property
    def suggestions(self) -> Sequence[str]:
        """The registered tasks, for who may see them and if they are not too many."""
        user = self.request.user
        may_see = user.has_perm("celery_admin_runner.view_celerytask")
        if not may_see or len(celery_app().tasks) > SUGGESTIONS_MAX:
            return ()
        return all_task_names()

    def queryset(  # type: ignore[override]
        self, request: HttpRequest, queryset: TaskRunRecordQuerySet
    ) -> TaskRunRecordQuerySet:
        """Return the runs of the typed task, or tasks."""
        if not self.value:
            return queryset
        if self.value.endswith("*"):
            return of_tasks_like(queryset, self.value[:-1])
        return queryset.of_task(self.value)


class UserFilter(TextFilter):
    """Runs of one user, by the name that the run keeps."""

    title = _("user")
    parameters = ("user",)
    placeholder = _("user name")

    def has_output(self) -> bool:
        """Show the filter to who sees other people's runs too."""
        return self.request.user.has_perm("celery_admin_runner.view_taskrunrecord")

    def links(self) -> Sequence[tuple[Any, dict[str, str]]]:
        """Offer one's own runs."""
        return ((_("Mine"), {self.name: self.request.user.get_username()}),)

    def queryset(  # type: ignore[override]
        self, request: HttpRequest, queryset: TaskRunRecordQuerySet
    ) -> TaskRunRecordQuerySet:
        """Return the runs of the typed user."""
        return queryset.filter(run_by_name=self.value) if self.value else queryset


class PeriodicFilter(TextFilter):
    """Runs of one periodic task, by the name that it had when they were sent."""

    title = pgettext_lazy("of a filter", "periodic task")
    parameters = ("periodic",)
    placeholder = _("name")

    def has_output(self) -> bool:
        """Show the filter where there are periodic tasks, or where it is used."""
        return bool(self.value) or apps.is_installed("django_celery_beat")

    def queryset(  # type: ignore[override]
        self, request: HttpRequest, queryset: TaskRunRecordQuerySet
    ) -> TaskRunRecordQuerySet:
        """Return the runs of the typed periodic task."""
        return queryset.filter(periodic_task_name=self.value) if self.value else queryset


class CreatedFilter(TypedFilter):
    """Runs created from one day on, until another, both included."""

    title = _("created")
    template = f"{_TEMPLATES}/date_filter.html"
    parameters = ("created_from", "created_until")

    @property
    def since(self) -> str:
        """The first day, as it was typed."""
        return self.text("created_from")

    @property
    def until(self) -> str:
        """The last day, as it was typed."""
        return self.text("created_until")

    def links(self) -> Sequence[tuple[Any, dict[str, str]]]:
        """Offer today and the last week."""
        today = timezone.localdate() if settings.USE_TZ else date.today()
        week = today - timedelta(days=7)
        return (
            (_("Today"), {"created_from": today.isoformat()}),
            (_("Past 7 days"), {"created_from": week.isoformat()}),
        )

    def queryset(  # type: ignore[override]
        self, request: HttpRequest, queryset: TaskRunRecordQuerySet
    ) -> TaskRunRecordQuerySet:
        """Return the runs of these days, as the current timezone has them."""
        if self.since:
            queryset = queryset.filter(created_at__gte=_moment(self.since, time.min))
        if self.until:
            queryset = queryset.filter(created_at__lte=_moment(self.until, time.max))
        return queryset


def are_all_kept(request: HttpRequest) -> bool:
    """Tell whether the filters of a list leave only runs that have not been sent."""
    is_state_kept = request.GET.get(StateFilter.parameter_name) in {*KEPT, STALE_SCHEDULED}
    return is_state_kept or bool(request.GET.get(EarliestStartFilter.parameter_name))


def _one_of(value: str, values: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``values``; raises IncorrectLookupParameters."""
    if value not in values:
        raise IncorrectLookupParameters(value)
    return value


def _moment(text: str, of_day: time) -> datetime:
    """Return the moment of the typed day; raises IncorrectLookupParameters."""
    try:
        day = datetime.combine(DateField().clean(text), of_day)
        return timezone.make_aware(day).astimezone(UTC) if settings.USE_TZ else day
    except (ValidationError, ValueError, OverflowError) as error:
        raise IncorrectLookupParameters(text) from error
