"""Tasks of the test project, each for one behaviour."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from celery import Task, group, shared_task
from celery.exceptions import Ignore, Reject
from django.contrib.auth.models import User
from django.db import transaction
from pydantic import SecretStr

from celery_admin_runner.base import DjangoTask
from celery_admin_runner.exceptions import RunCancelled
from celery_admin_runner.runner import TaskRunner


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
    """Return the text of a file as soon as it has one."""
    deadline = time.monotonic() + seconds
    while not (Path(path).exists() and (text := Path(path).read_text())):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)
    return text


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


def add_letter(path: str) -> str:
    """Add a letter to a file, and return what it holds."""
    file = Path(path)
    file.write_text((file.read_text() if file.exists() else "") + "x")
    return file.read_text()


@shared_task(acks_late=True, reject_on_worker_lost=True)
def die_at_first(path: str) -> str:
    """End the pool's process at the first delivery; the message is delivered again then."""
    if add_letter(path) == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(path).read_text()


@shared_task(acks_late=True)
def reject() -> None:
    """Reject the message."""
    raise Reject("not for me", requeue=False)


@shared_task(acks_late=True)
def reject_at_first(path: str) -> str:
    """Reject the first delivery, for another worker to take it."""
    if add_letter(path) == "x":
        raise Reject("not now", requeue=True)
    return Path(path).read_text()


@shared_task
def exit_process() -> None:
    """End the pool's process in Python's own way."""
    raise SystemExit(3)


@shared_task
def exit_with_secret(password: str) -> None:
    """End the thread, and be careless with a secret."""
    raise SystemExit(f"bad {password}")


@shared_task
def stop_with_secret(password: str) -> None:
    """Say that it was cancelled, and be careless with a secret."""
    raise RunCancelled(f"stop {password}")


@shared_task
def stop_itself() -> None:
    """Say that it was cancelled."""
    raise RunCancelled("Cancelled half way.")


@shared_task(time_limit=1)
def exceed_hard_limit() -> None:
    """Run longer than it may."""
    time.sleep(30)


@shared_task(soft_time_limit=1)
def exceed_soft_limit() -> None:
    """Run longer than it is asked to."""
    time.sleep(30)


@shared_task(ignore_result=True)
def return_in_vain() -> int:
    """Return what nobody stores but we."""
    return 7


@shared_task(bind=True, max_retries=1)
def retry_later(self: Task, seconds: float) -> str:
    """Fail, and be tried again after so many seconds."""
    if self.request.retries == 0:
        raise self.retry(countdown=seconds, exc=ValueError("not yet"))
    return "later"


@shared_task
def apply_others() -> int:
    """Run other tasks right here, one of which fails."""
    fail.apply()
    return int(add.apply([1]).get(disable_sync_subtasks=False))


@shared_task(bind=True)
def replace_itself(self: Task) -> None:
    """Let another task do it, under the same id."""
    raise self.replace(add.s(20, 22))


@shared_task(base=DjangoTask)
def guarded(path: str) -> str:
    """Add a letter to a file, if the journal lets it start."""
    return add_letter(path)


@shared_task
def run_another() -> str:
    """Run a task through a TaskRunner; return its id."""
    return TaskRunner().run("tests.tasks.add", [1]).task_id


@shared_task(name="tests.tracked.add")
def tracked_add(a: int, b: int = 2) -> int:
    """Add two numbers, in the journal."""
    return a + b


@shared_task(name="tests.tracked.fail_twice", bind=True, max_retries=5)
def tracked_fail_twice(self: Task) -> int:
    """Fail twice, then succeed."""
    if self.request.retries < 2:
        raise self.retry(countdown=0, exc=ValueError("not yet"))
    return self.request.retries


@shared_task(name="tests.tracked.know_secrets")
def tracked_know_secrets(password: str, hint: SecretStr | None = None, **more: object) -> None:
    """Take secrets."""


@shared_task(name="tests.tracked.start_another")
def tracked_start_another(depth: int = 0) -> str:
    """Start a task, or a task that starts one; return the first one's id."""
    task = tracked_start_another.s(depth - 1) if depth else tracked_add.s(1)
    return task.delay().id


@shared_task(name="tests.tracked.sum")
def tracked_sum(numbers: list[int]) -> int:
    """Add numbers."""
    return sum(numbers)


@shared_task
def start_canvas() -> list[str]:
    """Start a group and a chain; return the ids of their tasks."""
    members = group(tracked_add.s(1), tracked_add.s(2)).apply_async()
    last = (tracked_add.s(1) | tracked_add.s(10)).apply_async()
    return [*(member.id for member in members), last.parent.id, last.id]


@shared_task
def start_another_and_lock_its_user(user_id: int) -> list[object]:
    """Start a task in a transaction that holds the user; return its id, and how long that took."""
    with transaction.atomic():
        User.objects.filter(pk=user_id).update(first_name="Locked")
        start = time.monotonic()
        task_id = tracked_add.delay(1).id
        return [task_id, time.monotonic() - start]
