"""Methods of models that are tasks: one task for each model and method, on an object of it.

For the models of a project, which import ``model_task`` from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, update_wrapper
from typing import TYPE_CHECKING, Any, overload

from celery import shared_task
from celery.result import AsyncResult
from django.apps import apps
from django.db import models, router
from django.db.models.signals import class_prepared
from django.forms.utils import pretty_name

from celery_admin_runner.base import DjangoTask, Invocation
from celery_admin_runner.calls import signature_of, wire_of
from celery_admin_runner.contexts import PlainContext
from celery_admin_runner.headers import DATABASE_HEADER
from celery_admin_runner.model_keys import with_model_keys
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.parameters import Signature, read_signature
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.registry import celery_app
from celery_admin_runner.runner import TaskRunner

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

#: The name of a model task's first parameter, to which the object's primary key is sent.
OBJECT = "object"
#: Keywords of ``BoundModelTask.run`` that are not the method's.
_KEYWORDS_OF_RUN = ("user", "reason")
#: Options of a Celery task that a method can't have, and why.
_REFUSED = {
    "name": "its name follows from its model and its method",
    "bind": "its self is the object (celery.current_task is the task)",
}

#: The names of the tasks of each model, by method.
_names: dict[type[models.Model], dict[str, str]] = {}


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
    #: The methods whose tasks have to succeed before, on the same object, in this order.
    needs: tuple[str, ...] = ()

    def load(self, key: Any) -> models.Model:
        """Return the object of this primary key, as its database has it now.

        Raises the DoesNotExist of the model if it is gone.
        """
        named = (self.request.headers or {}).get(DATABASE_HEADER)
        alias = named or str(router.db_for_write(self.model))
        try:
            return self.model._base_manager.using(alias).get(pk=key)
        except self.model.DoesNotExist:
            opts = self.model._meta
            text = f"There is no {opts.verbose_name} ({opts.label}) with the primary key {key!r}"
            raise self.model.DoesNotExist(f"{text} any more.") from None

    def own_signature(self) -> Signature:
        """Return the method's signature, with the object as its first parameter."""
        return _read_signature(self)

    def key_of(self, value: Any) -> Any:
        """Return the primary key that is sent for an object, or for its key.

        Raises ValueError for what is no primary key of the model.
        """
        return wire_of(signature_of(self)[OBJECT], value)

    def _invocation(
        self, args: Any, kwargs: Any, task_id: str | None, options: dict[str, Any]
    ) -> Invocation:
        """Add which object the call is about."""
        if args:
            key = self.key_of(args[0])
            args = (key, *args[1:])
        elif OBJECT in (kwargs or {}):
            key = self.key_of(kwargs[OBJECT])
            kwargs = {**kwargs, OBJECT: key}
        else:
            raise TypeError(f"{self.name} needs the primary key of an object.")
        given = options.get("run_context")
        context = PlainContext() if given is None else PlainContext.of(given)
        if not context.model:
            label = self.model._meta.concrete_model._meta.label_lower
            options["run_context"] = replace(context, model=label, object_id=str(key))
        return super()._invocation(args, kwargs, task_id, options)


@cache
def _read_signature(task: ModelTask) -> Signature:
    signature = read_signature(task.run)
    first, *others = signature.parameters
    about = replace(first, annotation=task.model, has_annotation=True)
    return replace(signature, parameters=tuple(map(with_model_keys, (about, *others))))


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
        task, runner = self.task, TaskRunner(user)
        return runner.run(
            task.name,
            (self._key, *args),
            kwargs,
            obj=self.obj,
            reason=reason,
            headers=self._headers,
        )

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
        """Call the task for trusted code when the transaction that is open here is committed."""
        call = ((self._key, *args), kwargs)
        return self.task.apply_async_on_commit(*call, **self._with_headers({}))

    for _verb in (run, delay, apply_async, on_commit):
        # A template does not call these.
        _verb.alters_data = True  # type: ignore[attr-defined]
    del _verb

    @property
    def runs(self) -> TaskRunRecordQuerySet:
        """All runs of this task on this object, newest first."""
        return TaskRunRecord.objects.for_object(self.obj).of_task(self.task.name).order_by("-pk")

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

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.function = function
        self.options = options
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
def model_task(function: Callable[..., Any], /) -> ModelTaskMethod: ...


