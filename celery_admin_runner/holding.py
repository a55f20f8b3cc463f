"""Keep the delayed calls of DjangoTasks in the database until they are due (SCHEDULE_ETA)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any

from celery import current_app
from celery.result import AsyncResult
from django.contrib.auth import get_user_model
from django.db import IntegrityError, connections, router, transaction
from django.utils import timezone
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.exceptions import KombuError

from celery_admin_runner import dependencies, insertion, unique
from celery_admin_runner.base import Invocation
from celery_admin_runner.calls import as_received, same
from celery_admin_runner.conf import settings
from celery_admin_runner.encoding import (
    CALL_MAX_BYTES,
    ForeignCode,
    from_plain,
    storable_text,
    to_plain,
)
from celery_admin_runner.exceptions import (
    ALL,
    CeleryAdminRunnerError,
    InvalidArguments,
    NotEncodable,
)
from celery_admin_runner.headers import OF_THE_RUN
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.options import OPTIONS, is_far
from celery_admin_runner.publishing import moment, origin
from celery_admin_runner.recording import AWAY, FAULTS, database, note_fault, record
from celery_admin_runner.redaction import has_mask, masked
from celery_admin_runner.registry import celery_app, get_task_info
from celery_admin_runner.scheduling import kept_fields
from celery_admin_runner.states import State
from celery_admin_runner.storing import stored_call

logger = logging.getLogger("celery_admin_runner")

#: What is about the call itself, or about sending it, which a dispatcher does in its own way.
_NOT_KEPT = frozenset(
    {
        *("countdown", "eta", "headers", "retries", "add_to_parent"),
        *("producer", "publisher", "retry", "retry_policy", "timeout", "confirm_timeout"),
    }
)
#: Celery's own tasks that call another one many times, by arguments that are no signatures.
_MANY_CALLS = frozenset({"celery.chunks", "celery.map", "celery.starmap"})
#: The longest id that fits.
_ID_MAX_LENGTH = 255
#: So many arguments Celery 5.7 may put before those of a callback: none where it is immutable,
#: the result, or, for an error, the request, the exception and the traceback.
_ARGUMENTS_BEFORE = range(4)


#: Inserts a row by the connection of this alias.
Saver = Callable[[TaskRunRecord, str], None]


class NotKeepable(CeleryAdminRunnerError):
    """The delayed call can't be kept as it is; the message says why."""


def hold(
    invocation: Invocation,
    fields: Mapping[str, Any] | None = None,
    *,
    limit: timedelta | None = None,
) -> AsyncResult | None:
    """Keep a delayed call in the database, and return its result; None: the broker gets it.

    ``fields`` are more of its row; ``limit`` is how long another run may have its
    ``active_key``, if it has one: raises KeyTaken.

    The broker also gets what the database could not give back just as it was, and what it does
    not take just now; where it may have it all the same, its error is raised. In a transaction
    the row belongs to it, and an error of the database is raised: a rollback leaves neither row
    nor message.

    A call that waits for other runs is always kept. Raises InvalidArguments if it can't be, or
    if one of them is gone, and the error of the database.
    """
    depends_on = dependencies.awaited(invocation.own.depends_on or ())
    if not depends_on and not (settings.SCHEDULE_ETA and is_delayed(invocation.options)):
        return None
    now, task = timezone.now(), invocation.task
    try:
        eta = _eta(invocation.options, now)
        if depends_on:
            _refuse_chords(invocation)
        elif eta is None or eta <= now or _goes_on_at_once(invocation):
            return None
        run = _row(invocation, eta, depends_on, now, fields or {})
    except NotKeepable as error:
        if depends_on:
            raise InvalidArguments({ALL: [str(error)]}) from error
        logger.info("The broker keeps a delayed call of %s: %s", task.name, error)
        return None
    if limit is not None and run.active_key is not None:
        # Nobody is to hear of a result that there will not be.
        unique.check_free(run.active_key, run.task_id, limit, now, database())
    is_ignored = invocation.options.get("ignore_result", task.ignore_result)
    result = task.AsyncResult(run.task_id)
    result.ignored = is_ignored
    if not is_ignored:
        # So that it hears of the result, as when Celery 5.7 sends a message.
        with task.app.producer_or_acquire(_producer(invocation.options)) as producer:
            task.app.backend.on_task_call(producer, run.task_id)
    save = partial(_save, depends_on=depends_on, limit=limit)
    if depends_on:
        _insert_waiting(run, save)
    elif not _insert(run, save):
        return None
    if invocation.options.get("add_to_parent", True):
        _add_to_parent(result)
    return result


