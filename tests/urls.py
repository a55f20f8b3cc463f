"""URLs of the test project."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("live/", include("celery_admin_runner.live.urls")),
    path("live-pages/", include("tests.live_pages")),
]
