"""Every error of the package. The first line of a docstring is the message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


class NotEncodable(CeleryAdminRunnerError, ValueError):
    """A value can't be sent or stored; the message says why."""


class NotSendable(CeleryAdminRunnerError):
    """The run can't be sent again; the message says why."""


class PruneError(CeleryAdminRunnerError):
    """Pruning was stopped before anything was deleted; the message says why."""
