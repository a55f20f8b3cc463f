"""Dispatching what is due: how fast, how late, and what later runs cost.

On the servers of DATABASE_URL and CELERY_BROKER_URL: PostgreSQL and Redis. What is compared
takes turns, so that whatever else the machine does weighs on both alike.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from django.conf import settings
from django.db import connection, connections
from django.test.utils import setup_databases, teardown_databases
from django.utils import timezone

from celery_admin_runner.dispatch import claim_due, is_anything_due
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import celery_app
from celery_admin_runner.states import State
from tests.benchmarks.tasks import nothing
from tests.conftest import running_worker
from tests.factories import run_fields
from tests.waiting import wait_until

#: What is promised. Runs a second, against a loop of ``apply_async`` alone; of two dispatchers,
#: against one; the median of how late they are, in seconds; the time of a claim beside many later
#: runs, against that beside few; what many kept runs add to a worker's memory, in MB.
BARE_TIMES, TWO_TIMES, LATE, CLAIM_TIMES, MEMORY_ADDED = 0.85, 1.7, 1.5, 1.2, 1.0
#: So many come due each second where it is measured how late they are sent.
EACH_SECOND = 100
#: Beside so few later runs a claim is measured first; and so often, of so many runs.
FEW, CLAIMS, CLAIMED = 1000, 200, 100
#: A worker is looked at when it has dispatched for so many seconds.
SETTLED = 10
DAY = timedelta(days=1)
QUEUE = f"bench-dispatch-{settings.QUEUE}"

#: A line for each measurement: what it is, the value, what is promised, and whether that holds.
Result = tuple[str, float, str, bool]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--runs", type=int, default=3000, help="in each round (3000)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind (5)")
    parser.add_argument("--seconds", type=int, default=30, help="of runs that come due (30)")
    parser.add_argument("--later", type=int, default=1_000_000, help="later runs (1000000)")
    parser.add_argument("--kept", type=int, default=50_000, help="beside a worker (50000)")
    parser.add_argument(
        "--only", choices=sorted(MEASUREMENTS), action="append", help="can be repeated"
    )


def run(arguments: Namespace) -> None:
    """Measure, and print the figures; exit with 1 if they are not what is promised."""
    databases = setup_databases(verbosity=0, interactive=False)
    results: list[Result] = []
    try:
        for name, measure in MEASUREMENTS.items():
            if name in (arguments.only or MEASUREMENTS):
                results.append(measure(arguments))
                _empty()
    finally:
        connections.close_all()
        teardown_databases(databases, verbosity=0)
    _say(f"\n{connection.vendor}, {celery_app().connection_for_write().transport.driver_type}:")
    for text, value, promise, is_kept in results:
        _say(f"  {text:48} {value:8.2f}  {promise}{'' if is_kept else '  NOT KEPT'}")
    sys.exit(0 if all(is_kept for *_, is_kept in results) else 1)


def measure_rate(arguments: Namespace) -> Result:
    """Compare a dispatcher with a loop that only publishes."""
    number = arguments.runs
    _bare(100), _dispatched(100)
    rates: list[float] = []
    for turn in range(arguments.rounds):
        bare, ours = _bare(number), _dispatched(number)
        rates.append(bare / ours)
        _say(f"rate {turn + 1}: bare {number / bare:6.0f}/s  dispatched {number / ours:6.0f}/s")
    value = median(rates)
    text = "dispatched runs/s, against a bare loop"
    return text, value, f">= {BARE_TIMES}", value >= BARE_TIMES


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


def measure_two(arguments: Namespace) -> Result:
    """Compare two dispatchers, a process each, with one."""
    number = 2 * arguments.runs
    _forked(1, 200)
    rates: list[float] = []
    for turn in range(arguments.rounds):
        one, two = _forked(1, number), _forked(2, number)
        rates.append(one / two)
        _say(f"two {turn + 1}: one {number / one:6.0f}/s  two {number / two:6.0f}/s")
    value = median(rates)
    text = "two dispatchers, against one"
    return text, value, f">= {TWO_TIMES}", value >= TWO_TIMES


def _forked(dispatchers: int, number: int) -> float:
    """Return how many seconds so many processes need to dispatch so many runs."""
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


def measure_lateness(arguments: Namespace) -> Result:
    """Measure how late a worker sends runs that come due one after the other."""
    number = arguments.seconds * EACH_SECOND
    with _worker("late"):
        first = timezone.now() + timedelta(seconds=5)
        _make_scheduled([first + timedelta(seconds=n / EACH_SECOND) for n in range(number)])
        rows = TaskRunRecord.objects.filter(published_at__isnull=False)
        wait_until(lambda: rows.count() == number, seconds=arguments.seconds + 120)
    pairs: Any = rows.values_list("published_at", "eta")
    late = sorted((published_at - eta).total_seconds() for published_at, eta in pairs)
    _say(f"lateness: least {late[0]:.2f} s  median {median(late):.2f} s  most {late[-1]:.2f} s")
    text = f"lateness at {EACH_SECOND} due runs/s, median in s"
    return text, median(late), f"<= {LATE}", median(late) <= LATE


def measure_claim(arguments: Namespace) -> Result:
    """Compare the time of a claim beside many later runs with that beside few."""
    due = _make_due(CLAIMED)
    _make_scheduled([timezone.now() + DAY + timedelta(seconds=n) for n in range(FEW)])
    few, few_idle = _claim_time(due)
    _multiply_later(arguments.later)
    many, many_idle = _claim_time(due)
    number = TaskRunRecord.objects.count() - CLAIMED
    _say(f"claim of {CLAIMED}: beside {FEW:,} {few:.2f} ms  beside {number:,} {many:.2f} ms")
    _say(f"idle look:    beside {FEW:,} {few_idle:.2f} ms  beside {number:,} {many_idle:.2f} ms")
    text = f"claim beside {number:,} later runs, against {FEW:,}"
    return text, many / few, f"<= {CLAIM_TIMES}", many / few <= CLAIM_TIMES


def _claim_time(due: list[TaskRunRecord]) -> tuple[float, float]:
    """Return the median time of a claim, and of a look when nothing is due; milliseconds."""
    _vacuum()
    rows = TaskRunRecord.objects.filter(pk__in=[run.pk for run in due])
    claims, looks = [], []
    for _ in range(CLAIMS):
        begun_at = time.perf_counter()
        assert len(claim_due(timezone.now(), CLAIMED)) == CLAIMED
        claimed_at = time.perf_counter()
        assert not is_anything_due(timezone.now())
        claims.append(claimed_at - begun_at)
        looks.append(time.perf_counter() - claimed_at)
        rows.update(dispatch_id=None, claimed_at=None)
    return median(claims) * 1000, median(looks) * 1000


def _multiply_later(number: int) -> None:
    """Let the database copy what is scheduled for later until there are so many rows."""
    columns = [field.column for field in TaskRunRecord._meta.concrete_fields][1:]
    table = TaskRunRecord._meta.db_table
    later = timezone.now() + DAY / 2
    size = FEW
    while size < number:
        copied = ", ".join("CONCAT(task_id, %s)" if c == "task_id" else c for c in columns)
        sql = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {copied} FROM {table}"
        with connection.cursor() as cursor:
            cursor.execute(
                f"{sql} WHERE due_at > %s LIMIT %s", [f"-{size}", later, min(size, number - size)]
            )
            size += cursor.rowcount
    _say(f"claim: {size:,} later runs")


def measure_memory(arguments: Namespace) -> Result:
    """Measure what runs that are scheduled for later add to the memory of a worker."""
    with _worker("memory") as process:
        runs = _make_due(1)
        rows = TaskRunRecord.objects.filter(pk=runs[0].pk, state=State.SUCCESS)
        wait_until(rows.exists, seconds=60)
        time.sleep(SETTLED)
        before = _memory(process.pid)
        moment = timezone.now() + DAY
        for _ in range(arguments.kept // FEW):
            _make_scheduled([moment] * FEW)
        time.sleep(SETTLED)
        after = _memory(process.pid)
    _say(f"memory of a worker: {before:.1f} MB, beside {arguments.kept:,} {after:.1f} MB")
    text = f"memory that {arguments.kept:,} kept runs add to a worker, MB"
    return text, after - before, f"<= {MEMORY_ADDED}", after - before <= MEMORY_ADDED


def _memory(pid: int) -> float:
    """Return the memory of a process and its children in MB; what they share counts once."""
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


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


MEASUREMENTS: dict[str, Callable[[Namespace], Result]] = {
    "rate": measure_rate,
    "two": measure_two,
    "lateness": measure_lateness,
    "claim": measure_claim,
    "memory": measure_memory,
}
