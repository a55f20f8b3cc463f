"""The page on which tasks are run: one task, or several at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import AdminSite, ModelAdmin
from django.core.exceptions import PermissionDenied
from django.db import router, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_admin_runner.admin import display, links
from celery_admin_runner.admin.move import kept_text
from celery_admin_runner.admin.pages import NEWEST_FIRST
from celery_admin_runner.admin.questions import CONFIRMED, digest_of, is_confirmed
from celery_admin_runner.admin.retry import NOT_SENT, unsent_text
from celery_admin_runner.admin.sheets import Preview, Sheet
from celery_admin_runner.exceptions import (
    ALL,
    AlreadyActive,
    InvalidArguments,
    NotRetryable,
    TaskNotRunnable,
)
from celery_admin_runner.forms.keys import run_key
from celery_admin_runner.forms.run import RunForm, initial_from_query, initial_from_run
from celery_admin_runner.models import CeleryTask, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.registry import get_task
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import KEPT, State

#: The field with the names of the tasks, on the page for several of them.
TASK = "task"
#: How many tasks can be run from one page.
MAX_SELECTED = 50
#: How many runs of the task are shown beside its form.
RECENT_RUNS = 10
#: What is read of them.
RECENT_FIELDS = (
    *("task_name", "label", "state", "created_at", "started_at", "finished_at"),
    *("run_by", "run_by_name", "source"),
)


@dataclass(frozen=True, kw_only=True)
class RecentRun:
    """An earlier run of the task, as text."""

    pk: int
    #: None if the user can't see its page.
    url: str | None
    state: str
    label: str
    created: str
    by: str
    #: "" until it has ended.
    duration: str


class RunPage:
    """The page that shows tasks with their forms, confirms them and starts them."""

    template = "admin/celery_admin_runner/celerytask/run.html"

    def __init__(
        self,
        request: HttpRequest,
        tasks: Sequence[CeleryTask],
        *,
        model_admin: ModelAdmin[Any],
        runner: TaskRunner,
        visible_runs: TaskRunRecordQuerySet,
    ) -> None:
        """Take the request, the tasks of the page, and what its user may do and see."""
        self.request = request
        self.tasks = tasks
        self.model_admin = model_admin
        self.admin_site = model_admin.admin_site
        self.runner = runner
        self.visible_runs = visible_runs

    # What differs between one task and several

    def prefix(self, task: CeleryTask) -> str:
        """Return what the names of a task's fields begin with, also when other tasks go."""
        return f"{hashlib.sha256(task.info.name.encode()).hexdigest()[:12]}-"

    def initial(self, task: CeleryTask) -> dict[str, Any] | None:
        """Return what a task's form is filled in with at first."""
        return None

    @property
    def retry_of(self) -> TaskRunRecord | None:
        """The run that is run again by what the form says."""
        return None

    def context(self) -> dict[str, Any]:
        """Return what else the template needs."""
        return {"title": _("Run selected tasks"), "original": _("Run selected tasks")}

    def address(self) -> str:
        """Return the address to which the forms are sent."""
        return links.run_selected_url(self.admin_site)

    def target(self, runs: Sequence[TaskRunRecord]) -> str:
        """Return the address to go to when the tasks were started."""
        journal = links.journal_url(self.admin_site, self.request)
        return journal or links.task_list_url(self.admin_site)

    # What is common

    def show(self, data: QueryDict | None = None) -> HttpResponse:
        """Show the tasks with fresh forms, or with what was typed."""
        return self._render([self._sheet(task, data) for task in self.tasks])

    def submit(self) -> HttpResponse:
        """Start the tasks with what was posted: all of them or none.

        What is not valid, or must be confirmed first, is shown again as it was typed.
        """
        if not all(task.may_run for task in self.tasks):
            raise PermissionDenied
        sheets = [self._sheet(task, self.request.POST) for task in self.tasks]
        if not _all_valid(sheets):
            return self._render(sheets)
        if any(sheet.info.rule.confirm for sheet in sheets):
            previews = [sheet.preview for sheet in sheets]
            digest = digest_of(previews)
            if not is_confirmed(self.request, digest):
                return self._render(sheets, previews=previews, digest=digest)
        runs = self._start(sheets)
        if runs is None:
            return self._render(sheets)
        self._tell(runs)
        return HttpResponseRedirect(self.target(runs))

    def _sheet(self, task: CeleryTask, data: QueryDict | None) -> Sheet:
        if not task.may_run:
            return Sheet(task, None)
        form = RunForm(
            get_task(task.info.name),
            user=self.request.user,
            admin_site=self.admin_site,
            data=data,
            initial=self.initial(task) if data is None else None,
            prefix=self.prefix(task),
        )
        return Sheet(task, form, retry_of=self.retry_of)

    def _start(self, sheets: Sequence[Sheet]) -> list[TaskRunRecord] | None:
        """Start every task, or, if the runner refuses one, none; then its form has the errors."""
        current = sheets[0]
        runs = []
        try:
            with transaction.atomic(using=router.db_for_write(TaskRunRecord)):
                for current in sheets:
                    runs.append(current.start(self.runner))
        except InvalidArguments as error:
            current.refuse(error.errors)
            if isinstance(error, AlreadyActive):
                text = active_text(error.run, self.request, self.admin_site)
                messages.warning(self.request, text)
            return None
        except NotRetryable as error:
            current.refuse({ALL: [str(error)]})
            return None
        except TaskNotRunnable as error:
            raise PermissionDenied(str(error)) from error
        return runs

    def _tell(self, runs: Sequence[TaskRunRecord]) -> None:
        """Say what became of the runs."""
        unsent = [run for run in runs if run.state in NOT_SENT]
        kept = [run for run in runs if run.state in KEPT]
        sent = len(runs) - len(unsent) - len(kept)
        if sent:
            text = ngettext("%(count)s task was sent.", "%(count)s tasks were sent.", sent)
            messages.success(self.request, text % {"count": sent})
        if len(kept) > 1:
            text = ngettext(
                "%(count)s run is kept until later: its page says until when.",
                "%(count)s runs are kept until later: their pages say until when.",
                len(kept),
            )
            messages.success(self.request, text % {"count": len(kept)})
        elif kept:
            messages.success(self.request, _kept_text(kept[0]))
        for run in unsent:
            messages.error(self.request, unsent_text(run))

    def _render(
        self, sheets: Sequence[Sheet], *, previews: Sequence[Preview] = (), digest: str = ""
    ) -> HttpResponse:
        # Where it is confirmed, secrets are typed again: so they never stand in a page.
        hidden = [sheet.hide_secrets() for sheet in sheets if digest]
        media = self.model_admin.media + forms.Media(js=["celery_admin_runner/tasks.js"])
        for sheet in sheets:
            if sheet.form is not None:
                media += sheet.form.media
        self.request.current_app = self.admin_site.name
        return TemplateResponse(
            self.request,
            self.template,
            {
                **self.admin_site.each_context(self.request),
                "opts": self.model_admin.opts,
                "media": media,
                "has_view_permission": True,
                "sheets": sheets,
                "is_single": False,
                "has_form": all(sheet.form is not None for sheet in sheets),
                "errors": any(sheet.form is not None and sheet.form.errors for sheet in sheets),
                "previews": previews,
                "digest": digest,
                "must_retype": any(hidden),
                "confirmed_field": CONFIRMED,
                "task_field": TASK,
                "list_url": links.task_list_url(self.admin_site),
                "form_url": self.address(),
                **self.context(),
            },
        )


