"""What an actor asks for when calls of a task are to become runs: their rows, their messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from typing import Any
from uuid import uuid4

from celery.app.task import Task
from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import gettext as _

from celery_admin_runner import ignoring
from celery_admin_runner.calls import Call
from celery_admin_runner.exceptions import ALL, InvalidArguments, NotEncodable
from celery_admin_runner.messages import Message
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.object_tasks import ModelTask
from celery_admin_runner.options import moment_of, stored_options
from celery_admin_runner.publishing import due
from celery_admin_runner.redaction import has_mask
from celery_admin_runner.registry import TaskInfo
from celery_admin_runner.sameness import Sameness, sameness_of
from celery_admin_runner.scheduling import kept_fields

#: A call as ``TaskRunner.run_many`` takes it: ``(args, kwargs)``, or only named arguments.
CallGiven = tuple[Sequence[Any], Mapping[str, Any]] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked for but for the arguments: of many calls the same."""

    info: TaskInfo
    task: Task
    now: datetime
    #: The options as they were given, and as plain JSON.
    options: Mapping[str, Any]
    plain: dict[str, Any]
    eta: datetime | None
    depends_on: Sequence[TaskRunRecord]
    #: More fields of the rows.
    fields: Mapping[str, Any]

    @property
    def is_plain(self) -> bool:
        """Tell whether its calls are about no objects of their own."""
        return not isinstance(self.task, ModelTask)

    @cached_property
    def _kept(self) -> dict[str, Any]:
        """The fields of what may not start yet; {} where it is sent at once."""
        return kept_fields(self.eta, self.depends_on, self.now)

    @cached_property
    def _common(self) -> dict[str, Any]:
        """The fields that all rows have in common.

        What is sent at once is already claimed by us: nobody else sends it meanwhile.
        """
        options = self.options
        expires_at = (
            due(self.task.expires, self.now)
            if options.get("expires") is None
            else moment_of(options["expires"], self.now)
        )
        return {
            "task_name": self.info.name,
            "options": stored_options(self.plain),
            "queue": options.get("queue") or self.info.queue,
            "eta": self.eta,
            "expires_at": expires_at,
            "created_at": self.now,
            **(self._kept or {"dispatch_id": uuid4(), "claimed_at": self.now}),
            **self.fields,
        }

    def row(self, call: Call, same: Sameness, success: TaskRunRecord | None) -> TaskRunRecord:
        """Return the row of a call, not saved yet; raises InvalidArguments.

        ``success``: of the run since which it is ignored, if it is.
        """
        self.refuse_kept_secrets(call)
        fate: dict[str, Any] = {}
        if success is not None:
            fate = ignoring.ignored_fields(success, self.now)
            fate |= dict.fromkeys(("dispatch_id", "claimed_at", "due_at"))
        values: dict[str, Any] = {
            **_blank(),
            **self._common,
            "task_id": str(uuid4()),
            "args": call.stored_args,
            "kwargs": call.stored_kwargs,
            **same.fields,
            **fate,
        }
        # In the order of the fields: Django takes twice as long for named ones.
        row: Any = TaskRunRecord
        run: TaskRunRecord = row(*values.values())
        return run

    def refuse_kept_secrets(self, call: Call) -> None:
        """Raise InvalidArguments if a secret would have to be kept."""
        if self._kept and (call.has_secrets or has_mask(self._common["options"])):
            text = _("A secret can't be kept until later: run this task now.")
            raise InvalidArguments({ALL: [text]})

    def message(self, call: Call) -> Message:
        """Return the message of a call."""
        return Message(
            args=call.args,
            kwargs=call.kwargs,
            argsrepr=call.argsrepr,
            kwargsrepr=call.kwargsrepr,
            options=self.plain,
        )


@cache
def _blank() -> Mapping[str, Any]:
    """Return what the fields of a row hold by default, in their order."""
    run = TaskRunRecord()
    return {field.attname: getattr(run, field.attname) for field in run._meta.concrete_fields}


#: A call, what it has to do with calls that are the same, and the run since whose success it
#: is ignored.
CheckedCall = tuple[Call, Sameness, TaskRunRecord | None]


def siblings(order: Order, call: Call, *, using: str) -> tuple[Sameness, TaskRunRecord | None]:
    """Return what a call has to do with calls that are the same; raises InvalidArguments.

    And the run since whose success it is ignored, if it is.
    """
    try:
        same = sameness_of(order.task, call.args, call.kwargs, order.plain)
    except (ImproperlyConfigured, NotEncodable) as error:
        raise InvalidArguments({ALL: [str(error)]}) from error
    if not same.is_ignoring:
        return same, None
    return same, ignoring.open_window(same.key, order.now, using)


def pairs_of(calls: Iterable[CallGiven]) -> Iterator[tuple[Sequence[Any], Mapping[str, Any]]]:
    """Yield the arguments of each call, and its named ones; raises TypeError for what is none."""
    if isinstance(calls, Mapping | str | bytes):
        raise TypeError(f"Give many calls, each (args, kwargs), and not one {_kind(calls)}.")
    for number, call in enumerate(calls):
        if isinstance(call, Mapping):
            yield (), call
        elif isinstance(call, tuple | list) and len(call) == 2 and _are_arguments(*call):
            yield call[0], call[1]
        else:
            raise TypeError(
                f"Call {number} is {_kind(call)}, and not (args, kwargs), a list and a mapping, "
                "nor a mapping of named arguments."
            )


def _are_arguments(args: Any, kwargs: Any) -> bool:
    is_list = isinstance(args, Sequence) and not isinstance(args, str | bytes)
    return is_list and isinstance(kwargs, Mapping)


def _kind(value: Any) -> str:
    """Return of what type a value is; of a pair, of what types its parts are."""
    if isinstance(value, tuple | list) and len(value) == 2:
        return f"({_kind(value[0])}, {_kind(value[1])})"
    return type(value).__name__
