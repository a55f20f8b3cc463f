"""What a call of a DjangoTask has to do with calls that are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from celery.app.task import Task

from celery_admin_runner import ignoring, unique
from celery_admin_runner.base import NOTHING_OWN, OwnOptions


@dataclass(frozen=True, kw_only=True)
class Sameness:
    """What a call has to do with calls that are the same."""

    #: "": nothing.
    key: str = ""
    #: After how long another run no longer keeps it from running; None: none does.
    limit: timedelta | None = None
    is_ignoring: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of its row."""
        return {"unique_key": self.key, "active_key": None if self.limit is None else self.key}


def sameness_of(
    task: Task,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    own: OwnOptions = NOTHING_OWN,
) -> Sameness:
    """Return what a call has to do with calls that are the same.

    Raises what ``unique.key_of`` and ``unique.stale_after`` raise; nothing is written by then.
    """
    is_unique, is_ignoring = unique.is_unique(task, own), ignoring.is_ignoring(task, own)
    if not is_unique and not is_ignoring:
        return Sameness()
    return Sameness(
        key=unique.key_of(task, args, kwargs),
        limit=unique.stale_after(task, own, options) if is_unique else None,
        is_ignoring=is_ignoring,
    )