class RunTaskPage(RunPage):
    """The page of one task: its documentation, its form and its recent runs."""

    @property
    def task(self) -> CeleryTask:
        """The task of the page."""
        return self.tasks[0]

    def prefix(self, task: CeleryTask) -> str:
        """Return no prefix."""
        return ""

    def initial(self, task: CeleryTask) -> dict[str, Any] | None:
        """Return the arguments of the run that ``?retry=`` names, else those of the query."""
        signature = Sheet(task, None).signature
        if "retry" not in self.request.GET:
            return initial_from_query(self.request.GET, signature)
        run = self.shown_run
        if run is None:
            text = _("That run is not visible to you, or of another task: nothing is filled in.")
            messages.warning(self.request, text)
            return None
        if run.state in KEPT:
            text = _("That run stays as it is: what you start here is one more.")
            messages.info(self.request, text)
        if run.has_masked_arguments:
            messages.info(
                self.request,
                _("Secrets are not stored: fill them in again, the rest is filled in."),
            )
        if run.has_altered_arguments:
            text = _("Its arguments are not stored as they were: fill in the form.")
            messages.warning(self.request, text)
        if run.lost_options:
            text = _("Not stored as they were, and left out: %(names)s.")
            messages.warning(self.request, text % {"names": ", ".join(run.lost_options)})
        return initial_from_run(run, signature)

    @cached_property
    def shown_run(self) -> TaskRunRecord | None:
        """The run of this task that ``?retry=`` names, if the user may see it."""
        key = run_key(self.request.GET.get("retry", ""))
        if key is None:
            return None
        return self.visible_runs.of_task(self.task.info.name).filter(pk=key).first()

    @cached_property
    def retry_of(self) -> TaskRunRecord | None:
        """That run, if the user may run it again; else what is filled in is a run of its own."""
        run = self.shown_run
        return run if run is not None and self.runner.may_retry(run) else None

    def context(self) -> dict[str, Any]:
        """Return the task, its recent runs, and why it can't be run."""
        runs = self.visible_runs.of_task(self.task.info.name).order_by(*NEWEST_FIRST)
        recent = runs.only(*RECENT_FIELDS).head(RECENT_RUNS)
        return {
            "title": self.task.info.name,
            "original": self.task,
            "is_single": True,
            "refusal": _refusal(self.task),
            "recent_runs": [recent_run(run, self.request, self.admin_site) for run in recent],
        }

    def address(self) -> str:
        """Return the address of this page: it names the run that is run again, no arguments."""
        address = links.run_page_url(self.admin_site, self.task.info.name)
        if self.retry_of is None:
            return address
        return f"{address}?{urlencode({'retry': self.retry_of.pk})}"

    def target(self, runs: Sequence[TaskRunRecord]) -> str:
        """Return the address of the run's page, else of the list."""
        page = links.record_url(self.admin_site, self.request, runs[0])
        return page or links.task_list_url(self.admin_site)

    def _tell(self, runs: Sequence[TaskRunRecord]) -> None:
        """Say what became of the run, and leave a LogEntry at the one that it repeats."""
        super()._tell(runs)
        if self.retry_of is not None:
            text = _("Run again as %(task_id)s.") % {"task_id": runs[0].task_id}
            self.model_admin.log_change(self.request, self.retry_of, text)


