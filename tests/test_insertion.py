"""Rows that are written by hand: they are what Django's own INSERT would write."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, models, transaction
from django.db.models.signals import post_save, pre_save
from django.utils import timezone

from celery_admin_runner.insertion import BATCH_SIZE, insert
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_superuser, run_fields


def new_run(**fields: Any) -> TaskRunRecord:
    """Return a run that is not saved."""
    return TaskRunRecord(**run_fields(**fields))


def values_of(run: TaskRunRecord) -> dict[str, Any]:
    """Return what a row holds, but for its keys."""
    fields = models.Model.__reduce__(run)[2]
    return {name: fields[name] for name in fields if name not in {"_state", "id", "task_id"}}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"args": [1, {"a": None}], "kwargs": {"b": "ü"}, "label": "100 %", "queue": "%s"},
        {"result": 0, "canvas": {"chain": []}, "retries": 3, "progress_total": 0},
        {"result": "", "state": State.UNSENT, "dispatch_id": uuid4(), "active_key": "k"},
    ],
)
def test_a_row_is_what_django_itself_would_write(fields):
    moment = timezone.now()
    given = {"created_at": moment, "finished_at": moment, **fields}
    if fields.get("state") == State.UNSENT:
        given["finished_at"] = None
    ours, theirs = new_run(**given), new_run(**{**given, "active_key": None})

    insert([ours], using="default")
    theirs.save(force_insert=True)

    row, expected = (TaskRunRecord.objects.get(pk=run.pk) for run in (ours, theirs))
    assert values_of(row) == {**values_of(expected), "active_key": given.get("active_key")}
    assert (ours._state.adding, ours._state.db) == (False, "default")


@pytest.mark.django_db
@pytest.mark.parametrize("number", [1, 2, BATCH_SIZE + 1])
def test_each_of_many_gets_its_own_key(number, django_assert_max_num_queries):
    user = make_superuser()
    runs = [new_run(args=[n], label="" if n % 2 else "odd", run_by=user) for n in range(number)]

    with django_assert_max_num_queries(12):
        insert(runs, using="default")

    rows = TaskRunRecord.objects.in_bulk([run.pk for run in runs])
    assert [rows[run.pk].task_id for run in runs] == [run.task_id for run in runs]
    assert [rows[run.pk].args for run in runs] == [[n] for n in range(number)]
    assert [run.pk for run in runs] == sorted(run.pk for run in runs)


@pytest.mark.django_db
def test_no_rows_are_no_statement(django_assert_num_queries):
    with django_assert_num_queries(0):
        insert([], using="default")


@pytest.mark.django_db(transaction=True)
def test_of_many_all_are_written_or_none():
    twice = [new_run(task_id="twice"), *(new_run() for _ in range(BATCH_SIZE)), new_run()]
    twice[-1].task_id = "twice"

    with pytest.raises(IntegrityError):
        insert(twice, using="default")

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_an_error_in_a_transaction_ends_it_as_one_of_djangos():
    with transaction.atomic():
        with pytest.raises(IntegrityError):
            insert([new_run(task_id="a"), new_run(task_id="a")], using="default")

        assert connection.needs_rollback
        transaction.set_rollback(True)


@pytest.mark.django_db
def test_who_listens_hears_of_each_row_as_of_one_that_was_saved():
    heard: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}

    def before(**kwargs: Any) -> None:
        heard["before"].append({**kwargs, "pk": kwargs["instance"].pk})

    def after(**kwargs: Any) -> None:
        heard["after"].append({**kwargs, "pk": kwargs["instance"].pk})

    pre_save.connect(before, sender=TaskRunRecord)
    post_save.connect(after, sender=TaskRunRecord)
    try:
        saved, inserted = new_run(), new_run()
        saved.save(force_insert=True)
        insert([inserted], using="default")
    finally:
        pre_save.disconnect(before, sender=TaskRunRecord)
        post_save.disconnect(after, sender=TaskRunRecord)

    for theirs, ours in heard.values():
        assert ours == {**theirs, "instance": inserted, "pk": ours["pk"]}
    assert [ours["pk"] for _theirs, ours in heard.values()] == [None, inserted.pk]
