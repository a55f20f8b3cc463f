"""One thread a process that looks after what runs in it: started by the first that joins."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from threading import Event, Lock, Thread
from time import monotonic
from typing import Protocol

#: The thread looks after its members at least so often, in seconds.
LONGEST_REST = 15.0


class Member(Protocol):
    """What is looked after."""

    def tick(self, now: float) -> float:
        """Do what is due, and return when to be called again; on the monotonic clock.

        Called in the thread, and never twice at once. Must not raise.
        """


class _Pulse:
    """The members of this process, and their thread."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.woken = Event()
        self.members: set[Member] = set()
        self.thread: Thread | None = None

    def start(self) -> None:
        with self.lock:
            if self.thread is None or not self.thread.is_alive():
                self.thread = Thread(target=self.run, name="celery-admin-runner", daemon=True)
                with signals_blocked():
                    self.thread.start()

    def run(self) -> None:
        while True:
            self.woken.clear()
            due = look_after()
            self.woken.wait(min(max(due - monotonic(), 0), LONGEST_REST))


_pulse = _Pulse()


def join(member: Member) -> None:
    """Look after ``member`` from now on."""
    _pulse.members.add(member)
    if _pulse.thread is None or not _pulse.thread.is_alive():
        _pulse.start()


def leave(member: Member) -> None:
    """Look after ``member`` no longer."""
    _pulse.members.discard(member)


def wake() -> None:
    """Look after the members at once: something is due earlier than it was."""
    _pulse.woken.set()


def look_after() -> float:
    """Call every member once; return when the next is due."""
    members = list(_pulse.members)
    return min((member.tick(monotonic()) for member in members), default=inf)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Let a thread that is started here get no signals: they are the main thread's.

    Else a signal would not wake that from a sleep, and kill the process in the midst of what
    billiard 4.3 does with signals blocked: a pool's queue would stay locked for ever.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin_anew() -> None:
    """Forget in a forked process what its parent looks after: the thread stayed there."""
    global _pulse
    _pulse = _Pulse()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
