"""Running the tasks on a model's methods from the pages of its objects, after a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.contrib import messages
from django.contrib.admin.utils import quote
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from celery_admin_runner.admin import display, links
from celery_admin_runner.admin.history_runs import ObjectRuns
from celery_admin_runner.admin.offers import Active, Offer, OfferedTask, info_of, preview_of
from celery_admin_runner.admin.questions import (
    digest_of,
    is_confirmed,
    reason_of,
    repeated_run,
    yes_now,
)
from celery_admin_runner.admin.retry import unsent_text
from celery_admin_runner.admin.run_views import active_text
from celery_admin_runner.admin.sheets import Preview
from celery_admin_runner.calls import wire_of
from celery_admin_runner.exceptions import (
    AlreadyActive,
    InvalidArguments,
    TaskNotRunnable,
)
from celery_admin_runner.forms.objects import Viewer
from celery_admin_runner.headers import DATABASE_HEADER
from celery_admin_runner.model_keys import ObjectSource
from celery_admin_runner.model_tasks import model_tasks_of
from celery_admin_runner.models import CeleryTask, Source, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State

#: What is read of the runs that keep others of their object and task away.
ACTIVE_FIELDS = (
    *("task_name", "object_id", "state", "run_by", "active_key"),
    *("created_at", "eta", "due_at", "claimed_at", "published_at"),
)


class ObjectTasks(ObjectRuns):
    """Runs tasks about an object, for who may change the object and run these tasks."""

    def get_starter(self, request: HttpRequest) -> TaskRunner:
        """Return the runner that runs tasks for this user, and knows what this site hides."""
        return TaskRunner(request.user, source=Source.ADMIN, objects=self.objects_seen_by(request))

    def objects_seen_by(self, request: HttpRequest) -> ObjectSource:
        """Return which objects the user may name: of this model those that are shown here.

        Who sees them by a proxy may not see them by the model itself, which has the tasks.
        """
        viewer = Viewer(user=request.user, admin_site=self.admin_site)

        def source(model: type[Model]) -> QuerySet[Any] | None:
            if model._meta.concrete_model is self.opts.concrete_model:
                return self.get_queryset(request)  # type: ignore[no-any-return]
            return viewer.source(model)

        return source

    def model_tasks(self) -> list[OfferedTask]:
        """Return the tasks on the model's methods."""
        return [
            OfferedTask(info=info, title=str(task.title))
            for task in model_tasks_of(self.model)
            if (info := info_of(task.name))
        ]

    def task_titles(self) -> Mapping[str, str]:
        """Return what the tasks on the model's methods are called, by their names."""
        return {task.name: task.title for task in self.model_tasks()}

    def runnable(self, request: HttpRequest, tasks: Sequence[OfferedTask]) -> list[OfferedTask]:
        """Return those of the tasks that this user may run."""
        runner = self.get_starter(request)
        return [task for task in tasks if runner.may_run(task.info)]

    # The buttons

    def get_runs_context(self, request: HttpRequest, obj: Model) -> dict[str, Any]:
        """Return the tasks that can be run about the object."""
        return {"offers": self.offers(request, obj)}

    def offers(self, request: HttpRequest, obj: Model) -> list[Offer]:
        """Return the tasks that this user may run about the object; one query."""
        if not self.owner.has_run_tasks_permission(request, obj):
            return []
        tasks = self.runnable(request, self.model_tasks())
        active = self.active_runs(tasks, [obj])
        offers = [
            self._offer(request, obj, task, active.get((task.name, str(obj.pk)))) for task in tasks
        ]
        return [offer for offer in offers if offer.url or offer.active_label]

    def _offer(
        self, request: HttpRequest, obj: Model, task: OfferedTask, active: Active | None
    ) -> Offer:
        url = (
            self.form_url(request, task, [obj])
            if task.needs_more
            else self.run_task_url(obj, task)
        )
        if active is None:
            return Offer(title=task.title, url=url)
        return Offer(
            title=task.title,
            url="" if active.blocks else url,
            active_label=display.state_label(active.run.state),
            active_url=links.record_url(self.admin_site, request, active.run) or "",
        )

    def active_runs(
        self, tasks: Sequence[OfferedTask], objects: Sequence[Model]
    ) -> dict[tuple[str, str], Active]:
        """Return what is active of these tasks, by task and primary key; one query."""
        if not tasks or not objects:
            return {}
        by_name = {task.name: task for task in tasks}
        by_key = {str(obj.pk): obj for obj in objects}
        runs = runs_about(objects).filter(task_name__in=list(by_name))
        found: dict[tuple[str, str], Active] = {}
        now = timezone.now()
        for run in runs.filter(active_key__isnull=False).only(*ACTIVE_FIELDS).order_by("pk"):
            place = (run.task_name, run.object_id)
            obj = by_key.get(run.object_id)
            if obj is None:
                # MySQL and MariaDB find "A1" where "a1" is asked for.
                continue
            blocks = by_name[run.task_name].is_kept_away_by(run, obj, now)
            if place not in found or blocks:
                found[place] = Active(run=run, blocks=blocks)
        return found

    def run_task_url(self, obj: Model, task: OfferedTask) -> str:
        """Return the address of the page that asks before it runs a task about an object."""
        return self.view_url("run_task", quote(obj.pk), task.name)

    def form_url(self, request: HttpRequest, task: OfferedTask, objects: Sequence[Model]) -> str:
        """Return the address of the task's form with these objects; "" if the user has none."""
        is_there = self.admin_site.is_registered(CeleryTask)
        if not is_there or not self.admin_site.get_model_admin(CeleryTask).has_view_permission(
            request
        ):
            return ""
        query = urlencode({task.parameter: [obj.pk for obj in objects]}, doseq=True)
        return f"{links.run_page_url(self.admin_site, task.name)}?{query}"

    # One object

    def run_task_view(self, request: HttpRequest, object_id: str, task_name: str) -> HttpResponse:
        """Show what will be run about an object; when that is confirmed, run it."""
        obj = self.asked_object(request, object_id)
        task = next((task for task in self.model_tasks() if task.name == task_name), None)
        if task is None:
            raise Http404
        is_changeable = self.owner.has_run_tasks_permission(request, obj)
        if not is_changeable or not self.runnable(request, [task]):
            raise PermissionDenied
        if task.needs_more:
            return redirect(self.form_url(request, task, [obj]) or self.runs_url(obj))
        active = self.active_runs([task], [obj]).get((task.name, str(obj.pk)))
        if active is not None and active.blocks:
            problem = active_text(active.run, request, self.admin_site)
            return self._ask_one(request, obj, task, problem=problem)
        preview = preview_of(task, [wire_of(task.first, obj)])
        if request.method != "POST" or not is_confirmed(request, digest_of([preview])):
            return self._ask_one(request, obj, task, preview)
        if task.info.rule.reason and not reason_of(request):
            return self._ask_one(request, obj, task, preview, _("This task needs a reason."))
        if repeated := self.repeated(request, task, TaskRunRecord.objects.for_object(obj)):
            return self._ask_one(request, obj, task, preview, repeated=repeated)
        return self._run_one(request, obj, task)

    def _ask_one(
        self,
        request: HttpRequest,
        obj: Model,
        task: OfferedTask,
        preview: Preview | None = None,
        error: str = "",
        *,
        problem: str = "",
        repeated: TaskRunRecord | None = None,
    ) -> HttpResponse:
        return self.ask(
            request,
            "run_task.html",
            title=_("Run: %(task)s") % {"task": task.title},
            original=self.crumb(obj, task.title),
            form_url=self.run_task_url(obj, task),
            back_url=self.runs_url(obj),
            yes=yes_now(1) if preview else "",
            object=obj,
            object_url=self.object_url(obj),
            task=task,
            preview=preview,
            problem=problem,
            more_url=self.form_url(request, task, [obj]) if task.takes_more else "",
            **self.question(
                request,
                task,
                TaskRunRecord.objects.for_object(obj),
                [preview] if preview else [],
                error,
                repeated,
            ),
        )

    def _run_one(self, request: HttpRequest, obj: Model, task: OfferedTask) -> HttpResponse:
        try:
            run = self.start(request, self.get_starter(request), task, obj)
        except AlreadyActive as error:
            self.message_user(
                request, active_text(error.run, request, self.admin_site), messages.WARNING
            )
            return redirect(self.runs_url(obj))
        except (InvalidArguments, TaskNotRunnable, PermissionDenied) as error:
            # The last of them for a task that this one depends on.
            self.message_user(request, refusal(error), messages.ERROR)
            return redirect(self.runs_url(obj))
        self.tell_of(request, run)
        return redirect(links.record_url(self.admin_site, request, run) or self.runs_url(obj))

    def tell_of(self, request: HttpRequest, run: TaskRunRecord) -> None:
        """Say what became of a run that was asked for."""
        if run.state == State.UNSENT:
            self.message_user(request, unsent_text(run), messages.ERROR)
        elif run.state == State.IGNORED:
            self.message_user(request, _("Skipped: see the run."), messages.WARNING)
        else:
            self.message_user(request, _("This is the new run."), messages.SUCCESS)

    # One and several

    def start(
        self, request: HttpRequest, runner: TaskRunner, task: OfferedTask, obj: Model
    ) -> TaskRunRecord:
        """Run a task about an object, and leave a LogEntry at that; raises as the runner does."""
        run = runner.run(
            task.name, [obj.pk], obj=obj, reason=reason_of(request), headers=_whereabouts(obj)
        )
        self.owner.log_change(request, obj, self.log_text(task, run))
        return run

    def log_text(self, task: OfferedTask, run: TaskRunRecord) -> str:
        """Return what the LogEntry of an object says of a run."""
        text = _("Run “%(task)s” as %(task_id)s.")
        return text % {"task": task.title, "task_id": run.task_id}

    def newest_run(
        self, request: HttpRequest, task: OfferedTask, among: TaskRunRecordQuerySet
    ) -> TaskRunRecord | None:
        """Return the newest of these runs of a task that this user has started."""
        mine = among.of_task(task.name).filter(run_by=request.user.pk)
        return mine.order_by("-pk").first()

    def repeated(
        self, request: HttpRequest, task: OfferedTask, among: TaskRunRecordQuerySet
    ) -> TaskRunRecord | None:
        """Return the run that a page of which the button was pressed twice has made already."""
        return repeated_run(request, self.newest_run(request, task, among))

    def question(
        self,
        request: HttpRequest,
        task: OfferedTask,
        among: TaskRunRecordQuerySet,
        previews: Sequence[Preview],
        error: str,
        repeated: TaskRunRecord | None,
    ) -> dict[str, Any]:
        """Return what every page shows that asks before it runs a task."""
        return self.before_starting(
            request,
            previews,
            self.newest_run(request, task, among),
            needs_reason=task.info.rule.reason,
            error=error,
            repeated=repeated,
        )


def runs_about(objects: Sequence[Model]) -> TaskRunRecordQuerySet:
    """Return the runs about these objects of one model, of which there is at least one."""
    runs = TaskRunRecord.objects.all()
    kind = ContentType.objects.db_manager(runs.db).get_for_model(objects[0])
    return runs.filter(content_type=kind.pk, object_id__in=[str(obj.pk) for obj in objects])


def _whereabouts(obj: Model) -> dict[str, str] | None:
    """Return the header that tells the worker where an object is, if it would look elsewhere."""
    alias = router.db_for_write(type(obj), instance=obj)
    return None if alias == router.db_for_write(type(obj)) else {DATABASE_HEADER: alias}


def refusal(error: Exception) -> str:
    """Return why the runner did not run something."""
    return "; ".join(error.lines) if isinstance(error, InvalidArguments) else str(error)