def recent_run(run: TaskRunRecord, request: HttpRequest, admin_site: AdminSite) -> RecentRun:
    """Return an earlier run as this user may see it on this site."""
    return RecentRun(
        pk=run.pk,
        url=links.record_url(admin_site, request, run),
        state=display.state_badge(run.state),
        label=run.label,
        created=display.time_text(run.created_at),
        by=display.user_text(run),
        duration="" if run.duration is None else display.duration_text(run.duration),
    )


def active_text(run: TaskRunRecord, request: HttpRequest, admin_site: AdminSite) -> str:
    """Return that a run keeps others away, with a link to it if the user may see it."""
    text, state = _("It is active already."), display.state_label(run.state)
    url = links.record_url(admin_site, request, run)
    return format_html('{} <a href="{}">{}</a>', text, url, state) if url else f"{text} ({state})"


def _all_valid(sheets: Sequence[Sheet]) -> bool:
    """Validate every form, also after one that is not valid: each shows its errors."""
    validity = [sheet.form is not None and sheet.form.is_valid() for sheet in sheets]
    return all(validity)


def _kept_text(run: TaskRunRecord) -> str:
    """Return that a run was not sent yet, and until when it is kept."""
    text = (
        _("Waiting: %(task)s. %(until)s")
        if run.state == State.WAITING
        else _("Scheduled: %(task)s. %(until)s")
    )
    return text % {"task": run.task_name, "until": kept_text(run, timezone.now())}


def _refusal(task: CeleryTask) -> str:
    """Return why the user can't run the task."""
    if not task.info.is_runnable:
        return _("This task is not runnable: the settings do not allow it, or it is Celery's own.")
    return _("You are not allowed to run this task.")
