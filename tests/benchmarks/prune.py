"""Pruning a journal, beside bare SQL that deletes the same rows in batches of the same size.

What is compared takes turns in one journal, a part of the old runs each: ours, the floor, and
ours again. The floor reads primary keys, and deletes output, links and runs of these, each batch
in a transaction of its own; on SQLite with the pause after each that lets others write, and once
more without. A third of the runs has output, three pieces each, one in ten depends on the run
before it, and of the youngest 20 wait for old ones, which stay.

What the limit is: the database's own work for a row. On PostgreSQL four fifths of the time of
the floor are the checks of the foreign keys at the commit: one look into an index for each
foreign key that refers to runs, for each run (six of ours, and four of the tests). On MariaDB
and SQLite it is a dozen indexes of the runs from which each row is taken. What ours adds is
asked once for each transaction, however many rows it has: it takes its turn, it locks and looks
again at what may go, and asks what refers to it. So the smaller the transactions, for others not
to wait, the more that is.

Then a whole journal is pruned by a process of its own, with a receiver of ``post_delete`` and
rows of another app that go with their runs, while others write: they add runs, move them, write
to runs that stay, and to runs that are about to go. How long the longest write took is set
beside the longest one of as many while nothing is pruned: what this adds is ours.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

from django.db import connection, connections, transaction
from django.db.models.signals import post_delete

from celery_admin_runner.deletion import BREATH_SECONDS, FIRST_SIZE
from celery_admin_runner.models import OpenDependency, TaskRunOutput, TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.retention import Selection, prune
from celery_admin_runner.states import FINISHED, State
from tests.benchmarks.journal import YOUNG, fill, journal
from tests.benchmarks.measuring import Figure, duration_text, in_turns, say, seconds
from tests.factories import run_fields
from tests.models import Remark

#: What is promised: the time against that of the floor, MiB, and milliseconds.
TIMES, GROWTH = 1.5, 16
WAITS = {"postgresql": 25, "mysql": 50, "sqlite": 150}
#: So many of the youngest runs wait for old ones.
AWAITED = 20
#: Such a share of a journal is pruned in turns; and so many runs by Django's own deletion.
SHARE, PEER_ROWS = 0.8, 5000
#: Pause of a writer between two writes, and how long it writes where nothing is pruned.
PAUSE, ALONE_SECONDS = 0.02, 10.0
Write = Callable[[], object]
fork = multiprocessing.get_context("fork")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument(
        "--prune-rounds", type=int, default=3, help="of ours, the floor, and ours again (3)"
    )


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Measure, and yield the figures."""
    rows = arguments.rows
    # A journal of its own: what is pruned would be missing in one that others keep.
    with journal(rows + 1):
        hang_on(rows)
        yield from measure_times(rows, arguments.prune_rounds)
        fill(rows + 1)
        hang_on(rows, remarks=True)
        yield from measure_waits(rows)


def hang_on(rows: int, *, remarks: bool = False) -> None:
    """Give runs output and dependencies; ``remarks``: and rows of another app."""
    quote = connection.ops.quote_name
    runs, output, links, other = (
        quote(model._meta.db_table)
        for model in (TaskRunRecord, TaskRunOutput, TaskRunRecord.depends_on.through, Remark)
    )
    text = "'The order was looked at, sent, and written down: nothing is left to do for it.'"
    statements = [
        f"INSERT INTO {output} (run_id, seq, stream, text) SELECT id, n, 'stdout', {text} "
        f"FROM {runs}, (SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3) AS pieces "
        "WHERE id % 3 = 0 ORDER BY id, n",
        f"INSERT INTO {links} (from_taskrunrecord_id, to_taskrunrecord_id) "
        f"SELECT id, id - 1 FROM {runs} WHERE id % 10 = 0 ORDER BY id",
    ]
    if remarks:
        statements.append(
            f"INSERT INTO {other} (run_id) SELECT id FROM {runs} WHERE id % 50 = 0 ORDER BY id"
        )
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    waiting = TaskRunRecord.objects.filter(state=State.PENDING).order_by("pk")[:AWAITED]
    for number, pk in enumerate(list(waiting.values_list("pk", flat=True))):
        dependency = 5 + number * rows // AWAITED
        TaskRunRecord.objects.filter(pk=pk).update(state=State.WAITING)
        TaskRunRecord(pk=pk).depends_on.add(dependency)
        OpenDependency.objects.create(dependent_id=pk, dependency_id=dependency)
    _learn([runs, output, links, other])


def _learn(tables: list[str]) -> None:
    """Let the database count what is in its tables."""
    how = {"postgresql": "VACUUM ANALYZE", "mysql": "ANALYZE TABLE"}.get(connection.vendor)
    with connection.cursor() as cursor:
        for table in tables if how else ():
            cursor.execute(f"{how} {table}")


