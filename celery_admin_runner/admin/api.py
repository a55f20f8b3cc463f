"""The tasks as JSON, and running one by JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, TypedDict

from django.contrib.admin import AdminSite
from django.core.exceptions import BadRequest, PermissionDenied, RequestDataTooBig
from django.db.models import QuerySet
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from celery_admin_runner import encoding, registry
from celery_admin_runner.admin.links import record_url, run_page_url
from celery_admin_runner.annotations import shape_of
from celery_admin_runner.answers import (
    bad_request,
    errors_response,
    flag,
    too_large,
    validation_texts,
)
from celery_admin_runner.calls import signature_of
from celery_admin_runner.exceptions import (
    ALL,
    InvalidArguments,
    NotEncodable,
    TaskNotFound,
    TaskNotRunnable,
)
from celery_admin_runner.forms.moments import refuse_far_years
from celery_admin_runner.forms.objects import Viewer
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.options import earliest_start, moment_of
from celery_admin_runner.parameters import Parameter, fields_of
from celery_admin_runner.redaction import is_secret_name
from celery_admin_runner.registry import TaskInfo
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from celery_admin_runner.wire import masked, to_wire

#: Tasks in an answer, unless the client asks for another number.
DEFAULT_LIMIT = 50
#: Tasks in an answer at most.
MAX_LIMIT = 200
#: Larger bodies are refused: the arguments in them would be too.
BODY_MAX_BYTES = 2 * encoding.CALL_MAX_BYTES
#: A run can be made to wait for so many others.
DEPENDENCIES_MAX = 1000
#: The longest time from now, in seconds, that can be asked for: a hundred years.
MAX_SECONDS = 100 * 365 * 24 * 3600


def _moment(value: datetime) -> datetime:
    """Return an aware moment that every timezone can show; naive ones are in the current one."""
    refuse_far_years(value)
    return timezone.make_aware(value) if timezone.is_naive(value) else value


def _storable(value: str) -> str:
    """Return a text that every database can store; NotEncodable is a ValueError."""
    encoding.to_plain(value)
    return value


Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Moment = Annotated[datetime, AfterValidator(_moment)]
Text = Annotated[str, AfterValidator(_storable)]


class RunOptions(BaseModel):
    """The ``options`` of a request to run a task: seconds from now, or moments in ISO 8601."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queue: Annotated[Text, Field(min_length=1, max_length=255)] | None = None
    countdown: Seconds | None = None
    eta: Moment | None = None
    expires: Seconds | Moment | None = None
    priority: Annotated[int, Field(ge=0, le=255)] | None = None
    #: The task ids of the runs that it is to wait for.
    depends_on: Annotated[list[Text], Field(max_length=DEPENDENCIES_MAX)] | None = None


class RunRequest(BaseModel):
    """The body of a request to run a task."""

    model_config = ConfigDict(extra="forbid", strict=True)

    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    options: RunOptions = RunOptions()
    reason: Text = ""


class ParameterEntry(TypedDict):
    """What a client is told of a parameter."""

    name: str
    required: bool
    default: Any
    annotation: str
    schema: dict[str, Any]


class TaskEntry(TypedDict):
    """What a client is told of a task."""

    name: str
    doc: str
    runnable: bool
    queue: str
    run_url: str
    parameters: list[ParameterEntry]


def tasks_response(
    request: HttpRequest, infos: Sequence[TaskInfo], *, admin_site: AdminSite
) -> JsonResponse:
    """Answer with a part of the tasks that the query asks for; 400 for a query that is none."""
    try:
        limit = min(_number(request, "limit", DEFAULT_LIMIT), MAX_LIMIT)
        offset = _number(request, "offset", 0)
        runnable = flag(request, "runnable")
    except BadRequest as error:
        return bad_request(str(error))
    found = [
        info
        for info in registry.matching(infos, request.GET.get("q", ""))
        if runnable is None or info.is_runnable is runnable
    ]
    part = found[offset : offset + limit]
    return JsonResponse(
        {"tasks": [_task_entry(info, admin_site) for info in part], "total": len(found)}
    )


def run_response(
    request: HttpRequest, info: TaskInfo, *, admin_site: AdminSite, runner: TaskRunner
) -> JsonResponse:
    """Run the task as the body of the request says, and answer with the run, or with why not.

    Of a task's rule all counts but ``confirm``, which is a question to people.
    """
    try:
        return _run(request, info, admin_site, runner)
    except TaskNotFound as error:
        return not_found(error)
    except (TaskNotRunnable, PermissionDenied) as error:
        return errors_response({ALL: [str(error)]}, HTTPStatus.FORBIDDEN)
    except InvalidArguments as error:
        return errors_response(error.errors, HTTPStatus.BAD_REQUEST)
    except ValidationError as error:
        return bad_request(*validation_texts(error))
    except RequestDataTooBig:
        return too_large()


def not_found(error: TaskNotFound) -> JsonResponse:
    """Answer that there is no such task."""
    return errors_response({ALL: [str(error)]}, HTTPStatus.NOT_FOUND)


