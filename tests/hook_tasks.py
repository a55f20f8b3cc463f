"""Tasks that write down what their hooks are told, and what they know of their run."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

from celery import shared_task
from celery.exceptions import TimeoutError

from celery_admin_runner.base import DjangoTask
from celery_admin_runner.queues import TaskQueue
from celery_admin_runner.states import State

#: A file of lines for each run: what was told, in order.
FOLDER = Path(os.environ["TEST_FOLDER"]) / "hooks"
FOLDER.mkdir(exist_ok=True)


class Queue(TaskQueue):
    """The queues of these tests."""

    FAST = "hooks-fast", {"time_limit": 30, "soft_time_limit": 20, "priority": 3, "expires": 600}
    SLOW = "hooks-slow", {"time_limit": 3000}
    PLAIN = "hooks-plain"


def told(key: str) -> list[list[Any]]:
    """Return what the hooks of the run, or the call, with this id were told."""
    path = FOLDER / key
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_down(key: str, *values: Any) -> None:
    """Add a line, whole."""
    with (FOLDER / key).open("a") as file:
        file.write(json.dumps(values, default=str) + "\n")


class HookedTask(DjangoTask):
    """Writes down each hook, by the first id it is given."""

    def on_invocation_apply(self, invocation_id, args, kwargs, options, result):
        write_down(invocation_id, "apply", args, kwargs, sorted(options), result.id)

    def on_invocation_trigger(self, invocation_id, args, kwargs, task_id, options, result):
        write_down(invocation_id, "trigger", args, kwargs, task_id, sorted(options), result.id)

    def on_invocation_unique(self, invocation_id, args, kwargs, task_id, options, result):
        write_down(invocation_id, "unique", args, kwargs, task_id, sorted(options), result.id)

    def on_invocation_ignored(self, invocation_id, args, kwargs, task_id, options, result):
        write_down(invocation_id, "ignored", args, kwargs, task_id, sorted(options), result.id)

    def on_invocation_timeout(self, invocation_id, args, kwargs, task_id, ex, options, result):
        write_down(invocation_id, "timeout", args, kwargs, task_id, type(ex).__name__, result.id)

    def on_task_start(self, task_id, args, kwargs):
        write_down(task_id, "start", args, kwargs, self.request.retries)

    def on_task_retry(self, task_id, args, kwargs, exc, eta):
        write_down(task_id, "retry", args, kwargs, repr(exc), eta.isoformat())

    def on_task_failure(self, task_id, args, kwargs, exc, einfo):
        write_down(task_id, "failure", args, kwargs, repr(exc), type(einfo).__name__)

    def on_task_success(self, task_id, args, kwargs, retval):
        write_down(task_id, "success", args, kwargs, retval)


class LoudTask(DjangoTask):
    """Has hooks that fail."""

    def on_invocation_apply(self, *arguments):
        raise LookupError("apply")

    def on_invocation_trigger(self, *arguments):
        raise LookupError("trigger")

    def on_invocation_timeout(self, *arguments):
        raise LookupError("timeout")

    def on_task_retry(self, *arguments):
        raise LookupError("retry")

    def on_task_failure(self, *arguments):
        raise LookupError("failure")

    def on_task_success(self, *arguments):
        raise LookupError("success")


class TenantTask(DjangoTask):
    """Has an ``apply_async`` of its own, as many projects do."""

    def apply_async(self, args=None, kwargs=None, **options):
        kwargs = {**(kwargs or {}), "tenant": "north"}
        return super().apply_async(args, kwargs, **options)


@shared_task(base=TenantTask, track=True)
def of_a_tenant(*, tenant: str) -> str:
    """Have an argument that no caller gives."""
    return tenant


@shared_task(base=HookedTask)
def double(number: int, factor: int = 2) -> int:
    """Multiply."""
    return number * factor


@shared_task(base=HookedTask, track=True)
def tracked_double(number: int, factor: int = 2) -> int:
    """Multiply, with a row."""
    return number * factor


@shared_task(base=HookedTask, bind=True, default_retry_delays=(0.2, timedelta(seconds=0.3)))
def fail_until(self: DjangoTask, attempt: int) -> str:
    """Fail in each attempt before this one."""
    if self.request.retries < attempt:
        raise self.retry(exc=ValueError(f"attempt {self.request.retries}"))
    return "done"


@shared_task(base=DjangoTask, bind=True, default_retry_delays=(60, 120, timedelta(minutes=3)))
def stubborn(self: DjangoTask, **options: Any) -> None:
    """Fail each time, and be tried again with these options."""
    raise self.retry(exc=ValueError("no"), **options)


@shared_task(
    base=DjangoTask, autoretry_for=(ValueError,), default_retry_delays=(60, 120, 180), bind=True
)
def fail_by_itself(self: DjangoTask, **options: Any) -> None:
    """Fail each time, and be tried again by Celery."""
    if options:
        raise self.retry(exc=ValueError("no"), **options)
    raise ValueError("no")


@shared_task(
    base=DjangoTask, autoretry_for=(ValueError,), default_retry_delays=(60, 120, 180), bind=True
)
def give_up(self: DjangoTask, **options: Any) -> None:
    """Fail, and let this run, or Celery, say what follows."""
    if options:
        raise self.retry(exc=ValueError("no"), **options)
    raise ValueError("no")


@shared_task(
    base=DjangoTask,
    autoretry_for=(ValueError,),
    default_retry_delays=(60, 120, 180),
    retry_backoff=7,
    retry_jitter=False,
)
def back_off() -> None:
    """Fail each time, and be tried again ever later."""
    raise ValueError("no")


@shared_task(
    base=DjangoTask,
    autoretry_for=(ValueError,),
    default_retry_delays=(60, 120, 180),
    retry_kwargs={"max_retries": 5, "countdown": 9},
)
def fail_often() -> None:
    """Fail each time, and be tried again as it says itself."""
    raise ValueError("no")


@shared_task(base=DjangoTask, bind=True, default_retry_delays=(60, 120, 180), max_retries=1)
def fail_twice(self: DjangoTask) -> None:
    """Fail each time, and be tried again once."""
    raise self.retry(exc=ValueError("no"))


@shared_task(base=DjangoTask, queue=Queue.FAST)
def on_fast_queue() -> None:
    """Belong to a queue."""


@shared_task(base=DjangoTask, queue=Queue.FAST, time_limit=400)
def patient_on_fast_queue() -> None:
    """Belong to a queue, and have a limit of its own."""


@shared_task(base=DjangoTask, queue="hooks-named")
def on_named_queue() -> None:
    """Belong to a queue that is only a name."""


@shared_task(base=LoudTask)
def loud() -> str:
    """Do something, whatever its hooks do."""
    return "done"


@shared_task(base=LoudTask, bind=True, track=True, max_retries=1)
def end_loudly(self: DjangoTask, end: str) -> str:
    """End as asked, whatever the hooks of the end do."""
    if end == State.RETRY:
        raise self.retry(exc=ValueError("no"))
    if end == State.FAILURE:
        raise ValueError("no")
    return "done"


@shared_task(base=DjangoTask)
def time_out() -> None:
    """Fail as if it had waited for something itself."""
    raise TimeoutError("mine")


@shared_task(base=DjangoTask, bind=True)
def tell_context(self: DjangoTask, *ignored: Any, key: str = "", fail: bool = False) -> list[str]:
    """Write down the context of this run, and fail the first time if that is asked for."""
    context = self.run_context
    values = [] if context is None else context.values
    write_down(key or self.request.id, "context", values, self.request.retries)
    if fail and not self.request.retries:
        raise self.retry(countdown=0.1, exc=ValueError("once"))
    return values


@shared_task(base=DjangoTask, bind=True)
def tell_child(self: DjangoTask, key: str) -> None:
    """Let a child tell its context."""
    tell_context.apply_async(kwargs={"key": key})


#: In a worker with two threads: neither goes on before both are here.
_both = Barrier(2, timeout=30)


@shared_task(base=DjangoTask, bind=True)
def tell_context_together(self: DjangoTask) -> None:
    """Tell the context while another run tells its own."""
    _both.wait()
    write_down(self.request.id, "context", self.run_context and self.run_context.values)
    _both.wait()
