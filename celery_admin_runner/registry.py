"""Which tasks exist, and which of them can be run."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from celery import Celery, current_app
from celery.app.task import Task
from celery.exceptions import QueueNotFound
from django.utils.module_loading import import_string

from celery_admin_runner.attempts import Attempt
from celery_admin_runner.conf import settings
from celery_admin_runner.exceptions import TaskNotFound

#: Celery's own tasks begin so, and ours; they are listed, and never runnable or tracked.
CELERY_PREFIX = "celery."
OWN_PREFIX = "celery_admin_runner."
#: The task by which beat has what is due sent (DISPATCH="beat").
DISPATCH_TASK = "celery_admin_runner.tasks.dispatch_due_runs"
#: The task by which beat has what its users have seen deleted.
PRUNE_SEEN_TASK = "celery_admin_runner.tasks.prune_seen_runs"
#: What routing raises for a queue that is not configured, and the project's own router
#: for a call whose arguments it needs.
UNROUTABLE = (QueueNotFound, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What RUNNABLE_TASKS asks of who runs a task."""

    #: A permission needed besides ``run_celerytask``, as ``"app_label.codename"``.
    permission: str = ""
    #: Names of groups of which the user must be in one.
    groups: tuple[str, ...] = ()
    #: Ask "are you sure", and show exactly what will be sent.
    confirm: bool = False
    #: A reason must be given.
    reason: bool = False

    @classmethod
    def from_setting(cls, value: Mapping[str, Any]) -> Rule:
        """Make a rule from its value in the settings; raises TypeError for what does not fit."""
        groups = value.get("groups", ())
        if isinstance(groups, str):
            raise TypeError(f"'groups' should be a list of names, not the text {groups!r}.")
        return cls(**{**value, "groups": tuple(groups)})


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What is known of a registered task."""

    name: str
    #: The first line of the docstring, or "".
    summary: str
    #: The whole docstring, or "".
    doc: str
    #: The queue its messages go to, or "" where only the router knows.
    queue: str
    is_runnable: bool
    rule: Rule = field(default_factory=Rule)

    @property
    def package(self) -> str:
        """The part of the name before the first dot."""
        return self.name.partition(".")[0]


#: Whether tasks are being imported here and now.
_is_importing: ContextVar[bool] = ContextVar("celery_admin_runner_is_importing", default=False)


def celery_app() -> Celery:
    """Return the Celery app whose tasks we run, with all its tasks imported.

    Raises ImportError if the APP setting can't be imported.
    """
    return with_tasks(named_app())


def named_app() -> Celery:
    """Return the Celery app whose tasks we run, as it is; raises ImportError."""
    if settings.APP is None:
        return current_app._get_current_object()
    return import_string(settings.APP.replace(":", "."))


def import_app() -> None:
    """Import the app that APP names, so that it is Celery's current one from now on.

    A shared task that is called before that would go to the broker of Celery's default app.
    What can't be imported is left alone: a check tells of it.
    """
    if isinstance(settings.APP, str):
        with suppress(ImportError):
            named_app()


def with_tasks(app: Celery) -> Celery:
    """Return an app with all its tasks imported.

    Who asks again while they are imported gets it with the tasks that it has by then: Celery
    5.7 has Django check itself first, and a check, or a module of tasks, may ask for a task.
    """
    if not _is_importing.get():
        _import_tasks(app)
    return app


@cache
def _import_tasks(app: Celery) -> None:
    """Import the app's task modules, once: each time Celery would run the system checks again."""
    token = _is_importing.set(True)
    try:
        app.loader.import_default_modules()
    finally:
        _is_importing.reset(token)


def is_importing() -> bool:
    """Tell whether ``with_tasks`` is at work here: then some tasks may be missing."""
    return _is_importing.get()


def known_names() -> Collection[str] | None:
    """Return the names of all registered tasks; None if they can't be imported, or not yet."""
    if is_importing():
        return None
    names: Collection[str] | None = None
    with Attempt():
        names = celery_app().tasks.keys()
    return names


