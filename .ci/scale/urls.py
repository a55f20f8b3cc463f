"""The admin, and what users' pages ask."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("task-runs/", include("celery_admin_runner.live.urls")),
]
