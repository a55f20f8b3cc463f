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
    run = report.build.run(3, cover=True, reason="asked for")

    assert (run.task_name, run.args, run.kwargs, run.obj, run.reason) == (
        "tests.model_task_models.Report.build",
        [report.pk, 3],
        {"cover": True},
        report,
        "asked for",
    )
    assert list(TaskRunRecord.objects.for_object(report)) == [run]
