"""What the page of a run shows: its fields, and links to what belongs to it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import Model
from django.http import HttpRequest
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy

from celery_admin_runner.admin import display
from celery_admin_runner.admin.links import model_url
from celery_admin_runner.admin.reasons import exception_text
from celery_admin_runner.calls import signature_of
from celery_admin_runner.capture import TRACEBACK
from celery_admin_runner.exceptions import TaskNotFound
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.parameters import Parameter
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.registry import get_task
from celery_admin_runner.states import State

#: More later runs of the same call are not linked.
LATER_RUNS_MAX = 10
#: By how much the clocks of two machines may differ.
CLOCKS_DIFFER = timedelta(minutes=1)
#: Where Celery keeps an exception as the result, if our result backend keeps it.
_KEEP_AN_EXCEPTION = {State.FAILURE, State.RETRY, State.CANCELLING, State.REVOKED}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, kw_only=True)
class Link:
    """Something that belongs to a run; ``url`` is None where the user can't go."""

    label: str
    text: str
    url: str | None


class RunFields:
    """The read-only fields of a run's page, for its ModelAdmin."""

    fieldsets: ClassVar[Any] = (
        (
            gettext_lazy("What happened"),
            {
                "fields": (
                    "state_field",
                    "publish_error_field",
                    "custom_state",
                    "duration_field",
                    "result_field",
                    "exception_field",
                    "traceback_field",
                )
            },
        ),
        (
            gettext_lazy("Call"),
            {
                "fields": (
                    "task_name",
                    "label",
                    "arguments_field",
                    "args_field",
                    "kwargs_field",
                    "options_field",
                    "queue",
                )
            },
        ),
        (
            gettext_lazy("Who and why"),
            {
                "fields": (
                    "run_by_field",
                    "source",
                    "periodic_task_name",
                    "reason_field",
                    "cancel_requested_by_field",
                    "cancel_requested_at",
                )
            },
        ),
        (
            gettext_lazy("Times"),
            {
                "fields": (
                    "created_at",
                    "eta",
                    "expires_at",
                    "published_at",
                    "started_at",
                    "finished_at",
                    "heartbeat_at",
                )
            },
        ),
        (
            gettext_lazy("Technical"),
            {"fields": ("task_id", "worker", "retries", "parent_id", "root_id", "unique_key")},
        ),
    )

    @admin.display(description=pgettext_lazy("of a run", "state"))
    def state_field(self, run: TaskRunRecord) -> SafeString:
        """Show the state in its colour."""
        return display.state_badge(run.state)

    @admin.display(description=gettext_lazy("duration"))
    def duration_field(self, run: TaskRunRecord) -> str:
        """Show how long it took."""
        return display.duration_text(run.duration)

    @admin.display(description=gettext_lazy("result"))
    def result_field(self, run: TaskRunRecord) -> str:
        """Show what it returned."""
        return display.pretty_json(run.result)

    @admin.display(description=gettext_lazy("error while sending"))
    def publish_error_field(self, run: TaskRunRecord) -> str:
        """Show why it was not sent."""
        return display.preformatted(run.publish_error)

    @admin.display(description=gettext_lazy("exception"))
    def exception_field(self, run: TaskRunRecord) -> str:
        """Show what it raised."""
        return display.preformatted(exception_text(run))

    @admin.display(description=gettext_lazy("traceback"))
    def traceback_field(self, run: TaskRunRecord) -> str:
        """Show where it raised it."""
        return display.preformatted(run.traceback)

    @admin.display(description=gettext_lazy("arguments"))
    def arguments_field(self, run: TaskRunRecord) -> str:
        """Show the arguments by the names of their parameters."""
        return display.pretty_json(named_arguments(run))

    @admin.display(description=gettext_lazy("positional arguments"))
    def args_field(self, run: TaskRunRecord) -> str:
        """Show the arguments without names."""
        return display.pretty_json(run.args)

    @admin.display(description=gettext_lazy("keyword arguments"))
    def kwargs_field(self, run: TaskRunRecord) -> str:
        """Show the arguments that were given by name."""
        return display.pretty_json(run.kwargs)

    @admin.display(description=gettext_lazy("options"))
    def options_field(self, run: TaskRunRecord) -> str:
        """Show what the message was sent with."""
        return display.pretty_json(run.options)

    @admin.display(description=gettext_lazy("run by"))
    def run_by_field(self, run: TaskRunRecord) -> str:
        """Show who asked for it."""
        return display.user_text(run)

    @admin.display(description=gettext_lazy("cancel requested by"))
    def cancel_requested_by_field(self, run: TaskRunRecord) -> str:
        """Show who cancelled it: a name, where admin links also who may not view users."""
        return str(run.cancel_requested_by)

    @admin.display(description=gettext_lazy("reason"))
    def reason_field(self, run: TaskRunRecord) -> str:
        """Show why, with its lines."""
        return display.preformatted(run.reason)


