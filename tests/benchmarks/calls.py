"""What a plain call costs: of a task that is not tracked, and of a DjangoTask.

Compared with Celery's own ``apply_async`` of which nobody hears: on the broker of
CELERY_BROKER_URL, and on one in memory, where what we add weighs most. Both are called in turn.
Nearly all of the time is Celery's: it makes the message, and kombu encodes and sends it. Ours is
the call of a receiver, and four looks: whether a task is running, at two headers, and at the name
in TRACK; where that names any task, another call too. Two receivers that do nothing cost 3 % in
memory, so the 5 % are promised with a broker, and as long as TRACK names nothing.
"""

from __future__ import annotations

import gc
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from time import perf_counter

from celery import Task
from celery.signals import after_task_publish, before_task_publish
from django.conf import settings
from django.test import override_settings
from kombu import pools

from celery_admin_runner.registry import celery_app
from tests.benchmarks.measuring import Figure, Turns
from tests.benchmarks.tasks import nothing, nothing_guarded

#: What is promised: the time of a call against that of one by Celery alone; of a DjangoTask
#: against one of a plain task that is not tracked.
UNTRACKED_TIMES, GUARDED_TIMES = 1.05, 1.1
QUEUE = f"bench-calls-{settings.QUEUE}"
SIGNALS = (before_task_publish, after_task_publish)
MEMORY = "memory"
#: A round is short, and the ratios of few rounds differ: so many for each that is asked for.
ROUNDS = 5


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--calls", type=int, default=300, help="of each kind in a round (300)")


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Measure on each broker."""
    is_small = arguments.rows < 1_000_000
    calls, rounds = (30, 1) if is_small else (arguments.calls, ROUNDS * arguments.rounds)
    app = celery_app()
    brokers = {MEMORY: "memory://"}
    # Celery 5.7 would look there whatever it is told.
    if address := os.environ.pop("CELERY_BROKER_URL", ""):
        brokers[address.partition(":")[0]] = address
    given = {name: app.conf[name] for name in ("broker_url", "broker_transport_options")}
    given["task_default_queue"] = app.conf.task_default_queue
    try:
        for name, url in brokers.items():
            app.conf.update(broker_url=url, broker_transport_options={}, task_default_queue=QUEUE)
            with _broker() as empty:
                yield from _on(name, calls, rounds, empty)
    finally:
        app.conf.update(given)
        _forget_broker()
        if address:
            os.environ["CELERY_BROKER_URL"] = address


def _on(name: str, calls: int, rounds: int, empty: Callable[[], object]) -> Iterator[Figure]:
    """Measure on one broker; ``empty`` throws away its messages."""
    plain, guarded = partial(_seconds, nothing), partial(_seconds, nothing_guarded)
    for tracked, words in (((), "no TRACK"), (("shop.tasks.*",), "TRACK of others")):
        ours = {**settings.CELERY_ADMIN_RUNNER, "TRACK": tracked}
        with override_settings(CELERY_ADMIN_RUNNER=ours):
            turns = _call_by_call(plain, _seconds_without_receivers, calls, rounds, empty)
        what = f"apply_async of an untracked task ({name}, {words}), against Celery alone"
        promise = None if tracked or name == MEMORY else UNTRACKED_TIMES
        yield turns.figure("calls", what, at_most=promise, rows=calls, database="")
    turns = _call_by_call(guarded, plain, calls, rounds, empty)
    what = f"apply_async of a DjangoTask ({name}), against a plain task"
    yield turns.figure("calls", what, at_most=GUARDED_TIMES, rows=calls, database="")


def _call_by_call(
    ours: Callable[[], float],
    floor: Callable[[], float],
    calls: int,
    rounds: int,
    empty: Callable[[], object],
) -> Turns:
    """Time calls of both in turn, and of those of a round take the medians."""
    times: dict[str, list[float]] = {"ours": [], "floor": []}
    for number in range(rounds):
        # Who comes second finds other things in the caches.
        pairs = [
            (ours(), floor()) if (n + number) % 2 else (floor(), ours())[::-1]
            for n in range(calls)
        ]
        for kind, values in zip(times.values(), zip(*pairs, strict=True), strict=True):
            kind.append(median(values))
        empty()
        gc.collect()
    return Turns(ours=times["ours"], floor=times["floor"])


def _seconds(task: Task) -> float:
    """Return how long a call took."""
    begun_at = perf_counter()
    task.apply_async((1,), {"b": 2})
    return perf_counter() - begun_at


def _seconds_without_receivers() -> float:
    """Return how long a call took of which nobody hears."""
    kept = [list(signal.receivers) for signal in SIGNALS]
    for signal in SIGNALS:
        signal.receivers.clear()
    try:
        return _seconds(nothing)
    finally:
        for signal, connected in zip(SIGNALS, kept, strict=True):
            signal.receivers.extend(connected)


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

        _seconds(nothing)
        yield empty
        connection.default_channel.queue_delete(QUEUE)
