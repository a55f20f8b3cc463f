"""Unique tasks: which calls are the same, and who of them runs.

The row of a run holds its ``active_key``, which no two rows can have, until it ends.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

from celery.app.task import Task
from celery.utils.time import maybe_iso8601
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, connections, models, transaction
from django.utils import timezone
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext as _
from kombu.utils.json import dumps

from celery_admin_runner.base import NOTHING_OWN, DjangoTask, OwnOptions
from celery_admin_runner.conf import settings
from celery_admin_runner.encoding import storable_text
from celery_admin_runner.exceptions import CeleryAdminRunnerError, NotEncodable
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import KEPT
from celery_admin_runner.wire import revealed, to_wire

#: So often a key is tried for that was free again each time somebody looked who had it.
TRIES = 5
#: The longest part of a task's name in a key, so that people can tell what it is.
_NAME_MAX_LENGTH = 150
#: What a holder was last heard of by: if one of these changes, it is not stale.
_SINCE = ("created_at", "eta", "due_at", "claimed_at", "published_at")
#: What stands for options, and for defaults, where there are none.
_NOTHING: Mapping[str, Any] = MappingProxyType({})

Inserted = TypeVar("Inserted")


class KeyTaken(CeleryAdminRunnerError):
    """The same call is active already; ``holder`` is its run."""

    def __init__(self, holder: TaskRunRecord) -> None:
        super().__init__(f"The same call is active already: run {holder.task_id}.")
        self.holder = holder


def is_unique(task: Task, own: OwnOptions | None = None) -> bool:
    """Tell whether of several calls that are the same one runs."""
    if not isinstance(task, DjangoTask):
        return False
    given = None if own is None else own.unique
    return bool(task.unique if given is None else given)


def key_of(task: DjangoTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return what calls that are the same have in common.

    The arguments are in it as a keyed hash only: nobody reads a secret out of it. Raises
    TypeError, as Celery does, for arguments that the task does not take, NotEncodable for
    those that make no key, and ImproperlyConfigured for a ``unique_on`` that names no parameter.
    """
    check = getattr(task, "__header__", None) if task.typing else None
    if check is not None:
        check(*args, **kwargs)
    if task.unique_key_generator is not None:
        text = _generated(task, args, kwargs)
    else:
        text = dumps(_values(task, args, kwargs), sort_keys=True)
    digest = salted_hmac(task.name, text, algorithm="sha256").hexdigest()
    return f"{storable_text(task.name)[:_NAME_MAX_LENGTH]}:{digest}"


