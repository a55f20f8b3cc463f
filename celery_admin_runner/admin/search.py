"""What is typed to find runs, resolved to what there is before runs are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.db.models import Q

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.skipping import values_in


def of_tasks_like(runs: TaskRunRecordQuerySet, start: str) -> TaskRunRecordQuerySet:
    """Return the runs of all tasks whose names begin so."""
    names = _names_like(start, values_in(TaskRunRecord, "task_name", using=runs.db))
    return runs if names is None else runs.any_of(_each(names), Q(task_name__in=names))


def found(runs: TaskRunRecordQuerySet, words: Iterable[str]) -> TaskRunRecordQuerySet:
    """Return the runs with each word as task id, user name or beginning of the task's name.

    What a word can be is asked first, so that runs are asked for by what one index tells, and
    not at all if a word is nothing.
    """
    wanted = list(dict.fromkeys(words))
    all_names = values_in(TaskRunRecord, "task_name", using=runs.db) if wanted else []
    for word in wanted:
        names = _names_like(word, all_names)
        if names is None:
            # Every run is one of these.
            continue
        others = _known(word, using=runs.db)
        if not others and not names:
            return runs.none()
        whole = None if others else Q(task_name__in=names)
        runs = runs.any_of([*others, *_each(names)], whole)
    return runs


def _known(word: str, *, using: str) -> list[Q]:
    """Return what a word is, besides the beginning of a name: a task id, a user name."""
    runs = TaskRunRecord.objects.using(using).order_by()
    meanings = [Q(task_id=word), Q(run_by_name=word)]
    return [meaning for meaning in meanings if runs.filter(meaning).exists()]


def _each(names: Iterable[str]) -> list[Q]:
    return [Q(task_name=name) for name in names]


def _names_like(start: str, names: Sequence[str]) -> list[str] | None:
    """Return those of all names of tasks that begin so; None for all that there are.

    They are compared here: in what order a database has them, and so which of them lie between
    two, depends on its collation.
    """
    chosen = [name for name in names if name.startswith(start)]
    return None if len(chosen) == len(names) else chosen
