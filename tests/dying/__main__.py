"""Fork three dispatchers, kill one after the other, and each time fork another in its place.

Forks, for a process that has loaded everything starts in no time. The last three come to an
end. Writes as JSON how often it has killed, and how many ended by an error of their own.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import sys
import time
from argparse import ArgumentParser
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from celery import signals
from django.db import connections
from django.db.models import F, Min
from django.utils import timezone

from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import celery_app
from celery_admin_runner.states import State
from tests.celery_app import app, filesystem_options
from tests.dying import COMING, SENT_AT

DISPATCHERS = 3
BATCH_SIZE = 25
#: So many seconds at most does a dispatcher live on after its first message.
LIFE = 0.06
#: What comes due within this time is waited for.
SOON = timedelta(minutes=1)


@dataclass(frozen=True)
class Child:
    """A dispatcher, and the end of a pipe by which it tells that it sends."""

    pid: int
    pipe: int


def main() -> None:
    """Read the command line, kill, and tell."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="of the filesystem broker")
    arguments = parser.parse_args()
    if app.conf.broker_url == "filesystem://":
        app.conf.broker_transport_options = filesystem_options(arguments.folder)
    # What all of them need is loaded once; nothing is opened.
    _ = celery_app().connection_for_write().transport
    let_come()
    children = [fork() for _ in range(DISPATCHERS)]
    kills = 0
    while kills < arguments.kills:
        child = first_that_sends(children)
        if child is None:
            break
        time.sleep(random.uniform(0, LIFE))
        children.remove(child)
        kills += kill(child)
        children.append(fork())
    errors = sum(end_of(child) != 0 for child in children)
    sys.stdout.write(json.dumps({"kills": kills, "errors": errors}))


def let_come() -> None:
    """Let the first of the runs that are to come due do so now; leave no connection open."""
    coming = TaskRunRecord.objects.filter(label=COMING)
    wait = coming.aggregate(first=Min("due_at"))["first"] - timezone.now()
    coming.update(due_at=F("due_at") - wait, eta=F("eta") - wait)
    connections.close_all()


def fork() -> Child:
    """Start a dispatcher."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    code = 1
    try:
        dispatch_all(writing)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def dispatch_all(told: int) -> None:
    """Dispatch until nothing is left that comes due soon; tell when the first message goes."""

    def stamp(headers: dict[str, object], **kwargs: object) -> None:
        headers[SENT_AT] = time.time()
        os.write(told, b".")

    signals.before_task_publish.connect(stamp)
    dispatcher = Dispatcher(batch_size=BATCH_SIZE)
    kept = TaskRunRecord.objects.filter(state=State.SCHEDULED, dispatch_id=None)
    while kept.filter(due_at__lt=timezone.now() + SOON).exists():
        dispatcher.dispatch()
        time.sleep(0.02)


def first_that_sends(children: list[Child]) -> Child | None:
    """Wait for a dispatcher that sends, and return it; None if all have come to an end."""
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.pipe, selectors.EVENT_READ, child)
        while selector.get_map():
            ready = [key.data for key, _events in selector.select()]
            for child in random.sample(ready, len(ready)):
                if os.read(child.pipe, 4096):
                    return child
                selector.unregister(child.pipe)
    return None


def kill(child: Child) -> bool:
    """Kill a dispatcher; tell whether it was still alive."""
    os.kill(child.pid, signal.SIGKILL)
    _pid, status = os.waitpid(child.pid, 0)
    os.close(child.pipe)
    return os.WIFSIGNALED(status)


def end_of(child: Child) -> int:
    """Return the exit code of a dispatcher that nobody kills."""
    while os.read(child.pipe, 65536):
        pass
    _pid, status = os.waitpid(child.pid, 0)
    return os.waitstatus_to_exitcode(status)


main()
