"""Journal what code and beat publish: the row first, then the message.

Only tasks that TRACK names; every other message pays one look-up. The row is written
once before the message goes and once after it went, each one statement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from threading import Event
from typing import Any
from uuid import uuid4

# What ``current_app.current_worker_task`` gives, without first looking for the app.
from celery._state import get_current_worker_task
from celery.app.task import Context, Task
from celery.utils.time import maybe_iso8601
from django.apps import apps
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.db import DatabaseError, IntegrityError, connections, router, transaction
from django.db.models import Model
from django.utils import timezone

from celery_admin_runner import insertion, statements
from celery_admin_runner.base import REPLACED
from celery_admin_runner.conf import settings
from celery_admin_runner.contexts import PlainContext
from celery_admin_runner.encoding import FORCED, storable_text, to_plain
from celery_admin_runner.exceptions import NotEncodable
from celery_admin_runner.headers import (
    CONTEXT_HEADER,
    MASKED_ARGS_HEADER,
    MASKED_KWARGS_HEADER,
    OF_THE_RUN,
    PERIODIC_HEADER,
    ROW_HEADER,
    RUN_HEADER,
    marks_run,
)
from celery_admin_runner.messages import row_header, row_of
from celery_admin_runner.models import NAME_MAX_LENGTH, Source, TaskRunRecord
from celery_admin_runner.options import OPTIONS, is_far
from celery_admin_runner.recording import database, journal, report
from celery_admin_runner.redaction import masked, scrubbed
from celery_admin_runner.registry import is_internal
from celery_admin_runner.storing import StoredCall, stored_call

#: Headers that Celery's own protocol gives a message, those aside that a request knows.
_PROTOCOL_HEADERS = {"lang", "task", "argsrepr", "kwargsrepr", "compression"}
_OWN_HEADERS = OF_THE_RUN | {PERIODIC_HEADER}

#: Set in a process of ``celery beat``: what it publishes stands in its schedule.
_beat = Event()
#: The task id of the run whose message is being published here.
_publishing: ContextVar[str] = ContextVar("celery_admin_runner_publishing", default="")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Inside which run something is started, and who started that one."""

    parent_id: str = ""
    root_id: str = ""
    #: The primary key of the user; None for nobody.
    run_by_id: str | None = None
    run_by_name: str = ""


def lineage() -> Lineage:
    """Return what a run that is started here and now inherits of the task it is started in."""
    task = get_current_worker_task()
    if task is None:
        return Lineage()
    request = task.request
    row = row_of(request.headers)
    return Lineage(
        parent_id=request.id or "",
        root_id=request.root_id or request.id or "",
        run_by_id=(row.run_by or None) if row else None,
        run_by_name=row.run_by_name if row else "",
    )


def learn_that_this_is_beat(**kwargs: Any) -> None:
    """Learn from Celery's signal that this process publishes a schedule."""
    _beat.set()


#: Inserts a row, and tells whether the database took it.
Inserter = Callable[[TaskRunRecord], bool]


def is_tracked_by_name(task_name: str) -> bool:
    """Tell whether TRACK names a task; Celery's own are never tracked."""
    patterns = settings.TRACK
    # A check refuses a text; letter by letter, the "*" in it would match every task.
    return bool(patterns) and _is_named(
        task_name, (patterns,) if isinstance(patterns, str) else tuple(patterns)
    )


