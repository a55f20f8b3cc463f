"""The names of the message headers that are ours, and what they tell without a database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The message header that marks a run of ours; its value is the task id, so that
#: a copy of the headers on another message marks nothing.
RUN_HEADER = "celery_admin_runner_run"
#: The message header with what a worker must know of the run's row without asking for it:
#: ``[primary key, user's primary key as text or "", user's name]``.
ROW_HEADER = "celery_admin_runner_row"
#: The message headers with the masked texts of a call that holds a secret.
MASKED_ARGS_HEADER = "celery_admin_runner_args"
MASKED_KWARGS_HEADER = "celery_admin_runner_kwargs"
#: Who asked for the run, about what and why (``contexts.PlainContext.values``).
CONTEXT_HEADER = "celery_admin_runner_context"
#: For how many seconds calls are ignored after this run succeeds, where its caller said so; 0:
#: not at all.
IGNORE_HEADER = "celery_admin_runner_ignore"
#: In which database the object of a model task is, where the worker would look elsewhere.
DATABASE_HEADER = "celery_admin_runner_database"
#: What the calls that are the same as this one have in common (``unique_key`` of its row).
KEY_HEADER = "celery_admin_runner_key"
#: Each message of a run gets these anew, by its row.
OF_THE_RUN = frozenset(
    {
        *(RUN_HEADER, ROW_HEADER, MASKED_ARGS_HEADER, MASKED_KWARGS_HEADER),
        *(CONTEXT_HEADER, KEY_HEADER),
    }
)
#: What no caller gives: who passes on the headers of the run that calls, or may write those of a
#: periodic task, would say by them whose run it is, and about what.
_NOT_GIVEN = OF_THE_RUN | {IGNORE_HEADER}
#: By this header django-celery-beat 2.9 tells which entry of its schedule it sends; so do we
#: for a run of a periodic task that was started by hand.
PERIODIC_HEADER = "periodic_task_name"


def marks_run(headers: Mapping[str, Any] | None, task_id: str) -> bool:
    """Tell whether these message headers mark the run ``task_id`` as ours."""
    return bool(headers) and headers.get(RUN_HEADER) == task_id  # type: ignore[union-attr]


def without_ours(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that a caller gives without those that only we write."""
    return {name: value for name, value in headers.items() if name not in _NOT_GIVEN}
