"""Messages that a worker holds until their time: what code sends with a countdown."""

from __future__ import annotations

from collections.abc import Sequence

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import get_task
from tests.celery_app import app

#: In so many seconds what a test says to the workers has come to them, also on a busy machine.
LATER = 10


def send_later(
    task_name: str, args: Sequence[object], *, countdown: float, queue: str | None = None
) -> TaskRunRecord:
    """Send a tracked task that waits in a worker, not in the database; return its row."""
    task = get_task(task_name)
    queue = queue or app.conf.task_default_queue
    result = task.apply_async(list(args), countdown=countdown, queue=queue)
    return TaskRunRecord.objects.get(task_id=result.id)
