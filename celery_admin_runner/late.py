"""Record the end of a run as soon as the database is back, where it was away when the run ended.

What is kept lives in the memory of the process that ran the task: if that dies first, the run
shows as stale.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from threading import Lock, Thread
from typing import TypeVar

from celery.signals import worker_process_shutdown, worker_shutdown
from django.db import DataError, IntegrityError

from celery_admin_runner.pulse import signals_blocked
from celery_admin_runner.recording import FAULTS, is_worker, note_fault, record

#: The database is asked again after this many seconds, twice as many the next time, and so
#: on to the longest; and no longer after so many.
FIRST_PAUSE, LONGEST_PAUSE, KEEP_TRYING = 1.0, 30.0, 3600.0
#: So many statements are kept, the latest.
KEEPS = 1000
THREAD_NAME = "celery-admin-runner-late"

Recorded = TypeVar("Recorded")
Statement = Callable[[], object]


class _Kept:
    """The statements that this process keeps; a forked child keeps its own."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.statements: deque[Statement] = deque(maxlen=KEEPS)
        self.lock = Lock()
        self.thread: Thread | None = None


_kept = _Kept()


def connect() -> None:
    """Learn from Celery when this process ends."""
    worker_shutdown.connect(_on_worker_shutdown)
    worker_process_shutdown.connect(_on_worker_shutdown)


def report_or_keep(what: str, task_id: str, statement: Callable[[], Recorded]) -> Recorded | None:
    """Record as ``recording.report`` does; in a worker, once more when the database is back.

    ``statement`` is guarded, so that it is harmless however late, and it holds all that it
    needs: its own time too. What the database refuses for its contents is not kept.
    """
    try:
        return record(statement)
    except FAULTS as error:
        note_fault(what, task_id, error)
        if is_worker() and not isinstance(error, DataError | IntegrityError):
            _keep(statement)
        return None


def _keep(statement: Statement) -> None:
    """Keep a statement, and make sure that a thread tries it."""
    kept = _of_this_process()
    with kept.lock:
        kept.statements.append(statement)
        if kept.thread is None:
            kept.thread = Thread(
                target=_try_until_done, args=[kept], name=THREAD_NAME, daemon=True
            )
            with signals_blocked():
                kept.thread.start()


def _of_this_process() -> _Kept:
    global _kept
    if _kept.pid != os.getpid():
        _kept = _Kept()
    return _kept


def _try_until_done(kept: _Kept) -> None:
    """Try what is kept until nothing is left, or for KEEP_TRYING."""
    pause, tried = FIRST_PAUSE, 0.0
    while not _is_done(kept, tried):
        time.sleep(pause)
        tried += pause
        pause = min(2 * pause, LONGEST_PAUSE)
        _try_all(kept)


def _is_done(kept: _Kept, tried: float) -> bool:
    """Tell whether the thread may end; what is kept from then on starts another."""
    with kept.lock:
        is_done = not kept.statements or tried >= KEEP_TRYING
        if is_done:
            kept.thread = None
        return is_done


def _try_all(kept: _Kept) -> None:
    """Execute what is kept, the oldest first, until the database does not answer."""
    while kept.statements:
        statement = kept.statements[0]
        try:
            record(statement)
        except (DataError, IntegrityError) as error:
            note_fault("what it had kept", "", error)
        except FAULTS:
            return
        if kept.statements and kept.statements[0] is statement:
            kept.statements.popleft()


def _on_worker_shutdown(**kwargs: object) -> None:
    """Try once more before this process ends."""
    _try_all(_of_this_process())
