"""The tasks of the measurements; the worker imports them by name."""

from __future__ import annotations

import os
import time

import redis
from celery import shared_task

from celery_admin_runner.base import DjangoTask


@shared_task
def nothing(a: int = 1, b: int = 2) -> None:
    """Do nothing."""


@shared_task(base=DjangoTask)
def nothing_guarded(a: int = 1, b: int = 2) -> None:
    """Do nothing, as a task that may have the journal's features, and has none."""


@shared_task(ignore_result=True)
def tell_time(key: str) -> None:
    """Write down the time, for who waits for it."""
    redis.Redis.from_url(os.environ["CELERY_BROKER_URL"]).rpush(key, time.time())
