"""The pages: registered on the default admin site; other sites register the same classes."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin

from celery_admin_runner.admin.history import RunHistoryAdmin as RunHistoryAdmin
from celery_admin_runner.admin.runs import TaskRunRecordAdmin
from celery_admin_runner.admin.tasks import CeleryTaskAdmin
from celery_admin_runner.models import CeleryTask, TaskRunRecord

admin.site.register(CeleryTask, CeleryTaskAdmin)
admin.site.register(TaskRunRecord, TaskRunRecordAdmin)

if apps.is_installed("django_celery_beat"):
    from celery_admin_runner.admin import beat as beat
