"""Unique tasks: which calls are the same, and who of them runs.

The row of a run holds its ``active_key``, which no two rows can have, until it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError
from django.utils.crypto import salted_hmac
from kombu.utils.json import dumps

from celery_admin_runner.base import DjangoTask, OwnOptions
from celery_admin_runner.binding import bind
from celery_admin_runner.calls import signature_of
from celery_admin_runner.conf import settings
from celery_admin_runner.exceptions import CeleryAdminRunnerError
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import KEPT

#: So often a key is tried for that was free again each time somebody looked who had it.
TRIES = 5
#: The longest part of a task's name in a key, so that people can tell what it is.
_NAME_MAX_LENGTH = 150

Inserted = TypeVar("Inserted")


class KeyTaken(CeleryAdminRunnerError):
    """The same call is active already; ``holder`` is its run."""

    def __init__(self, holder: TaskRunRecord) -> None:
        super().__init__(f"The same call is active already: run {holder.task_id}.")
        self.holder = holder


def key_of(task: DjangoTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return what calls that are the same have in common.

    The arguments are in it as a keyed hash only: nobody reads a secret out of it.
    """
    if task.unique_key_generator is not None:
        values: Any = task.unique_key_generator(task.name, args, kwargs)
    else:
        values = _values(task, args, kwargs)
    digest = salted_hmac(task.name, dumps(values), algorithm="sha256").hexdigest()
    return f"{task.name[:_NAME_MAX_LENGTH]}:{digest}"


def _values(
    task: DjangoTask, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """Return the arguments by parameter, those that are not given too."""
    signature = signature_of(task)
    given = bind(signature, args, kwargs).by_name()
    defaults = {
        parameter.name: parameter.default
        for parameter in signature.parameters
        if parameter.has_known_default
    }
    values = {**defaults, **given}
    names = values.keys() if task.unique_on is None else task.unique_on
    return sorted((name, values[name]) for name in names)


def stale_after(
    task: DjangoTask, own: OwnOptions, options: Mapping[str, Any]
) -> timedelta:
    """Return after how long a unique run no longer keeps others from running.

    Raises ImproperlyConfigured, which says what is missing, if nothing tells.
    """
    for given in (own.stale_time_limit, task.stale_time_limit, settings.UNIQUE_STALE_AFTER):
        if given is not None:
            return given if isinstance(given, timedelta) else timedelta(seconds=given)
    raise ImproperlyConfigured(f"The unique task {task.name} needs stale_time_limit.")


def holder_of(key: str, using: str) -> TaskRunRecord | None:
    """Return the run that holds a key."""
    return TaskRunRecord.objects.using(using).filter(active_key=key).first()


def take(
    key: str, insert: Callable[[], Inserted], *, limit: timedelta, now: datetime, using: str
) -> Inserted:
    """Write the row that is to hold a key, by ``insert``; raises KeyTaken.

    An error of ``insert`` that has nothing to do with the key is raised as it is.
    """
    for attempt in range(TRIES):
        try:
            return insert()
        except IntegrityError:
            holder = holder_of(key, using)
            if holder is not None and not release_stale(holder, limit, now, using):
                raise KeyTaken(holder) from None
            if attempt == TRIES - 1:
                raise
    raise AssertionError("unreachable")


def release_stale(holder: TaskRunRecord, limit: timedelta, now: datetime, using: str) -> bool:
    """Take the key from a run that has had it for too long; whether it has it no more."""
    if holder.state in KEPT:
        return False
    moments = (holder.created_at, holder.eta, holder.published_at)
    since = max(moment for moment in moments if moment is not None)
    if now - since <= limit:
        return False
    rows = TaskRunRecord.objects.using(using).filter(pk=holder.pk, active_key=holder.active_key)
    rows.update(active_key=None)
    return True
