"""Tasks that are about an object: what they do to it, and what has to be done before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.db import models, router
from django.db.models import Exists, OuterRef, Q

from celery_admin_runner import unique
from celery_admin_runner.base import DjangoTask, Invocation
from celery_admin_runner.binding import bind
from celery_admin_runner.calls import signature_of, wire_of
from celery_admin_runner.contexts import PlainContext
from celery_admin_runner.headers import DATABASE_HEADER, marks_run
from celery_admin_runner.model_keys import with_model_keys
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.parameters import Signature, read_signature
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.registry import get_task
from celery_admin_runner.states import State

#: The name of a model task's first parameter, to which the object's primary key is sent.
OBJECT = "object"


class ModelTask(DjangoTask):
    """A method of a model as a task; its first argument is an object's primary key.

    Its calls always have a row in the journal, which knows the object. Of one object and method
    only one run is active at a time, whatever its arguments.
    """

    track = True
    unique = True
    unique_on: Sequence[str] | None = (OBJECT,)
    #: Long, for long runs: a shorter one lets two overlap. Each end of a run frees its key.
    stale_time_limit: timedelta | float | None = timedelta(weeks=1)
    #: The model whose objects the worker loads.
    model: type[models.Model]
    method_name: str
    #: The name of the task for people.
    title: str
    #: The names of the model tasks that have to succeed before, on the same object, in order.
    needs: tuple[str, ...] = ()

    def load(self, key: Any) -> models.Model:
        """Return the object of this primary key, as its database has it now.

        Raises the DoesNotExist of the model if it is gone.
        """
        named = (self.request.headers or {}).get(DATABASE_HEADER)
        alias = named or str(router.db_for_write(self.model))
        try:
            return self.model._base_manager.using(alias).get(pk=key)
        except ObjectDoesNotExist as error:
            opts = self.model._meta
            text = f"There is no {opts.verbose_name} ({opts.label}) with the primary key {key!r}"
            raise type(error)(f"{text} any more.") from None

    def own_signature(self) -> Signature:
        """Return the method's signature, with the object as its first parameter."""
        return _read_signature(self)

    def key_of(self, value: Any) -> Any:
        """Return the primary key that is sent for an object, or for its key.

        Raises ValueError for what is no primary key of the model.
        """
        return wire_of(signature_of(self)[OBJECT], value)

    def object_in(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> models.Model:
        """Return the object of a call that fits the task, of which only the key is known."""
        return self.model(pk=bind(signature_of(self), args, kwargs).by_name()[OBJECT])

    def passed_on(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a call's options is also for what it needs: where the object is."""
        headers = options.get("headers") or {}
        given = {name: headers[name] for name in {DATABASE_HEADER} & headers.keys()}
        return {"headers": given} if given else {}

    def runs_about(self, key: Any) -> TaskRunRecordQuerySet:
        """Return the runs of this task on the object of this primary key, newest first.

        A call that was ignored, or joined a run, is none. One that was skipped because what it
        depends on has failed is one: it has not succeeded.
        """
        runs = TaskRunRecord.objects.using(router.db_for_write(TaskRunRecord))
        links = TaskRunRecord.depends_on.through._base_manager
        has_waited = Exists(links.filter(from_taskrunrecord=OuterRef("pk")))
        came_to_something = ~Q(state=State.IGNORED) | Q(started_at__isnull=False) | has_waited
        about = runs.for_object(self.model(pk=key)).of_task(self.name)
        return about.filter(came_to_something).order_by("-pk")

    def _invocation(
        self, args: Any, kwargs: Any, task_id: str | None, options: dict[str, Any]
    ) -> Invocation:
        """Say that the call is about the object, whatever its caller says."""
        if args:
            key = self.key_of(args[0])
            args = (key, *args[1:])
        elif OBJECT in (kwargs or {}):
            key = self.key_of(kwargs[OBJECT])
            kwargs = {**kwargs, OBJECT: key}
        else:
            raise TypeError(f"{self.name} needs the primary key of an object.")
        if task_id and marks_run(options.get("headers"), task_id):
            # The message of a run: its row knows more.
            return super()._invocation(args, kwargs, task_id, options)
        given = options.get("run_context")
        context = PlainContext() if given is None else PlainContext.of(given)
        concrete = self.model._meta.concrete_model or self.model
        about = {"model": concrete._meta.label_lower, "object_id": str(key)}
        options["run_context"] = replace(context, **about)
        return super()._invocation(args, kwargs, task_id, options)


@cache
def _read_signature(task: ModelTask) -> Signature:
    signature = read_signature(task.run)
    first, *others = signature.parameters
    about = replace(first, annotation=task.model, has_annotation=True)
    return replace(signature, parameters=tuple(map(with_model_keys, (about, *others))))


def start_needed(
    task: ModelTask,
    key: Any,
    start: Callable[[str, Sequence[TaskRunRecord]], TaskRunRecord],
    *,
    now: datetime,
) -> list[TaskRunRecord]:
    """Start what a task needs on an object, and return the runs that it has to wait for.

    What has succeeded at last is not run again, and what is active is waited for.
    ``start(task_name, depends_on)`` starts a run on that object that waits for those before it,
    or returns the active one that keeps it from running.
    """
    awaited: list[TaskRunRecord] = []
    for name in task.needs:
        needed = get_task(name)
        run = needed.runs_about(key).first()
        if run is not None and run.state == State.SUCCESS:
            continue
        if run is None or run.is_finished or _is_given_up(needed, run, now):
            run = start(name, tuple(awaited))
        # One that is ignored, because it succeeded not long ago, has ended.
        if not run.is_finished:
            awaited.append(run)
    return awaited


def _is_given_up(task: ModelTask, run: TaskRunRecord, now: datetime) -> bool:
    """Tell whether an unfinished run no longer keeps others from running.

    It is stale, or the broker did not take it.
    """
    if not unique.is_unique(task):
        return False
    if run.active_key is None:
        return run.state == State.UNSENT
    return unique.is_stale(run, unique.stale_after(task), now)
