"""Tasks that count themselves."""

import time

from celery import shared_task
from django.utils import timezone

from celery_admin_runner.runs import current_run
from scale.models import Execution
from scale.settings import NAME


def _begin(task) -> Execution:
    request = task.request
    return Execution.objects.create(
        task_id=request.id, task_name=task.name, retries=request.retries
    )


def _end(execution: Execution) -> None:
    execution.over_at = timezone.now()
    execution.save(update_fields=["over_at"])


@shared_task(bind=True)
def count(self, number: int) -> int:
    """Do next to nothing."""
    _end(_begin(self))
    return number


@shared_task(bind=True, queue=f"{NAME}-slow")
def take_time(self, seconds: float = 1.0, steps: int = 4) -> None:
    """Take time, and tell how far it is."""
    execution, run = _begin(self), current_run()
    for step in range(1, steps + 1):
        print(f"Step {step}")
        time.sleep(seconds / steps)
        if run:
            run.progress(step, steps)
    _end(execution)


@shared_task(bind=True, queue=f"{NAME}-slow", unique=True, stale_time_limit=60)
def only_one(self, key: str, seconds: float = 1.0) -> str:
    """Be the only one with this key."""
    execution = _begin(self)
    time.sleep(seconds)
    _end(execution)
    return key


@shared_task(bind=True, autoretry_for=(ConnectionError,), default_retry_delays=(1,))
def succeed_later(self, number: int) -> int:
    """Fail once, and succeed then."""
    execution = _begin(self)
    if not self.request.retries:
        raise ConnectionError("It does not answer")
    _end(execution)
    return number


@shared_task(bind=True)
def spread(self, number: int = 5) -> None:
    """Start others."""
    execution = _begin(self)
    for each in range(number):
        count.delay(each)
    _end(execution)


@shared_task(bind=True)
def tick(self) -> None:
    """Say that a beat is alive."""
    _end(_begin(self))
