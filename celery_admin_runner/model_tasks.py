"""Methods of models that are tasks: one task for each model and method, on an object of it.

For the models of a project, which import ``model_task`` from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import update_wrapper
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, overload

from celery import current_task, shared_task
from celery.result import AsyncResult
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import models, router, transaction
from django.db.models.signals import class_prepared
from django.forms.utils import pretty_name
from django.utils import timezone

from celery_admin_runner import ignoring, unique
from celery_admin_runner.base import Invocation, announce, intercept
from celery_admin_runner.deadlocks import written_together
from celery_admin_runner.exceptions import AlreadyActive
from celery_admin_runner.headers import DATABASE_HEADER
from celery_admin_runner.invocations import answer, is_in_canvas, sameness
from celery_admin_runner.model_keys import ObjectSource, objects_for
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.object_tasks import OBJECT, ModelTask, start_needed
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.registry import celery_app
from celery_admin_runner.runner import TaskRunner

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

#: Keywords of ``BoundModelTask.run`` that are not the method's.
_KEYWORDS_OF_RUN = ("user", "reason")
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
#: Options of a Celery task that a method can't have, and why.
_REFUSED = {
    "name": "its name follows from its model and its method",
    "bind": "its self is the object (celery.current_task is the task)",
}

#: The names of the tasks of each model, by method.
_names: dict[type[models.Model], dict[str, str]] = {}


class BoundModelTask:
    """The task of a method, on one object: run it, and see what became of its runs.

    Called, it is the method itself, here and now.
    """

    #: A template that shows something of it does not run the method.
    do_not_call_in_templates = True

    def __init__(self, method: ModelTaskMethod, obj: models.Model) -> None:
        self.obj = obj
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the method here and now, on this very instance; the journal knows nothing of it."""
        return self._method.function(self.obj, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._method.name} of {self.obj!r}>"

    @property
    def task(self) -> ModelTask:
        """The task; raises AttributeError if the model has none by this method."""
        return self._method.task_of(type(self.obj))

    @property
    def title(self) -> str:
        """The name of the task for people."""
        return self.task.title

    def run(
        self, *args: Any, user: AnyUser | None = None, reason: str = "", **kwargs: Any
    ) -> TaskRunRecord:
        """Record a run, send it, and return its row; if one is active already, that one's.

        As ``TaskRunner(user).run``, which checks what the user may do, and the arguments.
        """
        headers = self._headers
        runner = TaskRunner(user, objects=_objects(user, self.task.model, headers))
        try:
            return runner.run(
                self.task.name,
                (self._key, *args),
                kwargs,
                obj=self.obj,
                reason=reason,
                headers=headers,
            )
        except AlreadyActive as error:
            return error.run

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """Call the task for trusted code, as Celery's ``delay``."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Call the task for trusted code, as ``DjangoTask.apply_async``."""
        call = ((self._key, *args), kwargs)
        return self.task.apply_async(*call, **self._with_headers(options))

    def on_commit(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """Call the task for trusted code when the transaction of the object is committed."""
        using = router.db_for_write(type(self.obj), instance=self.obj)
        call = ((self._key, *args), kwargs, using)
        return self.task.apply_async_on_commit(*call, **self._with_headers({}))

    # A template calls none of these.
    run.alters_data = True  # type: ignore[attr-defined]
    delay.alters_data = True  # type: ignore[attr-defined]
    apply_async.alters_data = True  # type: ignore[attr-defined]
    on_commit.alters_data = True  # type: ignore[attr-defined]

    @property
    def runs(self) -> TaskRunRecordQuerySet:
        """The runs of this task on this object, newest first."""
        return self.task.runs_about(self.obj.pk)

    def current(self) -> TaskRunRecord | None:
        """Return the latest run; None if there was none."""
        return self.runs.first()

    def archives(self) -> TaskRunRecordQuerySet:
        """Return the runs before the latest, newest first."""
        current = self.current()
        return self.runs.none() if current is None else self.runs.filter(pk__lt=current.pk)

    def is_processing(self) -> bool:
        """Tell whether a run has not ended yet."""
        return self.runs.unfinished().exists()

    @property
    def _key(self) -> Any:
        """The primary key that is sent; raises ValueError for an object that is not saved."""
        if self.obj.pk is None or self.obj._state.adding:
            text = f"{self.obj!r} is not saved: save it before you run {self._method.name}."
            raise ValueError(text)
        return self.task.key_of(self.obj.pk)

    @property
    def _headers(self) -> dict[str, Any] | None:
        """What tells the worker where the object is, if it would look elsewhere."""
        alias = router.db_for_write(type(self.obj), instance=self.obj)
        return None if alias == router.db_for_write(self.task.model) else {DATABASE_HEADER: alias}

    def _with_headers(self, options: dict[str, Any]) -> dict[str, Any]:
        own = self._headers
        return (
            {**options, "headers": {**(options.get("headers") or {}), **own}} if own else options
        )


@dataclass(frozen=True)
class ModelMethod:
    """The method of a model, as it is found on the class: ``Report.build``."""

    _method: ModelTaskMethod
    model: type[models.Model]

    def __call__(self, obj: models.Model, *args: Any, **kwargs: Any) -> Any:
        """Run the method on ``obj`` here and now."""
        return self._method.function(obj, *args, **kwargs)

    @property
    def task(self) -> ModelTask:
        """The task; raises AttributeError if the class has none, as an abstract model."""
        return self._method.task_of(self.model)


class ModelTaskMethod:
    """What ``@model_task`` leaves in the place of a method."""

    def __init__(
        self, function: Callable[..., Any], needs: tuple[str, ...], options: Mapping[str, Any]
    ) -> None:
        self.function, self.needs, self.options = function, needs, options
        self.name = function.__name__
        update_wrapper(self, function)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, obj: None, owner: type[models.Model]) -> ModelMethod: ...

    @overload
    def __get__(self, obj: models.Model, owner: type[models.Model]) -> BoundModelTask: ...

    def __get__(
        self, obj: models.Model | None, owner: type[models.Model]
    ) -> BoundModelTask | ModelMethod:
        """Return what the object, or its class, has in the place of the method."""
        return ModelMethod(self, owner) if obj is None else BoundModelTask(self, obj)

    def __call__(self, obj: models.Model, *args: Any, **kwargs: Any) -> Any:
        """Run the method on ``obj`` here and now."""
        return self.function(obj, *args, **kwargs)

    def task_of(self, model: type[models.Model]) -> ModelTask:
        """Return the task that a model has by this method; raises AttributeError."""
        name = _names.get(model, {}).get(self.name)
        if name is None or _methods_of(model).get(self.name) is not self:
            raise AttributeError(
                f"{model.__name__} has no task {self.name!r} by {self.function.__qualname__}: "
                "it is abstract, or has another method of this name."
            )
        return _task(name)