def _generated(task: DjangoTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the text that the task's own generator makes of a call."""
    generator: Any = task.unique_key_generator
    # A function becomes a method of the task it is given to, and gets the task by that.
    is_bound = getattr(generator, "__self__", None) == task
    given = (task.name, tuple(args), dict(kwargs))
    text = generator(*given) if is_bound else generator(task, *given)
    if not isinstance(text, str):
        raise TypeError(
            f"The unique_key_generator of {task.name} returned {type(text).__name__}: a key is a "
            "text."
        )
    return text


def _values(
    task: DjangoTask, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """Return the arguments by parameter, also those that are not given, as they travel."""
    values, defaults = _bound(task, args, kwargs)
    return [
        (name, tree)
        for name, value in sorted(_chosen(task, values).items())
        for tree in _wire(task, name, value, is_default=_is_default(value, defaults, name))
    ]


def _bound(
    task: DjangoTask, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return what each parameter gets, and the defaults of those that have one."""
    signature, defaults = _signature(task)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        # Celery lets it pass (``typing=False``), and the worker will say so.
        return {"args": list(args), "kwargs": dict(kwargs)}, _NOTHING
    bound.apply_defaults()
    return dict(bound.arguments), defaults


@cache
def _signature(task: DjangoTask) -> tuple[inspect.Signature, Mapping[str, Any]]:
    signature = inspect.signature(task.run)
    parameters = signature.parameters.values()
    return signature, {
        item.name: item.default for item in parameters if item.default is not item.empty
    }


def _chosen(task: DjangoTask, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that count: those of ``unique_on``, if it is given."""
    if task.unique_on is None:
        return values
    names = [task.unique_on] if isinstance(task.unique_on, str) else task.unique_on
    signature, _defaults = _signature(task)
    others = [
        values.get(item.name) or {}
        for item in signature.parameters.values()
        if item.kind is item.VAR_KEYWORD
    ]
    known = {**(others[0] if others else {}), **values}
    if unknown := [name for name in names if name not in known and not others]:
        raise ImproperlyConfigured(
            f"unique_on of {task.name} names what is no parameter: {', '.join(unknown)}."
        )
    return {name: known.get(name) for name in names}


def _is_default(value: Any, defaults: Mapping[str, Any], name: str) -> bool:
    return name in defaults and value is defaults[name]


def _wire(task: DjangoTask, name: str, value: Any, *, is_default: bool) -> list[Any]:
    """Return, in a list, a value as it travels; none for a default that could not travel."""
    try:
        return [revealed(to_wire(_without_objects(value), only_held=True))]
    except NotEncodable as error:
        if is_default:
            return []
        text = _(
            "The argument “%(name)s” of %(task)s can't tell whether two calls are the same: "
            "%(error)s Name those that can in unique_on, or give a unique_key_generator."
        )
        raise NotEncodable(text % {"name": name, "task": task.name, "error": error}) from error


def _without_objects(value: Any) -> Any:
    """Return a value with the primary keys of the objects in it, which no JSON can hold."""
    if isinstance(value, models.Model):
        model = value._meta.concrete_model or type(value)
        return [model._meta.label_lower, value.pk]
    if type(value) in {list, tuple, set, frozenset}:
        return [_without_objects(item) for item in value] if _has_object(value) else value
    if type(value) is dict:
        return {key: _without_objects(item) for key, item in value.items()}
    return value


def _has_object(values: Any) -> bool:
    return any(isinstance(value, models.Model | list | tuple | dict) for value in values)


def stale_after(
    task: DjangoTask, own: OwnOptions = NOTHING_OWN, options: Mapping[str, Any] = _NOTHING
) -> timedelta:
    """Return after how long a unique run no longer keeps others from running.

    That of the call, of the task, or UNIQUE_STALE_AFTER; else no run of this call, nor one of
    the task by itself, can last longer, by its hard time limit, its wait in a queue and its
    retries, of which a TaskQueue may tell too. Raises ImproperlyConfigured, which says what is
    missing, if nothing tells.
    """
    for given in (own.stale_time_limit, task.stale_time_limit, settings.UNIQUE_STALE_AFTER):
        if given is not None:
            return given if isinstance(given, timedelta) else timedelta(seconds=given)
    longest, missing = _longest(task, options)
    if longest is None:
        raise ImproperlyConfigured(
            f"The unique task {task.name} has no stale_time_limit, UNIQUE_STALE_AFTER is not "
            "set, and how long its runs can last is not known: for that it lacks "
            f"{', '.join(missing)}."
        )
    # The run that has the key may last longer than this call lets its own: who may choose an
    # ``expires``, or a queue, is not to take the key away by that.
    usual, _missing = _longest(task, {})
    return longest if usual is None else max(longest, usual)


def _longest(task: DjangoTask, options: Mapping[str, Any]) -> tuple[timedelta | None, list[str]]:
    """Return how long a run with these options can last; None: not known for want of these."""
    routed = dict(options)
    task.route(routed)
    limit = _option(task, routed, "time_limit", task.app.conf.task_time_limit)
    wait = _seconds(_option(task, routed, "expires"))
    needed = {"time_limit": limit, "expires": wait, "max_retries": task.max_retries}
    missing = [name for name, value in needed.items() if value is None]
    if missing or limit is None or wait is None or task.max_retries is None:
        return None, missing
    attempts = 1 + task.max_retries
    return timedelta(seconds=wait + attempts * limit + _delays(task)), []


def _option(task: DjangoTask, options: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return an option of a call; None there takes away what the task has."""
    if name in options:
        return options[name]
    value = getattr(task, name, None)
    return default if value is None else value


def _seconds(expires: Any) -> float | None:
    """Return for how long a message may wait, by what Celery takes as ``expires``."""
    if expires is None or isinstance(expires, int | float):
        return expires
    moment = maybe_iso8601(expires)
    aware = moment if timezone.is_aware(moment) else timezone.make_aware(moment)
    now = datetime.now(aware.tzinfo)
    return max((aware - now).total_seconds(), 0.0)


def _delays(task: DjangoTask) -> float:
    """Return how many seconds the pauses before all of a task's retries can last together."""
    number = task.max_retries or 0
    own = task.default_retry_delays
    if own:
        delays = [own[min(index, len(own) - 1)] for index in range(number)]
        return sum(
            delay.total_seconds() if isinstance(delay, timedelta) else delay for delay in delays
        )
    longest = task.default_retry_delay or 0
    if getattr(task, "retry_backoff", False):
        longest = max(longest, getattr(task, "retry_backoff_max", 600) or 0)
    return float(number * longest)


def holder_of(key: str, using: str) -> TaskRunRecord | None:
    """Return the run that holds a key."""
    return TaskRunRecord.objects.using(using).filter(active_key=key).first()


def take(
    key: str,
    insert: Callable[[], Inserted],
    *,
    limit: timedelta,
    now: datetime,
    using: str,
    task_id: str = "",
) -> Inserted:
    """Write the row that is to hold a key, by ``insert``; raises KeyTaken.

    ``task_id``: of the run that may have the key already. An error of ``insert`` that has
    nothing to do with the key is raised as it is, and leaves the caller's transaction, if there
    is one, as it was.
    """
    wrapper = connections[using]
    if wrapper.features.has_select_for_update or not wrapper.in_atomic_block:
        # Who inserts in vain keeps the key's row locked on MariaDB while its transaction lasts,
        # and fills the server's log. In a transaction on SQLite who has only read before may
        # not write any more.
        check_free(key, task_id, limit, now, using)
    for tries_left in reversed(range(TRIES)):
        try:
            return _guarded(insert, using)
        except IntegrityError:
            check_free(key, task_id, limit, now, using)
            if not tries_left:
                raise
    raise AssertionError("unreachable")


def _guarded(insert: Callable[[], Inserted], using: str) -> Inserted:
    if not connections[using].in_atomic_block:
        return insert()
    with transaction.atomic(using=using):
        return insert()


def check_free(key: str, task_id: str, limit: timedelta, now: datetime, using: str) -> None:
    """Raise KeyTaken if another run has a key, and has not had it for too long."""
    holder = holder_of(key, using)
    is_taken = holder is not None and holder.task_id != task_id
    if holder is not None and is_taken and not release_stale(holder, limit, now, using):
        raise KeyTaken(holder)


def is_taken(run: TaskRunRecord, limit: timedelta, now: datetime, using: str) -> bool:
    """Tell whether another run has the key that a run would take."""
    holder = holder_of(run.unique_key, using)
    return holder is not None and holder.pk != run.pk and not is_stale(holder, limit, now)


def is_stale(holder: TaskRunRecord, limit: timedelta, now: datetime) -> bool:
    """Tell whether a run has had its key for too long.

    What is kept in the database until it may start is not stale, however long that is.
    """
    if holder.state in KEPT and holder.claimed_at is None:
        return False
    moments: list[datetime | None] = [getattr(holder, name) for name in _SINCE]
    return now - max(moment for moment in moments if moment is not None) > limit


def release_stale(holder: TaskRunRecord, limit: timedelta, now: datetime, using: str) -> bool:
    """Take the key from a run that has had it for too long; whether it has it no more.

    Its state stays as it is: nobody knows what became of it.
    """
    if not is_stale(holder, limit, now):
        return False
    seen = {name: getattr(holder, name) for name in _SINCE}
    rows = TaskRunRecord.objects.using(using).filter(pk=holder.pk, active_key=holder.active_key)
    rows.filter(**seen).update(active_key=None)
    return True
