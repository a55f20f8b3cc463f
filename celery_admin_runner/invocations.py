"""What becomes of a call of a DjangoTask: it starts a run, joins one, or is ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from celery import current_app
from celery.result import AsyncResult
from django.db import IntegrityError, connections, router
from django.utils import timezone

from celery_admin_runner import holding, ignoring, insertion, publishing, tracking, unique
from celery_admin_runner.attempts import Attempt
from celery_admin_runner.base import DjangoTask, Invocation, intercept, look_up
from celery_admin_runner.broker import UNUSABLE_ADDRESS, describe, describe_address
from celery_admin_runner.exceptions import TaskNotFound
from celery_admin_runner.headers import IGNORE_HEADER, KEY_HEADER
from celery_admin_runner.models import NAME_MAX_LENGTH, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.recording import database, journal, record, report
from celery_admin_runner.redaction import has_mask
from celery_admin_runner.registry import CELERY_PREFIX, get_task_info
from celery_admin_runner.sameness import Sameness, sameness_of
from celery_admin_runner.states import State
from celery_admin_runner.storing import StoredCall, stored_call

#: With these a call belongs to a canvas, of which somebody counts, or waits for, each member.
_CANVAS = ("group_id", "chord", "chain", "link", "link_error")


def connect() -> None:
    """Answer for the calls of DjangoTasks from now on."""
    intercept(answer)
    look_up(is_processing)


def answer(invocation: Invocation) -> AsyncResult | None:
    """Answer for a call that has something to do with the journal; None: it is just sent.

    Raises DatabaseError if the journal does not answer and the call depends on what it knows.
    """
    needs_row = has_row(invocation)
    if not (needs_row or holding.is_delayed(invocation.options)) or _goes_on(invocation):
        return None
    if not needs_row:
        return holding.hold(invocation)
    now, same = timezone.now(), sameness(invocation)
    invocation = with_override(invocation)
    if is_in_canvas(invocation):
        return _start_member(invocation, same, now)
    if same.is_ignoring:
        success = record(partial(_open_window, same.key, now))
        if success is not None:
            return ignore(invocation, same, success, now)
    try:
        held = holding.hold(invocation, fields_of(invocation, same), limit=same.limit)
        return _send(invocation, same, now) if held is None else held
    except unique.KeyTaken as error:
        return join(invocation, error.holder)


def has_row(invocation: Invocation) -> bool:
    """Tell whether a call has a row in the journal, whatever TRACK says."""
    task, own = invocation.task, invocation.own
    return bool(
        own.run_context is not None
        or own.depends_on
        or task.track
        or unique.is_unique(task, own)
        or ignoring.is_ignoring(task, own)
    )


def sameness(invocation: Invocation) -> Sameness:
    """Return what a call has to do with calls that are the same; raises as ``sameness_of``."""
    return sameness_of(
        *(invocation.task, invocation.args, invocation.kwargs),
        *(invocation.options, invocation.own),
    )


def is_in_canvas(invocation: Invocation) -> bool:
    """Tell whether somebody may wait for just this call, so that it has to run in any case."""
    return invocation.is_id_given or any(map(invocation.options.get, _CANVAS))


def is_processing(task: DjangoTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call of a unique task would join a run; raises ValueError for another."""
    if not unique.is_unique(task):
        raise ValueError(f"{task.name} is not unique: many runs of the same call may be active.")
    holder = unique.holder_of(unique.key_of(task, args, kwargs), database())
    if holder is None:
        return False
    return not unique.is_stale(holder, unique.stale_after(task), timezone.now())


def join(invocation: Invocation, holder: TaskRunRecord) -> AsyncResult:
    """Let a call be answered by the run that the same call has started."""
    task, options = invocation.task, invocation.options
    result = task.AsyncResult(holder.task_id)
    result.ignored = options.get("ignore_result", task.ignore_result)
    parent = current_app.current_worker_task
    if parent is not None and options.get("add_to_parent", True):
        parent.add_trail(result)
    invocation.tell("on_invocation_unique", result)
    return result


def ignore(
    invocation: Invocation, same: Sameness, success: TaskRunRecord, now: datetime
) -> AsyncResult:
    """Record that a call was ignored."""
    fields = {**fields_of(invocation, same), **ignoring.ignored_fields(success, now)}
    run, _call = new_row(invocation, now, {**fields, "active_key": None})
    record(partial(publishing.insert, run))
    return ignored_result(invocation, run)


