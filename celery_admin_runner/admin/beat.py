"""Put "Run now" into django-celery-beat's own admin: imported only where that is installed."""

from __future__ import annotations

from django.contrib import admin
from django_celery_beat import admin as beat_admin
from django_celery_beat.models import PeriodicTask

from celery_admin_runner.admin.periodic import PeriodicTaskRunMixin


def add_run_now(site: admin.AdminSite) -> None:
    """Let the site's admin of periodic tasks, if it has one, run them by hand.

    By the import above django-celery-beat has registered its own with the default site, also
    if it stands behind us in INSTALLED_APPS. A project's own that is there already is kept.
    """
    if not site.is_registered(PeriodicTask):
        return
    registered = type(site.get_model_admin(PeriodicTask))
    if issubclass(registered, PeriodicTaskRunMixin):
        return
    site.unregister(PeriodicTask)
    site.register(PeriodicTask, with_run_now(registered))


def with_run_now(admin_class: type[admin.ModelAdmin]) -> type[admin.ModelAdmin]:  # type: ignore[type-arg]
    """Return a ModelAdmin of periodic tasks that also runs them by hand."""
    return type(
        admin_class.__name__, (PeriodicTaskRunMixin, admin_class), {"__module__": __name__}
    )


#: django-celery-beat's ModelAdmin with "Run now", for other sites and for projects' subclasses.
PeriodicTaskRunAdmin = with_run_now(beat_admin.PeriodicTaskAdmin)

add_run_now(admin.site)