@overload
def model_task(**options: Any) -> Callable[[Callable[..., Any]], ModelTaskMethod]: ...


def model_task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a task of a method of a model, or of a mixin for models.

    ``options`` are those of ``@shared_task``, and ``title``, the task's name for people, and
    ``depends_on``, names of other such methods: they have to succeed before, on the same object.
    Each model that has the method gets a task of its own, ``<module>.<Class>.<method>``.
    """
    if function is None:
        return lambda given: _method(given, options)
    return _method(function, options)


def model_tasks_of(model: type[models.Model]) -> list[ModelTask]:
    """Return the tasks on methods of a model, inherited ones too, by their names."""
    return [_task(name) for _method_name, name in sorted(_names.get(model, {}).items())]


def _task(name: str) -> ModelTask:
    task: ModelTask = celery_app().tasks[name]
    return task


def _method(function: Any, options: Mapping[str, Any]) -> ModelTaskMethod:
    """Return a method with its options; raises TypeError for what can't be a task."""
    if not inspect.isroutine(function) or isinstance(function, staticmethod | classmethod):
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
    return ModelTaskMethod(function, options)


def _register(sender: type[models.Model], **kwargs: Any) -> None:
    """Make the tasks of a model that has just been made; raises ImproperlyConfigured."""
    if sender._meta.apps is not apps:
        # A model of a migration, or of a test alone.
        return
    methods = _methods_of(sender)
    concrete = sender._meta.concrete_model
    inherited = _methods_of(concrete) if concrete is not sender else {}
    names: dict[str, str] = {}
    for method_name, method in methods.items():
        if inherited.get(method_name) is method:
            # A proxy shows the same rows: it is the same task.
            names[method_name] = _names[concrete][method_name]
        else:
            names[method_name] = f"{sender.__module__}.{sender.__name__}.{method_name}"
            _make(sender, method, names[method_name])
    if names:
        _names[sender] = names


def _methods_of(model: type[models.Model]) -> dict[str, ModelTaskMethod]:
    """Return the methods of a model that are tasks, by name; overridden ones are left out."""
    found: dict[str, Any] = {}
    for part in reversed(model.__mro__):
        found |= vars(part)
    return {name: item for name, item in found.items() if isinstance(item, ModelTaskMethod)}


def _make(model: type[models.Model], method: ModelTaskMethod, name: str) -> None:
    """Register the task of a method of a model with each Celery app, also with later ones."""
    options = dict(method.options)
    needs = options.pop("depends_on", ())
    given = options.get("unique_on")
    if given is not None and OBJECT not in given:
        options["unique_on"] = (OBJECT, *given)
    options = {
        "base": ModelTask,
        "title": pretty_name(method.name),
        **options,
        "needs": tuple(needs),
        "model": model,
        "method_name": method.name,
    }
    shared_task(name=name, bind=True, **options)(_body(method, model))


def _body(method: ModelTaskMethod, model: type[models.Model]) -> Callable[..., Any]:
    """Return what the worker runs."""

    def run(task: ModelTask, object: Any, /, *args: Any, **kwargs: Any) -> Any:
        return method(task.load(object), *args, **kwargs)

    update_wrapper(run, method.function)
    run.__signature__ = _signature(method)  # type: ignore[attr-defined]
    return run


def _signature(method: ModelTaskMethod) -> inspect.Signature:
    """Return the signature of a task's body: the task, the object, the method's parameters."""
    own = inspect.signature(method.function)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    _self, *others = own.parameters.values()
    first = [inspect.Parameter(name, kind) for name in ("task", OBJECT)]
    return own.replace(parameters=[*first, *others])


class_prepared.connect(_register, dispatch_uid="celery_admin_runner.model_tasks")