def ignored_result(invocation: Invocation, run: TaskRunRecord) -> AsyncResult:
    """Return the result of a call that was ignored, and tell of it."""
    result = ignoring.result_of(run)
    invocation.tell("on_invocation_ignored", result)
    return result


def new_row(
    invocation: Invocation, now: datetime, fields: Mapping[str, Any]
) -> tuple[TaskRunRecord, StoredCall]:
    """Return the row of a call that is sent at once, not saved yet, and its stored arguments.

    It is as whole as that of a message that is tracked.
    """
    task, given = invocation.task, invocation.options
    call = stored_call(task.name, invocation.args, invocation.kwargs)
    ids = {"id": invocation.task_id, **{name: given.get(name) for name in _IDS}}
    expires = given.get("expires", task.expires)
    run = TaskRunRecord(
        **{
            "task_id": invocation.task_id,
            "task_name": task.name[:NAME_MAX_LENGTH],
            "args": call.args,
            "kwargs": call.kwargs,
            "options": publishing.call_options(given, call),
            "queue": _queue(invocation)[:255],
            **publishing.origin({**(given.get("headers") or {}), **ids}),
            "created_at": now,
            "eta": _moment(given.get("countdown") or given.get("eta"), now),
            "expires_at": _moment(expires, now),
            **fields,
        }
    )
    return run, call


#: The options that say inside of which run a call is made.
_IDS = ("parent_id", "root_id")


def _open_window(key: str, now: datetime) -> TaskRunRecord | None:
    return ignoring.open_window(key, now, database())


def _goes_on(invocation: Invocation) -> bool:
    """Tell whether a call takes the place of the task that makes it (``Task.replace``).

    With ``task_cls`` Celery's own tasks are DjangoTasks too; they are left alone.
    """
    running = current_app.current_worker_task
    is_replacement = running is not None and running.request.id == invocation.task_id
    return bool(is_replacement or invocation.task.name.startswith(CELERY_PREFIX))


def with_override(invocation: Invocation) -> Invocation:
    """Return the call with a header that says what its caller said of its window."""
    seconds = ignoring.override_of(invocation.task, invocation.own)
    if seconds is None:
        return invocation
    headers = {**(invocation.options.get("headers") or {}), IGNORE_HEADER: seconds}
    return replace(invocation, options={**invocation.options, "headers": headers})


def fields_of(invocation: Invocation, same: Sameness) -> dict[str, Any]:
    """Return the fields of a call's row that follow from our own options."""
    context = invocation.own.run_context
    about = {} if context is None else publishing.context_fields(context)
    return {**about, **same.fields}


def _queue(invocation: Invocation) -> str:
    """Return the name of the queue of a call; "" where only the router knows."""
    queue = invocation.options.get("queue")
    if queue is not None:
        return str(getattr(queue, "name", queue))
    try:
        return get_task_info(invocation.task.name).queue
    except TaskNotFound:
        # It belongs to another app.
        return ""


def _moment(value: Any, now: datetime) -> datetime | None:
    """Return a moment that Celery understands; None for none, or one that is far."""
    try:
        return None if value is None else holding.moment_from(value, now)
    except holding.NotKeepable:
        return None


def _start_member(invocation: Invocation, same: Sameness, now: datetime) -> AsyncResult:
    """Start a run that somebody waits for: it has the key if it is free, and runs in any case."""
    try:
        held = holding.hold(invocation, fields_of(invocation, same), limit=same.limit)
        return _send(invocation, same, now, must_record=False) if held is None else held
    except unique.KeyTaken:
        return _start_member(invocation, replace(same, limit=None), now)


def _send(
    invocation: Invocation, same: Sameness, now: datetime, *, must_record: bool = True
) -> AsyncResult:
    """Record a call, send it, and record that; raises KeyTaken.

    Without the journal a call is sent all the same, and that noted, unless it has to do with
    other calls, and ``must_record``: it can't promise then what it is for.
    """
    fields = {**fields_of(invocation, same), "dispatch_id": uuid4(), "claimed_at": now}
    run, call = new_row(invocation, now, fields)
    write = partial(_write, run, same, now)
    is_recorded = (
        record(write) if same.key and must_record else report("the call", run.task_id, write)
    )
    if not is_recorded:
        return invocation.send()
    # The run that had the key until now may have opened a window with its end.
    must_look = same.is_ignoring and same.limit is not None and must_record
    if must_look and end_ignored(run, same, now):
        return ignored_result(invocation, run)
    return hand_over(invocation, run, call)


