"""Wiring: what has to happen when Django starts."""

from __future__ import annotations

from django.apps import AppConfig, apps
from django.conf import settings
from django.utils.translation import gettext_lazy as _


class CeleryAdminRunnerConfig(AppConfig):
    """The app. Importing and starting it makes no query, thread or broker connection."""

    name = "celery_admin_runner"
    verbose_name = _("Celery tasks")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks, receivers and the types of messages; import the Celery app."""
        from celery_admin_runner import (
            announcing,
            bootsteps,
            checks,
            commands,
            contexts,
            encoding,
            invocations,
            late,
            receivers,
            recording,
            registry,
            startup,
            task_checks,
        )

        encoding.register_types()
        contexts.register_types()
        checks.register()
        task_checks.register()
        recording.connect()
        late.connect()
        receivers.connect()
        invocations.connect()
        announcing.connect()
        startup.connect()
        bootsteps.connect()
        commands.connect()
        registry.import_app()
        if apps.is_installed("channels") and getattr(settings, "CHANNEL_LAYERS", {}):
            from celery_admin_runner.live import pushing

            pushing.connect()