def is_delayed(options: Mapping[str, Any]) -> bool:
    """Tell whether a call is to start later than now."""
    return bool(options.get("eta") or options.get("countdown"))


def _eta(options: Mapping[str, Any], now: datetime) -> datetime | None:
    """Return the earliest start; Celery 5.7 prefers the countdown, if it is given and not 0."""
    given = options.get("countdown") or options.get("eta")
    return moment_from(given, now) if given else None


def moment_from(value: Any, now: datetime) -> datetime:
    """Return the moment that Celery makes of an ``eta``, or of seconds from now.

    Raises NotKeepable for what is none, or far.
    """
    if isinstance(value, int | float):
        try:
            counted = now + timedelta(seconds=value)
        except (OverflowError, ValueError) as error:
            raise NotKeepable(f"{value!r} seconds are no time from now.") from error
        if is_far(counted):
            raise NotKeepable(f"{value!r} seconds are too far from now.")
        return counted
    parsed = moment(value)
    if parsed is None:
        raise NotKeepable(f"{value!r} is no moment, or too far from now.")
    return parsed


def _goes_on_at_once(invocation: Invocation) -> bool:
    """Tell whether the broker has to get a call though it is delayed."""
    return bool(invocation.task.app.conf.task_always_eager or _is_in_chord(invocation.options))


def _is_in_chord(options: Mapping[str, Any]) -> bool:
    """Tell whether the end of a call, or of the chain that it begins, is waited for by a chord.

    Whether a chord's body starts is counted by Celery's result backend, which forgets after
    ``result_expires``; nobody would count a member that was cancelled here.
    """
    members = options.get("chain") or ()
    return bool(
        options.get("chord") or any(_options_of(member).get("chord") for member in members)
    )


def _refuse_chords(invocation: Invocation) -> None:
    if _is_in_chord(invocation.options):
        raise NotKeepable("A member of a chord can't wait for other runs.")


def _options_of(signature: Any) -> Mapping[str, Any]:
    return signature.get("options") or {} if isinstance(signature, Mapping) else {}


def _row(
    invocation: Invocation,
    eta: datetime | None,
    depends_on: Sequence[TaskRunRecord],
    now: datetime,
    fields: Mapping[str, Any],
) -> TaskRunRecord:
    """Return the row of a call that is kept, not saved yet; raises NotKeepable."""
    task = invocation.task
    _refuse_strangers(invocation)
    args, kwargs = _checked_arguments(invocation)
    options = _plain(_options(invocation))
    canvas = _plain(_canvas(invocation))
    _refuse_unfit_ids(invocation.task_id, *map(canvas.get, ("parent_id", "root_id")))
    _refuse_secrets(options, canvas)
    headers = {**options.get("headers", {}), "id": invocation.task_id}
    headers |= {name: canvas.pop(name, None) for name in ("parent_id", "root_id")}
    call = stored_call(task.name, args, kwargs)
    expires = options["expires"] if "expires" in options else canvas.get("expires", task.expires)
    run = TaskRunRecord(
        task_id=invocation.task_id,
        task_name=task.name,
        args=call.args,
        kwargs=call.kwargs,
        options=options,
        canvas=canvas,
        queue=str(options.get("queue") or get_task_info(task.name).queue)[:255],
        **{**origin(headers), **fields},
        **kept_fields(eta, depends_on, now),
        created_at=now,
        eta=eta,
        expires_at=None if expires is None else moment_from(from_plain(expires), now),
    )
    if call.secrets or not run.can_be_repeated:
        raise NotKeepable("Not all of it may be stored, or can be stored as it is.")
    _refuse_secret_calls([run.args, run.kwargs])
    _refuse_changes(invocation, (tuple(args), kwargs), (run.args, run.kwargs))
    return run


def _refuse_strangers(invocation: Invocation) -> None:
    """Raise NotKeepable for what a dispatcher could not send: it has only its own app."""
    task, app = invocation.task, celery_app()
    registered = app.tasks.get(task.name)
    if registered is None or registered.app is not task.app or task.app is not app:
        raise NotKeepable("The task belongs to another app than the one that the journal sends.")
    producer = _producer(invocation.options)
    if producer is not None and _address(producer.connection) != _address(
        app.connection_for_write()
    ):
        raise NotKeepable("It is to be sent over a connection of the caller's own.")
    if not isinstance(invocation.task_id, str):
        raise NotKeepable("Its task id is no text.")
    if task.soft_time_limit and task.time_limit and task.soft_time_limit > task.time_limit:
        raise NotKeepable("The task's time limits contradict each other.")


