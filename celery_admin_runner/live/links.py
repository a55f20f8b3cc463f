"""Where the user of a run finds its result: the project's own code tells."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.db.models import Model
from django.utils.http import url_has_allowed_host_and_scheme

from celery_admin_runner.attempts import Attempt
from celery_admin_runner.base import DjangoTask
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import celery_app
from celery_admin_runner.states import State

logger = logging.getLogger("celery_admin_runner")

#: The columns that a task may look at to tell a link, and that nothing else here needs.
_CALL = ("args", "kwargs", "result")
#: What an address on another host begins with.
_ADDRESSES = ("http://", "https://")


def result_url(run: TaskRunRecord) -> str:
    """Return where the user finds the result of a run that has succeeded.

    As the task says (``DjangoTask.get_result_url``), else the page of the object that the run
    is about (``get_absolute_url``). "" for nowhere, for what is no link to a page, and where
    the project's code fails: that is logged, and takes nobody's list away.
    """
    if run.state != State.SUCCESS:
        return ""
    load_for_links([run])
    attempt, link = Attempt(), ""
    with attempt:
        link = str(_task_url(run) or _object_url(run) or "").strip()
    if attempt.error is not None:
        logger.error(
            "The link to the result of run %s (%s) can't be told.",
            run.task_id,
            run.task_name,
            exc_info=attempt.error,
        )
    return link if _is_link(link) else ""


def load_for_links(runs: Iterable[TaskRunRecord]) -> None:
    """Read what the links of the succeeded runs may need, so that none asks by itself.

    One query for each model that they are about, and one if a task tells links itself. What is
    there already is not read again.
    """
    succeeded = [run for run in runs if run.state == State.SUCCESS]
    _load_objects(run for run in succeeded if not _obj().is_cached(run))
    _load_calls([run for run in succeeded if _call_is_missing(run)])


def _load_objects(runs: Iterable[TaskRunRecord]) -> None:
    """Read what the runs are about; None: it is gone.

    In place of ``prefetch_related("obj")``, which ends in an error if a model is gone, or an
    object's id is none of its model's.
    """
    kinds: dict[int, list[TaskRunRecord]] = defaultdict(list)
    for run in runs:
        if run.content_type_id is not None:
            kinds[run.content_type_id].append(run)
    for kind, same in kinds.items():
        attempt, objects = Attempt(), dict[str, Model]()
        # A model's manager, key or database may break: that takes nobody's list away, nor keeps
        # all websockets of this process waiting.
        with attempt:
            objects = _objects_by_id(_model(kind, same[0]), {run.object_id for run in same})
        if attempt.error is not None:
            logger.error(
                "What run %s (%s) is about can't be read.",
                same[0].task_id,
                same[0].task_name,
                exc_info=attempt.error,
            )
        for run in same:
            _obj().set_cached_value(run, objects.get(run.object_id))


def _call_is_missing(run: TaskRunRecord) -> bool:
    """Tell whether the run's task tells its link itself, and the run was read without its call."""
    kind = type(celery_app().tasks.get(run.task_name))
    own = getattr(kind, "get_result_url", None)
    is_own = own not in (None, DjangoTask.get_result_url)
    return is_own and not run.get_deferred_fields().isdisjoint(_CALL)


def _load_calls(runs: Sequence[TaskRunRecord]) -> None:
    if not runs:
        return
    rows = TaskRunRecord.objects.using(runs[0]._state.db).filter(pk__in=[run.pk for run in runs])
    found = {row["pk"]: row for row in rows.values("pk", *_CALL)}
    for run in runs:
        for name, value in found.get(run.pk, {}).items():
            setattr(run, name, value)


def _obj() -> GenericForeignKey:
    return TaskRunRecord._meta.get_field("obj")


def _model(kind: int, run: TaskRunRecord) -> type[Model] | None:
    """Return the model of a content type; None: the code no longer has it."""
    return ContentType.objects.db_manager(run._state.db).get_for_id(kind).model_class()


def _objects_by_id(model: type[Model] | None, texts: Collection[str]) -> dict[str, Model]:
    """Return the objects with these ids, as runs keep them, by id; asks the routers."""
    if model is None:
        return {}
    keys = {text: key for text in texts if (key := _key(model, text)) is not None}
    found = {obj.pk: obj for obj in model._base_manager.filter(pk__in=set(keys.values()))}
    return {text: found[key] for text, key in keys.items() if key in found}


def _key(model: type[Model], text: str) -> Any:
    """Return the primary key of a model that is kept as this text; None: it can't be one."""
    field: Any = model._meta.pk
    while field.remote_field is not None:
        field = field.target_field
    try:
        key = field.to_python(text)
        field.run_validators(key)
    except (ValidationError, TypeError, ValueError, OverflowError):
        return None
    return key


def _task_url(run: TaskRunRecord) -> Any:
    task = celery_app().tasks.get(run.task_name)
    return task.get_result_url(run) if hasattr(task, "get_result_url") else ""


def _object_url(run: TaskRunRecord) -> Any:
    obj: Any = _obj().get_cached_value(run, default=None)
    return obj.get_absolute_url() if hasattr(obj, "get_absolute_url") else ""


def _is_link(text: str) -> bool:
    """Tell whether a link leads to a page: of this site, or by its whole http(s) address.

    "//host" is none: what looks like a path, and leads elsewhere, was hardly meant to.
    """
    if text.lower().startswith(_ADDRESSES):
        return True
    return url_has_allowed_host_and_scheme(text, allowed_hosts=None)
