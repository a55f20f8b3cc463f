"""Tasks on methods of models."""

from __future__ import annotations

import pytest

from celery_admin_runner.models import TaskRunRecord
from tests.model_task_models import Report

pytestmark = pytest.mark.django_db


@pytest.fixture
def report() -> Report:
    return Report.objects.create(title="Year")


def test_a_run_is_about_its_object(report):
    run = report.load.run("here", reason="asked for")

    assert (run.task_name, run.args, run.kwargs, run.obj, run.reason) == (
        "tests.model_task_models.Report.load",
        [report.pk, "here"],
        {},
        report,
        "asked for",
    )
    assert list(TaskRunRecord.objects.for_object(report)) == [run]


def test_a_run_is_joined_by_the_next_while_it_is_active(report):
    run = report.build.run(3, cover=True, reason="asked for")
    assert report.build.run() == run
    assert report.load.run() == report.load.current()
