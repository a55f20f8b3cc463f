"""Tasks of the test project, each for one behaviour."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from celery import Task, shared_task
from celery.exceptions import Ignore
from pydantic import SecretStr


@shared_task
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@shared_task
def fail(message: str = "no") -> None:
    """Fail with a message."""
    raise ValueError(message)


@shared_task(bind=True, max_retries=5)
def fail_twice(self: Task, path: str) -> str:
    """Fail twice, then succeed; each attempt adds a letter to a file."""
    attempts = Path(path)
    attempts.write_text((attempts.read_text() if attempts.exists() else "") + "x")
    if self.request.retries < 2:
        raise self.retry(countdown=0, exc=ValueError("not yet"))
    return attempts.read_text()


@shared_task
def ignore() -> None:
    """Ask to be ignored."""
    raise Ignore


@shared_task
def wait_for_file(path: str, seconds: float = 30) -> str:
    """Return the text of a file as soon as it exists."""
    deadline = time.monotonic() + seconds
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)
    return Path(path).read_text()


@shared_task
def tell_secret(path: str, password: str, hint: SecretStr | None = None) -> None:
    """Write two secrets to a file."""
    Path(path).write_text(f"{password}/{hint}")


@shared_task
def return_secret(password: str, pin: int, api_key: str = "") -> dict[str, object]:
    """Be careless with secrets in the result."""
    return {"password": password, "text": f"it is {password}", password: [api_key]}


@shared_task(bind=True, max_retries=1)
def fail_with_secret(self: Task, password: str) -> None:
    """Be careless with a secret in an exception, in each attempt."""
    raise self.retry(countdown=0, exc=ValueError(f"wrong password {password}"))


@shared_task
def return_an_object() -> object:
    """Return what JSON can't hold."""
    return object()


class Unspeakable:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@shared_task
def return_unspeakable() -> Unspeakable:
    """Return what has no text."""
    return Unspeakable()


class Order:
    """Has a text of its own."""

    def __str__(self) -> str:
        return "order 7"


@shared_task
def return_an_order() -> Order:
    """Return what JSON can't hold, and has a text."""
    return Order()


@shared_task
def return_much(size: int) -> str:
    """Return a long text."""
    return "x" * size


@shared_task
def return_hostile() -> dict[str, str]:
    """Return text that not every database can store."""
    return {"nul": "a\x00b", "half": "\ud800"}


@shared_task
def kill_own_process() -> None:
    """End the pool's process without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
