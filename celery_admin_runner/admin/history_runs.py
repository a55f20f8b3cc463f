"""The page with the runs about an object, for whatever ModelAdmin the object has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

from django.contrib.admin import ModelAdmin
from django.contrib.admin.utils import quote, unquote
from django.contrib.admin.views.main import PAGE_VAR
from django.core.checks import CheckMessage, Error
from django.core.exceptions import PermissionDenied
from django.core.paginator import InvalidPage
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.text import Truncator
from django.utils.translation import gettext as _

from celery_admin_runner.admin import display, links
from celery_admin_runner.admin.pages import RunPages
from celery_admin_runner.admin.questions import QUESTIONS_CSS, AskingAdmin
from celery_admin_runner.admin.run_views import RECENT_FIELDS, RecentRun, recent_run
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import known_names

READ = ("GET", "HEAD")
#: The style sheet of the runs about an object, and of the buttons on its page.
OBJECT_CSS = "celery_admin_runner/object_runs.css"
#: So many runs stand on a page.
RUNS_PER_PAGE = 50


@dataclass(frozen=True, kw_only=True)
class ShownRun:
    """A run about an object, as the page shows it."""

    run: RecentRun
    #: The state in its colour; it follows an unfinished run.
    state: str
    task: str
    reason: str


class ObjectAdmin(ModelAdmin):  # type: ignore[type-arg]
    """What the pages ask of the ModelAdmin of the objects."""

    #: Names of tasks whose first parameter takes a list of this model's objects: they can be
    #: run once for all that are selected in the list.
    selection_tasks: Sequence[str] = ()

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """E016: besides what admin checks, each of ``selection_tasks`` is a task.

        Where the tasks can't be imported another check tells of that.
        """
        return [*super().check(**kwargs), *self._selection_problems()]

    def _selection_problems(self) -> Iterator[CheckMessage]:
        known = known_names()
        if isinstance(self.selection_tasks, str):
            yield Error(
                "The value of 'selection_tasks' should be a list or tuple of names.",
                hint=f"For example {[self.selection_tasks]!r}.",
                obj=type(self),
                id="celery_admin_runner.E016",
            )
        elif known is not None:
            for name in self.selection_tasks:
                if name not in known:
                    yield Error(
                        f"The value of 'selection_tasks' names {name!r}, which is no task.",
                        hint=_names_hint(name, known),
                        obj=type(self),
                        id="celery_admin_runner.E016",
                    )

    def has_run_tasks_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Tell whether the user may run tasks about this object, or any: who may change it.

        The permission to run the task itself is asked for besides.
        """
        return self.has_change_permission(request, obj)


class ObjectRuns(AskingAdmin):
    """The runs about the objects of another ModelAdmin, which says who sees which object.

    An object of its own, that is registered nowhere: so the methods of that ModelAdmin may
    have any names.
    """

    templates = "admin/celery_admin_runner/object"

    class Media:
        css: ClassVar[dict[str, list[str]]] = {"all": [display.CSS, QUESTIONS_CSS, OBJECT_CSS]}
        js: ClassVar[list[str]] = [display.LIVE_JS]

    def __init__(self, owner: ObjectAdmin) -> None:
        """Take the ModelAdmin of the objects."""
        super().__init__(owner.model, owner.admin_site)
        self.owner = owner

    def get_queryset(self, request: HttpRequest) -> Any:
        """Return the objects that their ModelAdmin shows this user."""
        return self.owner.get_queryset(request)

    def asked_object(self, request: HttpRequest, object_id: str) -> Model:
        """Return the object of a page; raises Http404 for one that its ModelAdmin hides."""
        obj: Model | None = self.owner.get_object(request, unquote(object_id))
        if obj is None:
            raise Http404
        if not self.owner.has_view_or_change_permission(request, obj):
            raise PermissionDenied
        return obj

    def object_url(self, obj: Model) -> str:
        """Return the address of an object's page."""
        return self.view_url("change", quote(obj.pk))

    def runs_url(self, obj: Model) -> str:
        """Return the address of the page with an object's runs."""
        return self.view_url("runs", quote(obj.pk))

    def crumb(self, obj: Model, title: str) -> str:
        """Return what stands last in the breadcrumbs of a page about an object."""
        return f"{Truncator(obj).words(12)} › {title}"

    def task_titles(self) -> Mapping[str, str]:
        """Return what tasks are called here, by their names; other tasks go by their names."""
        return {}

    def get_runs_context(self, request: HttpRequest, obj: Model) -> dict[str, Any]:
        """Return what else the page with an object's runs shows."""
        return {}

    def runs_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show the runs about an object that this user may see, the newest first."""
        obj = self.asked_object(request, object_id)
        runs = TaskRunRecord.objects.for_object(obj).visible_to(request.user)
        pages = RunPages(runs.only(*RECENT_FIELDS, "reason"), size=RUNS_PER_PAGE)
        try:
            page = pages.asked_for(request.GET)
        except InvalidPage:
            return redirect(self.runs_url(obj))
        is_in_journal = links.journal_url(self.admin_site, request) is not None
        return self.ask(
            request,
            "runs.html",
            title=_("Runs"),
            original=self.crumb(obj, _("Runs")),
            object=obj,
            object_url=self.object_url(obj),
            runs=list(self._shown(request, page.runs, is_live=is_in_journal)),
            page=page,
            page_var=PAGE_VAR,
            live_list_url=(
                links.model_url(self.admin_site, TaskRunRecord, "live_list")
                if is_in_journal
                else ""
            ),
            **self.get_runs_context(request, obj),
        )

    def _shown(self, request: HttpRequest, runs: Any, *, is_live: bool) -> Iterator[ShownRun]:
        titles = self.task_titles()
        badge = display.live_badge if is_live else _badge
        for run in runs:
            yield ShownRun(
                run=recent_run(run, request, self.admin_site),
                state=badge(run),
                task=titles.get(run.task_name, run.task_name),
                reason=run.reason,
            )


def _names_hint(name: str, known: Collection[str]) -> str:
    """Return the tasks that were likely meant."""
    close = get_close_matches(name, known, n=3)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return 'Name it as it is registered, for example "shop.tasks.restock_products".'


def _badge(run: TaskRunRecord) -> str:
    return display.state_badge(run.state)