@overload
def model_task(function: Callable[..., Any], /) -> ModelTaskMethod:
    """Make a task of a method."""


@overload
def model_task(**options: Any) -> Callable[[Callable[..., Any]], ModelTaskMethod]:
    """Make a task with options of a method."""


def model_task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a task of a method of a model, or of a mixin for models.

    ``options`` are those of ``@shared_task``, and ``title``, the task's name for people, and
    ``depends_on``, names of other such methods: they have to succeed before, on the same object.
    Each model that has the method gets a task of its own, ``<module>.<Class>.<method>``.
    """
    if function is None:
        return lambda given: _method(given, **options)
    return _method(function)


def model_tasks_of(model: type[models.Model]) -> list[ModelTask]:
    """Return the tasks on methods of a model, inherited ones too, by their names."""
    return [_task(name) for _method_name, name in sorted(_names.get(model, {}).items())]


def _task(name: str) -> ModelTask:
    task: ModelTask = celery_app().tasks[name]
    return task


def _method(function: Any, *, depends_on: Sequence[str] = (), **options: Any) -> ModelTaskMethod:
    """Return a method with its options; raises TypeError for what can't be a task."""
    if isinstance(function, staticmethod | classmethod) or not inspect.isroutine(function):
        raise TypeError(f"@model_task is for methods of an object, not for {function!r}.")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__} is a coroutine, which Celery can't run.")
    for name in _REFUSED.keys() & options.keys():
        raise TypeError(
            f"{function.__qualname__} can't have the option {name!r}: {_REFUSED[name]}."
        )
    base = options.get("base", ModelTask)
    if not (isinstance(base, type) and issubclass(base, ModelTask)):
        raise TypeError(f"The base of {function.__qualname__} has to be a ModelTask.")
    _check_parameters(function)
    return ModelTaskMethod(function, _names_in(depends_on), options)


