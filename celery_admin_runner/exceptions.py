"""Every error of the package. The first line of a docstring is the message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from celery.exceptions import Ignore

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

    @property
    def lines(self) -> list[str]:
        """What is wrong as a user reads it, a line a parameter."""
        return [
            " ".join(texts) if name == ALL else f"{name}: {' '.join(texts)}"
            for name, texts in self.errors.items()
        ]


class NotEncodable(CeleryAdminRunnerError, ValueError):
    """A value can't be sent or stored; the message says why."""


class NotSendable(CeleryAdminRunnerError):
    """The run can't be sent again; the message says why."""


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
