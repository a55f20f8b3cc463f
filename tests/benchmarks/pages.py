"""The pages of the journal's list, beside a bare list page over the same journal.

What is compared: a page of ours with its filters, search, actions and live states, and the bare
page of the newest hundred. One connection, the test client, all middleware, the same superuser.

What the limit is: rendering. By profile the first page spends nine tenths of its time in Python,
half of that in templates, where the filters alone take a sixth; its statements take 2 ms, and
the count up to 10,000 is an index-only scan of 1.5 ms of these. By EXPLAIN each page is one walk
along one index, from its end or from a place in it: no plan reads more rows than it shows, but
those of a numbered page (up to 10,000, to come to the hundredth) and of two conditions at once,
of which one may be tested row by row. A search asks first what its words can be: of 500 tasks
the names take 4 ms to skip through. Times that grow with the journal there are none but the
depth of its indexes.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from time import perf_counter
from typing import Any
from urllib.parse import urlencode

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_results.models import TaskResult

from celery_admin_runner.admin.pages import Place
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.benchmarks.bare import BARE, browsing, getting
from tests.benchmarks.journal import DAYS, journal, task_id_of, task_name_of
from tests.benchmarks.measuring import Figure, in_turns, say

LIST = "/admin/celery_admin_runner/taskrunrecord/"
PEER = "/admin/django_celery_results/taskresult/"
#: What is promised: a page against the bare one, two filters at once, queries, and the first
#: page of a large journal against that of a small one.
TIMES, TIMES_OF_TWO, QUERIES, GROWTH = 1.3, 1.5, 8, 1.25
SMALL = 10_000
#: So many rows the peer is tried with at most: it counts them all, several times a page.
PEER_MAX = 1_000_000


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--pages", metavar="TEXT", default="", help="only those that have it")


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Compare each page with the bare one, and the first one with that of a small journal."""
    rounds = arguments.rounds if arguments.rows >= PEER_MAX else 1
    about = {"database": connection.vendor, "rows": arguments.rows}
    with journal(arguments.rows, keep=arguments.keep), browsing() as client:
        floor = getting(client, BARE)
        for what, query, at_most in _pages():
            if arguments.pages in what:
                page = getting(client, f"{LIST}?{urlencode(query)}")
                turns = in_turns(page, floor, rounds=rounds)
                yield turns.figure("pages", what, at_most=at_most, **about)
        page = getting(client, LIST)
        yield _queries("queries of the first page", page, at_most=QUERIES, **about)
        yield _growth(arguments, client, rounds=2 * rounds)
        if arguments.rows <= PEER_MAX and not arguments.pages:
            _make_results()
            peer = getting(client, PEER)
            turns = in_turns(peer, floor, rounds=max(1, rounds // 2))
            what = "django-celery-results' list of as many results"
            yield turns.figure("pages", what, **about)
            yield _queries(f"queries of {what}", peer, **about)
            TaskResult.objects.all()._raw_delete(TaskResult.objects.db)


def _pages() -> Iterator[tuple[str, dict[str, Any], float]]:
    """Yield what a page is, what its address says, and what is promised."""
    runs = TaskRunRecord.objects.order_by("-created_at", "-id")
    newest = runs[0]
    user = runs.exclude(run_by_name="").values_list("run_by_name", flat=True)[0]
    task, rare = task_name_of(3), task_name_of(203)
    start = newest.created_at - timedelta(days=DAYS * 0.6)
    month = {
        "created_from": timezone.localdate(start).isoformat(),
        "created_until": timezone.localdate(start + timedelta(days=30)).isoformat(),
    }
    middle = Place(moment=newest.created_at - timedelta(days=DAYS / 2), pk=newest.pk)
    failures = {"state": State.FAILURE}
    for what, query in (
        ("first page", {}),
        ("by state: failures", failures),
        ("by state: lost runs", {"state": State.LOST}),
        ("by state: successes", {"state": State.SUCCESS}),
        ("by state: not finished", {"state": "unfinished"}),
        ("by task: one of the frequent", {"task": task}),
        ("by task: one of the rare", {"task": rare}),
        ("by task: all of an area of 20", {"task": "shop.area10.*"}),
        ("by user", {"user": user}),
        ("by date: an old month", month),
        ("search: task id", {"q": task_id_of(newest.pk // 3)}),
        ("search: beginning of ten tasks", {"q": "shop.area10.task_20"}),
        ("search: beginning of half of the runs", {"q": "shop.area0"}),
        ("search: user name", {"q": user}),
        ("search: a miss", {"q": "no-such-thing"}),
        ("oldest page", {"after": "start"}),
        ("page in the middle", {"before": str(middle)}),
        ("page 50, by number", {"p": min(50, _last_number(newest.pk))}),
        ("last page by number", {"p": _last_number(newest.pk)}),
        ("oldest failures", {**failures, "after": "start"}),
        ("oldest first", {"o": "4"}),
    ):
        yield what, query, TIMES
    of_task, of_rare, of_user = {"task": task}, {"task": rare}, {"user": user}
    for what, query in (
        ("two: failures of a frequent task", failures | of_task),
        ("two: failures of a rare task", failures | of_rare),
        ("two: lost runs of a frequent task", {"state": State.LOST} | of_task),
        ("two: successes of a rare task", {"state": State.SUCCESS} | of_rare),
        ("two: failures of a user", failures | of_user),
        ("two: successes of a user", {"state": State.SUCCESS} | of_user),
        ("two: retried runs of a user (none)", {"state": State.RETRY} | of_user),
        ("two: frequent task of a user", of_task | of_user),
        ("two: rare task of a user", of_rare | of_user),
        ("two: failures of a month", failures | month),
        ("two: task in a month", of_task | month),
        ("two: rare task in a month", of_rare | month),
        ("two: user in a month", of_user | month),
        ("two: failures found by user name", failures | {"q": user}),
    ):
        yield what, query, TIMES_OF_TWO


def _growth(arguments: Namespace, client: Client, *, rounds: int) -> Figure:
    """Compare the first page with that of a small journal, in turns between two databases."""
    large = connection.settings_dict["NAME"]
    rows = min(SMALL, arguments.rows)
    with journal(rows, keep=arguments.keep), browsing() as other:
        small = connection.settings_dict["NAME"]
        turns = in_turns(
            partial(_seconds_in, large, getting(client, LIST)),
            partial(_seconds_in, small, getting(other, LIST)),
            rounds=rounds,
        )
        _use(small)
    what = f"first page, against that of {rows:,} runs"
    return turns.figure("pages", what, at_most=GROWTH, rows=arguments.rows)


def _seconds_in(database: str, page: Callable[[], object]) -> float:
    """Return how long a page takes in a database, to which the connection is open already."""
    _use(database)
    page()
    begun_at = perf_counter()
    page()
    return perf_counter() - begun_at


def _use(database: str) -> None:
    connection.close()
    connection.settings_dict["NAME"] = database


def _last_number(rows: int) -> int:
    return max(1, min(rows, 10_000) // 100)


def _queries(what: str, page: Callable[[], object], **fields: Any) -> Figure:
    with CaptureQueriesContext(connection) as queries:
        page()
    return Figure(benchmark="pages", what=what, value=len(queries), unit="queries", **fields)


def _make_results() -> None:
    """Make a row of django-celery-results of each run."""
    say("results for the peer ...")
    quote = connection.ops.quote_name
    columns = {
        "task_id": "task_id",
        "task_name": "task_name",
        "status": "state",
        "worker": "worker",
        "content_type": "'application/json'",
        "content_encoding": "'utf-8'",
        "result": "'{}'",
        "traceback": "traceback",
        "meta": "'{}'",
        "date_created": "created_at",
        "date_started": "started_at",
        "date_done": "coalesce(finished_at, created_at)",
    }
    results, runs = TaskResult._meta.db_table, TaskRunRecord._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {quote(results)} ({', '.join(map(quote, columns))}) "
            f"SELECT {', '.join(columns.values())} FROM {quote(runs)}"
        )
        if connection.vendor != "sqlite":
            keyword = "ANALYZE TABLE" if connection.vendor == "mysql" else "ANALYZE"
            cursor.execute(f"{keyword} {quote(results)}")
