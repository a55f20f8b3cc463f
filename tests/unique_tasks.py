"""Tasks of which the same call runs once, or is ignored for a while after it succeeded."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Ignore
from pydantic import BaseModel

from celery_admin_runner.base import DjangoTask

#: For every task of which no test waits until it is stale.
UNIQUE = {"base": DjangoTask, "unique": True, "stale_time_limit": 600}
HOUR = timedelta(hours=1)


class Place(BaseModel):
    """Where something is."""

    row: int
    seat: int = 1


@shared_task(**UNIQUE)
def once(a: Any, b: int = 2, *rest: Any, c: Any = None, **more: Any) -> Any:
    """Take arguments in every way."""
    return a


@shared_task(**UNIQUE)
def once_of_two(a: int, b: int = 2) -> int:
    """Take just these."""
    return a + b


@shared_task(**UNIQUE, unique_on=["user_pk"])
def once_a_user(user_pk: int, text: Any = "") -> None:
    """Be the same for the same user."""


@shared_task(**UNIQUE, unique_key_generator=lambda task, prefix, args, kwargs: f"{args[0] % 10}")
def once_a_digit(number: int) -> int:
    """Be the same for the same last digit."""
    return number


@shared_task(**UNIQUE)
def once_with_secret(name: str, password: str) -> str:
    """Take a secret."""
    return name


@shared_task(**UNIQUE)
def wait_once(path: str) -> str:
    """Return the text of a file as soon as it exists."""
    deadline = time.monotonic() + 60
    while not Path(path).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return Path(path).read_text()


@shared_task(**UNIQUE, bind=True, max_retries=1)
def end_once(self: Task, how: str, path: str = "") -> str:
    """End as asked."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "failure":
        raise ValueError("no")
    if how == "ignore":
        raise Ignore("never mind")
    if how == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0.2, exc=ValueError("not yet"))
    if how == "retry":
        # The same call, made by the second attempt, joins the run that makes it.
        Path(path).write_text(end_once.delay("retry", path).id)
    return "well"


@shared_task(**UNIQUE, bind=True)
def call_again(self: Task, depth: int = 0) -> str:
    """Make the call that is active: itself."""
    return str(call_again.delay(depth).id)


@shared_task(base=DjangoTask, ignore_task_after_success=True, ignore_task_timedelta=HOUR)
def at_most_hourly(number: int, *, fails: bool = False) -> int:
    """Succeed once an hour."""
    if fails:
        raise ValueError("no")
    return number


@shared_task(base=DjangoTask, bind=True, ignore_task_timedelta=HOUR)
def ignored_if_asked(self: Task, number: int, seconds: float | None = None) -> int:
    """Open a window for even numbers."""
    if number % 2 == 0:
        window = None if seconds is None else timedelta(seconds=seconds)
        self.set_ignore_task(window)
    return number


@shared_task(base=DjangoTask, bind=True)
def ask_in_vain(self: Task) -> None:
    """Open a window that nobody would look at."""
    self.set_ignore_task(HOUR)


@shared_task(base=DjangoTask)
def plain(number: int = 1) -> int:
    """Be neither unique nor ignored."""
    return number


@shared_task(base=DjangoTask, track=True)
def tracked(number: int, password: str = "") -> int:
    """Always have a row."""
    return number


@shared_task(base=DjangoTask)
def total(numbers: list[int]) -> int:
    """Add numbers."""
    return sum(numbers)
