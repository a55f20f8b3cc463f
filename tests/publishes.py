"""What is published, and what a worker makes of it, without a worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from celery import Task
from celery.app.trace import build_tracer
from celery.signals import before_task_publish

from tests.celery_app import app


@contextmanager
def messages_sent() -> Iterator[list[dict[str, Any]]]:
    """Collect what is published, as Celery's own signal tells it."""
    sent: list[dict[str, Any]] = []

    def listen(**message: Any) -> None:
        sent.append(message)

    before_task_publish.connect(listen)
    try:
        yield sent
    finally:
        before_task_publish.disconnect(listen)


def attempt(task: Task, *, retries: int = 0, kwargs: Any = None, **request: Any) -> Any:
    """Make one attempt of a run, as a worker does; return what Celery makes of it."""
    task_id = request.pop("id", str(uuid4()))
    queue = {"exchange": "", "routing_key": f"{app.conf.task_default_queue}-attempts"}
    request = {
        **{"id": task_id, "retries": retries, "args": (), "kwargs": kwargs or {}},
        **{"delivery_info": queue, "hostname": "nowhere", "is_eager": False, **request},
    }
    return build_tracer(task.name, task, app=app)(task_id, (), kwargs or {}, request)
