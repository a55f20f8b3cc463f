"""The thread that looks after what runs in a process."""

from __future__ import annotations

import os
import signal
from math import inf
from threading import Event
from time import monotonic

import pytest

from celery_admin_runner import pulse


class Member:
    """Counts how often it is looked after, and says when it wants to be again."""

    def __init__(self, after=inf):
        self.after = after
        self.ticks = 0
        self.ticked = Event()

    def tick(self, now):
        self.ticks += 1
        self.ticked.set()
        return now + self.after


@pytest.fixture(autouse=True)
def members():
    """Leave no member behind."""
    before = set(pulse._pulse.members)
    yield
    for member in set(pulse._pulse.members) - before:
        pulse.leave(member)


def test_who_joins_is_looked_after_when_woken():
    member = Member()
    pulse.join(member)

    pulse.wake()

    assert member.ticked.wait(5)


def test_who_is_due_is_looked_after_again():
    member = Member(after=0.01)
    pulse.join(member)
    pulse.wake()
    assert member.ticked.wait(5)

    member.ticked.clear()

    assert member.ticked.wait(5)


def test_who_left_is_left_alone():
    member = Member()
    pulse.join(member)

    pulse.leave(member)

    pulse.look_after()
    assert member.ticks == 0


def test_the_next_to_be_due_decides():
    for after in (20, 10, inf):
        pulse._pulse.members.add(Member(after=after))

    due = pulse.look_after()

    assert 9 < due - monotonic() <= 10


def test_all_share_one_thread_that_gets_no_signals():
    pulse.join(Member())
    thread = pulse._pulse.thread

    pulse.join(Member())

    assert pulse._pulse.thread is thread
    assert thread.daemon
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


# Python 3.12 warns of a fork beside threads.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_looks_after_nothing_of_its_parent():
    pulse.join(Member())
    read, write = os.pipe()
    pid = os.fork()
    if not pid:  # pragma: no cover
        state = (len(pulse._pulse.members), pulse._pulse.thread)
        os.write(write, repr(state).encode())
        os._exit(0)
    os.waitpid(pid, 0)

    assert os.read(read, 100) == b"(0, None)"
    os.close(read)
    os.close(write)
