"""Tasks whose delayed calls are kept in the database."""

from __future__ import annotations

from pathlib import Path

from celery import Task, shared_task
from django.db import transaction
from pydantic import SecretStr

from celery_admin_runner.base import DjangoTask
from tests.stoppable_tasks import guarded


@shared_task(base=DjangoTask)
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@shared_task(base=DjangoTask, expires=3 * 3600, ignore_result=True, soft_time_limit=50)
def opinionated() -> None:
    """Have options of its own."""


@shared_task(base=DjangoTask)
def know_secret(result: int, secret_number: int, hint: SecretStr | None = None) -> None:
    """Take secrets."""


@shared_task(base=DjangoTask)
def total(numbers: list[int]) -> int:
    """Add numbers."""
    return sum(numbers)


@shared_task(base=DjangoTask, bind=True, max_retries=1)
def try_again(self: Task, path: str) -> None:
    """Fail, and be tried again a moment later; leave a file then."""
    if self.request.retries == 0:
        raise self.retry(countdown=0.5, exc=ValueError("not yet"))
    Path(path).touch()


@shared_task(base=DjangoTask, bind=True)
def start_later(self: Task, canvas: bool = False) -> list[str]:
    """Call a task, or a chain, that is to start in an hour; return the ids of its children."""
    later = add.s(1) | add.s(2) if canvas else add.s(1)
    later.apply_async(countdown=3600)
    return [child.id for child in self.request.children]


@shared_task(base=DjangoTask, bind=True)
def change_its_mind(self: Task) -> list[str]:
    """Call a task that is to start in an hour, and take that back; return its children."""
    try:
        with transaction.atomic():
            add.apply_async([1], countdown=3600)
            raise LookupError
    except LookupError:
        return [child.id for child in self.request.children]


@shared_task(base=DjangoTask, bind=True)
def replace_later(self: Task, path: str) -> None:
    """Let another task leave a file a moment later, under the same id."""
    raise self.replace(guarded.s(path).set(countdown=0.5))