def _address(connection: Connection) -> str:
    return str(connection.as_uri(include_password=True))


def _producer(options: Mapping[str, Any]) -> Any:
    return options.get("producer") or options.get("publisher")


def _checked_arguments(invocation: Invocation) -> tuple[Any, dict[str, Any]]:
    """Return the arguments as Celery sends them; raises TypeError if the task takes others."""
    task, args, kwargs = invocation.task, invocation.args, invocation.kwargs
    if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
        raise NotKeepable("Arguments are a list or tuple, and a mapping.")
    check = getattr(task, "__header__", None) if task.typing else None
    if check is not None:
        check(*args, **kwargs)
    # Celery 5.7 with ``pydantic=True``; Celery 5.5 has none.
    dump = getattr(task, "_dump_pydantic_arguments", None)
    if dump is not None and invocation.options.get("serializer") != "pickle":
        args, kwargs = dump(args, kwargs)
    return args, dict(kwargs)


def _options(invocation: Invocation) -> dict[str, Any]:
    """Return those options that every run may have."""
    given = {name: invocation.options.get(name) for name in OPTIONS}
    given["queue"] = _queue_name(invocation)
    headers = given["headers"] or {}
    own = {name: value for name, value in headers.items() if name not in OF_THE_RUN}
    given["headers"] = own or None
    return {name: value for name, value in given.items() if value is not None}


def _queue_name(invocation: Invocation) -> Any:
    """Return the queue by its name, if that is enough to find it again."""
    queue = invocation.options.get("queue")
    if not isinstance(queue, Queue):
        return queue
    known = invocation.task.app.amqp.queues.get(queue.name)
    # kombu 5.7 can't tell a queue and None apart without a warning.
    is_known = known is not None and known == queue
    if not is_known:
        raise NotKeepable(f"The settings do not know the queue {queue.name!r} as it is given.")
    return queue.name


