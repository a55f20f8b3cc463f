"""Write to the journal beside the tasks: on a connection of its own, and never breaking a run.

Celery 5.7 closes Django's connections around each task, whatever CONN_MAX_AGE says, and a
task may hold a transaction open for long. So in a worker what is recorded goes by a
connection that neither of them touches: one a process, or a thread of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident, local
from typing import TypeVar
from weakref import finalize

from celery.signals import (
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_shutdown,
)
from django.core.exceptions import SynchronousOnlyOperation
from django.core.signals import request_finished
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    connections,
    router,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F
from django.db.utils import load_backend
from django.utils import timezone

from celery_admin_runner.encoding import storable_text
from celery_admin_runner.forking import fork_waits
from celery_admin_runner.models import RecordingFault, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet

logger = logging.getLogger("celery_admin_runner")

#: The alias of the connections of our own. It stands in no settings, so that what closes
#: "all connections" (Celery around a task, Django after a request) does not know of it.
OWN_ALIAS = "celery_admin_runner_recording"
#: What a database raises when it does not answer; and Django, where it must not be asked: a
#: coroutine would stop all others.
FAULTS = (DatabaseError, InterfaceError, SynchronousOnlyOperation)
#: Those of them that tell that it is not there, or too busy: it would answer no question now.
AWAY = (OperationalError, InterfaceError)
#: The name under which faults of processes that are no workers are counted.
NO_WORKER = ""

Recorded = TypeVar("Recorded")


class _Process:
    """What this process knows of itself."""

    def __init__(self) -> None:
        self.is_worker = False
        #: The worker's name, as the journal shows it.
        self.worker = NO_WORKER
        #: By process and thread. What a parent opened is kept here in its forked children
        #: too: closed by the garbage collector, it would be closed for the parent as well.
        self.own: dict[tuple[int, int], BaseDatabaseWrapper] = {}
        self.start_counting()

    def start_counting(self) -> None:
        """Forget the faults that are counted already: a forked child's parent knows them.

        The lock is new too, for a thread that the child has not may hold it.
        """
        self.lock = Lock()
        #: Faults that are not in the database yet: how many, and the latest.
        self.faults = 0
        self.latest: tuple[str, str] = ("", "")


class _Thread(local):
    """What a thread of this process knows of itself; in gevent's and eventlet's, a greenlet."""

    #: Goes when the thread ends, and then its connection is closed.
    life: _Life | None = None


class _Life:
    """Ends with its thread, or when its connection is no longer wanted."""


_process = _Process()
_thread = _Thread()


def connect() -> None:
    """Learn from Celery's signals whether this process is a worker, and when it ends."""
    worker_init.connect(_on_worker_init)
    worker_process_init.connect(_on_worker_init)
    worker_shutdown.connect(_on_worker_shutdown)
    worker_process_shutdown.connect(_on_worker_shutdown)
    request_finished.connect(_on_request_finished)
    # Windows has no forks.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_process.start_counting)


def _on_worker_init(sender: object = None, **kwargs: object) -> None:
    """Remember the name: Celery 5.7 sends it, or the worker that has it."""
    _process.is_worker = True
    name = sender if isinstance(sender, str) else getattr(sender, "hostname", None)
    _process.worker = name or _process.worker


def _on_worker_shutdown(**kwargs: object) -> None:
    """Write down what was counted since the last record, which nobody would do later."""
    if _process.faults:
        _store_faults()


def _on_request_finished(**kwargs: object) -> None:
    """Treat our connection in a web process as Django treats the site's: see CONN_MAX_AGE.

    And count what the view could not, if it is a coroutine: Django 5.2 tells of its end in a
    thread.
    """
    if _process.faults:
        _store_faults()
    wrapper = _own()
    if wrapper is not None and not wrapper.in_atomic_block:
        wrapper.close_if_unusable_or_obsolete()


def is_worker() -> bool:
    """Tell whether this process, or the one that it was forked from, is a Celery worker."""
    return _process.is_worker


def database() -> str:
    """Return the alias of the database connection that records are written by, here and now.

    In a worker that is a connection of our own. Elsewhere it is the caller's, unless that is
    in a transaction: a record is committed before its message is sent, whatever becomes of
    the transaction. The caller's also in a test case, whose transaction nobody else sees
    into, and on SQLite, where whoever holds a transaction lets nobody else write.
    """
    default = str(router.db_for_write(TaskRunRecord))
    caller = connections[default]
    if caller.in_atomic_block:
        # Django 5.2: a TestCase marks the transactions that it is wrapped in.
        blocks = caller.atomic_blocks
        is_test_case = any(getattr(block, "_from_testcase", False) for block in blocks)
        if is_test_case or caller.vendor == "sqlite":
            return default
    elif not _process.is_worker:
        return default
    _provide_own(caller)
    return OWN_ALIAS


