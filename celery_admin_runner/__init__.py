"""Run Celery tasks from Django admin, and account for every run."""

__version__ = "0.1.0"