def is_internal(task_name: str) -> bool:
    """Tell whether a task belongs to the machinery: Celery's, or ours."""
    return task_name.startswith((CELERY_PREFIX, OWN_PREFIX))


def rule_for(task_name: str) -> Rule | None:
    """Return the rule under which a task can be run, or None if it can't be.

    Of several matching patterns in a mapping the first one counts.
    """
    if is_internal(task_name):
        return None
    patterns = settings.RUNNABLE_TASKS
    if isinstance(patterns, str):
        # A check refuses this; letter by letter, the "*" in it would allow every task.
        patterns = [patterns]
    if patterns is None:
        return Rule()
    for pattern in patterns:
        if fnmatchcase(task_name, pattern):
            return (
                Rule.from_setting(patterns[pattern]) if isinstance(patterns, Mapping) else Rule()
            )
    return None


def get_task(task_name: str) -> Task:
    """Return the registered task; raises TaskNotFound."""
    task = celery_app().tasks.get(task_name)
    if task is None:
        raise TaskNotFound(task_name)
    return task


def get_task_info(task_name: str) -> TaskInfo:
    """Return what is known of a registered task; raises TaskNotFound."""
    return _info(get_task(task_name))


class NamedTask(Task):  # type: ignore[misc]
    """A task that only workers know: here it has nothing but its name, and takes any arguments."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send it by its name, as beat does; also with ``task_always_eager``."""
        return self.app.send_task(self.name, args, kwargs, **options)


def find_task(task_name: str) -> Task:
    """Return the registered task, else one that is sent by its name."""
    app = celery_app()
    task = app.tasks.get(task_name)
    return _named_task(app, task_name) if task is None else task


def find_task_info(task_name: str) -> TaskInfo:
    """Return what is known of a task that may be registered with the workers only."""
    return _info(find_task(task_name))


@cache
def _named_task(app: Celery, task_name: str) -> NamedTask:
    """Return the same task for a name each time: what is read of it is kept."""
    kind: type[NamedTask] = type("NamedTask", (NamedTask,), {"name": task_name})
    kind.bind(app)
    task: NamedTask = kind()
    return task


def all_task_infos() -> list[TaskInfo]:
    """Return every registered task by name, Celery's own and ours last.

    With SHOW_ONLY_RUNNABLE only those that can be run.
    """
    tasks = celery_app().tasks
    return [_info(tasks[name]) for name in all_task_names()]


def all_task_names() -> list[str]:
    """Return the names of ``all_task_infos``."""
    names = sorted(celery_app().tasks, key=lambda name: (is_internal(name), name))
    if not settings.SHOW_ONLY_RUNNABLE:
        return names
    return [name for name in names if rule_for(name) is not None]


def matching(infos: Iterable[TaskInfo], text: str) -> list[TaskInfo]:
    """Return the tasks with every word of ``text`` in their name or docstring, case ignored."""
    words = text.lower().split()
    return [
        info for info in infos if all(word in f"{info.name}\n{info.doc}".lower() for word in words)
    ]


def _info(task: Task) -> TaskInfo:
    rule = rule_for(task.name)
    doc = _own_doc(task)
    return TaskInfo(
        name=task.name,
        summary=doc.partition("\n")[0],
        doc=doc,
        queue=_queue(task),
        is_runnable=rule is not None,
        rule=rule or Rule(),
    )


@cache
def _own_doc(task: Task) -> str:
    """Return the docstring of the task's code, not the one it inherits from Celery's Task.

    Without the quotes of reStructuredText, which are no words for people.
    """
    own = task.run.__doc__ or (None if task.__doc__ == Task.__doc__ else task.__doc__)
    if not isinstance(own, str) or own == Task.run.__doc__:
        return ""
    return inspect.cleandoc(own).replace("``", "")


def _queue(task: Task) -> str:
    """Return the queue that Celery's routing gives a plain call of the task."""
    own = getattr(task, "queue", None)
    if own:
        return str(own)
    try:
        queue = task.app.amqp.router.route({}, task.name).get("queue")
    except UNROUTABLE:
        return ""
    return str(getattr(queue, "name", queue or ""))