def _check_parameters(function: Callable[..., Any]) -> None:
    """Raise TypeError for parameters that a call of the task could not give."""
    name, parameters = function.__qualname__, list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in _BY_POSITION:
        raise TypeError(f"{name} is no method: its first parameter is to be the object.")
    for item in parameters[1:]:
        if item.name == OBJECT:
            text = "is the name of the task's own, for the object"
            raise TypeError(f"{name} can't have a parameter {OBJECT!r}: that {text}.")
        is_by_position = item.kind in _BY_POSITION and item.default is item.empty
        if item.name in _KEYWORDS_OF_RUN and not is_by_position:
            raise TypeError(
                f"The parameter {item.name!r} of {name} has to be a required one, which is given "
                f"by its position: run({item.name}=...) says who runs the task, or why."
            )


def _names_in(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _register(sender: type[models.Model], **kwargs: Any) -> None:
    """Make the tasks of a model that has just been made; raises ImproperlyConfigured."""
    if sender._meta.apps is not apps:
        # A model of a migration, or of a test alone.
        return
    methods = _methods_of(sender)
    if not methods:
        return
    if isinstance(sender._meta.pk, models.CompositePrimaryKey):
        raise ImproperlyConfigured(
            f"{sender.__name__} has a primary key of several columns, by which the journal can't "
            f"name an object: {', '.join(methods)} can't be model tasks."
        )
    _check_needs(sender, methods)
    own, concrete = _own_methods(sender, methods), _concrete(sender)
    names = _names[sender] = {
        name: f"{sender.__module__}.{sender.__name__}.{name}"
        if name in own
        else _names[concrete][name]
        for name in methods
    }
    for method in own.values():
        _make(sender, method, names)


def _own_methods(
    model: type[models.Model], methods: Mapping[str, ModelTaskMethod]
) -> dict[str, ModelTaskMethod]:
    """Return those methods of which the model has a task of its own: all, but for a proxy.

    A proxy shows the rows of another model: what it does not change is the task of that one.
    """
    concrete = _concrete(model)
    if concrete is model:
        return dict(methods)
    shared = _methods_of(concrete)
    own = {name: item for name, item in methods.items() if shared.get(name) is not item}
    while more := {
        name: item
        for name, item in methods.items()
        if name not in own and not own.keys().isdisjoint(item.needs)
    }:
        own |= more
    return own


def _concrete(model: type[models.Model]) -> type[models.Model]:
    """Return the model whose rows a model shows: itself, but for a proxy."""
    return model._meta.concrete_model or model


def _methods_of(model: type[models.Model]) -> dict[str, ModelTaskMethod]:
    """Return the methods of a model that are tasks, by name; overridden ones are left out."""
    found: dict[str, Any] = {}
    for part in reversed(model.__mro__):
        found |= vars(part)
    return {name: item for name, item in found.items() if isinstance(item, ModelTaskMethod)}


def _check_needs(model: type[models.Model], methods: Mapping[str, ModelTaskMethod]) -> None:
    """Raise ImproperlyConfigured for what can't be run before a task of the model."""
    for method in methods.values():
        for name in method.needs:
            if name not in methods:
                raise ImproperlyConfigured(
                    f"{model.__name__}.{method.name} depends on {name!r}, which is no model task "
                    f"of {model.__name__}. It has {', '.join(sorted(methods))}."
                )
            if required := _required(methods[name]):
                raise ImproperlyConfigured(
                    f"{model.__name__}.{method.name} depends on {name!r}, which can't be run "
                    f"without arguments: it requires {', '.join(required)}."
                )
    _refuse_circles(model, {name: method.needs for name, method in methods.items()})


def _required(method: ModelTaskMethod) -> list[str]:
    """Return the parameters that every call has to give."""
    _self, *others = inspect.signature(method.function).parameters.values()
    required = (item for item in others if item.default is item.empty)
    return [item.name for item in required if item.kind not in _VARIADIC]


def _refuse_circles(model: type[models.Model], needs: Mapping[str, Sequence[str]]) -> None:
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        way = " -> ".join(reversed(error.args[1]))
        raise ImproperlyConfigured(
            f"The model tasks of {model.__name__} depend on each other in a circle: {way}."
        ) from error


def _make(model: type[models.Model], method: ModelTaskMethod, names: Mapping[str, str]) -> None:
    """Register the task of a method of a model with each Celery app, also with later ones."""
    options = {"base": ModelTask, "title": pretty_name(method.name), **method.options}
    options |= {
        "name": names[method.name],
        "needs": tuple(names[name] for name in method.needs),
        "model": model,
        "method_name": method.name,
    }
    if options.get("unique_on") is not None:
        others = (name for name in _names_in(options["unique_on"]) if name != OBJECT)
        options["unique_on"] = (OBJECT, *others)
    shared_task(**options)(_body(method, names[method.name]))


def _body(method: ModelTaskMethod, name: str) -> Callable[..., Any]:
    """Return what the worker runs: the method, of the object that is loaded by its key."""

    def run(*args: Any, **kwargs: Any) -> Any:
        key, *others = args or (kwargs.pop(OBJECT),)
        task = current_task if current_task and current_task.name == name else _task(name)
        return method(task.load(key), *others, **kwargs)

    update_wrapper(run, method.function)
    # Not by ``bind``: what Celery 5.7 wraps a bound task in (autoretry_for) keeps this as it is.
    run.__signature__ = _signature(method)  # type: ignore[attr-defined]
    return run


def _signature(method: ModelTaskMethod) -> inspect.Signature:
    """Return the signature of a task's body: the object, and the method's parameters."""
    signature = inspect.signature(method.function)
    own, *others = signature.parameters.values()
    first = own.replace(name=OBJECT, annotation=own.empty, default=own.empty)
    return signature.replace(parameters=[first, *others])


def _objects(
    user: AnyUser | None, own: type[models.Model], headers: Mapping[str, Any] | None
) -> ObjectSource:
    """Return where the objects in arguments are looked for: those of the model where it is."""
    usual, alias = objects_for(user), (headers or {}).get(DATABASE_HEADER)

    def source(model: type[models.Model]) -> models.QuerySet[Any] | None:
        found = usual(model)
        if found is None or _concrete(model) is not _concrete(own):
            return found
        return model._base_manager.using(alias or router.db_for_write(model))

    return source


def _answer(invocation: Invocation) -> AsyncResult | None:
    """Let a call for trusted code wait for what its model task needs; None: it need not wait.

    All rows are written in one transaction. What would join a run, or be ignored, starts nothing.
    """
    task, own, now = invocation.task, invocation.own, timezone.now()
    if not isinstance(task, ModelTask) or not task.needs or _is_answered(invocation, now):
        return None
    obj = task.object_in(invocation.args, invocation.kwargs)
    options = task.passed_on(invocation.options)
    reason = "" if own.run_context is None else own.run_context.reason

    def start(task_name: str, depends_on: Sequence[TaskRunRecord]) -> TaskRunRecord:
        objects = _objects(None, task.model, options.get("headers"))
        runner = TaskRunner(source=Source.DEPENDENCY, objects=objects)
        try:
            return runner.run(
                task_name, (obj.pk,), depends_on=depends_on, reason=reason, **options
            )
        except AlreadyActive as error:
            return error.run

    def write() -> AsyncResult | None:
        needed = start_needed(task, obj.pk, start, now=now)
        if not needed:
            return None
        waiting = replace(own, depends_on=(*own.depends_on, *needed))
        result = answer(replace(invocation, own=waiting))
        if result is None or result.id != invocation.task_id:
            # Somebody was faster, and has started what it needs too.
            transaction.set_rollback(True, using=_journal())
        return result

    return written_together(write, using=_journal())


def _announce(invocation: Invocation, using: str) -> Callable[[], AsyncResult] | None:
    """Let a call wait in the transaction that it belongs to, if it has to wait at all."""
    result = _answer(invocation) if using == _journal() else None
    return None if result is None else lambda: result


def _is_answered(invocation: Invocation, now: datetime) -> bool:
    """Tell whether a call joins a run that is active, or is ignored."""
    if is_in_canvas(invocation):
        return False
    same = sameness(invocation)
    if same.is_ignoring and ignoring.open_window(same.key, now, _journal()) is not None:
        return True
    if same.limit is None:
        return False
    holder = unique.holder_of(same.key, _journal())
    return holder is not None and not unique.is_stale(holder, same.limit, now)


def _journal() -> str:
    return str(router.db_for_write(TaskRunRecord))


class_prepared.connect(_register, dispatch_uid="celery_admin_runner.model_tasks")
# Before those who answer for every call: what a model task needs is started first.
intercept(_answer, first=True)
announce(_announce, first=True)
