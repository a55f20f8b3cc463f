"""Every error of the package. The first line of a docstring is the message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from celery.exceptions import Ignore
from django.utils.translation import gettext as _

if TYPE_CHECKING:
    from celery_admin_runner.models import TaskRunRecord

#: The key of ``InvalidArguments.errors`` for what belongs to no single parameter.
ALL = "__all__"


class CeleryAdminRunnerError(Exception):
    """Root of the package's errors."""


class TaskNotFound(CeleryAdminRunnerError):
    """No task of this name is registered."""

    def __init__(self, task_name: str) -> None:
        super().__init__(
            f"No task named {task_name!r} is registered. Check the name, and that the module "
            "of the task is imported (app.autodiscover_tasks)."
        )
        self.task_name = task_name


class CommandNotConfigured(TaskNotFound):
    """No task runs this command."""

    def __init__(self, command_name: str, *, exists: bool, close: Sequence[str] = ()) -> None:
        hint = "Check the name, and that its app is in INSTALLED_APPS."
        if close:
            hint = f"Did you mean {' or '.join(map(repr, close))}?"
        CeleryAdminRunnerError.__init__(
            self,
            f"The command {command_name!r} is no task: add {command_name!r}: {{}} to "
            "CELERY_ADMIN_RUNNER['COMMAND_TASKS']."
            if exists
            else f"There is no command {command_name!r}, so it can be no task. {hint}",
        )
        self.task_name = command_name


class TaskNotRunnable(CeleryAdminRunnerError):
    """The task exists, and RUNNABLE_TASKS does not allow to run it."""

    def __init__(self, task_name: str) -> None:
        super().__init__(
            f"The task {task_name!r} can't be run: CELERY_ADMIN_RUNNER['RUNNABLE_TASKS'] "
            "does not allow it, or it is one of Celery's own."
        )
        self.task_name = task_name


class InvalidArguments(CeleryAdminRunnerError):
    """The arguments do not fit the task.

    ``errors`` maps the name of a parameter, or ``"__all__"``, to its messages.
    """

    def __init__(self, errors: Mapping[str, Sequence[str]]) -> None:
        self.errors: dict[str, list[str]] = {name: list(texts) for name, texts in errors.items()}
        super().__init__(
            "; ".join(f"{name}: {' '.join(map(str, texts))}" for name, texts in errors.items())
        )

    @property
    def lines(self) -> list[str]:
        """What is wrong as a user reads it, a line a parameter."""
        return [
            " ".join(texts) if name == ALL else f"{name}: {' '.join(texts)}"
            for name, texts in self.errors.items()
        ]


class AlreadyActive(InvalidArguments):
    """The same call of a unique task is active already; ``run`` is its run.

    The message does not name it: who reads it may not see that run. ``call`` is which of many
    calls it is.
    """

    def __init__(self, run: TaskRunRecord, call: str = ALL) -> None:
        text = _("This task is active with the same arguments already, and runs only once.")
        super().__init__({call: [text]})
        self.run = run


class NotEncodable(CeleryAdminRunnerError, ValueError):
    """A value can't be sent or stored; the message says why."""


class NotSendable(CeleryAdminRunnerError):
    """The run can't be sent again; the message says why."""


class NotSent(CeleryAdminRunnerError):
    """There is nothing to wait for: the call was not sent; the message says why."""


class NotRetryable(CeleryAdminRunnerError):
    """The run can't be run again as it was; the message says why."""


class NotCancellable(CeleryAdminRunnerError):
    """The run can't be cancelled, or not in this way; the message says why."""


class NotMovable(CeleryAdminRunnerError):
    """The run's earliest start can't be changed any more, or not to this; the message says why."""


class CircularDependency(CeleryAdminRunnerError):
    """The run would wait for itself, if only through others; the message says so."""


class RunCancelled(CeleryAdminRunnerError, Ignore):  # type: ignore[misc]
    """The run was asked to stop, and does: Celery then neither stores a result nor tries again."""


class PruneError(CeleryAdminRunnerError):
    """Pruning was stopped before anything was deleted; the message says why."""


class BeatMisconfigured(CeleryAdminRunnerError):
    """Beat can't start with a lease, and never starts without; the message says why."""


class LeaseLost(CeleryAdminRunnerError):
    """The lease is no longer held: somebody else may act now."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The lease {name!r} is no longer held by this process.")
        self.name = name
