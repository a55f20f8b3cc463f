"""The floor of the pages: a list page of admin as one writes it first, over the same journal.

A hundred rows of plain columns, in the order of the primary key, and a paginator that counts
nothing. It is on a site of its own with the same models, so all around the list is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

from django.contrib import admin
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.test import Client, override_settings
from django.urls import path

from celery_admin_runner.models import TaskRunRecord
from tests.benchmarks.journal import ADMIN
from tests.urls import urlpatterns as tried_urls

#: Where the floor is, while ``browsing``.
BARE = "/bare/celery_admin_runner/taskrunrecord/"


class UncountedPaginator(Paginator):  # type: ignore[type-arg]
    """Pages of a list of which nobody knows how long it is."""

    @property
    def count(self) -> int:  # type: ignore[override]
        """Return a number that is large enough."""
        return 1_000_000_000


class BareRuns(admin.ModelAdmin):  # type: ignore[type-arg]
    """Runs in a list of plain columns."""

    #: Not that of the package.
    change_list_template = "admin/change_list.html"
    list_display = (
        *("state", "task_name", "run_by_name", "created_at", "started_at", "finished_at"),
        "label",
    )
    actions = None
    list_per_page = 100
    ordering: ClassVar[list[str]] = ["-id"]
    show_full_result_count = False
    paginator = UncountedPaginator


bare_site = admin.AdminSite(name="bare")
for _model, _admin in admin.site._registry.items():
    bare_site.register(_model, BareRuns if _model is TaskRunRecord else type(_admin))

urlpatterns = [*tried_urls, path("bare/", bare_site.urls)]


@contextmanager
def browsing(user_name: str = ADMIN) -> Iterator[Client]:
    """Give a browser of a user of the journal, who is logged in meanwhile."""
    with override_settings(ROOT_URLCONF=__name__):
        client = Client()
        client.force_login(User.objects.get(username=user_name))
        yield client
        client.logout()


def getting(client: Client, address: str) -> Callable[[], bytes]:
    """Return what gets a page, whole; it raises AssertionError where there is none."""
    return partial(_page, client, address)


def _page(client: Client, address: str) -> bytes:
    response = client.get(address)
    assert response.status_code == 200, (address, response.status_code)
    return response.content
