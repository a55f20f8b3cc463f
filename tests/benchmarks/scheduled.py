"""Runs that are due: how fast they are sent, how late, and what later runs cost.

A run that is due is claimed, its message sent, and the run marked. Two hundred of them are claimed
by one statement that reads and one that writes, and marked by another, so what limits a dispatcher
is the sending: it is compared with a loop that only sends, ``apply_async``. A claim goes along the
index of what is due, and does not see what is due later, however much that is; and what is kept
for later is in the database, and not in the memory of a worker.
"""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from django.conf import settings
from django.db import connection, connections
from django.utils import timezone

from celery_admin_runner import recording
from celery_admin_runner.dispatch import claim_due, is_anything_due
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import celery_app
from celery_admin_runner.states import State
from tests.benchmarks.journal import journal
from tests.benchmarks.measuring import Figure, Turns, duration_text, in_turns, say
from tests.benchmarks.tasks import nothing
from tests.conftest import running_worker
from tests.factories import run_fields
from tests.waiting import wait_until

#: What is promised. Runs a second, against a loop of ``apply_async`` alone; of two dispatchers,
#: against one; the median of how late they are, in seconds; the time of a claim beside many later
#: runs, against that beside few; what many kept runs add to a worker's memory, in MiB.
BARE_TIMES, TWO_TIMES, LATE, CLAIM_TIMES, MEMORY_ADDED = 0.85, 1.7, 1.5, 1.2, 1.0
#: So many come due each second where it is measured how late they are sent.
EACH_SECOND = 100
#: Beside so few later runs a claim is measured first; and so often, of so many runs.
FEW, CLAIMS, CLAIMED = 1000, 200, 100
#: A worker is looked at when it has dispatched for so many seconds.
SETTLED = 10.0
DAY = timedelta(days=1)
QUEUE = f"bench-scheduled-{settings.QUEUE}"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--due", type=int, default=3000, help="due runs in a round (3000)")
    parser.add_argument("--due-seconds", type=int, default=30, help="of due runs (30)")
    parser.add_argument("--later", type=int, default=1_000_000, help="later runs (1000000)")
    parser.add_argument("--kept", type=int, default=50_000, help="runs beside a worker (50000)")
    parser.add_argument(
        "--scheduled-only", choices=sorted(MEASUREMENTS), action="append", help="can be repeated"
    )


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Measure on an empty journal what is asked for."""
    if arguments.rows < 1_000_000:
        small = {"due": 60, "due_seconds": 1, "later": 4000, "kept": 2000, "rounds": 1}
        arguments = Namespace(**{**vars(arguments), **small, "settled": 1.0, "claims": 5})
    else:
        arguments = Namespace(**vars(arguments), settled=SETTLED, claims=CLAIMS)
    with journal(0):
        try:
            for name, measurement in MEASUREMENTS.items():
                if name in (arguments.scheduled_only or MEASUREMENTS):
                    yield measurement(arguments)
                    _empty()
        finally:
            recording.close()


def _figure(what: str, value: float, **fields: Any) -> Figure:
    return Figure(
        benchmark="scheduled", what=what, value=value, database=connection.vendor, **fields
    )


def _promised(value: float) -> float | None:
    """Return what is promised where servers are; a file locks out whoever comes second."""
    is_file = "filesystem" in str(celery_app().conf.broker_url)
    return None if is_file or connection.vendor == "sqlite" else value


def measure_rate(arguments: Namespace) -> Figure:
    """Compare a dispatcher with a loop that only publishes."""
    number = arguments.due
    turns = in_turns(
        partial(_dispatched, number), partial(_bare, number), rounds=arguments.rounds
    )
    return _rate("a dispatcher's runs/s, against bare apply_async", number, turns, BARE_TIMES)


def _rate(what: str, number: int, turns: Turns, promise: float) -> Figure:
    """Return how many runs a second there were against the floor's."""
    return _figure(
        what,
        median(1 / ratio for ratio in turns.ratios),
        rows=number,
        at_least=_promised(promise),
        ours=f"{number / median(turns.ours):.0f}/s",
        floor=f"{number / median(turns.floor):.0f}/s",
    )


