"""The figures of tasks, over the runs that one user may see."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from celery_admin_runner.figures import Figures, figures_of
from celery_admin_runner.querysets import TaskRunRecordQuerySet

#: How far back runs and failures count.
WINDOW = timedelta(days=7)


class TaskFigures:
    """Figures by the name of the task, asked for when they are needed, and once."""

    def __init__(self, runs: TaskRunRecordQuerySet, *, now: datetime) -> None:
        """Take the runs that count, which are those that the user may see."""
        self._runs = runs
        self._since = now - WINDOW
        self._known: dict[str, Figures] = {}

    def load(self, task_names: Iterable[str]) -> None:
        """Ask for the figures of these tasks, as far as they are not known."""
        missing = [name for name in task_names if name not in self._known]
        if missing:
            found = figures_of(missing, self._runs, since=self._since)
            self._known |= {name: found.get(name, Figures()) for name in missing}

    def of(self, task_name: str) -> Figures:
        """Return the figures of a task; empty ones if they were not loaded."""
        return self._known.get(task_name, Figures())
