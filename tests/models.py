"""Tables of the test project: rows of another app that refer to runs."""

from __future__ import annotations

from django.db import models

from celery_admin_runner.models import TaskRunRecord
from tests.model_task_models import Coin, OldReport, Parcel, Report, ShortReport, Titled

__all__ = (
    "Bookmark",
    "Coin",
    "Evidence",
    "OldReport",
    "Parcel",
    "Remark",
    "Report",
    "ShortReport",
    "Successor",
    "Titled",
)


class Remark(models.Model):
    """Goes with its run."""

    run = models.ForeignKey(TaskRunRecord, on_delete=models.CASCADE)

    def __str__(self) -> str:
        return f"Remark {self.pk}"


class Bookmark(models.Model):
    """Outlives its run."""

    run = models.ForeignKey(TaskRunRecord, null=True, on_delete=models.SET_NULL)

    def __str__(self) -> str:
        return f"Bookmark {self.pk}"


class Evidence(models.Model):
    """Keeps its run."""

    run = models.ForeignKey(TaskRunRecord, on_delete=models.PROTECT)

    def __str__(self) -> str:
        return f"Evidence {self.pk}"


class Successor(models.Model):
    """Wants another run in place of its own."""

    run = models.ForeignKey(TaskRunRecord, null=True, default=None, on_delete=models.SET_DEFAULT)

    def __str__(self) -> str:
        return f"Successor {self.pk}"
