"""The runs about an object, and its tasks, in the admin of whatever model it has."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.models import Model
from django.http import HttpRequest
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse

from celery_admin_runner.admin import RunHistoryAdmin
from celery_admin_runner.admin.runs import TaskRunRecordAdmin
from celery_admin_runner.admin.tasks import CeleryTaskAdmin
from celery_admin_runner.models import CeleryTask, TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_runs, make_user
from tests.models import Coin, Parcel, Remark, Report

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]
ON_COMMIT = pytest.mark.django_db(transaction=True)

VIEW = "tests.view_report"
CHANGE = "tests.change_report"
BUILD = "tests.model_task_models.Report.build"
HIDDEN = "Hidden"


class ReportAdmin(RunHistoryAdmin):
    """Hides some reports."""

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).exclude(title=HIDDEN)


#: A site that has all of it.
SITE = admin.AdminSite(name="shop")
SITE.register(Report, ReportAdmin)
SITE.register([Parcel, Coin, Remark], RunHistoryAdmin)
SITE.register(CeleryTask, CeleryTaskAdmin)
SITE.register(TaskRunRecord, TaskRunRecordAdmin)
urlpatterns = [path("admin/", admin.site.urls), path("shop/", SITE.urls)]


def url(view: str, *args: object, model: str = "report", site: str = "shop") -> str:
    return reverse(f"{site}:tests_{model}_{view}", args=args)


def client_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def make_report(title: str = "June") -> Report:
    return Report.objects.create(title=title)


def about(obj: Model) -> dict[str, Any]:
    """Return the fields of a run about an object."""
    return {"content_type": ContentType.objects.get_for_model(obj), "object_id": str(obj.pk)}


@pytest.fixture
def operator() -> User:
    return make_user("run_celerytask", "view_taskrunrecord", CHANGE, username="ada")


@pytest.fixture
def client(operator: User) -> Client:
    return client_of(operator)


# The page with the runs


def test_the_page_shows_the_runs_of_the_object_newest_first(client: Client) -> None:
    report = make_report()
    old = make_run(**about(report), task_name=BUILD, reason="Audit", state=State.FAILURE)
    new = make_run(**about(report), label="Again")
    make_run(**about(make_report()))

    page = client.get(url("runs", report.pk))

    assert [shown.run.pk for shown in page.context["runs"]] == [new.pk, old.pk]
    assert [shown.task for shown in page.context["runs"]] == ["tests.tasks.add", "Build the report"]
    assert all(text in page.text for text in ("Runs: June", "Audit", "run-state-failure", "2 runs"))
    assert f"/shop/celery_admin_runner/taskrunrecord/{old.pk}/change/" in page.text