#: Fields of ``RunFields.fieldsets`` that have something to say only if this attribute has.
_SOURCES = {
    name: name.removesuffix("_field")
    for _title, options in RunFields.fieldsets
    for name in options["fields"]
    if name not in {"state_field", "task_name", "run_by_field", "created_at", "task_id"}
}


def has_content(name: str, run: TaskRunRecord) -> bool:
    """Tell whether a field of the page has something to show for this run."""
    if name == "arguments_field":
        return named_arguments(run) is not None
    if name in {"args_field", "kwargs_field"}:
        return named_arguments(run) is None
    if name == "publish_error_field" and run.state == State.UNSENT:
        return False  # The head of the page says it.
    if name == "result_field" and run.state in _KEEP_AN_EXCEPTION:
        return False
    if name == "result_field" and run.state == State.SUCCESS:
        return True
    if name == "custom_state" and run.is_finished and run.state != State.IGNORED:
        return False  # It ended with the attempt, or says that the result was forgotten.
    if name == "traceback_field" and _output_ends_with_traceback(run):
        return False
    source = _SOURCES.get(name)
    return source is None or getattr(run, source) not in (None, "", 0, [], {})


def _output_ends_with_traceback(run: TaskRunRecord) -> bool:
    """Tell whether the output, which the page shows too, holds the traceback as its last."""
    if not run.traceback:
        return False
    last = run.output.order_by("-seq").values_list("stream", "text").first()
    return last == (TRACEBACK, run.traceback)


def named_arguments(run: TaskRunRecord) -> dict[str, Any] | None:
    """Return the stored arguments by the names of their parameters.

    None where the names are not known: no such task here, a signature that can't
    be read, or one that has changed so that the arguments do not fit any more.
    """
    parameters = _parameters_of(run.task_name)
    if parameters is None:
        return None
    names = [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL]
    named = dict(zip(names, run.args, strict=False))
    rest = run.args[len(names) :]
    if rest:
        variadic = _positional_rest(parameters)
        if variadic is None:
            return None
        named[f"*{variadic.name}"] = rest
    return None if named.keys() & run.kwargs.keys() else {**named, **run.kwargs}


def _parameters_of(task_name: str) -> tuple[Parameter, ...] | None:
    try:
        signature = signature_of(get_task(task_name))
    except TaskNotFound:
        return None
    return None if signature.problem else signature.parameters


def _positional_rest(parameters: Iterable[Parameter]) -> Parameter | None:
    kinds = (p for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL)
    return next(kinds, None)


def links_of(
    run: TaskRunRecord, request: HttpRequest, admin_site: admin.AdminSite
) -> Iterator[Link]:
    """Yield what belongs to a run, as far as this user may know of it."""
    visible = TaskRunRecord.objects.visible_to(request.user)
    yield from _lineage(run, visible, admin_site)
    yield from _family(run, visible, admin_site)
    if run.run_by_id is not None:
        about = (_("User"), get_user_model(), run.run_by_id, request, admin_site)
        # Who it is stands above already, for who may not view the user too.
        yield from (link for link in _object_link(*about) if link.url)
    if run.content_type is not None and run.content_type.model_class() is not None:
        model: Any = run.content_type.model_class()
        yield from _object_link(_("About"), model, run.object_id, request, admin_site)
    yield from _result_link(run, request, admin_site)
    journal = model_url(admin_site, TaskRunRecord, "changelist")
    if run.periodic_task_name:
        yield from _periodic_links(run, journal, request, admin_site)
    yield Link(
        label=_("Task"),
        text=_("All runs of this task"),
        url=f"{journal}?{urlencode({'task': run.task_name})}",
    )