def _bare(number: int) -> float:
    """Return how many seconds it takes to publish so many messages."""
    begun_at = time.perf_counter()
    for _ in range(number):
        nothing.apply_async((), queue=QUEUE)
    took = time.perf_counter() - begun_at
    _empty_queue(number)
    return took


def _dispatched(number: int) -> float:
    """Return how many seconds it takes to dispatch so many runs."""
    _make_due(number)
    dispatcher = Dispatcher()
    begun_at = time.perf_counter()
    dispatched = dispatcher.dispatch()
    took = time.perf_counter() - begun_at
    assert dispatched.sent == number, dispatched
    _empty_queue(number)
    _empty()
    return took


def measure_two(arguments: Namespace) -> Figure:
    """Compare two dispatchers, a process each, with one."""
    number = 2 * arguments.due
    turns = in_turns(
        partial(_forked, 2, number), partial(_forked, 1, number), rounds=arguments.rounds
    )
    return _rate("two dispatchers' runs/s, against one's", number, turns, TWO_TIMES)


def _forked(dispatchers: int, number: int) -> float:
    """Return how many seconds so many processes need to dispatch so many runs."""
    recording.close()
    connections.close_all()
    ready, tell_ready = os.pipe()
    start, tell_start = os.pipe()
    pids = [_fork(lambda: _dispatch_when_told(tell_ready, start)) for _ in range(dispatchers)]
    for _ in pids:
        os.read(ready, 1)
    _make_due(number)
    begun_at = time.perf_counter()
    os.write(tell_start, b"." * dispatchers)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    took = time.perf_counter() - begun_at
    for end in (ready, tell_ready, start, tell_start):
        os.close(end)
    assert not any(codes)
    assert TaskRunRecord.objects.filter(state=State.PENDING).count() == number
    _empty_queue(number)
    _empty()
    return took


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def _dispatch_when_told(tell_ready: int, start: int) -> None:
    """Open what is needed, and dispatch when the others are ready too."""
    dispatcher = Dispatcher()
    _make_due(1)
    dispatcher.dispatch()
    TaskRunRecord.objects.filter(state=State.PENDING).delete()
    os.write(tell_ready, b".")
    os.read(start, 1)
    dispatcher.dispatch()


def measure_lateness(arguments: Namespace) -> Figure:
    """Measure how late a worker sends runs that come due one after the other."""
    number = arguments.due_seconds * EACH_SECOND
    with _worker("late"):
        first = timezone.now() + timedelta(seconds=2)
        _make_scheduled([first + timedelta(seconds=n / EACH_SECOND) for n in range(number)])
        rows = TaskRunRecord.objects.filter(published_at__isnull=False)
        wait_until(lambda: rows.count() == number, seconds=arguments.due_seconds + 120)
    pairs: Any = rows.values_list("published_at", "eta")
    late = sorted((published_at - eta).total_seconds() for published_at, eta in pairs)
    say(f"lateness: least {late[0]:.2f} s  median {median(late):.2f} s  most {late[-1]:.2f} s")
    what = f"lateness at {EACH_SECOND} due runs/s, median"
    return _figure(what, median(late), unit="s", rows=number, at_most=_promised(LATE))


def measure_claim(arguments: Namespace) -> Figure:
    """Compare the time of a claim beside many later runs with that beside few."""
    due = _make_due(CLAIMED)
    _make_scheduled([timezone.now() + DAY + timedelta(seconds=n) for n in range(FEW)])
    few, few_idle = _claim_time(due, arguments.claims)
    _multiply_later(arguments.later)
    many, many_idle = _claim_time(due, arguments.claims)
    number = TaskRunRecord.objects.count() - CLAIMED
    say(f"look when nothing is due: {duration_text(few_idle)}, then {duration_text(many_idle)}")
    return _figure(
        f"claim of {CLAIMED} runs beside {number:,} later ones, against {FEW:,}",
        many / few,
        rows=number,
        at_most=_promised(CLAIM_TIMES),
        ours=duration_text(many),
        floor=duration_text(few),
    )


