"""The addresses of our pages, on whatever admin site they are shown."""

from __future__ import annotations

from django.contrib.admin import AdminSite
from django.db.models import Model
from django.http import HttpRequest
from django.urls import reverse

from celery_admin_runner.models import CeleryTask, TaskRunRecord


def task_list_url(admin_site: AdminSite) -> str:
    """Return the address of the task list."""
    return model_url(admin_site, CeleryTask, "changelist")


def run_page_url(admin_site: AdminSite, task_name: str) -> str:
    """Return the address of the page on which a task is run."""
    return model_url(admin_site, CeleryTask, "run", task_name)


def run_selected_url(admin_site: AdminSite) -> str:
    """Return the address of the page on which several tasks are run."""
    return model_url(admin_site, CeleryTask, "run_selected")


def journal_url(admin_site: AdminSite, request: HttpRequest) -> str | None:
    """Return the address of the journal, or None if the user can't see it on this site."""
    if not _may_view(admin_site, request):
        return None
    return model_url(admin_site, TaskRunRecord, "changelist")


def record_url(admin_site: AdminSite, request: HttpRequest, run: TaskRunRecord) -> str | None:
    """Return the address of a run's page, or None if the user can't see it on this site."""
    if not _may_view(admin_site, request, run):
        return None
    return record_address(admin_site, run)


def record_address(admin_site: AdminSite, run: TaskRunRecord) -> str:
    """Return the address of a run's page, on a site that has the journal."""
    return model_url(admin_site, TaskRunRecord, "change", run.pk)


def _may_view(
    admin_site: AdminSite, request: HttpRequest, run: TaskRunRecord | None = None
) -> bool:
    if not admin_site.is_registered(TaskRunRecord):
        return False
    return admin_site.get_model_admin(TaskRunRecord).has_view_permission(request, run)


def model_url(admin_site: AdminSite, model: type[Model], view: str, *args: object) -> str:
    """Return the address of a model's view; "admin" is the application namespace of any site."""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_{view}"
    return reverse(name, args=args, current_app=admin_site.name)
