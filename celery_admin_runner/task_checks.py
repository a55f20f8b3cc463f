"""System checks of the registered tasks: these import the tasks, and so run their modules.

They run where Django runs all its checks: with ``manage.py check``, ``runserver``, ``migrate``
and most commands. What can't be imported is a warning, so that ``migrate`` works all the same.
Celery 5.5 to 5.7 has Django check itself in each worker too, before that imports its tasks, and
throws the answer away: then the tasks are imported here, a moment earlier than there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from inspect import Parameter
from traceback import extract_tb
from typing import Any

from celery import Celery
from celery.app.task import Task
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import Promise
from django.utils.module_loading import import_string

from celery_admin_runner.attempts import Attempt
from celery_admin_runner.base import DjangoTask
from celery_admin_runner.calls import signature_of
from celery_admin_runner.commands import CommandTask
from celery_admin_runner.conf import SETTING, settings
from celery_admin_runner.registry import is_importing, is_internal, named_app, with_tasks
from celery_admin_runner.unique import stale_after

#: Called with each registered task; what it returns or yields is told by the checks.
TaskChecker = Callable[[Task], Any]


def register() -> None:
    """Have Django run these checks."""
    checks.register(check_task_checker)
    checks.register(check_tasks)


def check_task_checker(**kwargs: Any) -> list[checks.CheckMessage]:
    """E013: TASK_CHECKER names something that can be imported and called."""
    path = settings.TASK_CHECKER
    if not isinstance(path, str):
        return []
    attempt = Attempt()
    with attempt:
        checker = _imported(path)
    if attempt.error is not None:
        problem = f"can't be imported: {_told(attempt.error)}"
    elif callable(checker):
        return []
    else:
        problem = f"is {checker!r}, which can't be called"
    return [
        checks.Error(
            f"{SETTING}['TASK_CHECKER'], {path!r}, {problem}.",
            hint='Name the module and the function in it, as "shop.checks:check_task".',
            id="celery_admin_runner.E013",
        )
    ]


def check_tasks(**kwargs: Any) -> list[checks.CheckMessage]:
    """Check each registered task: W003, W004, E014, E015 and E017.

    One function, so that modules that can't be imported are tried once and not for each check.
    """
    if is_importing():
        # Celery has Django check itself before it imports tasks: not all are there yet.
        return []
    finding = Attempt()
    with finding:
        app = named_app()
    if finding.error is not None or not isinstance(app, Celery):
        # Other checks tell of that.
        return []
    tasks: Mapping[str, Task] = {}
    importing, registering = Attempt(), Attempt()
    with importing:
        with_tasks(app)
    with registering:
        # Also if not all could be imported: what is registered nevertheless.
        tasks = app.tasks
    own = [task for name, task in sorted(tasks.items()) if not is_internal(name)]
    checker = _checker()
    return [
        *_import_problems(importing.error),
        *_import_problems(registering.error),
        *(message for task in own for message in _limit_problems(task)),
        *(message for task in own for message in _sameness_problems(task)),
        *(message for task in own for message in _answers(checker, task)),
    ]


def _import_problems(error: Exception | None) -> Iterator[checks.CheckMessage]:
    """W004: the modules of the tasks can be imported."""
    if error is not None:
        yield checks.Warning(
            f"The tasks can't be imported: {_told(error)}.",
            hint="Mend that module: no worker starts with it, and nobody can run its tasks.",
            id="celery_admin_runner.W004",
        )


def _limit_problems(task: Task) -> Iterator[checks.CheckMessage]:
    """E015: of each unique task is known after how long its run no longer keeps others away."""
    if not (isinstance(task, DjangoTask) and task.unique):
        return
    try:
        stale_after(task)
    except ImproperlyConfigured as error:
        problem = str(error)
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"The stale limit of the unique task {task.name!r} can't be used: {error}."
    else:
        return
    yield checks.Error(
        problem,
        hint=(
            "Give the task stale_time_limit, or set "
            f"{SETTING}['UNIQUE_STALE_AFTER'] for all of them."
        ),
        obj=task.name,
        id="celery_admin_runner.E015",
    )


def _sameness_problems(task: Task) -> Iterator[checks.CheckMessage]:
    """E017: what unique_on of a task names are its parameters."""
    if not isinstance(task, DjangoTask) or task.unique_on is None:
        return
    if task.unique_key_generator is not None and not isinstance(task, CommandTask):
        # Then it says alone which calls are the same.
        return
    names = [task.unique_on] if isinstance(task.unique_on, str) else task.unique_on
    signature = signature_of(task)
    if signature.problem:
        # A command that can't be read, maybe because the database is still to be migrated.
        return
    known = [item.name for item in signature.parameters]
    takes_any = any(item.kind is Parameter.VAR_KEYWORD for item in signature.parameters)
    for name in names:
        if name not in known and not takes_any:
            yield checks.Error(
                f"unique_on of {task.name!r} names {name!r}, which is no parameter of it.",
                hint=f"Its parameters are {', '.join(known)}." if known else "It has none.",
                obj=task.name,
                id="celery_admin_runner.E017",
            )


def _checker() -> TaskChecker | None:
    """Return the project's checker; None if there is none that can be called (E013 says so)."""
    path = settings.TASK_CHECKER
    if not isinstance(path, str):
        return None
    attempt, checker = Attempt(), None
    with attempt:
        checker = _imported(path)
    return checker if callable(checker) else None


def _imported(path: str) -> Any:
    return import_string(path.replace(":", "."))


def _answers(checker: TaskChecker | None, task: Task) -> list[checks.CheckMessage]:
    """W003: what the project's TASK_CHECKER says of a task; E014: it fails."""
    found: list[checks.CheckMessage] = []
    attempt = Attempt()
    with attempt:
        for answer in _each(checker(task) if checker else None):
            found.append(_message(task, answer))
    if attempt.error is not None:
        failure = checks.Error(
            f"{SETTING}['TASK_CHECKER'] failed at the task {task.name!r}: {_told(attempt.error)}.",
            hint="It returns texts or Django's check messages about the task, or nothing.",
            obj=task.name,
            id="celery_admin_runner.E014",
        )
        found.append(failure)
    return found


def _each(answer: Any) -> Iterable[Any]:
    """Return what a checker says one by one; a single text or message is one."""
    if answer is None:
        return ()
    return (answer,) if isinstance(answer, str | Promise | checks.CheckMessage) else answer


def _message(task: Task, answer: Any) -> checks.CheckMessage:
    """Return what a checker says as a message about the task; raises TypeError."""
    if isinstance(answer, checks.CheckMessage):
        message = copy(answer)
        message.obj = task.name if answer.obj is None else answer.obj
        return message
    if isinstance(answer, str | Promise):
        return checks.Warning(
            str(answer),
            hint=f"So says {settings.TASK_CHECKER}.",
            obj=task.name,
            id="celery_admin_runner.W003",
        )
    raise TypeError(f"{answer!r} is neither a text nor a check message")


def _told(error: Exception) -> str:
    """Return an error in a line, with the place in the code where it was raised."""
    # Python's own import machinery is "<frozen importlib>".
    places = [place for place in extract_tb(error.__traceback__) if place.filename[:1] != "<"]
    where = f" ({places[-1].filename}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {error}{where}"