def measure_times(rows: int, rounds: int) -> Iterator[Figure]:
    """Compare ours with the floor, and with Django's own deletion."""
    portion = int(rows * SHARE) // (2 + 3 * rounds)
    floor = Floor(portion)

    def ours() -> float:
        cutoff = _cutoff(portion)
        begun_at = time.perf_counter()
        number = sum(prune(Selection(cutoff=cutoff)))
        return (time.perf_counter() - begun_at) * portion / number

    def counted() -> float:
        with _counting() as sizes:
            took = ours()
        floor.size = round(median(sizes))
        return took

    counted()
    turns = in_turns(counted, floor, rounds=rounds)
    what = "prune, beside batches of bare SQL"
    say(f"{floor.size} runs in a transaction, {portion / median(turns.ours):.0f} runs/s")
    yield turns.figure("prune", what, at_most=TIMES, rows=rows)
    if connection.vendor == "sqlite":
        floor.breath = 0.0
        bare = seconds(floor)
        ratio = median(turns.ours) / bare
        yield Figure(
            benchmark="prune",
            what="prune, beside bare SQL that lets nobody else write",
            value=ratio,
            ours=duration_text(median(turns.ours)),
            floor=duration_text(bare),
            database=connection.vendor,
            rows=rows,
        )
    yield from _beside_django(rows, portion, median(turns.ours) / portion)


def _beside_django(rows: int, portion: int, seconds_a_run: float) -> Iterator[Figure]:
    number = min(PEER_ROWS, portion)
    oldest = TaskRunRecord.objects.filter(open_dependents=None).order_by("pk")[:number]
    pks = list(oldest.values_list("pk", flat=True))
    took = seconds(lambda: TaskRunRecord.objects.filter(pk__in=pks).delete())
    yield Figure(
        benchmark="prune",
        what=f"prune, beside QuerySet.delete() of {number}",
        value=seconds_a_run * number / took,
        ours=duration_text(seconds_a_run * number),
        floor=duration_text(took),
        database=connection.vendor,
        rows=rows,
    )


def _cutoff(number: int) -> datetime:
    """Return a moment before which so many runs have ended."""
    ended = TaskRunRecord.objects.filter(finished_at__isnull=False).order_by("finished_at")
    cutoff = ended.values_list("finished_at", flat=True)[number]
    assert cutoff is not None
    return cutoff


