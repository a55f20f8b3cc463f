"""Running a task for objects that were selected in their list: one run each, or one for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from pydantic_core import PydanticCustomError

from celery_admin_runner.admin import links
from celery_admin_runner.admin.history_tasks import ObjectTasks, refusal
from celery_admin_runner.admin.offers import OfferedTask, info_of, preview_of
from celery_admin_runner.admin.questions import (
    MAX_SELECTED,
    digest_of,
    is_confirmed,
    reason_of,
    yes_now,
)
from celery_admin_runner.admin.retry import unsent_text
from celery_admin_runner.admin.run_views import TASK, active_text
from celery_admin_runner.admin.sheets import Preview
from celery_admin_runner.calls import prepare_call, wire_of
from celery_admin_runner.encoding import from_plain
from celery_admin_runner.exceptions import AlreadyActive, InvalidArguments, TaskNotRunnable
from celery_admin_runner.model_keys import ModelKey
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import get_task
from celery_admin_runner.states import KEPT, State


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A task that can be run for the selected objects."""

    task: OfferedTask
    #: Whether all the objects go into one run.
    is_one_run: bool
    #: Why it can't be chosen; "" if it can.
    problem: str = ""

    def text(self, number: int) -> str:
        """Return what choosing it means for so many objects."""
        if self.problem or number == 1:
            return self.problem
        if self.task.needs_more:
            return _("One run for all %(count)s; its form comes first.") % {"count": number}
        if self.is_one_run:
            return _("One run for all %(count)s.") % {"count": number}
        return _("%(count)s runs, one for each.") % {"count": number}


@dataclass(frozen=True, kw_only=True)
class AskedObject:
    """A selected object, as a page shows it."""

    obj: Model
    url: str
    #: Why the task is not run for it; "" if it is.
    problem: str = ""


