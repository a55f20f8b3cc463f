"""The websocket's address, for the ``URLRouter`` of a site's ``asgi.py``."""

from __future__ import annotations

from django.urls import URLPattern, path

from celery_admin_runner.live.consumers import TaskRunsConsumer

websocket_urlpatterns: list[URLPattern] = [
    path("ws/task-runs/", TaskRunsConsumer.as_asgi(), name="task_runs_websocket"),
]