def _run(
    request: HttpRequest, info: TaskInfo, admin_site: AdminSite, runner: TaskRunner
) -> JsonResponse:
    if not runner.may_run(info):
        raise PermissionDenied(_("You may not run this task, or it is not runnable."))
    if len(request.body) > BODY_MAX_BYTES:
        raise RequestDataTooBig
    call = RunRequest.model_validate_json(request.body)
    _refuse_late(call.options, timezone.now())
    options = call.options.model_dump(exclude_none=True)
    if "depends_on" in options:
        viewer = Viewer(user=request.user, admin_site=admin_site)
        options["depends_on"] = _runs(viewer, options["depends_on"])
    run = runner.run(info.name, call.args, call.kwargs, reason=call.reason, **options)
    if run.state == State.UNSENT:
        return JsonResponse(
            {"task_id": run.task_id, "state": run.state, "errors": {ALL: [run.publish_error]}},
            status=HTTPStatus.SERVICE_UNAVAILABLE,
        )
    return JsonResponse(
        {
            "task_id": run.task_id,
            "state": run.state,
            "url": record_url(admin_site, request, run),
        },
        status=HTTPStatus.CREATED,
    )


def _refuse_late(options: RunOptions, now: datetime) -> None:
    """Refuse what could only expire, as the form does; raises InvalidArguments."""
    start = earliest_start(options.eta, options.countdown, now)
    end = moment_of(options.expires, now)
    if start is not None and end is not None and end <= start:
        raise InvalidArguments({ALL: [_("It would expire before it may start.")]})


def _runs(viewer: Viewer, task_ids: Sequence[str]) -> list[TaskRunRecord]:
    """Return the runs with these task ids; raises InvalidArguments unless the user sees all.

    As the site's journal shows them, if it has one: that may hide more.
    """
    has_journal = viewer.model_admin(TaskRunRecord) is not None
    visible: QuerySet[TaskRunRecord] = (
        viewer.objects(TaskRunRecord)
        if has_journal
        else TaskRunRecord.objects.visible_to(viewer.user)
    )
    runs = {run.task_id: run for run in visible.filter(task_id__in=task_ids).only("task_id")}
    missing = [task_id for task_id in task_ids if task_id not in runs]
    if missing:
        text = _("options.depends_on: there is no run “%(task_id)s” that you may see.")
        raise InvalidArguments({ALL: [text % {"task_id": task_id} for task_id in missing]})
    return list(runs.values())


def _number(request: HttpRequest, name: str, default: int) -> int:
    """Return a number of the query; raises BadRequest if it is none, or negative."""
    text = request.GET.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadRequest(
            _("%(name)s: a number from 0 on is needed, not “%(text)s”.")
            % {"name": name, "text": text[:50]}
        )
    return int(text)


def _task_entry(info: TaskInfo, admin_site: AdminSite) -> TaskEntry:
    signature = signature_of(registry.get_task(info.name))
    return {
        "name": info.name,
        "doc": info.doc,
        "runnable": info.is_runnable,
        "queue": info.queue,
        "run_url": run_page_url(admin_site, info.name),
        "parameters": [_parameter_entry(parameter) for parameter in signature.parameters],
    }


def _parameter_entry(parameter: Parameter) -> ParameterEntry:
    return {
        "name": parameter.name,
        "required": parameter.is_required,
        "default": _default(parameter),
        "annotation": parameter.annotation_text,
        "schema": _without_secret_defaults(
            parameter.json_schema(), frozenset(_secret_keys(parameter.annotation))
        ),
    }


def _secret_keys(annotation: Any, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    """Yield the keys of secret fields, at any depth, by all their names."""
    shape = shape_of(annotation)
    if id(shape.base) in seen:
        return
    seen |= {id(shape.base)}
    for field in fields_of(shape.base):
        names = (field.name, *field.names)
        if any(map(is_secret_name, names)):
            yield from names
        yield from _secret_keys(field.annotation, seen)
    for argument in shape.arguments:
        yield from _secret_keys(argument, seen)


def _without_secret_defaults(schema: Any, keys: Set[str]) -> Any:
    """Return a JSON schema without the defaults of secret keys, and those that hold some."""
    if not isinstance(schema, dict):
        return schema
    shown = {
        key: _without_secret_defaults(part, keys)
        for key, part in schema.items()
        if key != "default" or not _has_key(part, keys)
    }
    for name in shown.keys() & {"$defs", "properties"}:
        shown[name] = {
            key: _without_default(part, keys)
            if key in keys
            else _without_secret_defaults(part, keys)
            for key, part in schema[name].items()
        }
    for name in shown.keys() & {"allOf", "anyOf", "oneOf"}:
        shown[name] = [_without_secret_defaults(part, keys) for part in schema[name]]
    if keys and "prefixItems" in shown:
        # A named tuple: which item is whose is not told.
        shown["prefixItems"] = [_without_default(part, keys) for part in schema["prefixItems"]]
    return shown


def _without_default(schema: Any, keys: Set[str]) -> Any:
    shown = _without_secret_defaults(schema, keys)
    return {key: part for key, part in shown.items() if key != "default"}


def _has_key(value: Any, keys: Set[str]) -> bool:
    """Tell whether a secret key is somewhere in a default."""
    if isinstance(value, dict):
        return any(
            key in keys or is_secret_name(key) or _has_key(item, keys)
            for key, item in value.items()
        )
    return isinstance(value, list) and any(_has_key(item, keys) for item in value)


def _default(parameter: Parameter) -> Any:
    """Return the default as JSON data; None where there is none, or it can't be told."""
    if not parameter.has_known_default or is_secret_name(parameter.name):
        return None
    try:
        return encoding.readable(encoding.to_plain(masked(to_wire(parameter.default))))
    except NotEncodable:
        return None
