"""Many open websockets, and runs that change: what it takes, and how soon each user hears of it.

One ASGI process, daphne, with the consumer; the sockets of signed-in users, two for each; and
some processes that make runs for these users, move them and tell of their progress, by the
statements and signals of real workers. On the database of DATABASE_URL; the channel layer is on
the Redis of TEST_CHANNEL_REDIS, or of CELERY_BROKER_URL, else in memory, where it does not reach
from process to process.
"""

from __future__ import annotations

import asyncio
import resource
import time
from argparse import ArgumentParser, Namespace
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import connection, connections

from celery_admin_runner import recording
from celery_admin_runner.models import TaskRunRecord
from tests.benchmarks.audience import Reader, make_sessions, make_users
from tests.benchmarks.journal import journal
from tests.benchmarks.measuring import Figure, say
from tests.benchmarks.moves import RANK_OF_END
from tests.benchmarks.servers import (
    COMMANDS,
    Mover,
    Server,
    Usage,
    running_movers,
    running_server,
)
from tests.benchmarks.sockets import Socket, open_socket
from tests.factories import run_fields

#: What is promised, in seconds: the 95th percentile of how late a change is heard of, where
#: the channel layer reaches from process to process, and where it does not.
LATE, LATE_WITHOUT_LAYER = 1.0, 3.0
#: The last message of a run comes within so many seconds, also where its push was lost.
LAST_WITHIN = 20.0
#: What is later than so many seconds was not pushed, but found by the periodic look.
PUSHED_WITHIN = 2.0
PATH = "/ws/task-runs/"
SOCKETS_EACH = 2
#: So many changes a second one process makes, also on a machine that does other things.
CHANGES_EACH = 50
#: Runs that each user has in the beginning.
RUNS_BEFORE = 2
#: Files that the process has open beside the sockets.
OTHER_FILES = 200


@dataclass(kw_only=True)
class Measured:
    """What came of it."""

    #: After so many seconds all were connected, and had their snapshot.
    connected: float = 0.0
    snapshots: float = 0.0
    refused: int = 0
    closed: int = 0
    messages: int = 0
    changes: int = 0
    seconds: float = 0.0
    #: Of each change, over each socket of its user; sorted.
    latencies: list[float] = field(default_factory=list)
    #: Finished runs whose end an open socket of its user did not hear of.
    lost: int = 0
    #: Messages of a run of somebody else.
    wrong_owner: int = 0
    backwards: int = 0
    errors: int = 0
    #: Of the server, at each step.
    usages: list[Usage] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Tell whether each heard of all of its own, in order, and of nothing else."""
        faults = (self.refused, self.closed, self.lost, self.wrong_owner, self.backwards)
        return not any((*faults, self.errors))

    def latency(self, percent: float) -> float:
        """Return the latency that so many percent are not above, in seconds."""
        if not self.latencies:
            return float("inf")
        place = int(len(self.latencies) * percent / 100)
        return self.latencies[min(place, len(self.latencies) - 1)]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--sockets", type=int, default=1000, help="open at once (1000)")
    parser.add_argument("--at-once", type=int, default=50, help="so many handshakes (50)")
    parser.add_argument("--changes", type=float, default=200, help="of runs, a second (200)")
    parser.add_argument("--live-seconds", type=float, default=30, help="of changes (30)")
    parser.add_argument("--idle", type=float, default=10, help="seconds without changes (10)")
    parser.add_argument("--server", choices=sorted(COMMANDS), default="daphne")
    parser.add_argument("--profile", default="", help="write a profile of the server there")


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Measure on an empty journal."""
    if not find_spec("channels"):
        say("live: install the extra [websocket] for this")
        return
    numbers = dict(vars(arguments))
    if arguments.rows < 1_000_000:
        numbers |= {"sockets": 20, "changes": 20, "live_seconds": 2, "idle": 0}
    with journal(0):
        try:
            measured = measure_sockets(seconds=numbers["live_seconds"], **numbers)
        finally:
            recording.close()
            connections.close_all()
        yield from _figures(measured, numbers["sockets"])


