"""What is typed to find runs, resolved to what there is before runs are asked for."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import Q

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.skipping import values_in


def found(runs: TaskRunRecordQuerySet, words: Iterable[str]) -> TaskRunRecordQuerySet:
    """Return the runs with each word as task id, user name or beginning of the task's name.

    What a word can be is asked first, so that runs are asked for by what one index tells, and
    not at all if a word is nothing.
    """
    for word in words:
        runs = runs.any_of(_meanings(word, using=runs.db))
    return runs


def beginning_with(start: str, *, using: str) -> list[Q]:
    """Return the conditions of which one holds for a run whose task's name begins so.

    The names are compared here: in what order a database has them, and so which of them lie
    between two, depends on its collation.
    """
    names = values_in(TaskRunRecord, "task_name", using=using)
    chosen = [name for name in names if name.startswith(start)]
    if len(chosen) == len(names):
        return [Q()]
    return [Q(task_name=name) for name in chosen]


def _meanings(word: str, *, using: str) -> list[Q]:
    runs = TaskRunRecord.objects.using(using).order_by()
    exact = [Q(task_id=word), Q(run_by_name=word)]
    known = [meaning for meaning in exact if runs.filter(meaning).exists()]
    names = beginning_with(word, using=using)
    # A condition that always holds leaves nothing for the others to add.
    return names if names == [Q()] else [*known, *names]