def close() -> None:
    """Close this thread's own connection, if it has one; the next record opens another."""
    _thread.life = None


def journal() -> TaskRunRecordQuerySet:
    """Return the runs, to record what becomes of them."""
    return TaskRunRecord.objects.using(database())


def _own() -> BaseDatabaseWrapper | None:
    """Return the own connection of this thread of this process; None if it has none yet."""
    return _process.own.get((os.getpid(), get_ident()))


def _provide_own(caller: BaseDatabaseWrapper) -> None:
    """Make sure that this thread of this process has a connection of its own."""
    wrapper = _own()
    if wrapper is None or _thread.life is None:
        wrapper = _new_connection(caller)
        key = (os.getpid(), get_ident())
        _process.own[key] = wrapper
        _thread.life = _Life()
        finalize(_thread.life, _release, key, wrapper).atexit = False
    if getattr(connections._connections, OWN_ALIAS, None) is not wrapper:  # type: ignore[attr-defined]
        connections[OWN_ALIAS] = wrapper


def _new_connection(caller: BaseDatabaseWrapper) -> BaseDatabaseWrapper:
    """Return an unopened connection to the caller's database, like the caller's.

    A pool would open several for the one. In a worker it lasts.
    """
    settings = {**caller.settings_dict, "OPTIONS": {**caller.settings_dict["OPTIONS"]}}
    settings["OPTIONS"].pop("pool", None)
    if _process.is_worker:
        settings["CONN_MAX_AGE"] = None
    wrapper: BaseDatabaseWrapper = load_backend(settings["ENGINE"]).DatabaseWrapper(
        settings, OWN_ALIAS
    )
    return wrapper


def _release(key: tuple[int, int], wrapper: BaseDatabaseWrapper) -> None:
    """Close the connection of a thread that ended; in a forked child it is the parent's."""
    if key[0] == os.getpid():
        _process.own.pop(key, None)
        wrapper.inc_thread_sharing()
        with fork_waits(wrapper):
            wrapper.close()


def record(statement: Callable[[], Recorded]) -> Recorded:
    """Execute a guarded statement on the journal, once more if its connection was broken.

    A connection that lasts may have been closed by the server since; a deadlock is ended by
    the server too. The guard makes the second time harmless. Raises FAULTS.
    """
    with fork_waits(connections[router.db_for_write(TaskRunRecord)]), _closed_if_interrupted():
        try:
            recorded = statement()
        except AWAY:
            connection = connections[database()]
            if connection.in_atomic_block or connection.vendor == "sqlite":
                raise
            connection.close()
            recorded = statement()
        if _process.faults:
            _store_faults()
    return recorded


@contextmanager
def _closed_if_interrupted() -> Iterator[None]:
    """Close our own connection if what is raised is no answer of the database's.

    Celery 5.7 raises a soft time limit, and at SIGTERM the end of the process, wherever the task
    is, so in the middle of a statement too. Its answer is never read then, and mysqlclient 2.2
    would refuse every further statement of this process: "Commands out of sync".
    """
    is_answered = False
    try:
        yield
        is_answered = True
    except FAULTS:
        is_answered = True
        raise
    finally:
        wrapper = _own()
        if not is_answered and wrapper is not None:
            wrapper.close()


def report(what: str, task_id: str, statement: Callable[[], Recorded]) -> Recorded | None:
    """Record, or note that it could not be done; None then. Never breaks who calls.

    ``what`` names for the log what was to be recorded of the run.
    """
    try:
        return record(statement)
    except FAULTS as error:
        note_fault(what, task_id, error)
        return None


def note_fault(what: str, task_id: str, error: Exception) -> None:
    """Log and count that the journal could not record something of a run.

    The count is written at once if the database answers, else with the next record, or when
    the worker ends.
    """
    logger.error("The journal could not record %s of run %s: %s", what, task_id, error)
    with _process.lock:
        _process.faults += 1
        _process.latest = (task_id, storable_text(f"{what}: {error}"))
    can_answer = not isinstance(error, (*AWAY, SynchronousOnlyOperation))
    if can_answer and not connections[database()].in_atomic_block:
        _store_faults()


def _store_faults() -> None:
    """Write down the faults that were counted while the database was away."""
    with _process.lock:
        number, (task_id, error) = _process.faults, _process.latest
        _process.faults = 0
    if not number:
        return
    fields = {"task_id": task_id[:255], "error": error, "happened_at": timezone.now()}
    faults = RecordingFault.objects.using(database())
    try:
        rows = faults.filter(worker=_process.worker)
        if not rows.update(count=F("count") + number, **fields):
            faults.bulk_create(
                [RecordingFault(worker=_process.worker, count=0, **fields)], ignore_conflicts=True
            )
            rows.update(count=F("count") + number)
    except FAULTS as fault:
        logger.error("The journal could not count %d faults: %s", number, fault)
        with _process.lock:
            _process.faults += number
