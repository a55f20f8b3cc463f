"""What a plain call of a DjangoTask costs beside Celery's own ``apply_async``.

On the broker of CELERY_BROKER_URL, which should be Redis, and on one in memory, where what we
add weighs most. Both kinds of calls take turns, so that whatever else the machine does weighs on
both alike, and of the calls of a round the median is taken.
"""

from __future__ import annotations

import gc
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter

from celery import Task
from django.conf import settings
from kombu import pools

from celery_admin_runner.registry import celery_app
from tests.benchmarks.tasks import nothing, nothing_guarded

#: What is promised: the time of a call against that of one by Celery alone.
TIMES = 1.1
QUEUE = f"bench-calls-{settings.QUEUE}"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--calls", type=int, default=200, help="of each kind in a round (200)")
    parser.add_argument("--rounds", type=int, default=41, help="of both kinds (41)")


def run(arguments: Namespace) -> None:
    """Measure, and print the figures; exit with 1 if they are not what is promised."""
    brokers = {"in memory": "memory://"}
    # Celery 5.7 would look there whatever it is told.
    if address := os.environ.pop("CELERY_BROKER_URL", ""):
        brokers[address.partition(":")[0]] = address
    results = [_measure(name, address, arguments) for name, address in brokers.items()]
    sys.exit(0 if all(result <= TIMES for result in results) else 1)


def _measure(name: str, address: str, arguments: Namespace) -> float:
    """Print the figures on one broker; return the median of the rounds' ratios."""
    bare, guarded, ratios = [], [], []
    with _broker(address) as empty:
        for task in (nothing, nothing_guarded):
            _seconds(task, arguments.calls)
        for number in range(arguments.rounds):
            # Who comes second finds other things in the caches.
            order = (nothing, nothing_guarded) if number % 2 else (nothing_guarded, nothing)
            seconds = {task.name: _seconds(task, arguments.calls) for task in order}
            bare.append(seconds[nothing.name])
            guarded.append(seconds[nothing_guarded.name])
            ratios.append(guarded[-1] / bare[-1])
            empty()
    ratio = median(ratios)
    own, ours = median(bare) * 1e6, median(guarded) * 1e6
    sys.stdout.write(
        f"Broker {name}: {own:.1f} µs by Celery, {ours:.1f} µs by DjangoTask: {ratio:.3f} times "
        f"(median of {len(ratios)} rounds of {arguments.calls}, {min(ratios):.3f} to "
        f"{max(ratios):.3f}); promised: {TIMES}\n"
    )
    return ratio


@contextmanager
def _broker(address: str) -> Iterator[Callable[[], object]]:
    """Send to a broker here; gives what throws away the messages."""
    app = celery_app()
    app.conf.update(broker_url=address, broker_transport_options={}, task_default_queue=QUEUE)
    # What Celery 5.7 and kombu keep of the one before.
    app._pool = None
    app.__dict__.pop("amqp", None)
    pools.reset()
    with app.connection_for_write() as connection:

        def empty() -> object:
            return connection.default_channel.queue_purge(QUEUE)

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
