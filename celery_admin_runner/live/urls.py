"""The addresses of a user's own runs, for a site to include where it likes.

``path("task-runs/", include("celery_admin_runner.live.urls"))``
"""

from __future__ import annotations

from django.urls import path

from celery_admin_runner.live import views

app_name = "celery_admin_runner_live"
urlpatterns = [
    path("", views.snapshot, name="snapshot"),
    path("changes/", views.changes, name="changes"),
    path("seen/", views.mark_seen, name="mark_seen"),
]
