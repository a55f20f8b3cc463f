from __future__ import annotations

import csv
import resource
from datetime import timedelta

import pytest
from django.db import DatabaseError
from django.utils import timezone

from celery_admin_runner.archive import archive_and_prune
from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.export import EXPORT_FIELDS, write_csv
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.retention import Selection
from celery_admin_runner.states import State
from tests.factories import make_run, make_runs

pytestmark = pytest.mark.django_db


def old_runs(number=1, **fields):
    make_runs(number, finished_at=timezone.now() - timedelta(days=60), **fields)


def pruned(path, *, write=write_csv, **options):
    selection = Selection(cutoff=timezone.now() - timedelta(days=28))
    return sum(archive_and_prune(selection, path, write=write, **options))


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def task_ids():
    return set(TaskRunRecord.objects.values_list("task_id", flat=True))


def test_the_archive_holds_exactly_the_runs_that_went(tmp_path):
    young = make_run()
    old_runs(3, label="Ünder\nzwei Zeilen")
    before = task_ids()

    number = pruned(tmp_path / "old.csv")

    rows = rows_of(tmp_path / "old.csv")
    assert number == 3
    assert {row["task_id"] for row in rows} == before - {young.task_id}
    assert task_ids() == {young.task_id}
    assert rows[0]["label"] == "Ünder\nzwei Zeilen"


def test_an_archive_of_many_pages_has_one_header_and_is_newest_first(tmp_path):
    old_runs(2100)

    pruned(tmp_path / "old.csv", batch_size=150)

    rows = rows_of(tmp_path / "old.csv")
    numbers = [int(row["id"]) for row in rows]
    assert list(rows[0]) == list(EXPORT_FIELDS)
    assert len(numbers) == 2100
    assert numbers == sorted(numbers, reverse=True)
    assert not TaskRunRecord.objects.exists()


def test_an_archive_of_nothing_is_a_header(tmp_path):
    number = pruned(tmp_path / "old.csv")

    assert number == 0
    assert (tmp_path / "old.csv").read_text().startswith("id,task_id,")
    assert rows_of(tmp_path / "old.csv") == []


def test_a_file_that_exists_is_left_alone_and_nothing_goes(tmp_path):
    old_runs()
    path = tmp_path / "old.csv"
    path.write_text("of last month")

    with pytest.raises(PruneError, match=r"old\.csv exists already"):
        pruned(path)

    assert path.read_text() == "of last month"
    assert TaskRunRecord.objects.count() == 1


def test_a_file_that_another_export_writes_is_left_alone(tmp_path):
    old_runs()
    (tmp_path / "old.csv.part").write_text("half")

    with pytest.raises(PruneError, match="another export writes it"):
        pruned(tmp_path / "old.csv")

    assert [path.name for path in tmp_path.iterdir()] == ["old.csv.part"]
    assert TaskRunRecord.objects.count() == 1


def test_nothing_goes_if_the_folder_is_missing(tmp_path):
    old_runs()

    with pytest.raises(PruneError, match=r"can't be written: .*No such file"):
        pruned(tmp_path / "missing" / "old.csv")

    assert TaskRunRecord.objects.count() == 1


def test_nothing_goes_and_no_file_stays_if_the_disk_is_full(tmp_path):
    old_runs(500, reason="x" * 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        with pytest.raises(PruneError, match="can't be written"):
            pruned(tmp_path / "old.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert list(tmp_path.iterdir()) == []
    assert TaskRunRecord.objects.count() == 500


def test_nothing_goes_and_no_file_stays_if_the_database_fails_meanwhile(tmp_path):
    old_runs()

    def failing(parts, file):
        file.write("id\n")
        raise DatabaseError("the server went away")

    with pytest.raises(DatabaseError):
        pruned(tmp_path / "old.csv", write=failing)

    assert list(tmp_path.iterdir()) == []
    assert TaskRunRecord.objects.count() == 1


def test_the_file_is_whole_before_the_first_run_goes(tmp_path):
    old_runs(4)
    path = tmp_path / "old.csv"
    selection = Selection(cutoff=timezone.now() - timedelta(days=28))

    first = next(archive_and_prune(selection, path, write=write_csv, batch_size=1))

    assert first == 1
    assert len(rows_of(path)) == 4
    assert TaskRunRecord.objects.count() == 3


def test_a_run_that_is_old_enough_only_after_the_archive_was_written_stays(tmp_path):
    old_runs(2)
    late = make_run(state=State.STARTED)

    def write_before_a_late_report(parts, file):
        rows = write_csv(parts, file)
        TaskRunRecord.objects.filter(pk=late.pk).transition(
            sources=[State.STARTED],
            target=State.SUCCESS,
            finished_at=timezone.now() - timedelta(days=60),
        )
        return rows

    number = pruned(tmp_path / "old.csv", write=write_before_a_late_report)

    assert number == 2
    assert task_ids() == {late.task_id}
    assert late.task_id not in (tmp_path / "old.csv").read_text()