def _canvas(invocation: Invocation) -> dict[str, Any]:
    """Return whatever else goes with the message.

    None counts too: it takes away what the task has by itself, as a time limit. A reply is for
    the thread that calls, and not for the dispatcher.
    """
    given = invocation.options
    return {
        "reply_to": invocation.task.app.thread_oid,
        **{
            name: value
            for name, value in given.items()
            if name not in _NOT_KEPT and (name not in OPTIONS or value is None)
        },
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return options as plain JSON; raises NotKeepable."""
    try:
        with ForeignCode():
            plain: dict[str, Any] = to_plain(values)
    except NotEncodable as error:
        raise NotKeepable(str(error)) from error
    if len(json.dumps(plain)) > CALL_MAX_BYTES:
        raise NotKeepable(f"What goes with it is larger than {CALL_MAX_BYTES} bytes.")
    return plain


def _refuse_unfit_ids(*task_ids: Any) -> None:
    """Raise NotKeepable for an id that the journal can't hold just as it is."""
    for text in map(str, task_ids):
        if len(text) > _ID_MAX_LENGTH or storable_text(text) != text:
            raise NotKeepable("An id is too long, or no text that can be stored.")


def _refuse_secrets(options: Mapping[str, Any], canvas: Mapping[str, Any]) -> None:
    """Raise NotKeepable for a secret in the options, also in one of the signatures in them."""
    if has_mask(masked(options)) or has_mask(masked(canvas)):
        raise NotKeepable("A secret is not stored.")
    _refuse_secret_calls(canvas)


def _refuse_secret_calls(plain: Any) -> None:
    """Raise NotKeepable for a signature in plain JSON data that may hold a secret."""
    for signature in _signatures(plain):
        if signature["task"] in _MANY_CALLS:
            raise NotKeepable(f"In {signature['task']} nobody looks for secrets.")
        args, kwargs = from_plain([signature["args"], signature["kwargs"]])
        if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
            # An argument that only looks like a signature.
            continue
        for number in _ARGUMENTS_BEFORE:
            if stored_call(signature["task"], [*[None] * number, *args], kwargs).secrets:
                raise NotKeepable(f"A secret of {signature['task']} is not stored.")


def _signatures(plain: Any) -> Iterator[Mapping[str, Any]]:
    """Yield each signature in plain JSON data, at any depth."""
    if isinstance(plain, Mapping):
        if {"task", "args", "kwargs"} <= plain.keys() and isinstance(plain["task"], str):
            yield plain
        yield from chain.from_iterable(map(_signatures, plain.values()))
    elif isinstance(plain, list):
        yield from chain.from_iterable(map(_signatures, plain))


def _refuse_changes(invocation: Invocation, given: Any, stored: Any) -> None:
    """Raise NotKeepable if a worker would not receive just what it receives without us."""
    task = invocation.task
    serializer = (
        invocation.options.get("serializer") or task.serializer or task.app.conf.task_serializer
    )
    args, kwargs = from_plain(stored)
    try:
        with ForeignCode():
            is_same = same(
                as_received(given, serializer), as_received((tuple(args), kwargs), serializer)
            )
    except (NotEncodable, KombuError) as error:
        raise NotKeepable(str(error)) from error
    if not is_same:
        raise NotKeepable("A worker would receive other arguments than were given.")


def _insert_waiting(run: TaskRunRecord, save: Saver) -> None:
    """Record a call that waits for other runs, in the caller's transaction if there is one.

    Raises KeyTaken, DatabaseError and InvalidArguments.
    """
    using = str(router.db_for_write(TaskRunRecord))
    forget_deleted_user(run, using)
    save(run, using)
    dependencies.settle_on_commit([run])


def _insert(run: TaskRunRecord, save: Saver) -> bool:
    """Record a delayed call; False: it could not be recorded, and nobody knows of it.

    Raises DatabaseError where nobody can tell: with the broker too, it could run twice.
    """
    alias = str(router.db_for_write(TaskRunRecord))
    if connections[alias].in_atomic_block:
        forget_deleted_user(run, alias)
        return _inserted(run, alias, save)
    is_unclear = False

    def insert() -> bool:
        nonlocal is_unclear
        using = database()
        try:
            return _inserted(run, using, save)
        except AWAY:
            is_unclear = is_unclear or _has_broken(using)
            raise

    try:
        return record(insert)
    except FAULTS as error:
        if is_unclear:
            raise
        note_fault("the delay, which the broker keeps instead,", run.task_id, error)
        return False


def _has_broken(using: str) -> bool:
    """Tell whether an open connection is lost: what it was asked last may have been done."""
    wrapper = connections[using]
    return wrapper.connection is not None and not wrapper.is_usable()


def forget_deleted_user(run: TaskRunRecord, using: str) -> None:
    """Leave out a user who is not there any more.

    In a transaction PostgreSQL and SQLite would say so only at its end, which would fail.
    """
    users = get_user_model()._base_manager.using(using)
    if run.run_by_id is not None and not users.filter(pk=run.run_by_id).exists():
        run.run_by_id = None


def _inserted(run: TaskRunRecord, using: str, save: Saver) -> bool:
    """Insert the row; True also if it is there already: a member of a chain whose task before
    it was delivered twice. Raises DatabaseError and KeyTaken.
    """
    try:
        save(run, using)
    except IntegrityError:
        known = TaskRunRecord.objects.using(using).filter(task_id=run.task_id).first()
        if known is not None:
            return _is_same(known, run)
        if run.run_by_id is None:
            raise
        run.run_by_id = None
        save(run, using)
    return True


def _save(
    run: TaskRunRecord,
    using: str,
    *,
    depends_on: Sequence[TaskRunRecord] = (),
    limit: timedelta | None = None,
) -> None:
    """Insert the row; an error leaves the caller's transaction, if there is one, as it was.

    Raises KeyTaken if another run has its ``active_key``.
    """

    def write() -> None:
        if depends_on:
            dependencies.record_waiting([run], depends_on)
        elif connections[using].in_atomic_block:
            with transaction.atomic(using=using):
                insertion.insert([run], using=using)
        else:
            insertion.insert([run], using=using)

    if limit is None or run.active_key is None:
        write()
    else:
        now = run.created_at
        unique.take(run.active_key, write, limit=limit, now=now, using=using, task_id=run.task_id)


def _is_same(known: TaskRunRecord, run: TaskRunRecord) -> bool:
    """Tell whether a row that has the id of a call is the row of that call."""
    is_same_call = all(
        getattr(known, name) == getattr(run, name)
        for name in ("task_name", "parent_id", "args", "kwargs")
    )
    is_again = bool(run.parent_id) or known.created_at == run.created_at
    return is_same_call and is_again and known.state == State.SCHEDULED


def _add_to_parent(result: AsyncResult) -> None:
    """Add the result to the children of the task that is running here, if there is one.

    If the row goes with a transaction that is rolled back, nothing is to wait for it.
    """
    parent = current_app.current_worker_task
    if parent is None:
        return
    alias = str(router.db_for_write(TaskRunRecord))
    add = partial(parent.add_trail, result)
    if connections[alias].in_atomic_block:
        transaction.on_commit(add, using=alias)
    else:
        add()
