"""The list of tasks with the figures of each, beside a bare list page over the same journal.

500 tasks are registered, of which a page shows 100. What is read of the journal is bounded for
each task: its last run, its latest 20 runs, 1,000 runs of seven days at most, and of all tasks
5,000 failures at most. Each is a range of one index (by EXPLAIN: nothing but index scans below a
limit), so a journal of ten million answers as one of ten thousand; what is left is that admin
renders rows (by profile: two thirds of the time), and on PostgreSQL whatever of the newest pages
of the table is not in its cache. To sort by a figure, those of all 500 tasks are asked for.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from django.db import connection
from django.test.utils import CaptureQueriesContext

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.skipping import values_in
from tests.benchmarks.bare import BARE, browsing, getting
from tests.benchmarks.journal import TASKS, journal, task_name_of
from tests.benchmarks.measuring import Figure, in_turns, say
from tests.celery_app import app

LIST = "/admin/celery_admin_runner/celerytask/?q=shop.area"
#: The order by runs in 7 days, the most first.
SORTED = f"{LIST}&o=-4"


def add_arguments(parser: ArgumentParser) -> None:
    """Add nothing."""


def measure(arguments: Namespace) -> Iterator[Figure]:
    """Compare the list, in its own order and sorted by a figure, with the bare page."""
    for number in range(TASKS):
        app.task(_nothing, name=task_name_of(number))
    about = {"rows": arguments.rows}
    with journal(arguments.rows, keep=arguments.keep), browsing() as client:
        floor = getting(client, BARE)
        for what, address, at_most in (
            (f"task list with figures of each of {TASKS} tasks", LIST, 2),
            (f"task list sorted by a figure of {TASKS} tasks", SORTED, None),
        ):
            page = getting(client, address)
            turns = in_turns(page, floor, rounds=arguments.rounds)
            yield turns.figure("task_list", what, at_most=at_most, **about)
            with CaptureQueriesContext(connection) as queries:
                page()
            yield Figure(
                benchmark="task_list",
                what=f"queries of the {what}",
                value=len(queries),
                unit="queries",
                database=connection.vendor,
                **about,
            )
        names = in_turns(_names_skipped, _names_distinct, rounds=1)
        yield names.figure("task_list", "names of all tasks: skipped, beside DISTINCT", **about)
        say(f"{len(_names_skipped())} names")


def _names_skipped() -> list[str]:
    return values_in(TaskRunRecord, "task_name", using="default")


def _names_distinct() -> list[str]:
    return list(
        TaskRunRecord.objects.order_by("task_name").values_list("task_name", flat=True).distinct()
    )


def _nothing(number: int = 0) -> None:
    """Do nothing, as each of the tasks."""