def end_ignored(run: TaskRunRecord, same: Sameness, now: datetime) -> bool:
    """End the row of a call that is ignored since a success; False: it is not, or is to stop."""
    success = record(partial(_open_window, same.key, now))
    if success is None:
        return False
    return bool(record(partial(end_unsent, run, ignoring.ignored_fields(success, now))))


def end_unsent(run: TaskRunRecord, fields: Mapping[str, Any]) -> int:
    """End the row of a call that is not sent: it is ignored, or another run answers for it.

    0: somebody has asked it to stop, or sends it.
    """
    others = {name: value for name, value in fields.items() if name != "state"}
    return unsent(run).transition(
        sources=[State.UNSENT], target=State.IGNORED, dispatch_id=None, claimed_at=None, **others
    )


def unsent(run: TaskRunRecord) -> TaskRunRecordQuerySet:
    """Return the row of a run, if we have it in hand, and it is not sent."""
    mine = journal().filter(task_id=run.task_id, dispatch_id=run.dispatch_id)
    return mine.in_state([State.UNSENT])


def _write(run: TaskRunRecord, same: Sameness, now: datetime) -> bool:
    """Insert the row of a call; raises KeyTaken, and IntegrityError if only a row would help."""
    if same.limit is None:
        return publishing.insert(run)
    if not publishing.insert(run, partial(_inserted_with_key, limit=same.limit, now=now)):
        raise IntegrityError(f"The database refuses the row of the run {run.task_id}.")
    return True


def _inserted_with_key(run: TaskRunRecord, *, limit: timedelta, now: datetime) -> bool:
    using, caller = database(), str(router.db_for_write(TaskRunRecord))
    outer = connections[caller]
    # What has failed already answers nothing, and keeps nothing.
    if using != caller and outer.in_atomic_block and not outer.needs_rollback:
        # A run that the caller's own transaction has made, for whose commit we would wait in vain.
        holder = unique.holder_of(str(run.active_key), caller)
        if holder is not None and not unique.is_stale(holder, limit, now):
            raise unique.KeyTaken(holder)
        # Or one that it has ended: nobody else knows of that yet, nor can write that row.
        ended = unique.holder_of(str(run.active_key), using) if holder is None else None
        if ended is not None:
            raise unique.KeyTaken(ended)
    insert = partial(insertion.insert, [run], using=using)
    try:
        unique.take(
            str(run.active_key), insert, limit=limit, now=now, using=using, task_id=run.task_id
        )
    except IntegrityError:
        return False
    return True


def hand_over(invocation: Invocation, run: TaskRunRecord, call: StoredCall) -> AsyncResult:
    """Send a call that is recorded, and write down what came of that; raises what Celery does."""
    marks = publishing.marks(run, call)
    texts: dict[str, Any] = {
        name: marks.pop(name) for name in ("argsrepr", "kwargsrepr") if name in marks
    }
    if run.unique_key:
        marks[KEY_HEADER] = run.unique_key
    sender = replace(invocation, options={**invocation.options, **texts}) if texts else invocation
    attempt = Attempt()
    with attempt:
        result = sender.send(marks)
    if attempt.error is not None:
        has_secrets = bool(texts) or has_mask(run.options)
        text = _failure_text(invocation.task, attempt.error, has_secrets=has_secrets)
        fail = _record_failure
        if invocation.task.app.conf.task_always_eager:
            # It ran here, and raised (``task_eager_propagates``): Celery 5.7 tells nobody else.
            fail = _record_end
        report("the failure", run.task_id, partial(fail, run, text))
        raise attempt.error
    report(
        "the handover",
        run.task_id,
        partial(publishing.record_handover, run.task_id, timezone.now()),
    )
    return result


def _record_failure(run: TaskRunRecord, text: str) -> None:
    """Keep why a call was not sent, and free its key: its caller knows, and may call again."""
    unsent(run).update(publish_error=text, dispatch_id=None, claimed_at=None, active_key=None)


def _record_end(run: TaskRunRecord, text: str) -> None:
    tracking.record_failure(
        run.task_id, attempt=None, exception=text, traceback="", now=timezone.now()
    )


def _failure_text(task: DjangoTask, error: Exception, *, has_secrets: bool) -> str:
    """Return what is kept of an error: what a project's code says of a secret is not."""
    if has_secrets:
        return type(error).__name__
    try:
        return describe(error, task.app.connection_for_write())
    except UNUSABLE_ADDRESS as unusable:
        return describe_address(unusable)
