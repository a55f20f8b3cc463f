"""Queues of a project by name, each with the options that its tasks have by default."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
#: What every queue of this process that has a TaskQueue gives its tasks, by the queue's name: in
#: a chain, a form or a row there is nothing but the name.
_defaults: dict[str, Mapping[str, Any]] = {}


class TaskQueue(StrEnum):
    """The base of a project's list of queues: ``FAST = "fast", {"time_limit": 30}``.

    The options, which may be left out, are those of ``apply_async``: what is sent to the queue
    has them, unless the task or the call says otherwise. A member is the queue's name, a text.
    """

    options: Mapping[str, Any]

    def __new__(cls, name: str, options: Mapping[str, Any] = _NO_OPTIONS) -> TaskQueue:
        """Make a member; raises TypeError for options that are none."""
        if not isinstance(options, Mapping):
            raise TypeError(f"The options of the queue {name!r} are no mapping: {options!r}.")
        member = str.__new__(cls, name)
        member._value_ = name
        member.options = _defaults[name] = MappingProxyType(dict(options))
        return member


def default_options(queue: object) -> Mapping[str, Any]:
    """Return the options that a queue gives what is sent to it; {} for one without."""
    if isinstance(queue, TaskQueue):
        return queue.options
    return _defaults.get(queue, _NO_OPTIONS) if isinstance(queue, str) else _NO_OPTIONS
