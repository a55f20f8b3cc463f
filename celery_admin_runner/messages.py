"""What a message carries for us: the headers that mark a run, and its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.db import router
from django.utils import timezone

from celery_admin_runner.contexts import PlainContext
from celery_admin_runner.encoding import from_plain
from celery_admin_runner.headers import (
    CONTEXT_HEADER,
    KEY_HEADER,
    MASKED_ARGS_HEADER,
    MASKED_KWARGS_HEADER,
    OF_THE_RUN,
    PERIODIC_HEADER,
    ROW_HEADER,
    RUN_HEADER,
)
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import has_mask, masked

#: The context of a run of which nobody said anything.
_NOBODY = PlainContext()


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a message tells of the run's row."""

    pk: int
    #: The primary key of its user as text; "" for none.
    run_by: str
    run_by_name: str


def row_header(run: TaskRunRecord) -> list[Any]:
    """Return the value of ROW_HEADER for a run."""
    run_by = "" if run.run_by_id is None else str(run.run_by_id)
    return [run.pk, run_by, run.run_by_name]


def row_of(headers: Mapping[str, Any] | None) -> Row | None:
    """Return what the headers tell of the run's row; None for headers of an earlier version."""
    value = (headers or {}).get(ROW_HEADER)
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    pk, run_by, run_by_name = value
    return Row(pk=pk, run_by=run_by, run_by_name=run_by_name)


@dataclass(frozen=True, kw_only=True)
class Message:
    """What is sent for a run."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    #: Texts for Celery to show in place of the arguments; "" lets Celery make them.
    argsrepr: str = ""
    kwargsrepr: str = ""
    #: The options with their secrets; None: those of the row, which has none.
    options: Mapping[str, Any] | None = None

    @property
    def has_secrets(self) -> bool:
        """Tell whether something in it must not be shown."""
        return bool(self.argsrepr or self.kwargsrepr) or has_mask(masked(self.options or {}))

    def headers(self, run: TaskRunRecord) -> dict[str, Any]:
        """Return the message headers that are ours."""
        headers: dict[str, Any] = {RUN_HEADER: run.task_id, ROW_HEADER: row_header(run)}
        if self.argsrepr or self.kwargsrepr:
            headers[MASKED_ARGS_HEADER] = self.argsrepr
            headers[MASKED_KWARGS_HEADER] = self.kwargsrepr
        context = _context_of(run)
        if context != _NOBODY:
            headers[CONTEXT_HEADER] = context.values
        if run.unique_key:
            headers[KEY_HEADER] = run.unique_key
        if run.periodic_task_name:
            headers[PERIODIC_HEADER] = run.periodic_task_name
        return headers


def _context_of(run: TaskRunRecord) -> PlainContext:
    """Return who asked for a run, about what and why, as its row tells."""
    model = ""
    if run.content_type_id is not None:
        kinds = ContentType.objects.db_manager(str(router.db_for_write(TaskRunRecord)))
        kind = kinds.get_for_id(run.content_type_id)
        model = f"{kind.app_label}.{kind.model}"
    return PlainContext(
        user_pk="" if run.run_by_id is None else str(run.run_by_id),
        user_name=run.run_by_name,
        model=model,
        object_id=run.object_id,
        label=run.label,
        reason=run.reason,
    )


def sent_options(run: TaskRunRecord, message: Message) -> dict[str, Any]:
    """Return the keywords of ``apply_async`` by which a recorded run is sent.

    All but its arguments, its id, and what belongs to who sends it: the producer, and how often
    it tries. Its ``eta`` has come: what is to start later is kept. It is a child of the run
    that started it, and not of a task that sends it for that one later.
    """
    is_kept = message.options is None
    plain = run.options if message.options is None else message.options
    options: dict[str, Any] = {
        "argsrepr": message.argsrepr or None,
        "kwargsrepr": message.kwargsrepr or None,
        "parent_id": run.parent_id or None,
        "root_id": run.root_id or run.task_id,
        "add_to_parent": not is_kept,
        **from_plain(plain),
        **from_plain(run.canvas or {}),
    }
    given = {
        name: value
        for name, value in (options.get("headers") or {}).items()
        # A row tells nothing by a header that its caller may have made up.
        if name not in OF_THE_RUN
    }
    options["headers"] = {**given, **message.headers(run)}
    # None would take away the expires that the task itself has.
    if run.expires_at is not None:
        options["expires"] = _aware(run.expires_at)
    return options


def kept_message(run: TaskRunRecord) -> Message:
    """Return the message of a run as the database keeps it; only for runs without secrets."""
    return Message(args=from_plain(run.args), kwargs=from_plain(run.kwargs))


def _aware(moment: datetime) -> datetime:
    """Return a moment with its time zone: Celery takes those without one for UTC."""
    if timezone.is_aware(moment):
        return moment
    return timezone.make_aware(moment, timezone.get_default_timezone())