class SelectedObjects(ObjectTasks):
    """Runs tasks for selected objects, after a page that says what will happen to which."""

    def choices(self, request: HttpRequest) -> list[Choice]:
        """Return the tasks that this user may run for selected objects."""
        each = [self._each(request, task) for task in self.runnable(request, self.model_tasks())]
        names = self.owner.selection_tasks
        infos = [info for name in names if (info := info_of(name))]
        lists = [
            OfferedTask(info=info, title=info.summary.rstrip(".") or info.name) for info in infos
        ]
        return [*each, *(self._all(request, task) for task in self.runnable(request, lists))]

    def _each(self, request: HttpRequest, task: OfferedTask) -> Choice:
        text = _("It needs more arguments: run it from the page of an object.")
        return Choice(task=task, is_one_run=False, problem=text if task.needs_more else "")

    def _all(self, request: HttpRequest, task: OfferedTask) -> Choice:
        problem = ""
        if not task.parameter:
            problem = _("It takes no arguments, so no objects either.")
        elif task.needs_more and not self.form_url(request, task, []):
            problem = _("It needs more arguments, and its form is not on this site.")
        return Choice(task=task, is_one_run=True, problem=problem)

    def may_run_any(self, request: HttpRequest) -> bool:
        """Tell whether there is a task that this user may run for selected objects."""
        return any(not choice.problem for choice in self.choices(request))

    # Asking

    def ask_for(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Ask which task is to be run for the selected objects; None if there are too many."""
        if not self.may_run_any(request):
            raise PermissionDenied
        if not self.is_sane_number(request, queryset):
            return None
        return self._ask(request, list(queryset.order_by("pk")))

    def run_selected_view(self, request: HttpRequest) -> HttpResponse:
        """Run the chosen task for the posted objects, if what happens was shown and confirmed."""
        if not self.owner.has_run_tasks_permission(request):
            raise PermissionDenied
        objects = self._posted(request)
        choice = self._chosen(request)
        if not objects:
            text = _("None of these objects is there any more.")
            self.message_user(request, text, messages.ERROR)
            return self.back_to_list(request)
        if choice is None:
            return self._ask(request, objects, _("Choose a task."))
        asked = self._asked(request, choice, objects)
        ready = [one.obj for one in asked if not one.problem]
        if choice.task.needs_more and ready:
            return redirect(self.form_url(request, choice.task, ready))
        previews, problem = self._previews(request, choice, ready)
        if problem or not is_confirmed(request, digest_of(previews)):
            return self._ask_about(request, choice, asked)
        if choice.task.info.rule.reason and not reason_of(request):
            return self._ask_about(request, choice, asked, _("This task needs a reason."))
        if repeated := self.repeated(request, choice.task, TaskRunRecord.objects.all()):
            return self._ask_about(request, choice, asked, repeated=repeated)
        if choice.is_one_run:
            return self._run_all(request, choice.task, ready)
        return self._run_each(request, choice.task, ready)

    def _posted(self, request: HttpRequest) -> list[Any]:
        """Return the posted objects that their ModelAdmin shows this user."""
        keys = []
        for text in request.POST.getlist(ACTION_CHECKBOX_NAME)[:MAX_SELECTED]:
            try:
                keys.append(ModelKey(self.model).primary_key(text))
            except PydanticCustomError:
                continue
        found = self.get_queryset(request).filter(pk__in=keys).order_by("pk")
        related = self.owner.get_list_select_related(request)
        # As in the list: the text of an object may be made of others.
        return list(found.select_related(*related) if isinstance(related, list | tuple) else found)

    def _chosen(self, request: HttpRequest) -> Choice | None:
        """Return the posted choice, or the only one there is; PermissionDenied if it is none."""
        choices = [choice for choice in self.choices(request) if not choice.problem]
        if name := request.POST.get(TASK, ""):
            chosen = next((choice for choice in choices if choice.task.name == name), None)
            if chosen is None:
                raise PermissionDenied
            return chosen
        return choices[0] if len(choices) == 1 else None

    def _asked(
        self, request: HttpRequest, choice: Choice, objects: Sequence[Any]
    ) -> list[AskedObject]:
        """Return the objects, each with why the task is not run for it."""
        active = {} if choice.is_one_run else self.active_runs([choice.task], objects)
        asked = []
        for obj in objects:
            found = active.get((choice.task.name, str(obj.pk)))
            problem = ""
            if not self.owner.has_run_tasks_permission(request, obj):
                problem = _("You are not allowed to run tasks about it.")
            elif found is not None and found.blocks:
                problem = active_text(found.run, request, self.admin_site)
            asked.append(AskedObject(obj=obj, url=self.object_url(obj), problem=problem))
        return asked

    def _ask(self, request: HttpRequest, objects: Sequence[Any], error: str = "") -> HttpResponse:
        """Ask which task; where there is but one, whether it is to be run."""
        choice = self._chosen(request)
        if choice is not None and not choice.task.needs_more:
            return self._ask_about(request, choice, self._asked(request, choice, objects))
        number = len(objects)
        choices = self.choices(request)
        return self.ask(
            request,
            "choose_task.html",
            title=_("Run a task for selected %(names)s")
            % {"names": self.opts.verbose_name_plural},
            form_url=self.selected_url(request, "run_task_for_selected"),
            back_url=self.list_url(request),
            yes=_("Continue"),
            number=number,
            objects=objects,
            choices=[(choice, choice.text(number)) for choice in choices],
            errors=error,
            task_field=TASK,
        )

    def _ask_about(
        self,
        request: HttpRequest,
        choice: Choice,
        asked: Sequence[AskedObject],
        error: str = "",
        repeated: TaskRunRecord | None = None,
    ) -> HttpResponse:
        ready = [one for one in asked if not one.problem]
        previews, problem = self._previews(request, choice, [one.obj for one in ready])
        return self.ask(
            request,
            "run_task_for_selected.html",
            title=_("Run: %(task)s") % {"task": choice.task.title},
            form_url=self.selected_url(request, "run_task_for_selected"),
            back_url=self.list_url(request),
            yes=yes_now(len(previews)),
            choice=choice,
            task_field=TASK,
            items=ready,
            left_out=[one for one in asked if one.problem],
            problem=problem,
            **self.question(
                request, choice.task, TaskRunRecord.objects.all(), previews, error, repeated
            ),
        )

    def _previews(
        self, request: HttpRequest, choice: Choice, objects: Sequence[Any]
    ) -> tuple[list[Preview], str]:
        """Return what will be sent, or why nothing can be: one call for all, or one for each."""
        task = choice.task
        if not objects or task.needs_more:
            return [], ""
        if not choice.is_one_run:
            return [preview_of(task, [wire_of(task.first, obj)]) for obj in objects], ""
        seen = self.objects_seen_by(request)
        try:
            call = prepare_call(get_task(task.name), [_keys(objects)], {}, objects=seen)
        except InvalidArguments as error:
            return [], refusal(error)
        return [preview_of(task, from_plain(call.stored_args))], ""

    # Running

    def _run_all(
        self, request: HttpRequest, task: OfferedTask, objects: Sequence[Any]
    ) -> HttpResponse:
        """Run a task once with the keys of all these objects."""
        runner = self.get_starter(request)
        try:
            run = runner.run(task.name, [_keys(objects)], reason=reason_of(request))
        except AlreadyActive as error:
            self.message_user(
                request, active_text(error.run, request, self.admin_site), messages.WARNING
            )
            return self.back_to_list(request)
        except (InvalidArguments, TaskNotRunnable) as error:
            self.message_user(request, refusal(error), messages.ERROR)
            return self.back_to_list(request)
        self.log_runs(request, objects, self.log_text(task, run))
        self.tell_of(request, run)
        page = links.record_url(self.admin_site, request, run)
        return redirect(page) if page else self.back_to_list(request)

    def _run_each(
        self, request: HttpRequest, task: OfferedTask, objects: Sequence[Any]
    ) -> HttpResponse:
        """Run a task about each of these objects, and say what came of it."""
        runner = self.get_starter(request)
        runs, refused = [], []
        for obj in objects:
            try:
                runs.append(self.start(request, runner, task, obj))
            except (InvalidArguments, TaskNotRunnable, PermissionDenied) as error:
                text = _("“%(name)s” was left out: %(problems)s")
                refused.append(text % {"name": obj, "problems": refusal(error)})
        self._tell_of_all(request, runs)
        self.tell_alike(request, refused)
        return self.back_to_list(request)

    def _tell_of_all(self, request: HttpRequest, runs: Sequence[TaskRunRecord]) -> None:
        """Say what became of the runs that were asked for."""
        kept = sum(run.state in KEPT for run in runs)
        ignored = sum(run.state == State.IGNORED for run in runs)
        unsent = [run for run in runs if run.state == State.UNSENT]
        if sent := len(runs) - kept - ignored - len(unsent):
            text = ngettext("%(count)s run was sent.", "%(count)s runs were sent.", sent)
            self.message_user(request, text % {"count": sent}, messages.SUCCESS)
        if kept:
            text = ngettext(
                "%(count)s run waits for others first: its page says for which.",
                "%(count)s runs wait for others first: their pages say for which.",
                kept,
            )
            self.message_user(request, text % {"count": kept}, messages.SUCCESS)
        if ignored:
            text = ngettext(
                "%(count)s run was skipped: its page says why.",
                "%(count)s runs were skipped: their pages say why.",
                ignored,
            )
            self.message_user(request, text % {"count": ignored}, messages.WARNING)
        self.tell_alike(request, list(map(unsent_text, unsent)))


def _keys(objects: Sequence[Any]) -> list[Any]:
    return [obj.pk for obj in objects]
