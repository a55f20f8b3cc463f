"""Entries of django-celery-beat's schedule for the tests; without it these tests are left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery.signals import before_task_publish
from kombu.utils.json import dumps

beat_models = pytest.importorskip(
    "django_celery_beat.models", reason="django-celery-beat (extra [beat]) is not installed"
)


def make_periodic(
    task: str = "tests.tasks.add", *, args: Any = (), kwargs: Any = None, **fields: Any
) -> Any:
    """Make an entry of beat's schedule: each hour."""
    every = beat_models.IntervalSchedule.objects.get_or_create(every=1, period="hours")[0]
    fields = {"name": "hourly", "interval": every, **fields}
    return beat_models.PeriodicTask.objects.create(
        task=task, args=dumps(args), kwargs=dumps(kwargs or {}), **fields
    )


@contextmanager
def messages_sent() -> Iterator[list[dict[str, Any]]]:
    """Collect what is published, as Celery's own signal tells it."""
    sent: list[dict[str, Any]] = []

    def listen(**message: Any) -> None:
        sent.append(message)

    before_task_publish.connect(listen)
    yield sent
    before_task_publish.disconnect(listen)
