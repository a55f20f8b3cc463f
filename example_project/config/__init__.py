"""The configuration of the example project; importing it makes its Celery app the current one."""

from config.celery import app

__all__ = ["app"]
