"""A second admin site, under another name and address."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from celery_admin_runner.admin.tasks import CeleryTaskAdmin
from celery_admin_runner.models import CeleryTask

#: It has the tasks, and not the journal.
back_office = admin.AdminSite(name="back_office")
back_office.register(CeleryTask, CeleryTaskAdmin)

urlpatterns = [
    path("admin/", admin.site.urls),
    path("office/tools/", back_office.urls),
]