@lru_cache(maxsize=1024)
def _is_named(task_name: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a pattern names a task that is no part of the machinery.

    Kept, as every message asks for it: of tasks there are few, and patterns seldom change.
    """
    is_named = any(fnmatchcase(task_name, pattern) for pattern in patterns)
    return is_named and not is_internal(task_name)


def may_concern(task_name: str, headers: Mapping[str, Any]) -> bool:
    """Tell, at once, whether a message that is about to be published may be one of a run.

    Not where no task runs, its headers have nothing of ours, and TRACK does not name its task.
    The headers that Celery 5.7 sends a retry with stand in those of its message, as ``headers``.
    """
    return (
        get_current_worker_task() is not None
        or RUN_HEADER in headers
        or ROW_HEADER in headers
        or "headers" in headers
        or is_tracked_by_name(task_name)
    )


def track(
    task_name: str,
    *,
    headers: dict[str, Any],
    body: Any,
    properties: Mapping[str, Any],
    exchange: str = "",
    routing_key: str = "",
    declare: Sequence[Any] | None = None,
) -> None:
    """Write the row of a message that is about to be published, and mark the message as ours.

    A message that is marked already is left alone: a TaskRunner sends it, or Celery
    sends the next attempt of a run. Never raises for want of a database.
    """
    task_id = headers.get("id")
    if task_id is None or marks_run(headers, task_id):
        return
    running = get_current_worker_task()
    if running is not None and _continues_run(running, headers, task_id):
        return
    if _beat.is_set():
        # Nobody starts what beat sends, whatever the headers of an entry, which people edit, say.
        headers.pop(ROW_HEADER, None)
    if not is_tracked_by_name(task_name):
        if running is not None:
            _pass_on_user(running, headers)
        return
    call = stored_call(task_name, body[0], body[1])
    queue = _queue(exchange, routing_key, declare)
    options = _options(headers, properties, queue, exchange, routing_key)
    secrets = frozenset(call.secrets)
    options = {name: scrubbed(value, secrets) for name, value in options.items()}
    run = _row(task_name, headers, call, options, queue)
    if report("the publish", task_id, lambda: insert(run)):
        headers.update(marks(run, call))
        _publishing.set(task_id)


def handed_over(headers: Mapping[str, Any]) -> None:
    """Move the run whose message was taken by the broker to PENDING, if no worker was faster."""
    task_id = headers.get("id") or ""
    if _publishing.get() != task_id or not task_id:
        return
    _publishing.set("")
    now = timezone.now()
    report("the handover", task_id, lambda: record_handover(task_id, now))


def record_handover(task_id: str, now: datetime) -> None:
    """Write that the broker took the message of a run, if no worker was faster."""
    using = database()
    with _harmless(using):
        statements.hand_over(task_id, now, using=using)


def _continues_run(running: Task, headers: dict[str, Any], task_id: str) -> bool:
    """Tell whether the message replaces the task that publishes it, and mark it then.

    Celery 5.7 (``Task.replace``) sends another task under the same id, and ends the
    first with Ignore.
    """
    request: Context = running.request
    if request.id != task_id or not marks_run(request.headers, task_id):
        return False
    setattr(request, REPLACED, True)
    headers.update({RUN_HEADER: task_id, ROW_HEADER: request.headers.get(ROW_HEADER)})
    if CONTEXT_HEADER in request.headers:
        headers.setdefault(CONTEXT_HEADER, request.headers[CONTEXT_HEADER])
    return True


def _pass_on_user(running: Task, headers: dict[str, Any]) -> None:
    """Let a run that a task starts which is no run itself still know who began it all.

    So it is with ``celery.chord_unlock``, which starts the body of a chord.
    """
    if row := (running.request.headers or {}).get(ROW_HEADER):
        headers.setdefault(ROW_HEADER, row)


def origin(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a new run that tell where it comes from, by its message's headers.

    Of these ``id`` is needed. ``parent_id`` and ``root_id`` come before those of the task that
    it is started in.
    """
    inherited = lineage()
    periodic = headers.get(PERIODIC_HEADER) or ""
    parent_id = headers.get("parent_id") or inherited.parent_id
    root_id = headers.get("root_id") or inherited.root_id
    is_periodic = bool(periodic) or (_beat.is_set() and not parent_id)
    return {
        "run_by_id": inherited.run_by_id,
        "run_by_name": inherited.run_by_name,
        "source": Source.PERIODIC if is_periodic else Source.CODE,
        "periodic_task_name": storable_text(str(periodic))[:255],
        "parent_id": parent_id,
        "root_id": root_id if parent_id or root_id != headers["id"] else "",
    }


def context_fields(context: PlainContext) -> dict[str, Any]:
    """Return the fields of a new run that tell who asked for it, about what and why.

    A model that this site does not have, and a user that can't be one of its own, is left out.
    """
    fields: dict[str, Any] = {
        "label": storable_text(context.label)[:255],
        "reason": storable_text(context.reason),
    }
    if context.user_pk:
        with suppress(ValidationError):
            fields["run_by_id"] = get_user_model()._meta.pk.to_python(context.user_pk)
        fields["run_by_name"] = storable_text(context.user_name)[:NAME_MAX_LENGTH]
    model = _model_named(context.model)
    if model is not None:
        kinds = ContentType.objects.db_manager(str(router.db_for_write(TaskRunRecord)))
        fields["content_type_id"] = kinds.get_for_model(model).pk
        fields["object_id"] = context.object_id
    return fields


def _model_named(name: str) -> type[Model] | None:
    """Return the model ``"app_label.modelname"``; None if this site has none."""
    try:
        return apps.get_model(name) if name else None
    except (LookupError, ValueError):
        return None


def _row(
    task_name: str,
    headers: Mapping[str, Any],
    call: StoredCall,
    options: dict[str, Any],
    queue: str,
) -> TaskRunRecord:
    """Return the row of a message, not saved yet."""
    now = timezone.now()
    return TaskRunRecord(
        task_id=headers["id"],
        task_name=storable_text(task_name)[:NAME_MAX_LENGTH],
        args=call.args,
        kwargs=call.kwargs,
        options=options,
        queue=queue[:255],
        **origin(headers),
        created_at=now,
        eta=moment(headers.get("eta")),
        expires_at=moment(headers.get("expires")),
        # Nobody sends it again meanwhile.
        dispatch_id=uuid4(),
        claimed_at=now,
    )


def insert(run: TaskRunRecord, inserted: Inserter | None = None) -> bool:
    """Insert a row, beside the transaction that its publisher may be in; False: it is refused.

    ``inserted`` does it, and tells whether the database took it. The publisher may have locked
    its user there, for which the row, on a connection of its own, would wait in vain: the row
    gets its user when that transaction is committed.
    """
    alias = str(router.db_for_write(TaskRunRecord))
    user = run.run_by_id
    if user is None or database() == alias or not connections[alias].in_atomic_block:
        return _insert(run, inserted or _inserted)
    run.run_by_id = None
    is_recorded = _insert(run, inserted or _inserted)
    run.run_by_id = user
    transaction.on_commit(partial(_add_user, run), using=alias, robust=True)
    return is_recorded


def _add_user(run: TaskRunRecord) -> None:
    runs = journal().filter(task_id=run.task_id, run_by=None)
    report("the user", run.task_id, lambda: runs.update(run_by_id=run.run_by_id))


def _insert(run: TaskRunRecord, inserted: Inserter) -> bool:
    """Insert a row; False where the database refuses it, and it is not there either.

    Its user may be in a transaction that this connection can't see: the run is recorded
    without then. Or the same id was published before: that row stays, and tells of both.
    """
    if inserted(run):
        return True
    known = journal().filter(task_id=run.task_id).only("pk", "run_by", "run_by_name").first()
    if known is not None:
        run.pk, run.run_by_id, run.run_by_name = known.pk, known.run_by_id, known.run_by_name
        return True
    run.run_by_id = None
    return inserted(run)


def _inserted(run: TaskRunRecord) -> bool:
    using = database()
    try:
        with _harmless(using):
            insertion.insert([run], using=using)
    except IntegrityError:
        return False
    return True


@contextmanager
def _harmless(using: str) -> Iterator[None]:
    """Let a statement that fails leave the caller's transaction on SQLite as it was.

    SQLite undoes the statement alone, mostly: if it has ended the transaction, that stays so.
    """
    connection = connections[using]
    must_roll_back = connection.needs_rollback
    try:
        yield
    except DatabaseError:
        if connection.in_atomic_block and connection.vendor == "sqlite":
            is_whole = connection.connection.in_transaction
            transaction.set_rollback(must_roll_back or not is_whole, using=using)
        raise


def marks(run: TaskRunRecord, call: StoredCall) -> dict[str, Any]:
    """Return the headers by which workers know the run, and Celery shows no secret of it."""
    headers: dict[str, Any] = {RUN_HEADER: run.task_id, ROW_HEADER: row_header(run)}
    if call.secrets:
        headers |= {
            MASKED_ARGS_HEADER: call.argsrepr,
            MASKED_KWARGS_HEADER: call.kwargsrepr,
            "argsrepr": call.argsrepr,
            "kwargsrepr": call.kwargsrepr,
        }
    return headers


def _options(
    headers: Mapping[str, Any],
    properties: Mapping[str, Any],
    queue: str,
    exchange: str,
    routing_key: str,
) -> dict[str, Any]:
    """Return, as plain JSON, the options of ``apply_async`` that gave this message.

    ``expires`` is in seconds from the publish on.
    """
    hard, soft = headers.get("timelimit") or (None, None)
    options: dict[str, Any] = {
        "queue": queue or None,
        "exchange": (not queue and exchange) or None,
        "routing_key": (not queue and routing_key) or None,
        "priority": properties.get("priority"),
        "expires": properties.get("expiration"),
        "time_limit": hard,
        "soft_time_limit": soft,
        "shadow": headers.get("shadow"),
        "ignore_result": headers.get("ignore_result") or None,
        "headers": _custom_headers(headers) or None,
    }
    return {name: _plain(value) for name, value in options.items() if value is not None}


def call_options(given: Mapping[str, Any], call: StoredCall) -> dict[str, Any]:
    """Return, as plain JSON, those options of ``apply_async`` that every run may have.

    The secrets of the call are masked in them too.
    """
    options = {name: given.get(name) for name in OPTIONS}
    for name in ("queue", "exchange"):
        options[name] = getattr(options[name], "name", options[name])
    if isinstance(options["expires"], str):
        options["expires"] = moment(options["expires"])
    headers = options["headers"] or {}
    options["headers"] = {
        name: value for name, value in headers.items() if name not in _OWN_HEADERS
    } or None
    plain = {name: _plain(value) for name, value in options.items() if value is not None}
    secrets = frozenset(call.secrets)
    return {name: scrubbed(value, secrets) for name, value in plain.items()}


def _custom_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that the caller gave."""
    return {
        name: value
        for name, value in headers.items()
        if name not in _PROTOCOL_HEADERS | _OWN_HEADERS and not hasattr(Context, name)
    }


def _plain(value: Any) -> Any:
    try:
        return to_plain(masked(value))
    except NotEncodable:
        return {"value": storable_text(str(type(value))), FORCED: True}


def moment(text: datetime | str | None) -> datetime | None:
    """Return a moment, as Celery has it, as the database takes it; None for one that is far.

    Celery 5.7 takes a moment without its zone for UTC.
    """
    try:
        parsed: datetime | None = maybe_iso8601(text)
    except (TypeError, ValueError):
        return None
    if parsed is None or is_far(parsed):
        return None
    if timezone.is_naive(parsed):
        parsed = parsed.replace(tzinfo=UTC)
    if django_settings.USE_TZ:
        return parsed
    return timezone.make_naive(parsed, timezone.get_default_timezone())


def due(when: Any, now: datetime) -> datetime | None:
    """Return the moment for which Celery 5.7 sent a retry: ``Retry.when``, seconds or a moment."""
    if isinstance(when, int | float):
        return now + timedelta(seconds=when)
    return moment(when)


def _queue(exchange: str, routing_key: str, declare: Sequence[Any] | None) -> str:
    """Return the name of the queue that a message goes to; "" where only the broker knows.

    Celery 5.7 publishes to a queue by the nameless exchange and the queue's name.
    """
    if not exchange and routing_key:
        return routing_key
    return str(declare[0].name) if declare else ""
