"""What a plain call costs: of a task that is not tracked, and of a DjangoTask.

Compared with Celery's own ``apply_async`` without our receivers: on the broker of
CELERY_BROKER_URL, and on one in memory, where what we add weighs most. Nearly all of the time is
Celery's: it makes the message, and kombu encodes and sends it. Ours are two receivers of signals,
called with the message: its headers are looked at, and the name of its task in TRACK; and for a
DjangoTask a look at what the call and its class say of runs.
"""

from __future__ import annotations

import gc
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter

from celery import Task
from celery.signals import after_task_publish, before_task_publish
from django.conf import settings
from kombu import pools

from celery_admin_runner import receivers
from celery_admin_runner.registry import celery_app
from tests.benchmarks.measuring import Figure, in_turns
from tests.benchmarks.tasks import nothing, nothing_guarded

#: What is promised: the time of a call against that of one by Celery alone; of a DjangoTask
#: against one of a plain task that is not tracked.
UNTRACKED_TIMES, GUARDED_TIMES = 1.05, 1.1
QUEUE = f"bench-calls-{settings.QUEUE}"
#: A round is short, and the ratios of few rounds differ: so many for each that is asked for.
ROUNDS = 5


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--calls", type=int, default=300, help="of each kind in a turn (300)")


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Measure on each broker."""
    is_small = arguments.rows < 1_000_000
    calls, rounds = (30, 1) if is_small else (arguments.calls, ROUNDS * arguments.rounds)
    app = celery_app()
    brokers = {"memory": "memory://"}
    # Celery 5.7 would look there whatever it is told.
    if address := os.environ.pop("CELERY_BROKER_URL", ""):
        brokers[address.partition(":")[0]] = address
    given = {name: app.conf[name] for name in ("broker_url", "broker_transport_options")}
    given["task_default_queue"] = app.conf.task_default_queue
    try:
        for name, url in brokers.items():
            app.conf.update(
                broker_url=url, broker_transport_options={}, task_default_queue=QUEUE
            )
            with _broker() as empty:
                yield from _on(name, calls, rounds, empty)
    finally:
        app.conf.update(given)
        _forget_broker()
        if address:
            os.environ["CELERY_BROKER_URL"] = address


def _on(name: str, calls: int, rounds: int, empty: Callable[[], object]) -> Iterator[Figure]:
    """Measure on one broker; ``empty`` throws away its messages."""

    def untracked() -> float:
        empty()
        return _seconds(nothing, calls)

    def guarded() -> float:
        empty()
        return _seconds(nothing_guarded, calls)

    def bare() -> float:
        empty()
        with _without_receivers():
            return _seconds(nothing, calls)

    what = f"apply_async of an untracked task ({name}), against Celery alone"
    turns = in_turns(untracked, bare, rounds=rounds)
    yield turns.figure("calls", what, at_most=UNTRACKED_TIMES, rows=calls, database="")
    what = f"apply_async of a DjangoTask ({name}), against a plain task"
    turns = in_turns(guarded, untracked, rounds=rounds)
    yield turns.figure("calls", what, at_most=GUARDED_TIMES, rows=calls, database="")


@contextmanager
def _without_receivers() -> Iterator[None]:
    """Let nobody hear of what is sent: Celery does not even make the signals then."""
    for signal in (before_task_publish, after_task_publish):
        for receiver in (receivers.on_before_publish, receivers.on_after_publish):
            signal.disconnect(dispatch_uid=f"celery_admin_runner.{receiver.__name__}")
        assert not signal.receivers
    try:
        yield
    finally:
        receivers.connect()


def _forget_broker() -> None:
    """Let Celery 5.7 and kombu forget the broker that they have in use."""
    app = celery_app()
    app._pool = None
    app.__dict__.pop("amqp", None)
    pools.reset()


@contextmanager
def _broker() -> Iterator[Callable[[], object]]:
    """Send to the broker that the app names now; gives what throws away the messages."""
    _forget_broker()
    with celery_app().connection_for_write() as connection:

        def empty() -> object:
            return connection.default_channel.queue_purge(QUEUE)

        _seconds(nothing, 1)
        yield empty
        connection.default_channel.queue_delete(QUEUE)


def _seconds(task: Task, calls: int) -> float:
    """Return how long a call takes: the median of many."""
    times = []
    gc.collect()
    for _ in range(calls):
        begun_at = perf_counter()
        task.apply_async((1,), {"b": 2})
        times.append(perf_counter() - begun_at)
    return median(times)