def _claim_time(due: list[TaskRunRecord], times: int) -> tuple[float, float]:
    """Return the median seconds of a claim, and of a look when nothing is due."""
    _vacuum()
    rows = TaskRunRecord.objects.filter(pk__in=[run.pk for run in due])
    claims, looks = [], []
    for _ in range(times):
        begun_at = time.perf_counter()
        assert len(claim_due(timezone.now(), CLAIMED)) == CLAIMED
        claimed_at = time.perf_counter()
        assert not is_anything_due(timezone.now())
        claims.append(claimed_at - begun_at)
        looks.append(time.perf_counter() - claimed_at)
        rows.update(dispatch_id=None, claimed_at=None)
    return median(claims), median(looks)


def _multiply_later(number: int) -> None:
    """Let the database copy what is scheduled for later until there are so many rows."""
    columns = [field.column for field in TaskRunRecord._meta.concrete_fields][1:]
    table = TaskRunRecord._meta.db_table
    later = timezone.now() + DAY / 2
    size = FEW
    longer = "CONCAT(task_id, %s)" if connection.vendor == "mysql" else "task_id || %s"
    copied = ", ".join(longer if column == "task_id" else column for column in columns)
    while size < number:
        sql = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {copied} FROM {table}"
        with connection.cursor() as cursor:
            cursor.execute(
                f"{sql} WHERE due_at > %s LIMIT %s", [f"-{size}", later, min(size, number - size)]
            )
            size += cursor.rowcount
    say(f"claim: {size:,} later runs")


def measure_memory(arguments: Namespace) -> Figure:
    """Measure what runs that are scheduled for later add to the memory of a worker."""
    with _worker("memory") as process:
        runs = _make_due(1)
        rows = TaskRunRecord.objects.filter(pk=runs[0].pk, state=State.SUCCESS)
        wait_until(rows.exists, seconds=60)
        time.sleep(arguments.settled)
        before = _memory(process.pid)
        moment = timezone.now() + DAY
        for _ in range(arguments.kept // FEW):
            _make_scheduled([moment] * FEW)
        time.sleep(arguments.settled)
        after = _memory(process.pid)
    return _figure(
        f"memory that {arguments.kept:,} kept runs add to a worker",
        after - before,
        unit="MiB",
        rows=arguments.kept,
        at_most=_promised(MEMORY_ADDED),
        ours=f"{after:.1f} MiB",
        floor=f"{before:.1f} MiB",
    )


def _memory(pid: int) -> float:
    """Return the memory of a process and its children in MiB; what they share counts once."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    rollups = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in (pid, *children)]
    sizes = [line.split()[1] for text in rollups for line in text.splitlines() if "Pss:" in line]
    return sum(map(int, sizes)) / 1024


def _worker(name: str) -> Any:
    """Start a worker that dispatches what is due and runs it."""
    return running_worker(
        f"bench-{name}",
        *("--concurrency", "1", "-Q", QUEUE, "-I", "tests.benchmarks.tasks", "-l", "WARNING"),
        TEST_DISPATCH="worker",
    )


def _make_due(number: int) -> list[TaskRunRecord]:
    return _make_scheduled([timezone.now() - timedelta(seconds=1)] * number)


def _make_scheduled(moments: list[Any]) -> list[TaskRunRecord]:
    call = {"task_name": nothing.name, "options": {"queue": QUEUE}, "queue": QUEUE}
    kept = {**call, "state": State.SCHEDULED}
    return TaskRunRecord.objects.bulk_create(
        TaskRunRecord(**run_fields(**kept, eta=moment, due_at=moment)) for moment in moments
    )


def _empty_queue(number: int) -> None:
    """Throw away the messages, and make sure that all of them were there."""
    with celery_app().connection_for_read() as broker:
        purged = broker.default_channel.queue_purge(QUEUE)
    assert purged >= number, f"{purged} of {number} messages"


def _empty() -> None:
    """Delete all runs at once, and let the database tidy up."""
    runs = TaskRunRecord.objects.all()
    runs._raw_delete(runs.db)
    _vacuum()


def _vacuum() -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"VACUUM ANALYZE {TaskRunRecord._meta.db_table}")


MEASUREMENTS: dict[str, Callable[[Namespace], Figure]] = {
    "rate": measure_rate,
    "two": measure_two,
    "lateness": measure_lateness,
    "claim": measure_claim,
    "memory": measure_memory,
}