def measure_sockets(
    *,
    sockets: int,
    changes: float,
    seconds: float,
    idle: float,
    at_once: int = 50,
    server: str = "daphne",
    profile: str = "",
    **others: object,
) -> Measured:
    """Measure on the database of the tests; its runs, users and sessions are deleted then."""
    _allow_files(sockets + OTHER_FILES)
    users = make_users(max(1, sockets // SOCKETS_EACH))
    keys = make_sessions(users)
    TaskRunRecord.objects.bulk_create(
        TaskRunRecord(**run_fields(run_by=user, label=user.get_username()))
        for user in users
        for _ in range(RUNS_BEFORE)
    )
    owners = dict(TaskRunRecord.objects.values_list("pk", "run_by"))
    readers = [Reader(user.pk) for user in users for _ in range(SOCKETS_EACH)][:sockets]
    measured = Measured()
    movers_wanted = max(1, round(changes / CHANGES_EACH))
    with (
        running_movers(users, number=movers_wanted, rate=changes, seconds=seconds) as movers,
        running_server(server, PROFILE=profile) as process,
    ):
        heard = asyncio.run(_watch(measured, process, movers, readers, keys, idle, at_once))
        if profile:
            process.get("/profile")
    for mover in movers:
        owners.update({pk: user for pk, user, *_ in mover.changes})
    _evaluate(measured, heard, movers, owners)
    TaskRunRecord.objects.all()._raw_delete(TaskRunRecord.objects.db)
    Session.objects.all().delete()
    User.objects.all().delete()
    return measured


async def _watch(
    measured: Measured,
    server: Server,
    movers: Sequence[Mover],
    readers: Sequence[Reader],
    keys: dict[int, str],
    idle: float,
    at_once: int,
) -> list[Reader]:
    """Open the sockets, let the runs change, and keep what comes; return who was connected."""

    async def look() -> None:
        measured.usages.append(await asyncio.to_thread(server.usage))

    await look()
    begun_at = time.monotonic()
    sockets = await open_all(server.port, readers, keys, at_once)
    measured.connected = time.monotonic() - begun_at
    measured.refused = len(readers) - len(sockets)
    await _until(lambda: all(reader.snapshot_at for reader in sockets), LAST_WITHIN)
    measured.snapshots = time.monotonic() - begun_at
    await look()
    await asyncio.sleep(idle)
    await look()
    for mover in movers:
        mover.begin()
    await asyncio.gather(*(asyncio.to_thread(mover.finish) for mover in movers))
    await look()
    ended = defaultdict(set)
    for mover in movers:
        for pk, user_pk, rank, _ in mover.changes:
            if rank == RANK_OF_END:
                ended[user_pk].add(pk)
    await _until(lambda: not any(reader.lost(ended) for reader in sockets), LAST_WITHIN)
    measured.messages = sum(socket.messages for socket in sockets.values())
    measured.closed = sum(socket.closed.done() for socket in sockets.values())
    for socket in sockets.values():
        socket.close()
    await look()
    return list(sockets)


async def open_all(
    port: int, readers: Sequence[Reader], keys: dict[int, str], at_once: int
) -> dict[Reader, Socket]:
    """Open a socket for each, so many at once; return those that were not refused."""
    room = asyncio.Semaphore(at_once)

    async def open_one(reader: Reader) -> Socket:
        async with room:
            return await open_socket(port, PATH, keys[reader.user_pk], reader.listen)

    outcomes = await asyncio.gather(*map(open_one, readers), return_exceptions=True)
    sockets = {}
    for reader, outcome in zip(readers, outcomes, strict=True):
        if isinstance(outcome, Socket):
            sockets[reader] = outcome
        elif not isinstance(outcome, OSError):
            raise outcome
    return sockets


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Return as soon as it holds, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.05)


def _evaluate(
    measured: Measured,
    readers: Sequence[Reader],
    movers: Sequence[Mover],
    owners: dict[int, int],
) -> None:
    """Compare what was changed with what was heard of it."""
    changes = [change for mover in movers for change in mover.changes]
    measured.changes = len(changes)
    measured.seconds = max(mover.seconds for mover in movers)
    by_user = defaultdict(list)
    for reader in readers:
        by_user[reader.user_pk].append(reader)
        measured.wrong_owner += sum(
            len(ranks) for pk, ranks in reader.heard.items() if owners.get(pk) != reader.user_pk
        )
        measured.backwards += reader.backwards
        measured.errors += reader.errors
    for pk, user_pk, rank, changed_at in changes:
        for reader in by_user[user_pk]:
            ranks = reader.heard.get(pk, [])
            place = bisect_left(ranks, (rank, 0.0))
            if place < len(ranks):
                measured.latencies.append(max(0.0, ranks[place][1] - changed_at))
            elif rank == RANK_OF_END:
                measured.lost += 1
    measured.latencies.sort()


def _figures(measured: Measured, sockets: int) -> Iterator[Figure]:
    """Return what was measured; where the layer does not cross processes, looks find changes."""
    has_layer = bool(settings.CHANNEL_REDIS and find_spec("channels_redis"))
    late = LATE if has_layer else LATE_WITHOUT_LAYER
    started, opened, idle, changed, closed = measured.usages
    pace = measured.changes / measured.seconds
    with_changes = f"{sockets} sockets, {pace:.0f} changes a second"

    def figure(what: str, value: float, unit: str, at_most: float | None = None) -> Figure:
        return Figure(
            benchmark="live",
            what=what,
            value=value,
            unit=unit,
            at_most=at_most,
            database=connection.vendor,
            rows=sockets,
        )

    what = f"latency of a change, 95 %, {with_changes}"
    yield figure(what, measured.latency(95), "s", late)
    yield figure("latency of a change, median", measured.latency(50), "s")
    yield figure("latency of a change, most", measured.latency(100), "s")
    by_look = sum(latency > PUSHED_WITHIN for latency in measured.latencies)
    yield figure(f"changes heard of later than {PUSHED_WITHIN:.0f} s", by_look, "messages")
    wrong = {
        "sockets refused": measured.refused,
        "sockets closed by the server": measured.closed,
        "last messages lost": measured.lost,
        "messages of others' runs": measured.wrong_owner,
        "older messages after newer": measured.backwards,
        "error messages": measured.errors,
    }
    for what, number in wrong.items():
        yield figure(what, number, "", 0)
    yield figure("all sockets open after", measured.connected, "s")
    yield figure("all with a snapshot after", measured.snapshots, "s")
    yield figure("CPU of the server to open them", opened.cpu - started.cpu, "s")
    yield figure("CPU of the server, idle", idle.share_since(opened), "%")
    yield figure("CPU of the server, with changes", changed.share_since(idle), "%")
    yield figure("memory of a socket", (opened.memory - started.memory) * 1024 / sockets, "kB")
    yield figure("memory of the server, most", closed.most_memory, "MiB")
    yield figure("statements to open", opened.statements - started.statements, "")
    yield figure("connections to open", opened.connections - started.connections, "")
    yield figure("statements a second, idle", idle.rate_since(opened, "statements"), "")
    yield figure("statements a second, with changes", changed.rate_since(idle, "statements"), "")
    yield figure("connections a second, with changes", changed.rate_since(idle, "connections"), "")
    yield figure("threads of the server", changed.threads, "")


def _allow_files(number: int) -> None:
    """Let this process and its children have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(number, hard), hard))
