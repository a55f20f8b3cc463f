"""A periodic task of django-celery-beat, as what it asks for when it is run by hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from json import JSONDecodeError
from typing import Any, Protocol

from django.utils.translation import gettext as _
from kombu.utils.json import loads

from celery_admin_runner.encoding import storable_text
from celery_admin_runner.exceptions import InvalidArguments
from celery_admin_runner.headers import PERIODIC_HEADER, without_ours
from celery_admin_runner.options import moment_of

#: The fields that go as they are, if they are given.
_ROUTING = ("queue", "exchange", "routing_key", "priority")
#: What kombu's JSON raises for a value that is marked as of a type, and is not.
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
#: What each field with JSON must hold, and how that is called.
_SHAPES = {"args": list, "kwargs": dict, "headers": dict}


class PeriodicTask(Protocol):
    """What is read of a ``django_celery_beat.models.PeriodicTask``: its rows are such."""

    name: str
    task: str
    args: str
    kwargs: str
    queue: str | None
    exchange: str | None
    routing_key: str | None
    priority: int | None
    headers: str | None

    @property
    def expires_(self) -> datetime | int | None:
        """Its ``expires``, else its ``expire_seconds``."""


@dataclass(frozen=True, kw_only=True)
class PeriodicCall:
    """What beat sends for a periodic task."""

    name: str
    task_name: str
    args: list[Any]
    kwargs: dict[str, Any]
    #: Without those that are empty; of the headers only the task's own.
    options: dict[str, Any]


def read_periodic_task(periodic_task: PeriodicTask, now: datetime) -> PeriodicCall:
    """Return what django-celery-beat 2.9 (``ModelEntry``) sends for a periodic task.

    Raises InvalidArguments, by field, for what is no JSON or of another shape, and for a
    moment to expire that has passed.
    """
    problems: dict[str, list[str]] = {}
    read: dict[str, Any] = {}
    for field, shape in _SHAPES.items():
        try:
            read[field] = _json(getattr(periodic_task, field), shape)
        except ValueError as error:
            problems[field] = [storable_text(str(error))]
    options = {name: getattr(periodic_task, name) for name in _ROUTING}
    options = {name: value for name, value in options.items() if value not in (None, "")}
    if expires := periodic_task.expires_:
        options["expires"] = expires
        due = moment_of(expires, now)
        if due is not None and due <= now:
            problems["expires"] = [_("It has expired: a run would not start any more.")]
    if problems:
        raise InvalidArguments(problems)
    headers = without_ours(read["headers"])
    headers.pop(PERIODIC_HEADER, None)
    if headers:
        options["headers"] = headers
    return PeriodicCall(
        name=periodic_task.name,
        task_name=periodic_task.task,
        args=read["args"],
        kwargs=read["kwargs"],
        options=options,
    )


def _json(text: str | None, shape: type) -> Any:
    """Return what a text of JSON holds, an empty one what is empty; raises ValueError."""
    try:
        value = loads(text or ("[]" if shape is list else "{}"))
    except JSONDecodeError as error:
        raise ValueError(_("This is no valid JSON: %(error)s") % {"error": error}) from error
    except UNREADABLE as error:
        # Such an error may quote the value, which may be a secret.
        raise ValueError(
            _("This is no valid JSON: %(error)s") % {"error": type(error).__name__}
        ) from error
    if not isinstance(value, shape):
        raise ValueError(
            _("This must be a JSON list.") if shape is list else _("This must be a JSON object.")
        )
    return value
