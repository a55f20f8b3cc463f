"""The tasks that take an object, or a list of objects, as its pages offer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Model

from celery_admin_runner import unique
from celery_admin_runner.admin.sheets import Preview
from celery_admin_runner.attempts import Attempt
from celery_admin_runner.calls import signature_of, wire_of
from celery_admin_runner.encoding import readable_text, to_plain
from celery_admin_runner.exceptions import TaskNotFound
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.object_tasks import ModelTask
from celery_admin_runner.parameters import Parameter
from celery_admin_runner.registry import TaskInfo, get_task, get_task_info


@dataclass(frozen=True, kw_only=True)
class Active:
    """A run that is active about an object."""

    run: TaskRunRecord
    #: Whether it keeps a run away that is given nothing but the object.
    blocks: bool


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A task that can be run about an object, as a page offers it."""

    title: str
    #: Where it is asked for; "" while a run of it keeps others away.
    url: str
    #: The state of its active run, and where that is seen; "" if there is none, or it is hidden.
    active_label: str = ""
    active_url: str = ""


@dataclass(frozen=True, kw_only=True)
class OfferedTask:
    """A task that takes an object, or a list of objects, as its first argument."""

    info: TaskInfo
    title: str

    @property
    def name(self) -> str:
        """The name under which it is registered."""
        return self.info.name

    @property
    def parameter(self) -> str:
        """The name of its first parameter; "" if it has none."""
        return self.first.name if self._parameters else ""

    @property
    def first(self) -> Parameter:
        """Its first parameter; raises IndexError if it has none."""
        return self._parameters[0]

    @property
    def takes_more(self) -> bool:
        """Whether there is more to fill in than the first argument."""
        return len(self._parameters) > 1

    @property
    def needs_more(self) -> bool:
        """Whether more than the first argument has to be filled in."""
        return any(parameter.is_required for parameter in self._parameters[1:])

    @property
    def needs(self) -> list[str]:
        """The titles of the tasks that have to succeed before, on the same object."""
        task = get_task(self.name)
        return (
            [str(get_task(name).title) for name in task.needs]
            if isinstance(task, ModelTask)
            else []
        )

    def is_kept_away_by(self, run: TaskRunRecord, obj: Model, now: datetime) -> bool:
        """Tell whether a run with a key keeps one away that is given nothing but the object."""
        task = get_task(self.name)
        if self.needs_more or not unique.is_unique(task):
            return False
        attempt = Attempt()
        with attempt:
            # A unique_key_generator may raise anything; the runner says what is wrong.
            key = unique.key_of(task, [wire_of(self.first, obj)], {})
            limit = unique.stale_after(task)
            return run.active_key == key and not unique.is_stale(run, limit, now)
        return False

    @property
    def _parameters(self) -> Sequence[Parameter]:
        return signature_of(get_task(self.name)).parameters


def info_of(task_name: str) -> TaskInfo | None:
    """Return what is known of a task, or None if there is no such task."""
    try:
        return get_task_info(task_name)
    except TaskNotFound:
        return None


def preview_of(task: OfferedTask, args: Sequence[Any]) -> Preview:
    """Return what will be sent to a task."""
    return Preview(
        task_name=task.name,
        args=readable_text(to_plain(list(args)), indent=2),
        kwargs=readable_text({}, indent=2),
        options="",
        reason="",
    )
