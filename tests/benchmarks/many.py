"""Many runs of one task at once: ``TaskRunner.run_many``, beside the sends alone.

The floor is a loop of ``apply_async(args, kwargs, task_id=..., producer=...)`` with one producer:
no row, no header of ours. What ours adds is, a run: the check of its arguments, its row (bulk
inserts of 200, with all indexes), and its part of an UPDATE of 200 rows to PENDING. What ours
saves is that it declares the queue once, and not with each message.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from uuid import uuid4

from celery_admin_runner.registry import celery_app
from celery_admin_runner.runner import TaskRunner
from tests.benchmarks.dispatch import QUEUE, timed_once
from tests.benchmarks.journal import journal
from tests.benchmarks.measuring import Figure, in_turns
from tests.benchmarks.tasks import nothing

#: What is promised: ours against the sends alone.
TIMES = 1.25


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--many-runs", type=int, default=1000, help="at once (1000)")


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Measure so many runs at once."""
    number = arguments.many_runs
    rounds = 2 * arguments.rounds if arguments.rows >= 1_000_000 else 1
    app = celery_app()
    was = app.conf.task_default_queue
    app.conf.task_default_queue = QUEUE
    try:
        with journal(0, keep=arguments.keep):
            turns = in_turns(lambda: together(number), lambda: alone(number), rounds=rounds)
            what = f"{number} runs sent at once, beside the sends alone"
            yield turns.figure("many", what, at_most=TIMES, rows=arguments.rows)
    finally:
        app.conf.task_default_queue = was


def together(number: int) -> float:
    """Return how many seconds ``run_many`` needs for so many runs."""
    calls = [((n,), {"b": 2}) for n in range(number)]
    return timed_once(lambda: TaskRunner().run_many(nothing.name, calls), number, rows=number)


def alone(number: int) -> float:
    """Return how many seconds so many messages need."""

    def send() -> None:
        with celery_app().producer_pool.acquire(block=True) as producer:
            for n in range(number):
                nothing.apply_async((n,), {"b": 2}, task_id=str(uuid4()), producer=producer)

    return timed_once(send, number, rows=0)
