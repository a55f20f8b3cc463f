"""Let a process fork only while none of its threads is busy with SQLite.

What SQLite knows of the locks on a file it keeps in the memory of the process. A child that is
forked while a thread of its parent holds one takes it for held by itself, and for ever: each
write of that child waits in vain ("database is locked"). Or it hangs, waiting for a lock of
SQLite's own memory.

Celery 5.7 forks in the midst of what the worker's parent writes: billiard replaces a lost process
of the pool in a thread of its own, where the broker has no event loop, just when the parent
records the end of the run that was killed; and our dispatcher is a thread beside any broker.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, get_ident

from django.db.backends.base.base import BaseDatabaseWrapper

#: So long a fork waits for statements, and a statement for forks, in seconds: better a child
#: that may be unable to write than none.
PATIENCE = 5.0


class _Gate:
    """The threads that are busy with SQLite, and those that are about to fork."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.busy: set[int] = set()
        self.forking: set[int] = set()


_gate = _Gate()


@contextmanager
def fork_waits(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Let forks in other threads wait until the block has ended, if the database is SQLite.

    A server keeps its locks to itself.
    """
    me = get_ident()
    if me in _gate.busy or connection.vendor != "sqlite":
        yield
        return
    with _gate.changed:
        _gate.changed.wait_for(lambda: not _gate.forking - {me}, PATIENCE)
        _gate.busy.add(me)
    try:
        yield
    finally:
        # In a child that was forked inside of the block, another gate.
        with _gate.changed:
            _gate.busy.discard(me)
            _gate.changed.notify_all()


def _wait_for_statements() -> None:
    """Wait before a fork; no statement begins until it is done."""
    me = get_ident()
    with _gate.changed:
        _gate.forking.add(me)
        _gate.changed.wait_for(lambda: not _gate.busy - {me}, PATIENCE)


def _go_on() -> None:
    """Let statements begin again, in the parent."""
    with _gate.changed:
        _gate.forking.discard(get_ident())
        _gate.changed.notify_all()


def _begin_anew() -> None:
    """Forget in a forked process the threads of its parent: they stayed there."""
    global _gate
    _gate = _Gate()


# Windows has no forks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_wait_for_statements, after_in_parent=_go_on, after_in_child=_begin_anew
    )