@contextmanager
def _counting() -> Iterator[list[int]]:
    """Give how many runs each statement deletes that deletes runs."""
    sizes = [FIRST_SIZE]
    table = connection.ops.quote_name(TaskRunRecord._meta.db_table)
    begins = (f"DELETE FROM {table} ", f"DELETE {table} FROM")

    def count(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if sql.startswith(begins):
            sizes.append(context["cursor"].rowcount)
        return result

    with connection.execute_wrapper(count):
        yield sizes


class Floor:
    """Bare SQL that deletes the oldest runs, and how many it deletes in a transaction."""

    def __init__(self, portion: int) -> None:
        self.portion = portion
        self.size = FIRST_SIZE
        self.breath = BREATH_SECONDS if connection.vendor == "sqlite" else 0.0

    def __call__(self) -> float:
        """Delete; return how many seconds it took."""
        cutoff = _cutoff(self.portion)
        begun_at, number = time.perf_counter(), 0
        for pks in self._batches(cutoff):
            with transaction.atomic():
                self._delete(pks)
            number += len(pks)
            time.sleep(self.breath)
        return (time.perf_counter() - begun_at) * self.portion / number

    def _batches(self, cutoff: datetime) -> Iterator[list[int]]:
        """Read keys as many at a time as ours does."""
        runs, waits = (model._meta.db_table for model in (TaskRunRecord, OpenDependency))
        states = ", ".join(f"'{state}'" for state in FINISHED)
        last = 0
        while True:
            with connection.cursor() as cursor:
                cursor.execute(
                    f"SELECT id FROM {runs} WHERE finished_at < %s AND id > %s "
                    f"AND state IN ({states}) AND NOT EXISTS "
                    f"(SELECT 1 FROM {waits} WHERE dependency_id = {runs}.id) "
                    "ORDER BY id LIMIT 5000",
                    [connection.ops.adapt_datetimefield_value(cutoff), last],
                )
                pks = [row[0] for row in cursor.fetchall()]
            if not pks:
                return
            last = pks[-1]
            rest = iter(pks)
            while batch := list(islice(rest, self.size)):
                yield batch

    def _delete(self, pks: list[int]) -> None:
        output = TaskRunOutput._meta.db_table
        links = TaskRunRecord.depends_on.through._meta.db_table
        keys = "= ANY(%s)" if connection.vendor == "postgresql" else f"IN ({str(pks)[1:-1]})"
        parameters = [pks] if connection.vendor == "postgresql" else []
        with connection.cursor() as cursor:
            for place in (
                f"{output} WHERE run_id",
                f"{links} WHERE from_taskrunrecord_id",
                f"{links} WHERE to_taskrunrecord_id",
                f"{TaskRunRecord._meta.db_table} WHERE id",
            ):
                cursor.execute(f"DELETE FROM {place} {keys}", parameters)


def measure_waits(rows: int) -> Iterator[Figure]:
    """Prune all but the youngest in a process of its own while others write."""
    alone = min(ALONE_SECONDS, rows / 20_000)
    connections.close_all()
    before = _written(lambda ended: ended.wait(alone))
    kept = TaskRunRecord.objects.finished().order_by("-pk")[YOUNG].finished_at
    connections.close_all()
    pruner: list[tuple[int, float, float]] = []

    def work(_: Event) -> None:
        ours, theirs = fork.Pipe()
        process = fork.Process(target=_prune_all, args=[theirs, kept])
        process.start()
        theirs.close()
        pruner.append(ours.recv())
        process.join()

    during = _written(work)
    number, growth, took = pruner[0]
    say(f"pruned {number:,} in {took:.0f} s beside writers")
    yield Figure(
        benchmark="prune",
        what="memory that grows, with receivers of post_delete",
        value=growth,
        unit="MiB",
        at_most=GROWTH,
        database=connection.vendor,
        rows=number,
    )
    for name, waits in during.items():
        usual = before[name]
        say(
            f"{name}: {len(waits)} writes, median {duration_text(median(waits))}, 99.9 % "
            f"{duration_text(quantiles(waits, n=1000)[-1])}, longest {duration_text(max(waits))};"
            f" nothing pruned: {len(usual)}, median {duration_text(median(usual))}, longest "
            f"{duration_text(max(usual))}"
        )
        yield Figure(
            benchmark="prune",
            what=f"longest wait of who {name}",
            value=max(waits) * 1000,
            unit="ms",
            at_most=WAITS.get(connection.vendor),
            ours=duration_text(max(waits)),
            floor=f"nothing pruned: {duration_text(max(usual))}",
            database=connection.vendor,
            rows=number,
        )


def _prune_all(pipe: Connection, cutoff: datetime) -> None:
    """Prune in this process; send how many runs went, the memory that took, and the seconds."""
    heard: dict[str, int] = defaultdict(int)

    def hear(sender: Any, **kwargs: Any) -> None:
        heard[sender.__name__] += 1

    for sender in (TaskRunRecord, TaskRunOutput, Remark):
        post_delete.connect(hear, sender=sender, weak=False)
    TaskRunRecord.objects.exists()
    # From here on the most that it had is what it has now.
    Path("/proc/self/clear_refs").write_text("5")
    before, begun_at = _most_memory(), time.perf_counter()
    number = sum(prune(Selection(cutoff=cutoff)))
    took = time.perf_counter() - begun_at
    assert heard.keys() == {"Remark"}, heard
    pipe.send((number, _most_memory() - before, took))


def _most_memory() -> float:
    """Return the most memory that this process had, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _written(work: Callable[[Event], object]) -> dict[str, list[float]]:
    """Return how long each write took of processes that write until ``work`` has been done."""
    ended, pipes, processes = fork.Event(), [], []
    for name, choose in WRITERS.items():
        ours, theirs = fork.Pipe()
        process = fork.Process(target=_write, args=[theirs, ended, choose])
        process.start()
        theirs.close()
        pipes.append((name, ours))
        processes.append(process)
    try:
        work(ended)
    finally:
        ended.set()
    waits = {name: ours.recv() for name, ours in pipes}
    for process in processes:
        process.join()
    return waits


def _write(pipe: Connection, ended: Event, choose: Callable[[Random], Write]) -> None:
    """Write now and then until it has ended; send how long each write took, in seconds."""
    random, waits = Random(os.getpid()), []
    while not ended.wait(PAUSE):
        write = choose(random)
        begun_at = time.perf_counter()
        write()
        waits.append(time.perf_counter() - begun_at)
    # The first one has made the connection.
    pipe.send(waits[1:])


def _young(random: Random) -> TaskRunRecordQuerySet:
    """Return one of the youngest runs."""
    newest = TaskRunRecord.objects.order_by("-pk").values_list("pk", flat=True)[0]
    return TaskRunRecord.objects.filter(pk=newest - random.randrange(100))


def _add(random: Random) -> Write:
    return TaskRunRecord(**run_fields(state=State.PENDING)).save


def _move(random: Random) -> Write:
    """Let a worker begin a run."""
    return partial(_young(random).transition, sources=[State.PENDING], target=State.STARTED)


def _write_to_young(random: Random) -> Write:
    return partial(_young(random).update, label="looked at")


def _write_to_old(random: Random) -> Write:
    """Write to one of those that go next."""
    ended = TaskRunRecord.objects.filter(finished_at__isnull=False).order_by("finished_at")
    keys = list(ended.values_list("pk", flat=True)[: AWAITED + 500])
    runs = TaskRunRecord.objects.filter(pk=random.choice(keys[AWAITED:] or keys))
    return partial(runs.update, label="looked at")


WRITERS: dict[str, Callable[[Random], Write]] = {
    "adds a run": _add,
    "moves a run": _move,
    "writes to a run that stays": _write_to_young,
    "writes to a run that goes": _write_to_old,
}
