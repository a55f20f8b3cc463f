"""URLs of the example project: the admin for staff, the shop's own pages for its customers."""

from django.contrib import admin
from django.urls import include, path

admin.site.site_header = "The shop"
admin.site.site_title = "The shop"

urlpatterns = [
    path("admin/", admin.site.urls),
    # What the page of a customer asks for the state of the runs.
    path("task-runs/", include("celery_admin_runner.live.urls")),
    path("", include("shop.urls")),
]