def _lineage(
    run: TaskRunRecord, visible: TaskRunRecordQuerySet, admin_site: admin.AdminSite
) -> Iterator[Link]:
    """Yield the run that this one repeats, and the latest that repeat it."""
    light = visible.only("pk", "label", "task_name", "task_id")
    earlier = light.filter(pk=run.retry_of_id) if run.retry_of_id is not None else ()
    for other in earlier:
        yield _run_link(_("Runs again"), other, admin_site)
    for other in light.filter(retry_of=run)[:LATER_RUNS_MAX]:
        yield _run_link(_("Was run again"), other, admin_site)


def _family(
    run: TaskRunRecord, visible: TaskRunRecordQuerySet, admin_site: admin.AdminSite
) -> Iterator[Link]:
    """Yield the runs that started this one, and the latest that it started."""
    light = visible.only("pk", "label", "task_name", "task_id")
    labels = {run.root_id: _("First of all"), run.parent_id: _("Started by")}
    elders = {
        task_id: label for task_id, label in labels.items() if task_id not in {"", run.task_id}
    }
    for other in light.filter(task_id__in=elders).order_by("pk") if elders else ():
        yield _run_link(elders[other.task_id], other, admin_site)
    for other in _children(run, light):
        yield _run_link(_("Has started"), other, admin_site)


def _children(run: TaskRunRecord, visible: TaskRunRecordQuerySet) -> Iterable[TaskRunRecord]:
    """Return the latest runs that this one has started.

    No index serves the parent, but that of ``created_at`` the time in which they were started.
    """
    if run.started_at is None:
        return ()
    end = timezone.now() if run.finished_at is None else run.finished_at
    span = (run.created_at - CLOCKS_DIFFER, end + CLOCKS_DIFFER)
    children = visible.filter(parent_id=run.task_id, created_at__range=span)
    return children.order_by("-created_at")[:LATER_RUNS_MAX]


def _run_link(label: str, run: TaskRunRecord, admin_site: admin.AdminSite) -> Link:
    return Link(
        label=label, text=str(run), url=model_url(admin_site, TaskRunRecord, "change", run.pk)
    )


def _object_link(
    label: str,
    model: type[Model],
    pk: object,
    request: HttpRequest,
    admin_site: admin.AdminSite,
) -> Iterator[Link]:
    """Yield a link to an object; who may not view it reads its kind and key only."""
    name = capfirst(str(model._meta.verbose_name))
    if admin_site.is_registered(model):
        model_admin = admin_site.get_model_admin(model)
        found = model_admin.get_object(request, str(pk))
        if found is not None and model_admin.has_view_permission(request, found):
            yield Link(
                label=label, text=str(found), url=model_url(admin_site, model, "change", pk)
            )
            return
    yield Link(label=label, text=f"{name} {pk}", url=None)


def _periodic_links(
    run: TaskRunRecord, journal: str, request: HttpRequest, admin_site: admin.AdminSite
) -> Iterator[Link]:
    """Yield links to the periodic task, if there is one to see, and to its runs."""
    label = _("Periodic task")
    model = _periodic_model()
    if model is not None and admin_site.is_registered(model):
        model_admin = admin_site.get_model_admin(model)
        found = model_admin.get_queryset(request).filter(name=run.periodic_task_name).first()
        if found is not None and model_admin.has_view_permission(request, found):
            url = model_url(admin_site, model, "change", found.pk)
            yield Link(label=label, text=run.periodic_task_name, url=url)
    yield Link(
        label=label,
        text=_("All runs of this periodic task"),
        url=f"{journal}?{urlencode({'periodic': run.periodic_task_name})}",
    )


def _periodic_model() -> Any:
    """Return django-celery-beat's model of periodic tasks; None without it."""
    if not apps.is_installed("django_celery_beat"):
        return None
    return apps.get_app_config("django_celery_beat").get_model("PeriodicTask")


def _result_link(
    run: TaskRunRecord, request: HttpRequest, admin_site: admin.AdminSite
) -> Iterator[Link]:
    """Yield a link to django-celery-results' row of the run, if there is one to see."""
    if not apps.is_installed("django_celery_results"):
        return
    model = apps.get_model("django_celery_results", "TaskResult")
    if not admin_site.is_registered(model):
        return
    model_admin = admin_site.get_model_admin(model)
    if not model_admin.has_view_permission(request):
        return
    pk = model_admin.get_queryset(request).filter(task_id=run.task_id).values_list("pk").first()
    if pk is not None:
        yield Link(
            label=_("Result backend"),
            text=_("Stored result"),
            url=model_url(admin_site, model, "change", *pk),
        )
